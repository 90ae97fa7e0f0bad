"""Evaluation of a network in training: the online kNN, and the table at the end."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcl import data
from jaxcl.data import DataConfig, Source
from jaxcl.evaluators.base import (
    Alter,
    Batches,
    Features,
    altered,
    make_extractor,
    pixel_view,
    raw_pixels,
    shared_levels,
)
from jaxcl.evaluators.config import EvalConfig
from jaxcl.evaluators.extra import Subject
from jaxcl.evaluators.knn import knn, knn_selected
from jaxcl.evaluators.linear import linear_probe
from jaxcl.evaluators.rank import effective_rank
from jaxcl.evaluators.table import Row
from jaxcl.models import Model
from jaxcl.views import EvalView, ViewProgram

METRICS = ("cosine", "centred_cosine")

_log = logging.getLogger(__name__)

RANK_SAMPLE = 2048
"""Gallery images, evenly spaced, of which the effective rank is taken."""


class Online:
    """The evaluator of one run: splits, preprocessing and the compiled encoder are made once.

    Args:
      config: splits and settings.
      data_config: the data set.
      model: the network; its heads are not used.
      mesh: devices over which the images are split; of several processes, each reads its own rows.
      size: side of the images that the encoder is given; None is that of the data.
      by_depth: how similar images of a common ancestor at each depth are; see `Subject`.
      skipped: names the images that cannot be read; None for a warning about each of the first ones.
      program: the run's views, for its own factors ("run:rotate.angle").
      process_index: number of this process.
      process_count: number of processes.

    Attributes:
      config: as given.
      image_size: side of the images that the encoder is given.
      levels: name -> column of the label levels that are scored; empty where the two splits have
        no labels in common, and then the features can be taken all the same.

    Raises:
      ValueError: an unknown level.
    """

    def __init__(
        self,
        config: EvalConfig,
        data_config: DataConfig,
        model: Model,
        mesh: Mesh,
        size: int | None = None,
        by_depth: Sequence[float] = (),
        skipped: data.Skipped | None = None,
        program: ViewProgram | None = None,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.config = config
        self._skipped = skipped or data.Skipped(_log.warning)
        self._data_config = data_config
        self._by_depth = tuple(by_depth)
        self._program = program
        self._process = {"process_index": process_index, "process_count": process_count}
        self._sources: dict[str, Source] = {}
        self.image_size = size or data.image_shape(self.source(config.gallery), data_config)[0]
        self._view = EvalView(self.image_size)
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._extract = make_extractor(
            lambda variables, images: model.encode(
                variables["params"], variables["batch_stats"], images
            ),
            self._view,
            self._sharding,
        )
        self._tree = self.source(config.gallery).tree
        for name in config.extra_levels:
            self._tree.level(name)
        self.levels = self._choose_levels()
        size_of_gallery = len(self.source(config.gallery))
        if large := [k for k in config.ks if k > size_of_gallery]:
            _log.warning(
                "evaluation.ks: %s left out, the gallery %r has %d images",
                large,
                config.gallery,
                size_of_gallery,
            )

    def run(self, params: Any, batch_stats: Any) -> dict[str, float]:
        """kNN accuracy of the validation images in the gallery.

        Returns:
          "effective_rank" of the gallery's features. With labels also "knn/<level>" for each level,
          at the best of the ks and of plain and centred cosine; and "knn", their mean. The best of
          several is a monitor, not a result: see `table_rows`.
        """
        variables = _backbone(params, batch_stats)
        gallery = self.features(variables, self.config.gallery)
        validation = self.features(variables, self.config.validation)
        sample = gallery.h[:: -(-len(gallery) // RANK_SAMPLE)]
        rank = {"effective_rank": effective_rank(sample)}
        if not self.levels:
            return rank
        scores = {}
        for name, level in self.levels.items():
            tried = (
                knn(gallery, validation, level, self.config.ks, self.config.temperature, metric)
                for metric in METRICS
            )
            scores[f"knn/{name}"] = max(result.best[1] for result in tried)
        return {"knn": float(np.mean(list(scores.values()))), **scores, **rank}

    def table_rows(self, networks: Mapping[str, Any | None]) -> list[Row]:
        """The results on the test split; every setting is chosen on the validation split.

        Args:
          networks: name of the row -> variables {"params", "batch_stats"}, or None for raw pixels.

        Returns:
          rows by network, method (kNN, linear, the extra evaluators) and level; the same of unseen
          classes, if there is a split of such; none where there are no levels.
        """
        config = self.config
        if not self.levels and not config.extra:
            return []
        rows = []
        for name, variables in networks.items():
            train = self.features(variables, config.gallery)
            validation = self.features(variables, config.validation)
            parts = {"": (config.test, config.test_gallery or config.gallery)}
            if config.unseen:
                parts["unseen/"] = (config.unseen, config.unseen_gallery)
            for prefix, (test, last) in parts.items():
                subject = self._subject(name, variables, train, validation, test, last)
                found = self._classified(subject) + subject.rows(config.extra)[0]
                rows += [dataclasses.replace(r, method=prefix + r.method) for r in found]
        return rows

    def _classified(self, subject: Subject) -> list[Row]:
        """The rows of kNN and the linear probe."""
        config = self.config
        train, validation, last, test = (
            subject.train,
            subject.validation,
            subject.last,
            subject.test,
        )
        rows = []
        for name, level in subject.classify.items():
            nearest = knn_selected(
                train, validation, test, level, config.ks, config.temperature, METRICS, last
            )
            rows.append(Row.of(subject.name, name, nearest))
            if config.linear:
                linear = linear_probe(train, validation, test, level, refit=last)
                rows.append(Row.of(subject.name, name, linear))
        return rows

    def _subject(
        self,
        name: str,
        variables: Any | None,
        train: Features,
        validation: Features,
        test_split: str,
        last_split: str,
    ) -> Subject:
        """One network and the splits of its rows; without a `last_split` nothing is classified."""
        config = self.config
        levels = self.levels if last_split else {}
        splits = {
            "train": config.gallery,
            "validation": config.validation,
            "last": last_split or config.gallery,
            "test": test_split,
        }

        def take(parts: Sequence[str], alter: Alter) -> list[Features]:
            # Two parts may be one split, which is taken once.
            names = [splits[part] for part in parts]
            taken = {name: self.features(variables, name, alter) for name in dict.fromkeys(names)}
            return [taken[name] for name in names]

        last, test = (self.features(variables, splits[part]) for part in ("last", "test"))
        if test_split == config.unseen:
            shared = shared_levels(self._tree.levels, last.labels, test.labels)
            levels = {n: level for n, level in levels.items() if n in shared}
        return Subject(
            name,
            self._tree.levels,
            train,
            validation,
            last,
            test,
            self._searched(variables, test_split),
            take,
            self._image_shape(test_split),
            levels,
            config.extra_levels,
            config.factors,
            say=_log.warning,
            pairs=self._pairs(test_split),
            by_depth=self._by_depth,
            program=self._program,
            retrieval_ks=config.retrieval_ks,
        )

    def _searched(self, variables: Any | None, test_split: str) -> Features | None:
        """The gallery of retrieval; of unseen classes there are no others than the test images."""
        split = self.config.retrieval_gallery
        if not split or test_split == self.config.unseen:
            return None
        return self.features(variables, split)

    def features(
        self, variables: Any | None, split: str | Source, alter: Alter | None = None
    ) -> Features:
        """Features of a split: h of a network's {"params", "batch_stats"}, or None's raw pixels.

        Args:
          variables: of the network, or None.
          split: name of the split, or some of its images.
          alter: a change of its images.
        """
        batches: Batches = self.batches(split)
        if alter is not None:
            batches = altered(batches, alter)
        if variables is None:
            return raw_pixels(batches, self._pixel_view, self._sharding)
        return self._extract(_backbone(variables["params"], variables["batch_stats"]), batches)

    def batches(self, split: str | Source, whole: bool = False) -> Iterator[data.Batch]:
        """The images of a split as they come to the evaluator; skipped ones are named.

        Args:
          split: name of the split, or some of its images.
          whole: whether this process is to have all rows, or its own.
        """
        source = self.source(split) if isinstance(split, str) else split
        process = {} if whole else self._process
        for batch in data.eval_batches(
            source, self.config.batch_size, self._data_config, self._view, **process
        ):
            self._skipped.count(batch, source)
            yield batch

    @functools.cached_property
    def _pixel_view(self) -> EvalView | None:
        """Of raw pixels: whole images, which are the strongest baseline, unless they are too many."""
        examples = sum(len(self.source(split)) for split in self._splits())
        return pixel_view(None, self._image_shape(self.config.gallery), examples, _log.warning)

    def _image_shape(self, split: str) -> tuple[int, int, int]:
        """(H, W, C) of the images of a split in batches."""
        return data.image_shape(self.source(split), self._data_config, self._view)

    def _splits(self) -> set[str]:
        """The names of all splits of the config."""
        config = self.config
        return {
            *(config.gallery, config.validation, config.test, config.test_gallery),
            *(config.retrieval_gallery, config.unseen, config.unseen_gallery),
        } - {""}

    def content_ids(self) -> dict[str, str]:
        """What `table_rows` reads: {name of a split: content id, "pairs/NAME": that of its table of pairs}."""
        found = {split: self.source(split).content_id for split in self._splits()}
        for split in {self.config.test, self.config.unseen} - {""}:
            if table := self._pairs(split):
                found[f"pairs/{split}"] = table.content_id
        return found

    def _pairs(self, split: str) -> data.PairTable | None:
        """The table of pairs of a split, if it has one."""
        return data.load_pairs(self._data_config, split, self.source(split))

    def source(self, split: str) -> Source:
        """The data of a split, loaded once."""
        if split not in self._sources:
            self._sources[split] = data.load(self._data_config, split)
        return self._sources[split]

    def _choose_levels(self) -> dict[str, int]:
        gallery, validation = (
            self.source(split) for split in (self.config.gallery, self.config.validation)
        )
        tree = self._tree
        if self.config.levels:
            return {name: tree.level(name) for name in self.config.levels}
        shared = shared_levels(tree.levels, gallery.labels, validation.labels)
        if tree.levels and not shared:
            _log.warning(
                "evaluation: the splits %r and %r have no labels in common at any level of %s, so "
                "nothing is scored",
                self.config.gallery,
                self.config.validation,
                list(tree.levels),
            )
        return shared


def _backbone(params: Any, batch_stats: Any) -> dict[str, Any]:
    """What the encoder needs of a network's variables."""
    return {
        "params": {"backbone": params["backbone"]},
        "batch_stats": {"backbone": batch_stats["backbone"]},
    }
