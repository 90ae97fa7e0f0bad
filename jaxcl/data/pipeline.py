"""From a source to batches: sizes, crops on the host, workers, and the rows of each process.

A batch is a pure function of its step, made as a whole by one thread or worker, so that no batch
depends on how many of them there are. Grain keeps the threads and processes and the order.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker
from typing import Any, Protocol

import grain
import numpy as np
import numpy.typing as npt
from absl import flags

from jaxcl.data.arrays import ArraySource
from jaxcl.data.base import BadExample, Source
from jaxcl.data.config import DataConfig
from jaxcl.data.decode import Pixels, fit, set_channels
from jaxcl.data.host_crop import HostCrop
from jaxcl.data.labels import Labels
from jaxcl.data.samplers import ColumnSampler, Sampler
from jaxcl.views import EvalView, ViewProgram

Batch = dict[str, npt.NDArray[Any]]

ENDLESS = 2**40
"""Steps of a training whose end the pipeline does not know."""

MAX_SUBSTITUTES = 1000
"""Bad examples in a row after which skipping gives up."""


def train_batches(
    source: Source,
    sampler: Sampler,
    config: DataConfig,
    start_step: int = 0,
    stop_step: int = ENDLESS,
    *,
    process_index: int = 0,
    process_count: int = 1,
    views: ViewProgram | None = None,
    crop_seed: int = 0,
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `stop_step` - 1, this process's rows of each.

    Process p of P has the rows [p*B/P, (p+1)*B/P) of the global batch B. A batch has
      "image": u8[b, H, W, C]; with crops made on the host u8[b, V, h, w, C],
      "label": i32[b, L], -1 for missing,
      "index": i32[b], which example of the source each row is,
      "skipped": i32[b], the bad example in whose place a row came, or -1,
      "crop/on", "crop/box": bool[b, V], i32[b, V, 4], the crops made on the host if any,
      and the columns of a `ColumnSampler`, f32[b, ...].

    Args:
      source: the data.
      sampler: the examples of each step.
      config: sizes, crops, workers, and what happens to bad examples: with on_bad="error" the
        iterator raises, with "skip" the next good example of the source takes the place.
      start_step: the first step; a resumed run gives its completed steps.
      stop_step: the step before which to end.
      process_index: number of this process.
      process_count: number of processes.
      views: the view program, which says how to crop if config.crop is "host".
      crop_seed: seed of the crops made on the host.

    Raises:
      ValueError: the batch does not divide by the processes, sizes are missing, or the program does
        not begin with a crop.
      BadExample: (while iterating) an example cannot be read.
    """
    batch_size = sampler.batch_size
    if batch_size % process_count:
        raise ValueError(
            f"the batch of {batch_size} cannot be divided by {process_count} processes; choose a "
            f"multiple of {process_count}"
        )
    rows = batch_size // process_count
    first_row = process_index * rows
    steps: _Steps
    if config.crop == "host":
        if views is None:
            raise ValueError("data.crop='host' needs the view program to know the crops")
        crop = HostCrop.of(views, crop_seed)
        steps = _CropSteps(source, config, sampler, start_step, stop_step, first_row, rows, crop)
    else:
        steps = _TrainSteps(source, config, sampler, start_step, stop_step, first_row, rows)
    return _iterate(steps, config)


