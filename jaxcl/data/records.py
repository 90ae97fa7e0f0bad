"""ArrayRecord files of encoded images and labels.

A folder holds

    data-00000-of-00002.array_record ...    the records
    labels.npy                              all labels i32[N, L], known without reading records
    dataset.json                            format, label tree, records and bytes of each shard,
                                            content id; written last

and a record is the number of labels L (u32, little-endian), L labels (i32, little-endian, -1 for
missing), and an image file as it is (JPEG, PNG, ...).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from grain.sources import ArrayRecordDataSource

from jaxcl.data.base import BadExample, Described, Example
from jaxcl.data.decode import MAX_PIXELS, decode
from jaxcl.data.labels import Labels, LabelTree

FORMAT = "jaxcl-records-1"
_MANIFEST = "dataset.json"
_LABELS = "labels.npy"


def pack_record(image: bytes, label: Sequence[int]) -> bytes:
    """An image file and its labels as one record."""
    return struct.pack(f"<I{len(label)}i", len(label), *label) + image


def unpack_record(record: bytes) -> tuple[bytes, Labels]:
    """The inverse of `pack_record`: the image file and its labels i32[L].

    Raises:
      ValueError: the record is shorter than its header says.
    """
    if len(record) < 4:
        raise ValueError(f"a record of {len(record)} bytes has no header")
    (depth,) = struct.unpack_from("<I", record)
    start = 4 + 4 * depth
    if start > len(record):
        raise ValueError(f"a record of {len(record)} bytes cannot hold {depth} labels")
    return record[start:], np.frombuffer(record, "<i4", depth, 4).astype(np.int32)


def write_records(
    folder: str | os.PathLike[str],
    examples: Iterable[tuple[bytes, Sequence[int]]],
    tree: LabelTree,
    shard_size: int = 10_000,
) -> None:
    """Writes examples (an image file as bytes, its labels) as records.

    Args:
      folder: where to write; made if missing, must hold no records yet.
      examples: consumed once, in order.
      tree: what the labels mean.
      shard_size: records of a file.

    Raises:
      ValueError: the folder holds records, there are no examples, or labels do not fit the tree.
    """
    folder = Path(folder)
    if (folder / _MANIFEST).exists():
        raise ValueError(f"{str(folder)!r} holds records already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(digest_size=16)
    labels: list[Sequence[int]] = []
    counts: list[int] = []
    for shard in _shards(examples, shard_size):
        # The number of shards is in their names, and is known at the end only.
        writer = array_record_module.ArrayRecordWriter(
            str(folder / f"part-{len(counts):05d}"), "group_size:1"
        )
        counts.append(0)
        for image, label in shard:
            record = pack_record(image, label)
            writer.write(record)
            digest.update(hashlib.blake2b(record).digest())
            labels.append(label)
            counts[-1] += 1
        writer.close()
    if not labels:
        raise ValueError(f"no examples to write into {str(folder)!r}")
    np.save(
        folder / _LABELS, tree.check(np.array(labels).reshape(len(labels), -1)), allow_pickle=False
    )
    shards = []
    for i, count in enumerate(counts):
        name = f"data-{i:05d}-of-{len(counts):05d}.array_record"
        (folder / f"part-{i:05d}").rename(folder / name)
        shards.append({"file": name, "records": count, "bytes": (folder / name).stat().st_size})
    digest.update(repr((tree.levels, tree.names)).encode())
    manifest = {
        "format": FORMAT,
        "content_id": digest.hexdigest(),
        "levels": list(tree.levels),
        "names": [list(names) for names in tree.names],
        "unique": tree.unique,
        "shards": shards,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _shards(
    examples: Iterable[tuple[bytes, Sequence[int]]], size: int
) -> Iterator[Iterable[tuple[bytes, Sequence[int]]]]:
    examples = iter(examples)
    for first in examples:
        yield itertools.chain([first], itertools.islice(examples, size - 1))


class RecordsSource(Described):
    """The images of a folder that `write_records` has written."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        unique: bool = False,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Opens the files and checks that all of them are there and whole in size.

        Args:
          folder: the folder with `dataset.json`.
          unique: declare the tree unique (see `LabelTree`), whatever the manifest says.
          channels: 3 or 1.
          max_pixels: larger images are bad examples.

        Raises:
          ValueError: no such folder, another format, a shard is missing or has another size or
            number of records, or labels do not fit the tree.
        """
        folder = Path(folder)
        self._folder = folder
        manifest = _read_manifest(folder)
        self.content_id: str = manifest["content_id"]
        self.tree = _tree(manifest, unique)
        paths = []
        for shard in manifest["shards"]:
            paths.append(folder / shard["file"])
            found = paths[-1].stat().st_size if paths[-1].is_file() else "no such file"
            if found != shard["bytes"]:
                raise ValueError(
                    f"{shard['file']!r} in {str(folder)!r}: expected {shard['bytes']} bytes, "
                    f"found {found}; copy the data set again"
                )
        try:
            labels = np.load(folder / _LABELS, allow_pickle=False)
            self._records = ArrayRecordDataSource([str(path) for path in paths])
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            raise ValueError(f"the records in {str(folder)!r} cannot be opened: {error}") from error
        expected = sum(shard["records"] for shard in manifest["shards"])
        if not len(self._records) == len(labels) == expected:
            raise ValueError(
                f"{str(folder)!r} should have {expected} records, but its files have "
                f"{len(self._records)} and {_LABELS} has {len(labels)} labels"
            )
        self.labels = self.tree.check(labels)
        self._channels = channels
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one record."""
        name = self.name(index)
        try:
            image, label = unpack_record(self._records[index])
        except (OSError, ValueError, RuntimeError) as error:
            raise BadExample(name, f"the record cannot be read: {error}") from error
        if not np.array_equal(label, self.labels[index]):
            raise BadExample(
                name, f"has the labels {label.tolist()}, not those of {_LABELS}: shards are mixed"
            )
        pixels = decode(image, name, self._channels, self._max_pixels)
        return {"image": pixels, "label": self.labels[index]}

    def name(self, index: int) -> str:
        """The number of the record."""
        return f"record {index}"

    def place(self, index: int) -> str:
        """The number of the record, and the folder."""
        return f"{self._folder}, record {index}"


def read_tree(folder: str | os.PathLike[str]) -> LabelTree:
    """The label tree of a folder of records, without opening them.

    Raises:
      ValueError: no such folder, or of another format.
    """
    return _tree(_read_manifest(Path(folder)))


def _tree(manifest: dict[str, Any], unique: bool = False) -> LabelTree:
    names = tuple(tuple(names) for names in manifest["names"])
    return LabelTree(tuple(manifest["levels"]), names, manifest["unique"] or unique)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read: {error}; expected a folder written by write_records"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} is not of the format {FORMAT!r}")
    return manifest
