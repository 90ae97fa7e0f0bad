"""Data sets prepared by TensorFlow Datasets, read without TensorFlow.

A data set must have been prepared as ArrayRecord files, for which TensorFlow is needed once:
`tfds build NAME --file_format=array_record`, or
`tfds.builder(NAME, file_format="array_record").download_and_prepare()`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from jaxcl.data.base import BadExample, Described, Example
from jaxcl.data.decode import MAX_PIXELS, decode
from jaxcl.data.labels import Labels, LabelTree

KEPT_FROM = 10_000
"""Records from which on their labels are kept in a file; fewer are read in a moment."""

READ_AT_ONCE = 1024
"""Records that are read together when all labels are needed."""


class TfdsSource(Described):
    """A split of a prepared TensorFlow data set."""

    def __init__(
        self,
        dataset: str,
        split: str,
        data_dir: str = "",
        *,
        image_key: str = "image",
        label_keys: Sequence[str] | None = None,
        unique: bool = False,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Opens the data set.

        Args:
          dataset: its name, with "/config:version" if wanted.
          split: a split, or a part of one, "train[:90%]".
          data_dir: where it was prepared; "" is the default of TFDS.
          image_key: the image feature.
          label_keys: `ClassLabel` features, coarse to fine; None means "label" if there is one.
          unique: declare the label tree unique; checked when `labels` is read.
          channels: 3 or 1.
          max_pixels: larger images are bad examples.

        Raises:
          ValueError: not prepared (as ArrayRecord files), no such split, or no such features.
        """
        # TFDS takes a second to import, and nobody else needs it.
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(dataset, data_dir=data_dir or None)
        except (tfds.core.DatasetNotFoundError, AssertionError, OSError) as error:
            first_line = str(error).partition("\n")[0]
            raise ValueError(
                f"TFDS has no data set {dataset!r} in {data_dir or 'its default data_dir'!r}: "
                f"{first_line}"
            ) from error
        features = builder.info.features
        if not isinstance(dict(features).get(image_key), tfds.features.Image):
            raise ValueError(f"{dataset!r} has no image feature {image_key!r}: it has {features}")
        if label_keys is None:
            label_keys = ("label",) if "label" in features else ()
        for key in label_keys:
            if not isinstance(dict(features).get(key), tfds.features.ClassLabel):
                raise ValueError(f"{dataset!r} has no ClassLabel {key!r}: it has {features}")
        try:
            self._records = builder.as_data_source(
                split=split,
                decoders={
                    key: tfds.decode.SkipDecoding() for key in features if key not in label_keys
                },
            )
        except (ValueError, KeyError, NotImplementedError, AssertionError, OSError) as error:
            raise ValueError(
                f"the split {split!r} of {dataset!r} cannot be opened (it has "
                f"{sorted(builder.info.splits)}): {error}. Data must be prepared as ArrayRecord "
                f"files: tfds build {dataset} --file_format=array_record"
            ) from error
        self._split = split
        self._full_name = builder.info.full_name
        self._image_key = image_key
        self._label_keys = tuple(label_keys)
        self.tree = LabelTree(
            self._label_keys, tuple(tuple(features[key].names) for key in label_keys), unique
        )
        self.content_id = _content_id(builder.info, split, (image_key, *label_keys))
        self._place = epath.Path(builder.data_dir)
        self._channels = channels
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one record."""
        record = self._record(index)
        image = decode(record[self._image_key], self.name(index), self._channels, self._max_pixels)
        return {"image": image, "label": self._label(record)}

    @functools.cached_property
    def labels(self) -> Labels:
        """All labels i32[N, L].

        The first use reads every record once, without decoding images. Those of a large split are
        then kept in a file beside the data, under its content id, and read from there.
        """
        if not self._label_keys:
            return np.full((len(self), 0), -1, np.int32)
        if len(self) < KEPT_FROM:
            return self.tree.check(self._read_labels())
        kept = self._place / f"labels-{self.content_id}.npy"
        labels = self._kept_labels(kept)
        if labels is None:
            logging.info("%s: reading the labels of %d records", self._full_name, len(self))
            labels = self.tree.check(self._read_labels())
            _keep(kept, labels)
        return labels

    def _read_labels(self) -> Labels:
        labels = np.empty((len(self), len(self._label_keys)), np.int32)
        for start in range(0, len(self), READ_AT_ONCE):
            rows = range(start, min(start + READ_AT_ONCE, len(self)))
            try:
                records = self._records.__getitems__(rows)
            except (ValueError, RuntimeError, OSError):
                records = [self._record(i) for i in rows]  # which names the one that is unreadable
            labels[rows.start : rows.stop] = [self._label(record) for record in records]
        return labels

    def _kept_labels(self, kept: epath.Path) -> Labels | None:
        """Labels of an earlier use; None if there are none, or no such ones."""
        try:
            labels = np.load(io.BytesIO(kept.read_bytes()), allow_pickle=False)
            if len(labels) != len(self):
                raise ValueError(f"{len(labels)} labels of {len(self)} records")
            return self.tree.check(labels)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError) as error:
            logging.warning("%s is not used, the labels are read anew: %s", kept, error)
            return None

    def name(self, index: int) -> str:
        """Data set, split and number."""
        return f"{self._full_name} {self._split} {index}"

    def _record(self, index: int) -> dict[str, Any]:
        try:
            return self._records[index]
        except (ValueError, RuntimeError, OSError) as error:
            raise BadExample(self.name(index), f"the record cannot be read: {error}") from error

    def _label(self, record: dict[str, Any]) -> Labels:
        return np.array([record[key] for key in self._label_keys], np.int32)


def _content_id(info: Any, split: str, keys: tuple[str, ...]) -> str:
    """Digest of what the preparation recorded: name, version, features, shards and their bytes."""
    shards = [(name, s.num_bytes, list(s.shard_lengths)) for name, s in sorted(info.splits.items())]
    facts = (info.full_name, split, keys, repr(info.features), shards)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _keep(path: epath.Path, labels: Labels) -> None:
    """Writes labels for the next use, whole or not at all; says so if it cannot."""
    text = io.BytesIO()
    np.save(text, labels, allow_pickle=False)
    new = path.parent / f"{path.name}.{os.getpid()}"
    try:
        new.write_bytes(text.getvalue())
        new.replace(path)
    except OSError as error:
        logging.warning("the labels cannot be kept for the next use: %s", error)