def eval_batches(
    source: Source,
    batch_size: int,
    config: DataConfig,
    view: EvalView | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in order: the batches of `train_batches`, without crops, plus
      "mask": bool[b], False for rows that fill up the last batch and, with on_bad="skip", for bad
      examples (named in "skipped"). Such rows have black images, label -1 and, filling, index -1.

    Args:
      source: the data.
      batch_size: examples of a global batch; rounded up to a multiple of the processes.
      config: sizes, workers, and what happens to bad examples.
      view: what the images are for; see `image_shape`.
      process_index: number of this process, which gets its contiguous rows of each batch.
      process_count: number of processes.

    Raises:
      ValueError: the batch is empty, or sizes are missing.
      BadExample: (while iterating) an example cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batches of {batch_size} examples: expected 1 or more")
    rows = -(-batch_size // process_count)
    steps = _EvalSteps(source, config, view, rows * process_count, process_index * rows, rows)
    return _iterate(steps, config)


def image_shape(
    source: Source, config: DataConfig, view: EvalView | None = None
) -> tuple[int, int, int]:
    """(H, W, C) of the images of a batch (before crops, if these are made on the device).

    Args:
      source: the data.
      config: sizes.
      view: of an evaluation batch, what it is for. Images are then fitted to the view's `source_size`
        at least: its crop of anything smaller would be enlarged again, and blurred by that. Images in
        memory that have the size of the config stay as they are; the view alone resizes them.

    Raises:
      ValueError: image_size is 0, but the images are not of one size in memory.
    """
    own = source.images.shape[1:3] if isinstance(source, ArraySource) else None
    side = config.image_size
    if not side:
        if own is None:
            raise ValueError(
                f"data.image_size=0 keeps the size of images in memory, but the images of {source!r} "
                f"are files of any size; set data.image_size"
            )
        return (*own, config.channels)
    if view is not None and own != (side, side):
        side = max(side, view.source_size)
    return (side, side, config.channels)


def arrays(batch: Mapping[str, npt.NDArray[Any]]) -> Batch:
    """The part of a batch that goes to the devices."""
    return {key: value for key, value in batch.items() if key != "skipped"}


ADVICE = (
    "repair it, or leave such images out with data.on_bad=skip, which a run may also go on with"
)


class _Steps(Protocol):
    """What Grain reads: a batch for each number from 0 to the length."""

    in_memory: bool

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Batch: ...


class _TrainSteps:
    """Batches of images of one size."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        sampler: Sampler,
        start_step: int,
        stop_step: int,
        first_row: int,
        rows: int,
    ) -> None:
        self.read = _Reader(source, config, "replace")
        self.in_memory = self.read.in_memory
        self.sampler = sampler
        self.steps = range(start_step, stop_step)
        self.rows = slice(first_row, first_row + rows)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> Batch:
        step = self.steps[number]
        batch = self.read(self.sampler.indices(step)[self.rows])
        return _with_columns(batch, self.sampler, step, self.rows)


class _CropSteps:
    """Batches of crops, drawn for each row of the global batch."""

    in_memory = False  # cropping is work for the workers wherever the images are

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        sampler: Sampler,
        start_step: int,
        stop_step: int,
        first_row: int,
        rows: int,
        crop: HostCrop,
    ) -> None:
        self.source = source
        self.skip = config.on_bad == "skip"
        self.channels = config.channels
        self.sampler = sampler
        self.steps = range(start_step, stop_step)
        self.rows = slice(first_row, first_row + rows)
        self.crop = crop

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> Batch:
        step = self.steps[number]
        indices = self.sampler.indices(step)[self.rows]
        batch = _empty(len(indices), (*self.crop.shape, self.channels), self.source.tree.depth)
        views = len(self.crop.probs)
        batch["crop/on"] = np.empty((len(indices), views), bool)
        batch["crop/box"] = np.empty((len(indices), views, 4), np.int32)
        for row, index in enumerate(indices.tolist()):
            image, label, used = _example(self.source, index, self.skip)
            image = set_channels(image, self.channels)
            height, width = image.shape[:2]
            on, box = self.crop.sample(height, width, step, self.rows.start + row)
            batch["image"][row] = self.crop.apply(image, on, box)
            batch["crop/on"][row], batch["crop/box"][row] = on, box
            _note(batch, row, label, index, used)
        return _with_columns(batch, self.sampler, step, self.rows)


class _EvalSteps:
    """All examples in order, the last batch filled up."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        view: EvalView | None,
        batch_size: int,
        first_row: int,
        rows: int,
    ) -> None:
        self.read = _Reader(source, config, "blank", view)
        self.in_memory = self.read.in_memory
        self.total = len(source)
        self.batch_size = batch_size
        self.first_row = first_row
        self.rows = rows

    def __len__(self) -> int:
        return -(-self.total // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        first = number * self.batch_size + self.first_row
        indices = np.arange(first, min(first + self.rows, self.total))
        some = self.read(indices)
        batch = _empty(self.rows, some["image"].shape[1:], some["label"].shape[1])
        for key, value in some.items():
            batch[key][: len(indices)] = value
        batch["mask"] = (batch["index"] >= 0) & (batch["skipped"] < 0)
        return batch


class _Reader:
    """Examples by their indices as a batch of one size; gathered where they are in memory."""

    def __init__(
        self, source: Source, config: DataConfig, skip: str, view: EvalView | None = None
    ) -> None:
        """With on_bad="skip", bad examples are dealt with as `skip` says: "replace" or "blank"."""
        self.source = source
        self.shape = image_shape(source, config, view)
        self.bad = skip if config.on_bad == "skip" else "error"
        # Grey images become colour by repetition, which a whole batch can do at once.
        self.in_memory = (
            isinstance(source, ArraySource)
            and source.images.shape[1:3] == self.shape[:2]
            and source.images.shape[3] <= self.shape[2]
        )

    def __call__(self, indices: npt.NDArray[np.int64]) -> Batch:
        if self.in_memory and isinstance(self.source, ArraySource):
            return {
                "image": set_channels(self.source.images[indices], self.shape[2]),
                "label": self.source.labels[indices],
                "index": indices.astype(np.int32),
                "skipped": np.full(len(indices), -1, np.int32),
            }
        batch = _empty(len(indices), self.shape, self.source.tree.depth)
        for row, index in enumerate(indices.tolist()):
            try:
                image, label, used = _example(self.source, index, self.bad == "replace")
            except BadExample:
                if self.bad != "blank":
                    raise
                batch["index"][row] = batch["skipped"][row] = index
                continue
            batch["image"][row] = fit(image, *self.shape)
            _note(batch, row, label, index, used)
        return batch


def _empty(rows: int, shape: tuple[int, ...], depth: int) -> Batch:
    return {
        "image": np.zeros((rows, *shape), np.uint8),
        "label": np.full((rows, depth), -1, np.int32),
        "index": np.full(rows, -1, np.int32),
        "skipped": np.full(rows, -1, np.int32),
    }


def _note(batch: Batch, row: int, label: Labels, wanted: int, used: int) -> None:
    batch["label"][row] = label
    batch["index"][row] = used
    if used != wanted:
        batch["skipped"][row] = wanted


def _with_columns(batch: Batch, sampler: Sampler, step: int, rows: slice) -> Batch:
    """The batch with the columns of its sampler; NaN where the image that they are about was replaced."""
    if isinstance(sampler, ColumnSampler):
        for name, column in sampler.columns(step).items():
            own = column[rows].astype(np.float32)
            own[batch["skipped"] >= 0] = np.nan
            batch[name] = own
    return batch


def _example(source: Source, wanted: int, skip: bool) -> tuple[Pixels, Labels, int]:
    """Image and labels of an example, or of the next one that can be read, and which it is."""
    first_fault: BadExample | None = None
    for offset in range(min(MAX_SUBSTITUTES, len(source))):
        index = (wanted + offset) % len(source)
        try:
            example = source[index]
        except BadExample as error:
            if not skip:
                raise BadExample(error.name, f"{error.reason} ({ADVICE})") from error
            first_fault = first_fault or error
            continue
        return example["image"], example["label"], index
    assert first_fault is not None
    raise BadExample(
        first_fault.name,
        f"{first_fault.reason}; nor can any of the {offset} examples after it be read",
    )


def _iterate(steps: _Steps, config: DataConfig) -> Iterator[Batch]:
    """Runs through the steps with the configured threads or workers."""
    # A gather is cheaper than sending the batch from another process.
    workers = 0 if steps.in_memory else config.workers
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
    dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain's workers read absl flags; a program that parses none has their defaults.
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=config.prefetch
            ),
            worker_init_fn=_end_with_parent,
        )
    iterator = iter(dataset)
    try:
        if not workers:
            yield from iterator
            return
        with _signals_held_back():
            batch = next(iterator, None)  # which starts the workers
        while batch is not None:
            # Batches of workers lie in shared memory, which must not outlive them.
            yield {key: np.array(value) for key, value in batch.items()}
            batch = next(iterator, None)
    finally:
        iterator.close()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM wait; what is started within, threads and processes, never gets them.

    Both often reach a whole group of processes: the run is to stop then, when it has saved itself, and not the workers
    that it still needs for that.
    """
    # The tracker, when it is started, would let the signals in again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker: lets it end when the run has ended without telling it, killed for instance."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "a worker has been started by a process"
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
