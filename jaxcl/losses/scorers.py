"""How similar two embeddings are: distances that are given, and scorers that are learned.

A score is larger for the more similar, and the same for (x, y) and (y, x). A scorer is a pair of pure functions: `init` makes
its parameters, which are trained with the method's own, and `of_rows` and `of_pairs` score with them. `Scoring` is
a scorer with its parameters, and what its scores are taken for.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.losses.distances import DISTANCES, Distance

PyTree = Any

GIVEN = tuple(name for name in DISTANCES if name != "snr")  # whose two sides are not alike
LEARNED = ("mahalanobis", "bilinear", "mlp")
SCORERS = (*GIVEN, *LEARNED)


@dataclasses.dataclass(frozen=True)
class ScorerSpec:
    """A scorer as data.

    Attributes:
      name: of embeddings x and y with D features,
        a distance ("cosine", "l2", "squared_l2", "l1", "lp", "dot"): minus that distance, nothing to learn;
        "mahalanobis": ``-|A x - A y|^2`` with a matrix A [rank, D] to learn, so that the metric A^T A is positive
          semi-definite whatever A is; it starts as the squared Euclidean distance;
        "bilinear": ``x^T W y`` with a symmetric W = (A + A^T) / 2, which starts as the inner product;
        "mlp": a perceptron with a hidden layer on ``[|x - y|, x * y]``.
      p: the exponent of "lp".
      rank: rows of A for "mahalanobis"; 0 for D.
      hidden: width of the hidden layer of "mlp".
    """

    name: str = "cosine"
    p: float = 2.0
    rank: int = 0
    hidden: int = 64

    def __post_init__(self) -> None:
        if self.name not in SCORERS:
            raise ValueError(f"scorer.name={self.name!r}: expected one of {', '.join(SCORERS)}")
        if self.rank < 0 or self.hidden < 1:
            raise ValueError(
                f"scorer.rank={self.rank}, scorer.hidden={self.hidden}: expected 0 or more, and 1 or more"
            )
        if not self.p >= 1:
            raise ValueError(f"scorer.p={self.p}: expected 1 or more, or inf")
        owners = {"p": "lp", "rank": "mahalanobis", "hidden": "mlp"}
        for field in dataclasses.fields(self):
            value, owner = getattr(self, field.name), owners.get(field.name, self.name)
            if owner != self.name and value != field.default:
                raise ValueError(
                    f"scorer.{field.name}={value} does nothing in the scorer {self.name!r}: it is for {owner!r}; leave it at"
                    f" {field.default}"
                )

    @property
    def learned(self) -> bool:
        """Whether it has parameters."""
        return self.name in LEARNED

    @property
    def highest(self) -> float | None:
        """The score of two equal embeddings, which no score exceeds; None if there is no such bound."""
        return None if self.name in ("dot", "bilinear", "mlp") else 0.0

    def numbers_of_a_pair(self, width: int) -> int:
        """How many numbers `of_pairs` makes of each pair of embeddings of this width."""
        if self.name == "mlp":
            return 2 * width + self.hidden
        return width if self.name in ("l1", "lp") else 1

    def init(self, key: jax.Array, width: int) -> PyTree:
        """The parameters of a scorer of embeddings with D = `width` features; {} for a distance."""
        if self.name == "mahalanobis":
            rank = self.rank or width
            if rank >= width:
                return {"map": jnp.eye(rank, width)}
            # Rows that keep, on average, the length of a vector.
            return {"map": jax.random.normal(key, (rank, width)) / math.sqrt(rank)}
        if self.name == "bilinear":
            return {"kernel": jnp.eye(width)}
        if self.name == "mlp":
            first, last = jax.random.split(key)
            fan_in, hidden = 2 * width, self.hidden
            return {
                "kernel1": jax.random.normal(first, (fan_in, hidden)) * math.sqrt(2 / fan_in),
                "bias1": jnp.zeros(hidden),
                "kernel2": jax.random.normal(last, (hidden,)) / math.sqrt(hidden),
                "bias2": jnp.zeros(()),
            }
        return {}

    def of_rows(self, params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        """Scores ``[...]`` of ``x[..., D]`` and ``y[..., D]``."""
        x, y = _floats(x, y)
        if self.name == "mahalanobis":
            return -_SQUARE.of_rows(_mapped(params, x), _mapped(params, y))
        if self.name == "bilinear":
            return jnp.sum(_times(x, _symmetric(params)) * y, axis=-1)
        if self.name == "mlp":
            return _perceptron(params, x, y)
        return -self._distance.of_rows(x, y)

    def of_pairs(self, params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        """Scores ``[N, M]`` of all pairs of ``x[N, D]`` and ``y[M, D]``."""
        x, y = _floats(x, y)
        if self.name == "mahalanobis":
            return -_SQUARE.of_pairs(_mapped(params, x), _mapped(params, y))
        if self.name == "bilinear":
            return _times(_times(x, _symmetric(params)), y.T)
        if self.name == "mlp":
            return _perceptron(params, x[:, None], y[None])
        return -self._distance.of_pairs(x, y)

    @property
    def _distance(self) -> Distance:
        return Distance(self.name, self.p)


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """How pairs of embeddings are scored by what has been trained for it.

    Attributes:
      scorer: scores them.
      params: its parameters.
      predict: scores float[...] -> what they say of the pairs: their similarities float[...], or, if there are `edges`, their
        grades i32[...]; None where scores are for ordering only.
      edges: between the grades, as in `losses.similarity.grade`; () for none.
      respect: in which pairs are similar; "" for the only one.
    """

    scorer: ScorerSpec
    params: PyTree
    predict: Callable[[jax.Array], jax.Array] | None = None
    edges: tuple[float, ...] = ()
    respect: str = ""

    def of_rows(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Scores ``[...]`` of ``x[..., D]`` and ``y[..., D]``."""
        return self.scorer.of_rows(self.params, x, y)

    def of_pairs(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Scores ``[N, M]`` of all pairs of ``x[N, D]`` and ``y[M, D]``."""
        return self.scorer.of_pairs(self.params, x, y)


_SQUARE = Distance("squared_l2")


def mahalanobis_matrix(params: PyTree) -> jax.Array:
    """The metric ``A^T A`` ``[D, D]`` of a scorer "mahalanobis": symmetric, positive semi-definite."""
    return _times(params["map"].T, params["map"])


def _floats(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = jnp.asarray(x), jnp.asarray(y)
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.astype(dtype), y.astype(dtype)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def _mapped(params: PyTree, x: jax.Array) -> jax.Array:
    return _times(x, params["map"].T)


def _symmetric(params: PyTree) -> jax.Array:
    return (params["kernel"] + params["kernel"].T) / 2


def _perceptron(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
    both = jnp.concatenate([jnp.abs(x - y), x * y], axis=-1)
    hidden = jax.nn.relu(_times(both, params["kernel1"]) + params["bias1"])
    return _times(hidden, params["kernel2"]) + params["bias2"]
