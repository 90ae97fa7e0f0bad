"""Few-shot: how well do a handful of labelled examples of each class teach the classes?

In each trial so many examples of every class (all classes at once) are drawn, a logistic regression
is fitted on their frozen features, and all the queries are classified. The score is the mean over
trials with its 95 % interval. As in Tian et al. 2020 ("Rethinking few-shot image classification"),
features have length 1 and the penalty is scikit-learn's default, C = 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from jaxcl import data
from jaxcl.evaluators.base import Classes, Features, NothingToScore, score
from jaxcl.evaluators.knn import prepare
from jaxcl.evaluators.linear import logistic_regression

SHOTS = (5, 10)
TRIALS = 10


@dataclasses.dataclass(frozen=True)
class FewShotResult:
    """Accuracies of the trials at one level and number of shots.

    Attributes:
        accuracy: mean over the trials.
        interval: half the width of its 95 % interval, by Student's t over the trials; None for one trial.
        trials: the accuracy of each; one where the pool has nothing else to draw.
        shots: examples of each class that a trial learns from.
        classes: number of classes, all in every trial.
        queries: classified in each trial.
        too_small: classes left out, with their queries, for having fewer examples than needed.
        left_out: queries left out, being of those classes or of none in the pool.
        unlabelled: queries left out, having no label at this level.
        converged: whether every fit met its tolerance.
    """

    accuracy: float
    interval: float | None
    trials: tuple[float, ...]
    shots: int
    classes: int
    queries: int
    too_small: int
    left_out: int
    unlabelled: int
    converged: bool

    def scalars(self, prefix: str = "fewshot/") -> dict[str, float]:
        """{prefix + "<shots>-shot": accuracy}, for a log or a table."""
        return {f"{prefix}{self.shots}-shot": self.accuracy}


def few_shot(
    pool: Features,
    queries: Features | None = None,
    level: int = -1,
    shots: int = 5,
    trials: int = TRIALS,
    seed: int = 0,
) -> FewShotResult:
    """Mean accuracy of classifiers that learned from `shots` examples of each class.

    Args:
        pool: labelled examples that the trials draw from.
        queries: examples to classify; None: in each trial those of the pool that were not drawn, so
            that classes of one split can be asked about.
        level: label level, coarse -> fine, negative from the finest.
        shots: examples of each class.
        trials: independent draws; of a pool whose classes all have just `shots` examples there is one only.
        seed: of the draws; trial t of a seed is the same whatever the number of trials.

    Raises:
        NothingToScore: fewer than two classes have enough examples in the pool (with `queries`
            None one more than `shots`), or no query is of these classes.
        ValueError: shots or trials < 1, unknown level, values that are not finite.
    """
    if shots < 1 or trials < 1:
        raise ValueError(f"shots={shots}, trials={trials}: expected numbers >= 1")
    every = Classes.of(pool.labels, level)
    number = every.number(pool.labels)
    sizes = np.bincount(number[number >= 0], minlength=len(every))
    needed = shots + (queries is None)
    enough = np.flatnonzero(sizes >= needed)
    if len(enough) < 2:
        raise NothingToScore(
            f"{shots}-shot at level {level}: {len(enough)} of {len(every)} classes have {needed} "
            f"examples to draw from (the largest has {np.max(sizes, initial=0)}); two are needed"
        )
    if (sizes[enough] == shots).all():
        trials = 1
    classes = Classes(every.paths[enough])
    number = classes.number(pool.labels)
    asked = pool if queries is None else queries
    truth = classes.number(asked.labels)
    x, y = prepare(pool.h, asked.h[:0] if queries is None else asked.h, "cosine")
    pool = Features(x, pool.labels)
    asked = Features(x if queries is None else y, asked.labels)
    wanted = truth >= 0
    if not wanted.any():
        raise NothingToScore(
            f"{shots}-shot at level {level}: no query is of the {len(classes)} classes"
        )
    accuracies, converged = [], True
    for trial in range(trials):
        draw = np.random.SeedSequence([seed, trial]).generate_state(1)[0]
        drawn = data.class_balanced_subset(
            np.where(number >= 0, number, -1), per_class=shots, seed=int(draw)
        )
        rest = wanted.copy()
        if queries is None:
            rest[drawn] = False
        model = logistic_regression(
            pool.take(drawn), level, l2=1 / len(drawn), standardise=False, tolerance=1e-4
        )
        predicted = model.logits(asked.h[rest]).argmax(1)
        accuracies.append(score(predicted, truth[rest])[0])
        converged &= model.converged
    return FewShotResult(
        accuracy=float(np.mean(accuracies)),
        interval=interval(accuracies),
        trials=tuple(accuracies),
        shots=shots,
        classes=len(classes),
        queries=int(wanted.sum()) - (len(drawn) if queries is None else 0),
        too_small=len(every) - len(enough),
        left_out=int((truth == -2).sum()),
        unlabelled=int((truth == -1).sum()),
        converged=converged,
    )


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by Student's t; None for one value."""
    n = len(values)
    if n < 2:
        return None
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))
