"""Checkpoints that are not saved until they are verified.

A checkpoint of step n is the directory `<n>/`: the arrays as Orbax writes them in `state/`, and
`manifest.json` with a digest of every leaf, the config as JSON and the content id of the data. The
arrays are written, read back and compared; then the manifest declares them. Without its manifest a
checkpoint does not exist; with it, every byte is checked when it is restored.
"""

from jaxcl.checkpoint.errors import (
    CheckpointError,
    DamagedError,
    NonFiniteError,
    OtherModelError,
    UnreachableError,
    WriteError,
)
from jaxcl.checkpoint.faults import may_pass
from jaxcl.checkpoint.manifest import ABSENT, Difference, Leaf, Manifest, config_diff
from jaxcl.checkpoint.part import read_manifest, restore_part
from jaxcl.checkpoint.store import Checkpoints

__all__ = [
    "ABSENT",
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "Difference",
    "Leaf",
    "Manifest",
    "NonFiniteError",
    "OtherModelError",
    "UnreachableError",
    "WriteError",
    "config_diff",
    "may_pass",
    "read_manifest",
    "restore_part",
]
