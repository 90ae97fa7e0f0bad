"""What can be measured on a finished cell besides the results of its run."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np
from etils import epath

from jaxcl import checkpoint, data, plan, probe
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.probe import Options
from jaxcl.report import LevelSheet, levels_png
from jaxcl.study.spec import FLOORS


@dataclasses.dataclass(frozen=True)
class Probe:
    """`jaxcl.probe` on the cell's newest checkpoint.

    Attributes:
      name: prefix of its values, "<name>/<method>/<level>".
      layer: "h", "z", "head:1", "heads:hidden", ...
      evaluations: some of `jaxcl.probe.options.EVALUATIONS`; "factor" predicts the run's factors. What is to be asked at
        other levels is a measure of its own.
      labels: shares of the labels.
      levels: names of the label levels; () for the run's.
      test: split that is scored; "" for the run's.
      train: split that is learned from; "" for the run's.
      gallery: split that retrieval searches; "" for the run's, or the test images themselves, each without the query.
      only: name of the method whose cells are probed; others have no such values. "" for all.
      floors: in the study's cell of `floors`, also of raw pixels and the untrained encoder. What has been measured without
        them is not measured again.
    """

    name: str
    layer: str = "h"
    evaluations: tuple[str, ...] = ("knn", "linear")
    labels: tuple[float, ...] = (1.0,)
    levels: tuple[str, ...] = ()
    test: str = ""
    train: str = ""
    gallery: str = ""
    only: str = ""
    floors: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, workdir: str, config: Config) -> dict[str, float]:
        """Accuracies of the trained encoder, and "<floor>/..." of the floors."""
        if self.only and config.method["name"] != self.only:
            return {}
        record = probe.probe(
            Options(
                workdir,
                layer=self.layer,
                evaluations=self.evaluations,
                labels=self.labels,
                levels=self.levels,
                test=self.test,
                train=self.train,
                gallery=self.gallery,
                factors=config.evaluation.factors if "factor" in self.evaluations else (),
                baselines=self.floors and config.evaluation.baselines,
                seed=config.seed,
                out=os.path.join(workdir, f"probe-{self.name}.json"),
            )
        )
        return {
            ("" if row["features"] == probe.TRAINED else f"{row['features']}/")
            + f"{row['method']}/{row['level']}": row["accuracy"]
            for row in record["rows"]
            if row["features"] in (probe.TRAINED, *(FLOORS if self.floors else ()))
        }


@dataclasses.dataclass(frozen=True)
class LevelMap:
    """A picture, `<name>.png`: h of a split's images on a plane, coloured once for each label level.

    Attributes:
      name: of the picture. There are no values.
      levels: label levels, by name; () for all.
      split: of the images; "" for the run's test split.
      seeds: the seeds of which a picture is made.
    """

    name: str = "map"
    levels: tuple[str, ...] = ()
    split: str = ""
    seeds: tuple[int, ...] = (0,)

    def __call__(self, workdir: str, config: Config) -> dict[str, float]:
        """Nothing; it writes the picture."""
        if config.seed not in self.seeds:
            return {}
        split = self.split or config.evaluation.test
        spaces = probe.Spaces.open(workdir)
        features = spaces.features(spaces.batches(split))["h"]
        tree = data.load(config.data, split).tree
        sheet = LevelSheet(
            features.h, features.labels, tree.levels, tree.names, self.levels, config.seed
        )
        picture = levels_png(sheet, f"{config.name}: {split}")
        (epath.Path(workdir) / f"{self.name}.png").write_bytes(picture)
        return {}


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


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """What the train step needs besides its state: activations and gradients, as the compiler lays them out.

    Attributes:
      name: prefix of its value, "<name>/temporaries", MiB of each device.
      seeds: the seeds of which it is taken; it is the same for all.
    """

    name: str = "step"
    seeds: tuple[int, ...] = (0,)

    def __call__(self, workdir: str, config: Config) -> dict[str, float]:
        """MiB of the compiled step's temporaries; nothing is run."""
        if config.seed not in self.seeds:
            return {}
        built, batch = plan.build(config, mesh_lib.make_mesh(), plan.facts(config))
        analysis = built.step.lower(built.state, batch).compile().memory_analysis()
        return {"temporaries": analysis.temp_size_in_bytes / 2**20}
