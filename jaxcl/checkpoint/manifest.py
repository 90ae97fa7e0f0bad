"""The manifest of a checkpoint: what must be on disk, bit by bit, and which run it belongs to."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

import jaxcl
from jaxcl.checkpoint import faults, files, leaves
from jaxcl.checkpoint.errors import CheckpointError, DamagedError

NAME = "manifest.json"
_FORMAT = 1


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""Stands for a key that one of two configs does not have."""


class Leaf(NamedTuple):
    """One array of a checkpoint.

    Attributes:
      shape: of the global array (of keys: without the axis of their data).
      dtype: "float32", ..., or "key<generator>" for typed PRNG keys.
      digest: BLAKE2b (32 bytes, hex) of the global array's elements in C order (of keys: of their
        data); it does not depend on how the array was sharded.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str


class Difference(NamedTuple):
    """A key in which two configs differ, dotted: "optim.learning_rate".

    Attributes:
      key: the dotted key.
      stored: the value in the checkpoint, or `ABSENT`.
      now: the value in the running config, or `ABSENT`.
    """

    key: str
    stored: Any
    now: Any


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint without reading its arrays.

    Attributes:
      step: completed updates.
      config: the run's config, as JSON gives it back (tuples are lists).
      content_id: what the data was.
      leaves: path -> Leaf.
      metrics: the numbers that were given to `save`.
      jaxcl_version: the version that wrote it.
      jax_version: the version that wrote it.
    """

    step: int
    config: dict[str, Any]
    content_id: str
    leaves: dict[str, Leaf]
    metrics: dict[str, float]
    jaxcl_version: str = jaxcl.__version__
    jax_version: str = jax.__version__

    def holds_same(self, other: "Manifest") -> bool:
        """Whether two checkpoints are the same but for the versions that wrote them."""
        aligned = dataclasses.replace(
            self, jaxcl_version=other.jaxcl_version, jax_version=other.jax_version
        )
        return aligned == other


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def as_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A mapping as JSON gives it back.

    Args:
      value: the mapping.
      what: its name in the error.

    Raises:
      ValueError: it holds something that JSON does not have, such as NaN.
    """
    try:
        return json.loads(_canonical(dict(value)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}") from error


def write(directory: epath.Path, manifest: Manifest) -> None:
    """Writes and syncs the manifest of a step's directory, the last act of a save."""
    body = {
        "format": _FORMAT,
        "step": manifest.step,
        "jaxcl": manifest.jaxcl_version,
        "jax": manifest.jax_version,
        "content_id": manifest.content_id,
        "config": manifest.config,
        "config_digest": leaves.text_digest(_canonical(manifest.config)),
        "metrics": manifest.metrics,
        "leaves": {path: leaf._asdict() for path, leaf in manifest.leaves.items()},
    }
    body["digest"] = leaves.text_digest(_canonical(body))
    files.write_synced(directory / NAME, json.dumps(body, indent=1, sort_keys=True))


def read(directory: epath.Path) -> Manifest:
    """Reads and checks the manifest of a step's directory.

    Raises:
      DamagedError: it is missing, no JSON, not what its own digest says, or of another step.
      UnreachableError: the storage does not answer, in several attempts.
      CheckpointError: it may not be read; or a later jaxcl wrote it, in a format that this one does
        not know.
    """
    try:
        body = json.loads(faults.again((directory / NAME).read_text, f"{directory / NAME}"))
        digest = body.pop("digest")
        actual = leaves.text_digest(_canonical(body))
        version = body["format"]
    except FileNotFoundError as error:
        raise DamagedError(f"{NAME} is missing") from error
    except OSError as error:
        raise faults.final(error, NAME) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{NAME} cannot be read: {type(error).__name__}: {error}") from error
    if digest != actual:
        raise DamagedError(f"{NAME} was changed: its own digest differs")
    if version != _FORMAT:
        raise CheckpointError(
            f"{directory}: written in format {version} by jaxcl {body.get('jaxcl')}; this is jaxcl"
            f" {jaxcl.__version__}, which reads format {_FORMAT}: use the version that wrote it"
        )
    try:
        manifest = Manifest(
            step=int(body["step"]),
            config=dict(body["config"]),
            content_id=str(body["content_id"]),
            leaves={
                path: Leaf(tuple(map(int, x["shape"])), str(x["dtype"]), str(x["digest"]))
                for path, x in body["leaves"].items()
            },
            metrics=dict(body["metrics"]),
            jaxcl_version=str(body["jaxcl"]),
            jax_version=str(body["jax"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{NAME} is not a manifest: {type(error).__name__}: {error}") from error
    if directory.name != str(manifest.step):
        raise DamagedError(f"{NAME} is that of step {manifest.step}")
    return manifest


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The keys in which two nested configs differ, sorted; compared as JSON: (1, 2) equals [1, 2].

    Args:
      old: the stored config.
      new: the running config.

    Raises:
      ValueError: one of them cannot be written as JSON.
    """
    stored, now = (_flat(as_json(config, "the config")) for config in (old, new))
    both = {k: (stored.get(k, ABSENT), now.get(k, ABSENT)) for k in sorted(stored.keys() | now)}
    return [Difference(key, a, b) for key, (a, b) in both.items() if not _same(a, b)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _same(a: Any, b: Any) -> bool:
    """Equality in which 1 equals 1.0, but not True."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
