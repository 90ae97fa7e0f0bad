"""The images that were skipped: each named once in a file, by the place where it is, the first ones said too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from jaxcl.data.base import BadExample, Source

SHOWN = 20
"""Images that are said; the others stand in the file only."""

REMOTE_SECONDS = 60.0  # a bucket cannot be appended to: the file is replaced about this often


class Skipped:
    """Counts the bad images of batches, and names each of them once, however often it is met.

    As a context it writes at the end what a bucket has not been given yet.

    Attributes:
      total: bad images counted so far.
    """

    def __init__(
        self, say: Callable[[str], None], path: epath.Path | None = None, resume: bool = False
    ) -> None:
        """Reads what is named already.

        Args:
          say: gets a line for each of the first `SHOWN` images, and one that says where the others are.
          path: the file, a line "place <tab> reason" for each image; it is made with the first one, and
            one process writes it. None for no file.
          resume: whether the images that are named in the file stay there, and are not said again;
            else the file is removed.
        """
        self._say = say
        self._path = path
        self._remote = path is not None and "://" in os.fspath(path)
        self._names: set[str] = set()
        self._text = ""  # of a bucket's file, which is written as a whole
        self._written, self._time = 0, -REMOTE_SECONDS
        self._new = 0
        self.total = 0
        if path is not None and path.exists():
            if resume:
                self._read(path)
            else:
                path.unlink()

    def count(self, batch: Mapping[str, Any], source: Source) -> int:
        """How many bad images of a batch were skipped, those that have been named before included.

        Args:
          batch: from `train_batches` or `eval_batches`.
          source: the source of the batch.

        Raises:
          OSError: the file cannot be written.
        """
        bad = [i for i in batch["skipped"].tolist() if i >= 0]
        self.total += len(bad)
        new = {}
        for index in bad:
            name = repr(source.place(index))  # which has no tabs and line breaks
            if name not in self._names:
                self._names.add(name)
                new[name] = _reason(source, index)
        if new:
            self._tell(new)
            self._write("".join(f"{name}\t{reason}\n" for name, reason in new.items()))
        return len(bad)

    def flush(self) -> None:
        """Writes what a bucket has not been given yet."""
        if self._path is not None and len(self._text) > self._written:
            self._path.write_text(self._text)
            self._written, self._time = len(self._text), time.monotonic()

    def __enter__(self) -> Skipped:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.flush()
        except Exception as failed:
            if error is None:
                raise
            # What is under way is the cause, and what a caller must see.
            self._say(f"{self._path} could not be written: {failed}")

    def _read(self, path: epath.Path) -> None:
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        whole = content[:end].decode(errors="replace")
        if end < len(content):  # a process that was killed has left a part of a line
            path.write_bytes(content[:end])
        lines = whole.splitlines()
        self._names = {line.partition("\t")[0] for line in lines}
        if self._remote:
            self._text, self._written = whole, len(whole)
        if lines:
            self._say(f"images that cannot be read, {len(lines):,} until now, are named in {path}")

    def _tell(self, new: Mapping[str, str]) -> None:
        room = max(0, SHOWN - self._new)
        for name, reason in list(new.items())[:room]:
            self._say(f"skipped, cannot be read: {name}: {reason}")
        if self._new <= SHOWN < self._new + len(new):
            where = f"named in {self._path}" if self._path else "skipped without a line"
            self._say(f"more images cannot be read; they are {where}")
        self._new += len(new)

    def _write(self, text: str) -> None:
        if self._path is None:
            return
        if not self._remote:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                error.filename = str(self._path)  # "No space left on device" alone names no file
                raise
            return
        self._text += text
        if time.monotonic() - self._time > REMOTE_SECONDS:
            self.flush()


def _reason(source: Source, index: int) -> str:
    """Why an example cannot be read, in a line."""
    try:
        source[index]
    except BadExample as error:
        return " ".join(error.reason.split()).encode(errors="backslashreplace").decode()
    return "could not be read then, but can be now"
