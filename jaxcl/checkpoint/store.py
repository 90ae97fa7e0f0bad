"""The checkpoints of a run: save and verify, keep the newest, restore the newest that is good."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from types import TracebackType
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcl import mesh
from jaxcl.checkpoint import files, leaves, match, part
from jaxcl.checkpoint import manifest as manifest_lib
from jaxcl.checkpoint.errors import (
    CheckpointError,
    DamagedError,
    NonFiniteError,
    UnreachableError,
    WriteError,
    first_line,
)
from jaxcl.checkpoint.manifest import Difference, Leaf, Manifest, config_diff
from jaxcl.checkpoint.steps import StepDirectory

PyTree = Any

_NO_SPACE = re.compile(
    r"no space left|disk quota|quota exceeded|file too large|resource_?exhausted", re.IGNORECASE
)
_serial = itertools.count()


class Checkpoints:
    """The checkpoints in one directory.

    Every process of a run makes one, in the same order, and they call its methods together. They
    all see the directory; process 0 writes. `save` copies the state to the host and returns. A
    thread then writes it, reads it back and compares, and writes the manifest: from that moment the
    step exists, and only then are older ones removed. What fails in the thread is raised by the
    next `save`, `poll`, `wait`, `restore` or `close`.

    A process holds the whole state in its memory while it is written, also where it is sharded.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int = 2,
        config: Mapping[str, Any],
        content_id: str,
        log: Callable[[str], None] = print,
        timeout: float = 600.0,
    ) -> None:
        """Removes from the directory what interrupted saves have left.

        Args:
          directory: local or in a bucket; made by the first save. One run at a time may have it.
          keep: how many of the newest steps stay, 1 or more.
          config: of the run, JSON-able; stored with each step.
          content_id: what the data is; stored with each step.
          log: gets the lines that a user should read.
          timeout: seconds that processes wait for one another.

        Raises:
          ValueError: `keep` is less than 1, or the config is not JSON-able.
          UnreachableError: the processes did not all come, or the storage does not answer.
        """
        if keep < 1:
            raise ValueError(f"keep={keep}: expected 1 or more checkpoints")
        self._config = manifest_lib.as_json(config, "the config")
        self._content_id = content_id
        self._keep = keep
        self._log = log
        self._timeout = timeout
        self._disk = StepDirectory(files.absolute(directory), log)
        self._worker = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: futures.Future[None] | None = None
        self._meetings = _names(f"jaxcl/checkpoint/{next(_serial)}")
        meeting = next(self._meetings)
        if mesh.is_main():
            try:
                self._disk.sweep()
            except OSError as error:
                self._log(f"leftovers in {self.directory} could not be removed: {error}")
            finally:  # the others wait for this process whatever became of it
                self._meet(meeting)
        else:
            self._meet(meeting)

    @property
    def directory(self) -> epath.Path:
        """Where the checkpoints are."""
        return self._disk.root

    def steps(self) -> list[int]:
        """Steps that are complete on disk now, in ascending order."""
        return self._disk.complete()

    def save(self, step: int, state: PyTree, *, metrics: Mapping[str, float] | None = None) -> None:
        """Begins to save a state, after an earlier save has ended; the state may then be donated.

        A step that is there already with the same contents stays as it is; else it is replaced.

        Args:
          step: completed updates, 0 or more.
          state: pytree of arrays (any sharding; typed keys too) and Python scalars.
          metrics: finite numbers to keep with it, such as the score of the best.

        Raises:
          NonFiniteError: a leaf has NaN or infinite elements; nothing is written or removed.
          WriteError: the *earlier* save failed. This one has not begun; it may be asked for again.
          ValueError: a negative step, metrics that are not finite, or paths that are not unique.
        """
        if step < 0:
            raise ValueError(f"step={step}: expected 0 or more")
        numbers = manifest_lib.as_json(metrics or {}, "metrics")
        named = leaves.by_path(state)
        self.wait()
        leaves.start_to_host(named.values())
        host: dict[str, np.ndarray] = {}
        bad: list[str] = []
        for path, leaf in named.items():
            array = leaves.to_host(leaf)
            if not leaves.is_finite(array):
                bad.append(path)
            if mesh.is_main():
                host[path] = array
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise NonFiniteError(
                f"step {step} was not saved: {bad[0]}{more} has NaN or infinite elements;"
                f" the checkpoints in {self.directory} are as they were",
                tuple(bad),
            )
        kinds = {p: (tuple(leaf.shape), leaves.dtype_name(leaf)) for p, leaf in named.items()}
        meeting = next(self._meetings)
        self._pending = self._worker.submit(self._run, step, host, kinds, numbers, meeting)

    def poll(self) -> None:
        """Does not wait.

        Raises:
          WriteError: the save that was begun has failed by now. It is raised once.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the save that was begun is on disk and verified.

        Raises:
          WriteError: it failed. It is raised once.
        """
        pending = self._pending
        if pending is None:
            return
        futures.wait([pending])  # if a signal ends this, the save is still pending for close()
        self._pending = None
        pending.result()

    def close(self) -> None:
        """Waits for the last save and ends the thread; may be called again.

        Raises:
          WriteError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            self._log(str(failure))  # it must not hide the error that ends the run

    def restore(self, abstract_state: PyTree) -> tuple[PyTree, int] | None:
        """The newest good state on disk.

        Every bit is verified. A step that is damaged is renamed to `<step>.damaged-<n>` and named
        in the log, and the step before it is tried. What a storage that does not answer holds is
        not known: nothing is renamed, and no older step is taken.

        Args:
          abstract_state: pytree of arrays or ShapeDtypeStructs; a leaf goes to its `sharding`, or
            to the default device. The devices need not be those of the run that saved.

        Returns:
          the state and its step, or None if nothing was ever saved here.

        Raises:
          OtherModelError: the newest step has other leaves; it lists them.
          UnreachableError: the storage does not answer, in several attempts.
          CheckpointError: there are checkpoints, but none is good; it lists each, with the reason.
            Or they may not be read.
        """
        self.wait()
        wanted = leaves.by_path(abstract_state)
        # Process 0 sets aside what is damaged; the others then find only what it left.
        meeting = next(self._meetings)
        if mesh.is_main():
            try:
                found = self._newest_good(wanted)
            finally:
                self._meet(meeting)
        else:
            self._meet(meeting)
            found = self._newest_good(wanted)
        if found is None:
            return None
        manifest, host = found
        placed = part.place(manifest, host, wanted)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), placed.values())
        return state, manifest.step

    def differences(self, config: Mapping[str, Any] | None = None) -> list[Difference]:
        """In what the newest checkpoint's config differs from the running one; [] without any.

        Other data shows as the key "content_id".

        Args:
          config: to compare with; None for the one that was given at construction.
        """
        for step in reversed(self.steps()):
            try:
                stored = manifest_lib.read(self._disk.path(step))
            except DamagedError:
                continue  # `restore` will say so
            found = config_diff(stored.config, self._config if config is None else config)
            if stored.content_id != self._content_id:
                found.append(Difference("content_id", stored.content_id, self._content_id))
            return found
        return []

    def _newest_good(
        self, wanted: Mapping[str, Any]
    ) -> tuple[Manifest, dict[str, np.ndarray]] | None:
        reasons: list[str] = []
        for step in reversed(files.steps(self.directory)):
            path = self._disk.path(step)
            try:
                manifest = manifest_lib.read(path)
                match.check(manifest.leaves, wanted, str(path))
                return manifest, part.load(path, manifest.leaves)
            except DamagedError as error:
                reasons.append(f"step {step}: {error}")
                if mesh.is_main():
                    self._disk.set_aside(step, str(error))
        reasons = reasons or [f"{name}: set aside earlier" for name in self._disk.aside()]
        if not reasons:
            return None
        raise CheckpointError(
            f"none of the checkpoints in {self.directory} is good:\n  "
            + "\n  ".join(reasons)
            + "\nPut back a good copy of one, or remove the directory to start from the beginning."
        )

    def _run(
        self,
        step: int,
        host: dict[str, np.ndarray],
        kinds: Mapping[str, tuple[tuple[int, ...], str]],
        metrics: dict[str, float],
        meeting: str,
    ) -> None:
        """In the thread: process 0 writes, the others wait and look."""
        if mesh.is_main():
            try:
                self._write(step, host, kinds, metrics)
            except Exception as error:
                raise self._failure(step, sum(x.nbytes for x in host.values()), error) from error
            finally:
                self._meet(meeting)
            return
        self._meet(meeting)
        if not self._disk.is_complete(step):
            raise WriteError(
                f"step {step} is not in {self.directory}: process 0 could not save it (and says"
                " why), or this process does not see the same directory",
                str(self.directory),
                step,
            )

    def _write(
        self,
        step: int,
        host: dict[str, np.ndarray],
        kinds: Mapping[str, tuple[tuple[int, ...], str]],
        metrics: dict[str, float],
    ) -> None:
        described = {p: Leaf(*kinds[p], leaves.digest(array)) for p, array in host.items()}
        manifest = Manifest(step, self._config, self._content_id, described, metrics)
        if not self._disk.holds(manifest):
            self._disk.write(manifest, host)
        self._disk.retain(step, self._keep)

    def _failure(self, step: int, needed: int, error: Exception) -> WriteError:
        """Removes what was written of a step, and puts the failure into words."""
        try:
            self._disk.sweep()
            left = "what was written of it is removed"
            good = self.steps()
            older = f"step {good[-1]} is still there" if good else "there is no older checkpoint"
        except (OSError, CheckpointError) as trouble:
            left = f"what was written of it could not be removed ({first_line(trouble)})"
            older = "older checkpoints were left alone"
        free = files.free_bytes(self.directory)
        full = any(_NO_SPACE.search(text) for text in _texts(error))
        return WriteError(
            f"could not save step {step} in {self.directory}:"
            f"{' no space is left:' if full else ''} {first_line(error)}"
            f" (needed {files.in_words(needed)}, free {files.in_words(free)}); {left};"
            f" {older}",
            str(self.directory),
            step,
            needed,
            free,
        )

    def _meet(self, name: str) -> None:
        try:
            mesh.barrier(name, self._timeout)
        except Exception as error:
            raise UnreachableError(
                f"not every process came to the checkpoints in {self.directory} within"
                f" {self._timeout:g} s: {first_line(error)}"
            ) from error


def _names(prefix: str) -> Iterator[str]:
    return (f"{prefix}/{number}" for number in itertools.count())


def _texts(error: BaseException | None) -> Iterator[str]:
    """The texts of an error and of those that it comes from."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
