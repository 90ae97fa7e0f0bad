"""Linear probes of cached features: multinomial logistic regression by L-BFGS.

The protocol of SimCLR's transfer table (Chen et al. 2020, B.8, after Kornblith et al. 2019):
frozen features, no augmentation, full-batch L-BFGS, the l2 coefficient chosen on validation
examples from a logarithmic grid. The objective is

    mean over examples of the cross-entropy + l2 / 2 * |W|^2        (the bias is not penalised)

which is scikit-learn's LogisticRegression with C = 1 / (l2 * N).

Features are often nearly collinear (raw pixels above all) and classes rare, and L-BFGS then needs
hundreds of iterations. It therefore works in coordinates in which their leading principal
directions, found by a randomised range finder (Halko et al. 2011, algorithm 4.4), have the
curvature of the others, and so have the biases, which no penalty holds: a tenth of the iterations
for 3,072 pixels and 98 classes. The objective and its optimum stay the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.evaluators.base import Classes, Features, score, top_score

PAPER_GRID: tuple[float, ...] = tuple(np.logspace(-6, 5, 45).tolist())
"""The 45 values of SimCLR B.8."""

SHORT_GRID: tuple[float, ...] = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
"""Enough for standardised features of a few thousand examples."""

RANK = 128
"""Principal directions of the preconditioner."""


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Per-feature shift and scale, fitted on training features.

    Attributes:
        mean: f32[F].
        std: f32[F]; 1 where a feature is constant.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, h: np.ndarray, standardise: bool = True) -> Scaler:
        """Zero mean and unit variance over h[N, F], or the identity when not `standardise`."""
        if not standardise:
            width = h.shape[1]
            return cls(np.zeros(width, np.float32), np.ones(width, np.float32))
        mean, std = h.mean(0, dtype=np.float64), h.std(0, dtype=np.float64)
        # A feature that is constant but for rounding must not be blown up.
        std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """Scaled features f32[N, F]."""
        return ((h - self.mean) / self.std).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LogisticModel:
    """A fitted logistic regression.

    Attributes:
        weights: f32[F, C], of the scaled features.
        bias: f32[C].
        classes: of the training labels.
        scaler: applied to features first.
        loss: the objective, penalty included.
        iterations: of L-BFGS.
        converged: whether the largest gradient entry fell below the tolerance.
    """

    weights: np.ndarray
    bias: np.ndarray
    classes: Classes
    scaler: Scaler
    loss: float
    iterations: int
    converged: bool

    def logits(self, h: np.ndarray) -> np.ndarray:
        """f32[N, C] of features h[N, F]."""
        return self.scaler(h) @ self.weights + self.bias

    def accuracy(self, features: Features) -> tuple[float, int, int, int]:
        """(accuracy, examples scored, examples without a label, examples of an unseen class).

        Examples of a class that the model does not know are scored, as wrong.

        Raises:
            ValueError: no example has a label at the model's level.
        """
        predicted = self.logits(features.h).argmax(1)
        return score(predicted, self.classes.number(features.labels))


@dataclasses.dataclass(frozen=True)
class LinearResult:
    """A linear probe whose l2 coefficient was chosen on validation examples.

    Attributes:
        accuracy: on the test queries.
        train_accuracy: on the examples of the last fit.
        l2: chosen.
        validation: l2 -> accuracy on the validation examples.
        queries: test examples scored.
        unlabelled: test examples left out, having no label at this level.
        unseen: test examples of classes not in training; they are scored, as wrong.
        trained_on: examples of the last fit.
        iterations: of the last fit.
        converged: whether the last fit met the tolerance.
        top5: top-5 accuracy on the test queries; None of few classes.
    """

    accuracy: float
    train_accuracy: float
    l2: float
    validation: dict[float, float]
    queries: int
    unlabelled: int
    unseen: int
    trained_on: int
    iterations: int
    converged: bool
    top5: float | None = None

    def scalars(self, prefix: str = "linear/") -> dict[str, float]:
        """{prefix + "accuracy"|"train_accuracy"|"l2"|"validation": value}, for a log."""
        return {
            f"{prefix}accuracy": self.accuracy,
            f"{prefix}train_accuracy": self.train_accuracy,
            f"{prefix}l2": self.l2,
            f"{prefix}validation": self.validation[self.l2],
        }


def logistic_regression(
    train: Features,
    level: int = -1,
    l2: float = 1e-3,
    standardise: bool = True,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
) -> LogisticModel:
    """Fit one logistic regression; training examples without a label at `level` are left out.

    Raises:
        ValueError: l2 < 0, fewer than two classes, features that are not finite.
    """
    return logistic_path(train, level, (l2,), standardise, max_iterations, tolerance)[0]


def logistic_path(
    train: Features,
    level: int,
    l2s: Sequence[float],
    standardise: bool = True,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
    pad_to: int = 0,
    start: LogisticModel | None = None,
) -> list[LogisticModel]:
    """Logistic regressions for several l2 coefficients, each starting from the last solution.

    They are fitted from the strongest to the weakest, the cheap way along the path, and returned
    in the order of `l2s`. With fewer than `pad_to` examples, rows of no weight are added: fits of
    different sizes then share one compilation. The first one starts from `start`, if that knows
    the same classes; the optimum is the same from anywhere.

    Raises:
        ValueError: as `logistic_regression`; no coefficient.
    """
    if not l2s or min(l2s) < 0:
        raise ValueError(f"l2={tuple(l2s)}: expected at least one number >= 0")
    classes = Classes.of(train.labels, level)
    truth = classes.number(train.labels)
    if len(classes) < 2:
        raise ValueError(
            f"logistic regression at level {level}: {len(classes)} class(es) have examples, "
            "at least 2 are needed"
        )
    h = train.h[truth >= 0]
    if not np.isfinite(h).all():
        raise ValueError(f"{(~np.isfinite(h)).any(1).sum()} training feature rows are not finite")
    scaler = Scaler.fit(h, standardise)
    inputs, targets = scaler(h), truth[truth >= 0]
    basis, variance = _principal(inputs, RANK)
    missing = (0, max(0, pad_to - len(h)))
    examples = (
        jnp.asarray(np.pad(inputs, (missing, (0, 0)))),
        jnp.asarray(np.pad(targets, missing)),
        jnp.asarray(np.pad(np.full(len(h), 1 / len(h), np.float32), missing)),
    )
    params = {
        "weights": jnp.zeros((h.shape[1], len(classes)), jnp.float32),
        "bias": jnp.zeros(len(classes), jnp.float32),
    }
    if start is not None and np.array_equal(start.classes.paths, classes.paths):
        params = {"weights": jnp.asarray(start.weights), "bias": jnp.asarray(start.bias)}
    # At the optimum the curvature of the loss along a bias is p (1 - p), p being the class's share.
    share = np.bincount(targets, minlength=len(classes)) / len(targets)
    bias_scale = (1 / np.sqrt(share * (1 - share))).astype(np.float32)
    fitted: dict[float, LogisticModel] = {}
    for l2 in sorted(set(l2s), reverse=True):
        # At the start the curvature of the loss along a direction is its variance over C.
        scale = (1 / np.sqrt(variance / len(classes) + max(l2, 1e-6))).astype(np.float32)
        params, loss, iterations, gradient = _fit(
            params, *examples, basis, scale, bias_scale, l2, max_iterations, tolerance
        )
        fitted[l2] = LogisticModel(
            weights=np.asarray(params["weights"]),
            bias=np.asarray(params["bias"]),
            classes=classes,
            scaler=scaler,
            loss=float(loss),
            iterations=int(iterations),
            converged=bool(gradient <= tolerance),
        )
    return [fitted[l2] for l2 in l2s]


def linear_probe(
    train: Features,
    validation: Features,
    test: Features,
    level: int = -1,
    l2s: Sequence[float] = SHORT_GRID,
    standardise: bool = True,
    max_iterations: int = 500,
    tolerance: float = 1e-4,
    refit: Features | None = None,
) -> LinearResult:
    """Choose l2 on `validation`, fit again with it on `refit`, score on `test`.

    `refit` is by default `train` and `validation` together.

    Of equal validation accuracies the strongest penalty wins.

    Raises:
        ValueError: as `logistic_regression`; no labelled example to validate or to test on.
    """
    last = train.join(validation) if refit is None else refit
    model, l2, chosen = chosen_model(
        train, validation, last, level, l2s, standardise, max_iterations, tolerance
    )
    accuracy, queries, unlabelled, unseen = model.accuracy(test)
    train_accuracy, trained_on, _, _ = model.accuracy(last)
    return LinearResult(
        accuracy=accuracy,
        train_accuracy=train_accuracy,
        l2=l2,
        validation=chosen,
        queries=queries,
        unlabelled=unlabelled,
        unseen=unseen,
        trained_on=trained_on,
        iterations=model.iterations,
        converged=model.converged,
        top5=top_score(model.logits(test.h), model.classes.number(test.labels)),
    )


def chosen_model(
    train: Features,
    validation: Features,
    last: Features,
    level: int = -1,
    l2s: Sequence[float] = SHORT_GRID,
    standardise: bool = True,
    max_iterations: int = 500,
    tolerance: float = 1e-4,
) -> tuple[LogisticModel, float, dict[float, float]]:
    """The model of `linear_probe`: l2 chosen on `validation`, fitted on `last`.

    Returns:
        (model, its l2, l2 -> accuracy on the validation examples).

    Raises:
        ValueError: as `linear_probe`.
    """
    settings = (standardise, max_iterations, tolerance, max(len(train), len(last)))
    path = logistic_path(train, level, l2s, *settings)
    chosen = {l2: m.accuracy(validation)[0] for l2, m in zip(l2s, path, strict=True)}
    l2 = max(chosen, key=lambda l2: (chosen[l2], l2))
    near = path[list(l2s).index(l2)]
    (model,) = logistic_path(last, level, (l2,), *settings, start=near)
    return model, l2, chosen


def _principal(inputs: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal f32[F, r], the leading principal directions, and second moments f32[r], falling.

    Only approximate, and the directions that are left out are given the last one's moment.
    """
    count, width = inputs.shape
    rank = min(rank, count, width)
    basis = np.random.default_rng(0).normal(size=(width, min(rank + 10, width)))
    basis = basis.astype(np.float32)
    for _ in range(2):
        basis, _ = np.linalg.qr(inputs.T @ (inputs @ basis))
    projected = inputs @ basis
    moments, rotation = np.linalg.eigh(projected.T @ projected / count)
    leading = np.argsort(moments)[::-1][:rank]
    return basis @ rotation[:, leading], np.maximum(moments[leading], 0)


