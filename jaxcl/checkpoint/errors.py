"""What can go wrong with a checkpoint, as types."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or restored; the text says which, why, and what to do."""


class NonFiniteError(CheckpointError):
    """A state with NaN or infinite leaves was refused; nothing was written and nothing removed.

    Attributes:
      leaves: paths of the leaves that are not finite.
    """

    def __init__(self, message: str, leaves: tuple[str, ...]) -> None:
        super().__init__(message)
        self.leaves = leaves


class OtherModelError(CheckpointError):
    """The checkpoint is whole, but holds other leaves than were asked for.

    Attributes:
      missing: paths that were asked for and are not in the checkpoint.
      unexpected: paths in the checkpoint that nothing asked for.
      mismatched: paths that are in both, with another shape or dtype.
    """

    def __init__(
        self,
        message: str,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched


class WriteError(CheckpointError):
    """A step could not be written; its partial files were removed and older steps were left alone.

    Attributes:
      directory: where it should have been written.
      step: the step.
      needed: bytes of the state, or None in a process that does not write.
      free: free bytes of the file system, or None where that cannot be told (a bucket).
    """

    def __init__(
        self,
        message: str,
        directory: str,
        step: int,
        needed: int | None = None,
        free: int | None = None,
    ) -> None:
        super().__init__(message)
        self.directory = directory
        self.step = step
        self.needed = needed
        self.free = free


class DamagedError(CheckpointError):
    """A checkpoint's files are missing, or not what its manifest says."""


class UnreachableError(CheckpointError):
    """The storage, or another process, does not answer; later the same command may go on."""


def first_line(error: BaseException) -> str:
    """Type and first line of an error's text, of at most 300 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
