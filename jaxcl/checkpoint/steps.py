"""The directory in which a run's checkpoints are: how a step comes to be, is removed or set aside.

Each of these is a series of file operations that may be cut off anywhere; `sweep` then finishes or
undoes it. A step exists if and only if it has its manifest.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath

from jaxcl.checkpoint import arrays, files, leaves
from jaxcl.checkpoint import manifest as manifest_lib
from jaxcl.checkpoint.errors import CheckpointError, DamagedError
from jaxcl.checkpoint.manifest import Manifest

# A file beside `<step>/` while that is written or removed: without a manifest it is ours to delete.
# (Without this file it is a checkpoint that lost its manifest, which is set aside.)
_UNFINISHED = ".unfinished"
# The earlier `<step>/` while the same step is written again.
_REPLACED = ".replaced"
_DAMAGED = ".damaged"


@dataclasses.dataclass(frozen=True)
class StepDirectory:
    """File operations on the steps of one directory, for the one process that writes there.

    Attributes:
      root: the directory.
      log: gets the lines that a user should read.
    """

    root: epath.Path
    log: Callable[[str], None]

    def path(self, step: int) -> epath.Path:
        """Where a step is, or would be."""
        return self.root / str(step)

    def is_complete(self, step: int) -> bool:
        """Whether the step has its manifest."""
        return files.is_file(self.path(step) / manifest_lib.NAME)

    def complete(self) -> list[int]:
        """Steps that have their manifest, in ascending order."""
        return [step for step in files.steps(self.root) if self.is_complete(step)]

    def write(self, manifest: Manifest, host: dict[str, np.ndarray]) -> None:
        """Writes a step, reads it back, compares every bit, and only then declares it.

        Raises:
          DamagedError: it reads back as something else.
          Exception: of whatever type the storage raises. `sweep` removes what was written.
        """
        path = self.path(manifest.step)
        self.root.mkdir(parents=True, exist_ok=True)
        if files.exists(path):
            path.rename(self._beside(manifest.step, _REPLACED))
        mark = self._beside(manifest.step, _UNFINISHED)
        mark.write_text("")
        arrays.write(path, host)
        files.sync_tree(path)
        again = arrays.read(path, {p: (array.shape, array.dtype) for p, array in host.items()})
        for p, array in host.items():
            if not leaves.same_bits(array, again[p]):
                raise DamagedError(f"{p} reads back with other bits than were written")
        manifest_lib.write(path, manifest)
        mark.unlink(missing_ok=True)
        replaced = self._beside(manifest.step, _REPLACED)
        if files.exists(replaced):
            replaced.rmtree()

    def holds(self, manifest: Manifest) -> bool:
        """Whether the step is there already, with the same contents as far as manifests tell."""
        try:
            return manifest_lib.read(self.path(manifest.step)).holds_same(manifest)
        except DamagedError:
            return False

    def retain(self, written: int, keep: int) -> None:
        """Removes all but the step just written and the newest `keep` - 1 others."""
        try:
            others = [step for step in self.complete() if step != written]
        except (OSError, CheckpointError) as error:  # the step itself is written and verified
            self.log(f"older checkpoints in {self.root} could not be removed: {error}")
            return
        for step in others[: max(0, len(others) - (keep - 1))]:
            try:
                self.remove(step)
            except OSError as error:
                self.log(f"checkpoint {self.path(step)} could not be removed: {error}")

    def remove(self, step: int) -> None:
        """Removes a step, its manifest first: from then on it is no checkpoint."""
        mark = self._beside(step, _UNFINISHED)
        mark.write_text("")
        (self.path(step) / manifest_lib.NAME).unlink()
        self.path(step).rmtree()
        mark.unlink()

    def set_aside(self, step: int, reason: str) -> None:
        """Renames a damaged step to `<step>.damaged-<n>`, and says so."""
        what = f"checkpoint {self.path(step)} is damaged: {reason}"
        target = files.unused_name(self._beside(step, _DAMAGED))
        try:
            self.path(step).rename(target)
        except OSError as error:
            self.log(f"{what}; it could not be renamed: {error}")
        else:
            self.log(f"{what}; renamed to {target.name}")

    def aside(self) -> list[str]:
        """Names of the steps that were set aside as damaged."""
        return [path.name for path in files.entries(self.root, f"{_DAMAGED}-")]

    def sweep(self) -> None:
        """Removes what unfinished writes and removals left, and undoes unfinished replacements."""
        for step in files.steps(self.root, _UNFINISHED):
            if files.exists(self.path(step)) and not self.is_complete(step):
                self.path(step).rmtree()
            self._beside(step, _UNFINISHED).unlink()
        for step in files.steps(self.root, _REPLACED):
            if files.exists(self.path(step)):
                self._beside(step, _REPLACED).rmtree()
            else:
                self._beside(step, _REPLACED).rename(self.path(step))

    def _beside(self, step: int, suffix: str) -> epath.Path:
        return self.root / f"{step}{suffix}"