@jax.jit
def _fit(
    params: Any,
    inputs: jax.Array,
    targets: jax.Array,
    share: jax.Array,
    basis: jax.Array,
    scale: jax.Array,
    bias_scale: jax.Array,
    l2: jax.Array,
    limit: int,
    tolerance: float,
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """L-BFGS from `params`: (parameters, objective, iterations, largest gradient entry).

    It walks in preconditioned coordinates `a`: weights = P a, where P multiplies the component
    along `basis[:, i]` by `scale[i]`, and what is orthogonal to the basis by `scale[-1]`; the biases
    are their coordinates times `bias_scale`. There is a row for each class: of [F, C] the gradient,
    inputs.T @ ..., takes two to seven times as long.
    """
    solver = optax.lbfgs(memory_size=10)
    read = optax.tree_utils.tree_get

    def rescale(a: jax.Array, scale: jax.Array) -> jax.Array:
        along = (a @ basis) * (scale - scale[-1])
        return scale[-1] * a + along @ basis.T

    def objective(coordinates: Any) -> jax.Array:
        weights = rescale(coordinates["weights"], scale)
        logits = inputs @ weights.T + coordinates["bias"] * bias_scale
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return (share * losses).sum() + l2 / 2 * (weights**2).sum()

    def largest(gradient: Any) -> jax.Array:
        """In the original coordinates."""
        weights = rescale(gradient["weights"], 1 / scale)
        bias = gradient["bias"] / bias_scale
        return jnp.maximum(jnp.abs(weights).max(), jnp.abs(bias).max())

    def unfinished(carry: tuple[Any, Any]) -> jax.Array:
        count = read(carry[1], "count")
        unmet = largest(read(carry[1], "grad")) > tolerance
        return (count == 0) | ((count < limit) & unmet)

    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        coordinates, state = carry
        value, gradient = value_and_grad(coordinates, state=state)
        updates, state = solver.update(
            gradient, state, coordinates, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(coordinates, updates), state

    start = {
        "weights": rescale(params["weights"].T, 1 / scale),
        "bias": params["bias"] / bias_scale,
    }
    end, state = jax.lax.while_loop(unfinished, step, (start, solver.init(start)))
    solution = {"weights": rescale(end["weights"], scale).T, "bias": end["bias"] * bias_scale}
    return solution, read(state, "value"), read(state, "count"), largest(read(state, "grad"))
