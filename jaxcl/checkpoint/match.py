"""Whether a checkpoint holds the leaves that are asked for; if not, which, and what is near."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxcl.checkpoint import leaves
from jaxcl.checkpoint.errors import OtherModelError
from jaxcl.checkpoint.manifest import Leaf

_LISTED = 12


def check(stored: Mapping[str, Leaf], wanted: Mapping[str, Any], where: str) -> None:
    """Compares paths, shapes and dtypes.

    Args:
      stored: leaves of the manifest.
      wanted: abstract or real arrays by path.
      where: the checkpoint's name in the error.

    Raises:
      OtherModelError: with the missing, unexpected and mismatched leaves.
    """
    missing = tuple(sorted(wanted.keys() - stored.keys()))
    unexpected = tuple(sorted(stored.keys() - wanted.keys()))
    kinds = {
        path: (_kind(stored[path].dtype, stored[path].shape), _kind_of(wanted[path]))
        for path in sorted(stored.keys() & wanted.keys())
    }
    mismatched = tuple(path for path, (there, here) in kinds.items() if there != here)
    if not (missing or unexpected or mismatched):
        return
    lines = [
        f"{where} is of another model than the one that is to be restored:",
        *_section("not in the checkpoint", missing, lambda p: nearest(p, unexpected or stored)),
        *_section("only in the checkpoint", unexpected, lambda p: ""),
        *_section(
            "of another shape or dtype",
            mismatched,
            lambda p: "{} in the checkpoint, {} here".format(*kinds[p]),
        ),
        "Use the config that the checkpoint was made with, or another directory.",
    ]
    raise OtherModelError("\n".join(lines), missing, unexpected, mismatched)


def nearest(path: str, others: Collection[str]) -> str:
    """The nearest of some paths as a hint, or an empty text."""
    close = difflib.get_close_matches(path, others, n=1, cutoff=0.5)
    return f"nearest: {close[0]}" if close else ""


def _kind(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _kind_of(leaf: Any) -> str:
    return _kind(leaves.dtype_name(leaf), leaf.shape)


def _section(title: str, paths: tuple[str, ...], note: Callable[[str], str]) -> list[str]:
    if not paths:
        return []
    listed = [f"    {p}  ({note(p)})" if note(p) else f"    {p}" for p in paths[:_LISTED]]
    rest = len(paths) - _LISTED
    return [f"  {title}: {len(paths)}", *listed, *([f"    and {rest} more"] if rest > 0 else [])]
