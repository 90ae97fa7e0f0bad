"""What can be measured on a finished cell besides the results of its run."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

from jaxcl import checkpoint, probe
from jaxcl.config import Config
from jaxcl.probe import Options


@dataclasses.dataclass(frozen=True)
class Probe:
    """`jaxcl.probe` on the cell's newest checkpoint.

    Attributes:
      name: prefix of its values, "<name>/<method>/<level>".
      layer: "h", "z", "head:1", ...
      evaluations: some of "knn", "linear", "sgd", "finetune".
      labels: shares of the labels.
    """

    name: str
    layer: str = "h"
    evaluations: tuple[str, ...] = ("knn", "linear")
    labels: tuple[float, ...] = (1.0,)

    def __call__(self, workdir: str, config: Config) -> dict[str, float]:
        """Accuracies of the trained encoder."""
        record = probe.probe(
            Options(
                workdir,
                layer=self.layer,
                evaluations=self.evaluations,
                labels=self.labels,
                baselines=False,
                seed=config.seed,
                out=os.path.join(workdir, f"probe-{self.name}.json"),
            )
        )
        return {
            f"{row['method']}/{row['level']}": row["accuracy"]
            for row in record["rows"]
            if row["features"] == probe.TRAINED
        }


DICTIONARIES = ("extra/queue", "extra/bank")


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a method keeps from step to step besides the trained network, in KiB of its checkpoint.

    Attributes:
      name: prefix of its values: "<name>/dictionary" is the queue or bank with all that stands beside its keys,
        "<name>/extra" everything, a key encoder too.
    """

    name: str = "kept"

    def __call__(self, workdir: str, config: Config) -> dict[str, float]:
        """KiB of the newest checkpoint's arrays."""
        sizes = {
            path: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize / 1024
            for path, leaf in checkpoint.read_manifest(workdir).leaves.items()
            if path.startswith("extra/")
        }
        held = [size for path, size in sizes.items() if path.startswith(DICTIONARIES)]
        return {"dictionary": float(sum(held)), "extra": float(sum(sizes.values()))}
