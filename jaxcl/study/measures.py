"""What can be measured on a finished cell besides the results of its run."""

from __future__ import annotations

import dataclasses
import os

from jaxcl import probe
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
