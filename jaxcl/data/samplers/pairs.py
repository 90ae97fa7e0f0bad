"""Batches made of the rows of a table of pairs or triples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jaxcl.data.pairs import PairTable
from jaxcl.data.samplers.base import Indices
from jaxcl.data.samplers.uniform import Uniform


class PairSampler:
    """Every row of a table once an epoch, in a random order of its own for each epoch: batches of whole rows."""

    def __init__(self, table: PairTable, batch_size: int, seed: int = 0) -> None:
        """Makes a sampler of the rows of a table.

        Args:
          table: pairs or triples.
          batch_size: images of a batch, a multiple of 2 or 3.
          seed: of the order.

        Raises:
          ValueError: the batch has no whole number of rows, or more than the table.
        """
        if batch_size % table.size:
            raise ValueError(
                f"batch_size={batch_size}: a batch of {table.kind}s needs a multiple of {table.size} images"
            )
        rows = batch_size // table.size
        if rows > len(table):
            raise ValueError(
                f"batch_size={batch_size}: the batch of {rows} {table.kind}s is larger than the table, which has"
                f" {len(table)}; set batch_size to {len(table) * table.size} or less"
            )
        self.table = table
        self.batch_size = batch_size
        self._rows = Uniform(len(table), rows, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return self._rows.steps_per_epoch

    @property
    def content_id(self) -> str:
        """Digest of the table and its images."""
        return self.table.content_id

    def describe(self) -> str:
        """How many rows and images there are, and what an epoch leaves out."""
        used, images = len(np.unique(self.table.rows)), self.table.images
        rest = f"; {images - used:,} images are in none" if images > used else ""
        respects = f", in {' and '.join(self.table.respects)}" if self.table.respects else ""
        return (
            f"{len(self.table):,} {self.table.kind}s of {used:,} images{respects}{rest}; an epoch leaves out"
            f" {self._rows.left_out} {self.table.kind}s, others each time"
        )

    def indices(self, step: int) -> Indices:
        """The images of the step's rows, those of a row next to each other: i64[B]."""
        return self.table.rows[self._rows.indices(step)].reshape(-1)

    def columns(self, step: int) -> dict[str, npt.NDArray[Any]]:
        """What is known of each image's row, f32[B] each, by the names of `jaxcl.data.pairs`."""
        if self.table.similarity is None:
            return {"triple": np.ones(self.batch_size, np.float32)}
        rows, names = self._rows.indices(step), self.table.respects
        columns = self.table.similarity[rows].reshape(len(rows), -1).T
        keys = [f"pair/{name}" for name in names] if names else ["pair"]
        return {
            key: np.repeat(column, self.table.size)
            for key, column in zip(keys, columns, strict=True)
        }

    def __repr__(self) -> str:
        return f"PairSampler({len(self.table)} {self.table.kind}s, batch_size={self.batch_size})"
