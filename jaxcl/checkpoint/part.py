"""Reading a checkpoint without the run that wrote it: its manifest, or some of its arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcl.checkpoint import arrays, files, leaves, match
from jaxcl.checkpoint import manifest as manifest_lib
from jaxcl.checkpoint.errors import CheckpointError, DamagedError, OtherModelError
from jaxcl.checkpoint.manifest import Leaf, Manifest

PyTree = Any


def read_manifest(directory: epath.PathLike, step: int | None = None) -> Manifest:
    """Config, data and leaves of a checkpoint, without its arrays.

    Args:
      directory: a directory of checkpoints, or a workdir (then its `checkpoints`).
      step: which one; None for the newest.

    Raises:
      UnreachableError: the storage does not answer, in several attempts.
      DamagedError: its manifest is.
      CheckpointError: there is no such checkpoint, or it may not be read.
    """
    path = _find(directory, step)
    try:
        return manifest_lib.read(path)
    except DamagedError as error:
        raise _damaged(path, error) from error


def restore_part(
    directory: epath.PathLike, part: Mapping[str, PyTree | None], *, step: int | None = None
) -> tuple[dict[str, PyTree], Manifest]:
    """Restores subtrees of a checkpoint; no other arrays are read.

    Args:
      directory: a directory of checkpoints, or a workdir (then its `checkpoints`, not its `best`).
      part: path of a subtree, such as "params/backbone" -> the abstract subtree (arrays or
        ShapeDtypeStructs; a leaf goes to its `sharding`, or to the default device), or None for
        all that is stored there, as a nested dict.
      step: which one; None for the newest. There is no silent fallback to an older one.

    Returns:
      the verified subtrees by the same paths, and the manifest.

    Raises:
      OtherModelError: a subtree lacks leaves that were asked for, or has others; by name.
      UnreachableError: the storage does not answer, in several attempts.
      DamagedError: what was to be read is.
      CheckpointError: there is no such checkpoint, or it may not be read.
    """
    path = _find(directory, step)
    try:
        manifest = manifest_lib.read(path)
        chosen = {prefix: _choose(manifest, prefix, tree, path) for prefix, tree in part.items()}
        host = load(path, {p: manifest.leaves[p] for named in chosen.values() for p in named})
    except DamagedError as error:
        raise _damaged(path, error) from error
    restored: dict[str, PyTree] = {}
    for prefix, named in chosen.items():
        tree, placed = part[prefix], place(manifest, host, named)
        if tree is not None:
            restored[prefix] = jax.tree.unflatten(jax.tree.structure(tree), placed.values())
        elif prefix in placed:
            restored[prefix] = placed[prefix]
        else:
            inside = {p.removeprefix(f"{prefix}/"): x for p, x in placed.items()}
            restored[prefix] = leaves.nest(inside)
    return restored, manifest


def load(path: epath.Path, chosen: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Reads leaves of the checkpoint `path` to this process's memory and verifies them.

    Raises:
      DamagedError: files are missing, or do not have the digests of the manifest.
      UnreachableError: the storage does not answer, in several attempts.
    """
    try:
        formats = {p: leaves.host_format(leaf.shape, leaf.dtype) for p, leaf in chosen.items()}
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{manifest_lib.NAME} has an unknown dtype: {error}") from error
    host = arrays.read(path, formats)
    wrong = [p for p, leaf in chosen.items() if leaves.digest(host[p]) != leaf.digest]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DamagedError(f"{wrong[0]}{more}: not the bits that were saved")
    return host


def place(
    manifest: Manifest, host: Mapping[str, np.ndarray], named: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Puts loaded leaves where the leaves of the same paths in `named` say.

    Raises:
      CheckpointError: a leaf has 64 bits and JAX is in 32-bit mode.
    """
    placed: dict[str, jax.Array] = {}
    for path, leaf in named.items():
        sharding = getattr(leaf, "sharding", None)
        try:
            placed[path] = leaves.to_devices(host[path], manifest.leaves[path].dtype, sharding)
        except ValueError as error:
            raise CheckpointError(f"cannot restore {path}: {error}") from error
    return placed


def _find(directory: epath.PathLike, step: int | None) -> epath.Path:
    """The directory of a step: the one given, or the newest that has a manifest."""
    given = files.absolute(directory)
    places = (given, given / "checkpoints")
    for place_ in places:
        there = files.steps(place_)
        found = [s for s in there if files.exists(place_ / str(s) / manifest_lib.NAME)]
        if found and step is None:
            return place_ / str(found[-1])
        if step in found:
            return place_ / str(step)
        if found:
            have = ", ".join(map(str, found))
            raise CheckpointError(f"no checkpoint of step {step} in {place_}, but of {have}")
    raise CheckpointError(f"no checkpoint in {places[0]}, nor in {places[1]}")


def _choose(
    manifest: Manifest, prefix: str, tree: PyTree | None, path: epath.Path
) -> dict[str, Any]:
    """Leaves of one subtree by full path: the abstract ones, or (None given) the manifest's."""
    inside = f"{prefix}/" if prefix else ""
    stored = {p: x for p, x in manifest.leaves.items() if p == prefix or p.startswith(inside)}
    if tree is not None:
        # A tree that is one leaf has the empty path.
        wanted = {f"{inside}{p}" if p else prefix: x for p, x in leaves.by_path(tree).items()}
        match.check(stored, wanted, f"{path}, part {prefix!r},")
        return wanted
    if stored:
        return dict(stored)
    parents = {p[:i] for p in manifest.leaves for i, c in enumerate(p) if c == "/"}
    hint = match.nearest(prefix, sorted(parents | manifest.leaves.keys()))
    raise OtherModelError(
        f"{path} has nothing under {prefix!r}" + (f" ({hint})" if hint else ""), (prefix,)
    )


def _damaged(path: epath.Path, error: DamagedError) -> DamagedError:
    return DamagedError(f"checkpoint {path} is damaged: {error}. Choose another step")
