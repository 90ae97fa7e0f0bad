"""A bucket of Google Cloud Storage in memory, with two doors and no network but the loopback.

TensorStore's own client comes in by HTTP (the part of the JSON API that it uses). `epath` comes in through fsspec, by a file
system in the place of gcsfs, with the habits of a bucket: nothing can be appended to, and a directory is there if something is in it.
"""

import contextlib
import io
import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

from etils.epath import backend
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem


class Objects:
    """The objects of all buckets: "bucket/name" -> (contents, generation)."""

    def __init__(self):
        self.lock = threading.Lock()
        self.contents = {}
        self.generations = itertools.count(1)

    def write(self, key, data, query=None):
        with self.lock:
            if self.refuses(key, query or {}):
                return None
            self.contents[key] = (bytes(data), next(self.generations))
            return self.contents[key][1]

    def refuses(self, key, query):
        """Whether a condition on the generation is not met; 0 is that of an absent object."""
        now = self.contents.get(key, (b"", 0))[1]
        return int(query.get("ifGenerationMatch", now)) != now

    def names(self):
        return sorted(self.contents)


def handler(objects):
    """The HTTP door."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, body=b"", **headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(body)

        def asked(self):
            """(bucket, object or "", query) of [/upload]/storage/v1/b/BUCKET/o[/OBJECT]?QUERY."""
            url = urlsplit(self.path)
            parts = url.path.removeprefix("/upload").split("/")
            name = unquote("/".join(parts[6:]))
            return unquote(parts[4]), name, dict(parse_qsl(url.query))

        def do_GET(self):
            bucket, name, query = self.asked()
            if not name:
                return self.listing(bucket, query)
            found = objects.contents.get(f"{bucket}/{name}")
            if found is None:
                return self.answer(404)
            data, generation = found
            if objects.refuses(f"{bucket}/{name}", query):
                return self.answer(412)
            if query.get("ifGenerationNotMatch") == str(generation):
                return self.answer(304, x_goog_generation=generation)
            span = self.headers.get("Range", "")
            if not span:
                return self.answer(200, data, x_goog_generation=generation)
            first, _, last = span.removeprefix("bytes=").partition("-")
            begin = int(first) if first else len(data) - int(last)
            end = min(int(last) + 1 if first and last else len(data), len(data))
            return self.answer(
                206,
                data[begin:end],
                x_goog_generation=generation,
                Content_Range=f"bytes {begin}-{end - 1}/{len(data)}",
            )

        def listing(self, bucket, query):
            prefix = f"{bucket}/{query.get('prefix', '')}"
            items = [
                {
                    "name": key.removeprefix(f"{bucket}/"),
                    "size": str(len(objects.contents[key][0])),
                    "generation": str(objects.contents[key][1]),
                }
                for key in objects.names()
                if key.startswith(prefix)
                and key >= f"{bucket}/{query.get('startOffset', '')}"
                and ("endOffset" not in query or key < f"{bucket}/{query['endOffset']}")
            ]
            self.answer(200, {"items": items}, Content_Type="application/json")

        def do_POST(self):
            bucket, _, query = self.asked()
            name, data = query["name"], self.rfile.read(int(self.headers["Content-Length"]))
            generation = objects.write(f"{bucket}/{name}", data, query)
            if generation is None:
                return self.answer(412)
            described = {"name": name, "bucket": bucket, "generation": str(generation)}
            return self.answer(200, described, Content_Type="application/json")

        def do_DELETE(self):
            bucket, name, query = self.asked()
            with objects.lock:
                if objects.refuses(f"{bucket}/{name}", query):
                    return self.answer(412)
                found = objects.contents.pop(f"{bucket}/{name}", None)
            return self.answer(204 if found else 404)

    return Handler


def file_system(objects):
    """The door for epath."""

    class Bucket(AbstractFileSystem):
        protocol = ("gcs", "gs")
        cachable = False

        def ls(self, path, detail=True, **_):
            path = self._strip_protocol(path)
            if path in objects.contents:
                found = {path: "file"}
            else:
                below = [key for key in objects.names() if key.startswith(f"{path}/")]
                children = {key: key[len(path) + 1 :].partition("/") for key in below}
                found = {
                    f"{path}/{child}": "directory" if slash else "file"
                    for child, slash, _ in children.values()
                }
            if not found:
                raise FileNotFoundError(path)
            if not detail:
                return sorted(found)
            return [
                {
                    "name": key,
                    "type": kind,
                    "size": len(objects.contents[key][0]) if kind == "file" else 0,
                }
                for key, kind in sorted(found.items())
            ]

        def _open(self, path, mode="rb", **_):
            if mode == "rb":
                if path not in objects.contents:
                    raise FileNotFoundError(path)
                return io.BytesIO(objects.contents[path][0])
            assert mode == "wb", f"a bucket cannot open {path} with {mode}"
            return Upload(path)

        def cp_file(self, path1, path2, **_):
            path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
            if path1 in objects.contents:  # and not a directory
                objects.write(path2, objects.contents[path1][0])

        def _rm(self, path):
            objects.contents.pop(self._strip_protocol(path), None)

        def mkdir(self, path, create_parents=True, **_):
            pass

        def makedirs(self, path, exist_ok=False):
            pass

        def rmdir(self, path):
            pass

    class Upload(io.BytesIO):
        def __init__(self, path):
            super().__init__()
            self.path = path

        def close(self):
            if not self.closed:
                objects.write(self.path, self.getvalue())
            super().close()

    return Bucket


@contextlib.contextmanager
def served(patch):
    """Within, every gs:// path is in memory; gives the `Objects`."""
    objects = Objects()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(objects))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    patch.setenv("EPATH_USE_TF", "false")
    for name in ("gcs", "gs"):
        patch.setitem(_registry, name, file_system(objects))
    forget = backend.fsspec_backend._get_filesystem.cache_clear
    forget()
    try:
        yield objects
    finally:
        forget()
        server.shutdown()
        server.server_close()
        thread.join()
