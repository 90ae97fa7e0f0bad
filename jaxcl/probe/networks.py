"""The networks of a probe on its splits, and what is read off their frozen features."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxcl import data, evaluators
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.data import Source
from jaxcl.evaluators import EXTRA, TEST_ALONE, Alter, Features, LayerModel, Row
from jaxcl.evaluators.base import Batches, Extractor
from jaxcl.losses import Scoring
from jaxcl.methods.base import similarity_by_depth
from jaxcl.probe.inputs import HELD_OUT, Splits
from jaxcl.probe.options import Options
from jaxcl.views import EvalView

PyTree = Any

METRICS = ("cosine", "centred_cosine")

TRAINED, UNTRAINED, PIXELS = "trained encoder", "untrained encoder", "raw pixels"


@dataclasses.dataclass(frozen=True)
class Networks:
    """One architecture, with any variables, on the splits of a probe.

    Attributes:
      options: of the probe.
      config: of the run, with the data that are probed.
      splits: the data.
      network: ends at the layer that is probed.
      shape: (h, w, C) of the images that the network is given.
      mesh: devices.
      levels: name -> column of the label levels at which test images are classified.
      console: where progress goes.
      skipped: names the images that cannot be read.
      scorings: name of a network -> how the run's method scores two of its features.
    """

    options: Options
    config: Config
    splits: Splits
    network: LayerModel
    shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh
    levels: dict[str, int]
    console: Console
    skipped: data.Skipped
    scorings: Mapping[str, Scoring] = dataclasses.field(default_factory=dict)

    def on_features(
        self, name: str, variables: PyTree | None, details: dict[str, Any]
    ) -> list[Row]:
        """Everything that is read off the frozen network's features, or raw pixels (None)."""
        self.console.print(f"{name}: taking features ...")
        splits = self.splits
        test = self.features(variables, splits.test)
        learned = {"knn", "linear", *EXTRA} - set(TEST_ALONE)
        if not learned & set(self.options.evaluations):
            # Nothing is learned, and the images to learn from are often most of all.
            last = train = validation = test.take(np.zeros(0, int))
            return self.others(name, variables, train, validation, last, test, details)
        last = self.features(variables, splits.last)
        if splits.train is None or splits.validation is None:
            held = self.held_out(last)
            train, validation = last.take(~held), last.take(held)
        else:
            same = splits.train is splits.last
            train = last if same else self.features(variables, splits.train)
            validation = self.features(variables, splits.validation)
        rows = []
        for level_name, level in self.levels.items():
            if "knn" in self.options.evaluations:
                rows += self.knn(name, level_name, level, train, validation, last, test, details)
            if "linear" in self.options.evaluations:
                rows += self.linear(name, level_name, level, train, validation, last, test)
        return rows + self.others(name, variables, train, validation, last, test, details)

    def others(
        self,
        name: str,
        variables: PyTree | None,
        train: Features,
        validation: Features,
        last: Features,
        test: Features,
        details: dict[str, Any],
    ) -> list[Row]:
        """The rows of the evaluators beyond kNN and linear probes."""
        wanted = [e for e in self.options.evaluations if e in EXTRA]
        if not wanted:
            return []
        self.console.print(f"{name}: {', '.join(wanted)} ...")
        rows, record = self.subject(name, variables, train, validation, last, test).rows(wanted)
        details |= record
        return rows

    def knn(
        self,
        name: str,
        level_name: str,
        level: int,
        train: Features,
        validation: Features,
        last: Features,
        test: Features,
        details: dict[str, Any],
    ) -> list[Row]:
        """kNN with k and metric chosen, the usual k = 200, and all the others for the record."""
        run = self.config.evaluation
        wanted = sorted({*run.ks, 1, 5, 10, 20, 200})
        ks = [k for k in wanted if k <= len(train)]
        if ks != wanted:
            left_out = ", ".join(map(str, wanted[len(ks) :]))
            self.console.print(f"kNN: k {left_out} left out, the gallery has {len(train)} images")
        chosen = evaluators.knn_selected(
            train, validation, test, level, ks, run.temperature, METRICS, last
        )
        rows = [Row.of(name, level_name, chosen)]
        by_metric = {
            metric: evaluators.knn(last, test, level, ks, run.temperature, metric)
            for metric in METRICS
        }
        details[f"{name}/knn/{level_name}"] = {
            metric: {str(k): value for k, value in result.accuracy.items()}
            for metric, result in by_metric.items()
        }
        plain = by_metric["cosine"]
        if 200 in plain.accuracy:
            settings = {"k": 200, "metric": "cosine", "temperature": run.temperature}
            rows.append(
                Row(name, "knn k=200", level_name, plain.accuracy[200], plain.queries, settings)
            )
        return rows

    def linear(
        self,
        name: str,
        level_name: str,
        level: int,
        train: Features,
        validation: Features,
        last: Features,
        test: Features,
    ) -> list[Row]:
        """Logistic regression for each share of the labels."""
        grid = evaluators.PAPER_GRID if self.options.paper_grid else evaluators.SHORT_GRID
        rows = []
        for share in self.options.labels:
            some = [self.few(features, level, share) for features in (train, validation, last)]
            result = evaluators.linear_probe(some[0], some[1], test, level, grid, refit=some[2])
            rows += Row.with_top5(name, level_name, result, with_share("linear", share))
        return rows

    def subject(
        self,
        name: str,
        variables: PyTree | None,
        train: Features,
        validation: Features,
        last: Features,
        test: Features,
    ) -> evaluators.Subject:
        """The network as the other evaluators see it."""
        splits = self.splits
        sources = {
            "train": splits.train,
            "validation": splits.validation,
            "last": splits.last,
            "test": splits.test,
        }

        def take(parts: Sequence[str], alter: Alter) -> list[Features]:
            # What is held out of `last` is taken with it, once.
            wanted = [splits.last if sources[p] is None else sources[p] for p in parts]
            taken = {
                id(source): self.altered_features(variables, source, alter)
                for source in wanted
                if source is not None
            }
            held = self.held_out(last)
            rows = {"train": ~held, "validation": held}
            return [
                taken[id(source)].take(rows[part]) if sources[part] is None else taken[id(source)]
                for part, source in zip(parts, wanted, strict=True)
            ]

        own = not self.options.data
        run, method = self.config.evaluation, self.config.build_method()
        return evaluators.Subject(
            name,
            splits.test.tree.levels,
            train,
            validation,
            last,
            test,
            None if splits.gallery is None else self.features(variables, splits.gallery),
            take,
            data.image_shape(splits.test, self.config.data, self.view),
            self.levels,
            self.options.levels or (run.extra_levels if own else ()),
            self.options.factors,
            self.options.seed,
            self.console.print,
            data.load_pairs(self.config.data, splits.names["test"], splits.test),
            similarity_by_depth(method) if own else (),
            method.views,
            self.scorings.get(name),
            self.options.retrieval_ks or run.retrieval_ks,
        )

    def features(self, variables: PyTree | None, source: Source) -> Features:
        """Features of a source."""
        return self._extract(variables, self.batches(source))

    def altered_features(self, variables: PyTree | None, source: Source, alter: Alter) -> Features:
        """Features of the altered images of a source."""
        return self._extract(variables, evaluators.altered(self.batches(source), alter))

    def _extract(self, variables: PyTree | None, batches: Batches) -> Features:
        sharding = mesh_lib.batch_sharding(self.mesh)
        if variables is None:
            return evaluators.raw_pixels(batches, self._pixel_view, sharding)
        return self._extractor(variables, batches)

    @functools.cached_property
    def _extractor(self) -> Extractor:
        return evaluators.make_extractor(
            self.network.encode, self.view, mesh_lib.batch_sharding(self.mesh)
        )

    @property
    def view(self) -> EvalView:
        """Of the images whose features are taken: the usual centre, of other data the whole shorter side (SimCLR, B.8)."""
        return EvalView(self.shape[0], 1.0 if self.options.data else None)

    @functools.cached_property
    def _pixel_view(self) -> EvalView | None:
        """Of raw pixels: as the encoder sees them, unless there are too many."""
        splits = self.splits
        every = (splits.last, splits.test, splits.train, splits.validation, splits.gallery)
        examples = sum(len(s) for s in {id(s): s for s in every if s is not None}.values())
        return evaluators.pixel_view(self.view, self.shape, examples, self.console.print)

    def batches(self, source: Source, view: EvalView | None = None) -> Iterator[data.Batch]:
        """This process's rows of the images of a source, for a view (`self.view`); those that cannot be read are named."""
        batches = data.eval_batches(
            source,
            self.config.evaluation.batch_size,
            self.config.data,
            view or self.view,
            process_index=mesh_lib.process_index(),
            process_count=mesh_lib.process_count(),
        )
        for batch in batches:
            self.skipped.count(batch, source)
            yield batch

    def held_out(self, features: Features | Source) -> np.ndarray:
        """bool[N]: a tenth of each class at the finest level that is scored, by the seed."""
        held = np.zeros(len(features), bool)
        if self.levels:
            held[self.some(features, max(self.levels.values()), HELD_OUT)] = True
        else:
            held[:: round(1 / HELD_OUT)] = True
        return held

    def few(self, features: Features, level: int, share: float) -> Features:
        """The share of each class, by the seed."""
        return features if share == 1 else features.take(self.some(features, level, share))

    def some(self, labelled: Features | Source, level: int, share: float) -> np.ndarray:
        """Rows of a share of each class."""
        numbers = evaluators.Classes.of(labelled.labels, level).number(labelled.labels)
        return data.class_balanced_subset(numbers, fraction=share, seed=self.options.seed)


def with_share(method: str, share: float) -> str:
    """ "linear", 0.1 -> "linear 10%"."""
    return method if share == 1 else f"{method} {100 * share:g}%"
