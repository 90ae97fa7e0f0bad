"""The evaluators beyond kNN and linear probes, by name: from a network's features to rows.

    retrieval    retrieval/recall@<k>, found@<k>, r_precision, map@r   at each level; found@<k> in the records, not in tables
                 scorer/recall@<k>, found@<k>, ...                    the same by the method's own scorer, where it has one
    clustering   clustering/nmi, ami, silhouette                       at each level
    hierarchy    hierarchy/distance, violations                        at each level
                 hierarchy/violations, precision@<k>                   all
    similarity   similarity/spearman, pearson, triplet_accuracy, ndcg  all, and pairs, pairs/RESPECT or triples of a table
                 similarity/auc                                        at each level, and pairs or pairs/RESPECT
                 similarity/recall@<k>                                 pairs of two values, or triples
                 scorer/...                                            the same by the method's own scorer, where it has one
                 scorer/error, accuracy, balanced_accuracy             what it predicts of pairs
    fewshot      fewshot/<n>-shot                                      at each level
    rotation     rotation/accuracy                                     all
    factor       factor/[run:]<op>.<parameter>[<component>]            all
    corruption   corruption/clean, mean, <corruption>                  at each level

What the data do not allow (few-shot with classes of two images, say) is said and left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxcl.data import PairTable
from jaxcl.evaluators.base import Features, NothingToScore, comparable_levels, shared_levels
from jaxcl.evaluators.clustering import clustering
from jaxcl.evaluators.corruption import corruption
from jaxcl.evaluators.fewshot import SHOTS, few_shot
from jaxcl.evaluators.hierarchy import hierarchy
from jaxcl.evaluators.linear import chosen_model
from jaxcl.evaluators.retrieval import KS, retrieval
from jaxcl.evaluators.rotation import Take, factor_of, predict_factor
from jaxcl.evaluators.similarity import SimilarityResult, table_similarity, tree_similarity
from jaxcl.evaluators.table import Row
from jaxcl.losses import Scoring
from jaxcl.views import ViewProgram

EXTRA = (
    "retrieval",
    "clustering",
    "hierarchy",
    "similarity",
    "fewshot",
    "rotation",
    "factor",
    "corruption",
)
"""Names of the evaluators."""

TEST_ALONE = ("retrieval", "clustering", "hierarchy", "similarity")
"""Those that learn nothing: of the images of a gallery and of the test, `Subject.train`, `validation` and `last` may be empty."""

ALL = "all"
"""The level of a row that is about no level, or about all of them."""


def check_names(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Checks that all names are known.

    Raises:
      ValueError: names the first unknown one and the nearest known one.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{what}={','.join(names)}: {hint}expected some of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One network as the evaluators see it.

    Attributes:
      name: of the network, in the rows.
      levels: names of the label levels.
      train: to learn from while settings are chosen.
      validation: where they are chosen.
      last: to learn from once they are.
      test: to score.
      gallery: what retrieval searches; None for the test images, each without itself.
      take: features of altered images of those splits.
      image_shape: (H, W, C) of the images before they are altered.
      classify: name -> column of the levels at which test images are classified by what was learned
        from `last`.
      wanted: names of the levels of the other evaluators; () for all that the images allow.
      factors: what "factor" predicts; see `factor_of`.
      seed: of draws.
      say: gets a line for what is left out.
      pairs: what a table says of the test images, for "similarity".
      by_depth: the similarity of images that agree at 0, 1, ..., L levels, for "similarity"; () for
        the share of levels.
      program: the run's views, for its own factors ("run:rotate.angle").
      scoring: how the run's method scores two of these features, for "similarity" and "retrieval"; None for none.
      retrieval_ks: the k of "retrieval", and of the recall of "similarity".
    """

    name: str
    levels: Sequence[str]
    train: Features
    validation: Features
    last: Features
    test: Features
    gallery: Features | None
    take: Take
    image_shape: tuple[int, int, int]
    classify: Mapping[str, int]
    wanted: Sequence[str] = ()
    factors: Sequence[str] = ()
    seed: int = 0
    say: Callable[[str], None] = print
    pairs: PairTable | None = None
    by_depth: Sequence[float] = ()
    program: ViewProgram | None = None
    scoring: Scoring | None = None
    retrieval_ks: Sequence[int] = KS

    def rows(self, names: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
        """Runs the named evaluators.

        Returns:
          (rows, "<network>/<evaluator>/<level>" -> the results, whole and plain, for the record).

        Raises:
          ValueError: an unknown name, or as the evaluators.
        """
        check_names(names, EXTRA, "evaluators")
        rows: list[Row] = []
        details: dict[str, Any] = {}
        for name in names:
            for level, result, found in _RUN[name](self):
                record = details.setdefault(f"{self.name}/{name}/{level}", [])
                record.append(_without_nan(dataclasses.asdict(result)))
                # What is not defined (no pair at some depth, say) has no row.
                rows += [row for row in found if not math.isnan(row.accuracy)]
        return rows, details

    def row(self, method: str, level: str, value: float, queries: int, **settings: Any) -> Row:
        """A row about this network."""
        return Row(self.name, method, level, value, queries, settings)

    def levels_of(self, evaluator: str, gallery: Features | None = None) -> dict[str, int]:
        """Levels at which test images are compared among themselves, or with those of a gallery."""
        if gallery is None:
            found = comparable_levels(self.levels, self.test.labels)
        else:
            found = shared_levels(self.levels, gallery.labels, self.test.labels)
        found = {n: level for n, level in found.items() if not self.wanted or n in self.wanted}
        if not found:
            self.say(
                f"{self.name}: {evaluator} is left out: at none of the levels "
                f"{list(self.wanted or self.levels)} are there two classes, and one with two images"
            )
        return found


Found = Iterator[tuple[str, Any, list[Row]]]
"""(level, result, its rows) of each result of an evaluator."""


def _retrieval(subject: Subject) -> Found:
    own = subject.scoring
    # A scorer of a respect of a table says nothing of levels, and the cosine is there already.
    by_scorer = own is not None and not own.respect and own.scorer.name != "cosine"
    for name, level in subject.levels_of("retrieval", subject.gallery).items():
        for scoring in (None, own) if by_scorer else (None,):
            try:
                found = retrieval(
                    subject.test,
                    level,
                    subject.retrieval_ks,
                    gallery=subject.gallery,
                    seed=subject.seed,
                    scoring=scoring,
                )
            except NothingToScore as error:
                subject.say(f"{subject.name}: left out: {error}")
                break
            if found.left_out and not scoring:
                subject.say(
                    f"{subject.name}: retrieval at {name}: k {', '.join(map(str, found.left_out))} left out, there are"
                    f" {found.gallery} images to find"
                )
            settings = {
                "metric": found.metric,
                "gallery": found.gallery,
                "not_drawn": found.not_drawn,
                "without_relevant": found.without_relevant,
            }
            scalars = found.scalars("scorer/") if scoring else found.scalars()
            rows = [
                subject.row(method, name, value, found.queries, **settings)
                for method, value in scalars.items()
            ]
            yield name, found, rows


def _clustering(subject: Subject) -> Found:
    for name, level in subject.levels_of("clustering").items():
        found = clustering(subject.test, level)
        settings = {"clusters": found.clusters, "found": found.found, "seeds": len(found.nmis)}
        spread = {"clustering/nmi": found.nmi_std, "clustering/ami": found.ami_std}
        rows = [
            subject.row(
                method,
                name,
                value,
                found.examples,
                **({**settings, "std": spread[method]} if method in spread else {}),
            )
            for method, value in found.scalars().items()
        ]
        yield name, found, rows


def _hierarchy(subject: Subject) -> Found:
    try:
        found = hierarchy(subject.test, seed=subject.seed)
    except NothingToScore as error:
        subject.say(f"{subject.name}: left out: {error}")
        return
    rows = []
    for depth, level in enumerate(subject.levels, 1):
        distance = {"mean": found.distance[depth], "pairs": found.pairs[depth]}
        for method, value, queries, settings in (
            ("hierarchy/distance", found.relative(depth), found.examples, distance),
            ("hierarchy/violations", found.violations[depth], found.queries, {}),
        ):
            rows.append(subject.row(method, level, value, queries, **settings))
    rows.append(
        subject.row("hierarchy/violations", ALL, found.violation, found.queries, kept=found.kept)
    )
    for k, value in found.precision.items():
        rows.append(subject.row(f"hierarchy/precision@{k}", ALL, value, found.queries))
    yield ALL, found, rows


def _similarity(subject: Subject) -> Found:
    if not (subject.test.levels or subject.pairs):
        subject.say(
            f"{subject.name}: similarity is left out: the test images have no labels, and data.pairs names no table of them"
        )
    own = subject.scoring
    for scoring in (None, own) if own else (None,):
        if subject.test.levels and not (scoring and scoring.respect):
            try:
                found = tree_similarity(
                    subject.test, seed=subject.seed, by_depth=subject.by_depth, scoring=scoring
                )
            except NothingToScore as error:
                subject.say(f"{subject.name}: similarity is left out: {error}")
            else:
                auc = {
                    level: value
                    for level, value in zip(subject.levels, found.auc, strict=True)
                    if not subject.wanted or level in subject.wanted
                }
                yield ALL, found, _similarity_rows(subject, found, ALL, auc, scoring)
        for respect, table in subject.pairs.by_respect.items() if subject.pairs else ():
            if scoring and scoring.respect not in ("", respect):
                continue
            level = f"{table.kind}s" + (f"/{respect}" if respect else "")
            try:
                found = table_similarity(
                    subject.test,
                    table,
                    seed=subject.seed,
                    scoring=scoring,
                    recall_ks=subject.retrieval_ks,
                )
            except NothingToScore as error:
                subject.say(f"{subject.name}: left out: {error}")
                continue
            if found.missing and not scoring:
                subject.say(
                    f"{subject.name}: similarity: {found.missing} of the {len(table)} {level} of the table are left"
                    " out: they name images that cannot be read"
                )
            auc = {level: found.auc[0]}
            yield level, found, _similarity_rows(subject, found, level, auc, scoring)


def _similarity_rows(
    subject: Subject,
    found: SimilarityResult,
    level: str,
    auc: Mapping[str, float],
    scoring: Scoring | None,
) -> list[Row]:
    """The rows of a result, and of the AUC at each of its levels; of a scorer, what the cosine's do not say already."""
    prefix = "scorer/" if scoring else "similarity/"
    settings = {"metric": found.metric, "pairs": found.pairs}
    values = [(f"{prefix}auc", at, value, settings) for at, value in auc.items()]
    lists = {**settings, "lists": found.lists}
    values = [*((m, level, v, lists) for m, v in found.scalars(prefix).items()), *values]
    if scoring and found.metric == "cosine":
        values = [row for row in values if row[0].removeprefix(prefix) in found.predicted]
    return [subject.row(m, at, v, found.examples, **given) for m, at, v, given in values]


def _fewshot(subject: Subject) -> Found:
    shared = shared_levels(subject.levels, subject.last.labels, subject.test.labels)
    for name, level in subject.levels_of("fewshot").items():
        # Classes that there is nothing to learn from are learned from some of the test images.
        pool, queries = (subject.last, subject.test) if name in shared else (subject.test, None)
        for shots in SHOTS:
            try:
                found = few_shot(pool, queries, level, shots, seed=subject.seed)
            except NothingToScore as error:
                subject.say(f"{subject.name}: left out: {error}")
                continue
            if found.interval is None:
                subject.say(
                    f"{subject.name}: {shots}-shot {name}: the classes have {shots} examples each, so that there is one draw"
                    " and no interval; a larger split to learn from has more"
                )
            spread = {} if found.interval is None else {"interval": found.interval}
            settings = spread | {
                "trials": len(found.trials),
                "classes": found.classes,
                "too_small": found.too_small,
                "drawn_from": "test" if queries is None else "train",
            }
            rows = [
                subject.row(method, name, value, found.queries, **settings)
                for method, value in found.scalars().items()
            ]
            yield name, found, rows


def _factors(subject: Subject, texts: Sequence[str]) -> Found:
    for text in texts:
        task = factor_of(text, subject.image_shape, subject.seed, subject.program)
        found = predict_factor(task, subject.take, seed=subject.seed)
        if found.left_out:
            subject.say(
                f"{subject.name}: {text} is learned from a sample, drawn by the seed: {found.left_out:,} images are left out"
            )
        method = "rotation/accuracy" if text == "rotation" else f"factor/{text}"
        settings = {
            "chance": found.chance,
            "classes": found.classes,
            "l2": found.l2,
            "converged": found.converged,
            "trained_on": found.trained_on,
            "left_out": found.left_out,
        }
        yield ALL, found, [subject.row(method, ALL, found.accuracy, found.queries, **settings)]


def _corruption(subject: Subject) -> Found:
    models = {
        name: chosen_model(subject.train, subject.validation, subject.last, level)[0]
        for name, level in subject.classify.items()
    }
    if not models:
        subject.say(f"{subject.name}: corruption is left out: no level is classified")
        return
    results = corruption(
        models,
        subject.test,
        lambda alter: subject.take(("test",), alter)[0],
        subject.image_shape,
        subject.seed,
    )
    for name, found in results.items():
        rows = [
            subject.row(method, name, value, found.queries)
            for method, value in found.scalars().items()
        ]
        yield name, found, rows


_RUN: dict[str, Callable[[Subject], Found]] = {
    "retrieval": _retrieval,
    "clustering": _clustering,
    "hierarchy": _hierarchy,
    "similarity": _similarity,
    "fewshot": _fewshot,
    "rotation": lambda subject: _factors(subject, ("rotation",)),
    "factor": lambda subject: _factors(subject, subject.factors),
    "corruption": _corruption,
}


def _without_nan(value: Any) -> Any:
    """Plain values with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
