"""The losses that metric learning can be done with: what can be set of each, and how it is called."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.losses import metric, triplets
from jaxcl.losses.anchors import Reference, Sides, sides
from jaxcl.losses.contrastive import inverse_temperature
from jaxcl.losses.distances import DISTANCES, Distance
from jaxcl.losses.mining import EPSILON, MINING_MARGINS, PAIR_MININGS, TRIPLET_MININGS

Outcome = tuple[jax.Array, dict[str, jax.Array]]
"""(the loss, what was mined)."""


class Given(NamedTuple):
    """What a loss is called with.

    Attributes:
      z: float[N,D], embeddings.
      labels: i32[N].
      images: i32[N], the image of each row, where rows of one image are no pair; None where they are.
      settings: the settings of the loss, by name.
      mining: the mining.
      reference: the memory, or None.
      key: of this step, for what is drawn.
      trained: the method's own parameters: "proxies" float[C,D], or "beta" float[N], the border of each row.
    """

    z: jax.Array
    labels: jax.Array
    images: jax.Array | None
    settings: Mapping[str, Any]
    mining: str
    reference: Reference | None
    key: jax.Array
    trained: Mapping[str, jax.Array]

    @property
    def distance(self) -> Distance:
        """The distance that is set."""
        return Distance(self.settings["distance"], self.settings["p"])

    @property
    def mining_margins(self) -> tuple[float, float] | None:
        """Those of the mining "pair_margin"; None where mining goes by the margins of the loss."""
        if self.mining != "pair_margin":
            return None
        return self.settings["mining_pos_margin"], self.settings["mining_neg_margin"]

    def sides(self, name: str, distance: Distance | str = "dot") -> Sides:
        """Anchors and keys, normalised unless the loss is set not to."""
        normalized = self.settings.get("normalized", True)
        return sides(name, self.z, self.labels, self.reference, distance, normalized, self.images)

    def rows(self, name: str) -> metric.Rows:
        """The same for the engine, normalised."""
        return metric.Rows.of(name, self.z, self.labels, self.reference, self.images)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A loss.

    Attributes:
      run: calls it.
      settings: field of the method -> the default.
      minings: values of `mining`, the default first.
      memory: whether anchors can be held against more than the batch.
      proxies: whether each class has a trained vector.
    """

    run: Callable[[Given], Outcome]
    settings: Mapping[str, Any]
    minings: tuple[str, ...] = ("all",)
    memory: bool = True
    proxies: bool = False


def _margin_contrastive(given: Given) -> Outcome:
    s = given.settings
    margins = s["pos_margin"], s["neg_margin"]
    return metric.mined_pairs(
        "margin_contrastive",
        metric.Margins(*margins),
        given.sides("margin_contrastive", given.distance),
        given.mining,
        s["reduction"],
        given.mining_margins or margins,
        epsilon=s["epsilon"],
    )


def _hadsell(given: Given) -> Outcome:
    s = given.settings
    return metric.mined_pairs(
        "hadsell",
        metric.Squares(s["margin"]),
        given.sides("hadsell", given.distance),
        given.mining,
        "together",
        given.mining_margins or (0.0, s["margin"]),
        epsilon=s["epsilon"],
    )


def _triplet(given: Given) -> Outcome:
    s = given.settings
    return triplets.mined_triplets(
        "triplet",
        triplets.Hinge(s["margin"], s["smooth"]),
        given.sides("triplet", given.distance),
        given.mining,
        s["reduction"],
        s["margin"],
        swap=s["swap"],
        key=given.key,
    )


def _margin(given: Given) -> Outcome:
    s = given.settings
    return triplets.mined_triplets(
        "margin",
        triplets.Boundary(s["margin"]),
        given.sides("margin", given.distance),
        given.mining,
        s["reduction"],
        s["margin"],
        beta=given.trained.get("beta", s["beta"]),
        nu=s["nu"],
        key=given.key,
    )


def _nt_logistic(given: Given) -> Outcome:
    return triplets.mined_triplets(
        "nt_logistic",
        triplets.logistic(given.settings["temperature"], given.z.dtype),
        given.sides("nt_logistic"),
        "closest_semihard" if given.mining == "semihard" else "all",
        "mean",
        math.inf,
    )


def _nt_xent(given: Given) -> Outcome:
    scale = float(inverse_temperature(given.settings["temperature"], given.z.dtype))
    return triplets.softmax_pairs("nt_xent", given.sides("nt_xent"), scale, given.mining, None)


def _multi_similarity(given: Given) -> Outcome:
    against = given.rows("multi_similarity")
    return metric.mined_similarity(against, mining=given.mining, **given.settings)


def _lifted_structure(given: Given) -> Outcome:
    s = given.settings
    against = given.sides("lifted_structure", given.distance)
    return metric.lifted(against, s["pos_margin"], s["neg_margin"])


def _proxies(loss: Callable[..., jax.Array]) -> Callable[[Given], Outcome]:
    """A row with a label counts, whatever else the batch has: it is held against proxies."""
    return lambda given: (
        loss(given.z, given.labels, given.trained["proxies"], **given.settings),
        {"mined_anchors": jnp.mean(given.labels >= 0, dtype=jnp.float32)},
    )


_DISTANCE = {"distance": "l2", "p": 2.0, "normalized": True}
_BY_DISTANCE = {**_DISTANCE, "reduction": "nonzero"}
_MINED_PAIRS = {
    "epsilon": EPSILON,
    "mining_pos_margin": MINING_MARGINS[0],
    "mining_neg_margin": MINING_MARGINS[1],
}

LOSSES: dict[str, Spec] = {
    "margin_contrastive": Spec(
        _margin_contrastive,
        {"pos_margin": 0.0, "neg_margin": 1.0, **_MINED_PAIRS, **_BY_DISTANCE},
        PAIR_MININGS,
    ),
    "hadsell": Spec(_hadsell, {"margin": 1.0, **_MINED_PAIRS, **_DISTANCE}, PAIR_MININGS),
    "triplet": Spec(
        _triplet,
        {"margin": 0.2, "swap": False, "smooth": False, **_BY_DISTANCE},
        TRIPLET_MININGS,
    ),
    "margin": Spec(
        _margin,
        {"margin": 0.2, "beta": 1.2, "learn_beta": "no", "nu": 0.0, **_BY_DISTANCE},
        TRIPLET_MININGS,
    ),
    "nt_logistic": Spec(_nt_logistic, {"temperature": 0.1}, ("all", "semihard")),
    "nt_xent": Spec(_nt_xent, {"temperature": 0.1}, ("all", "semihard")),
    "multi_similarity": Spec(
        _multi_similarity,
        {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": EPSILON},
        ("all", "multi_similarity"),
    ),
    "lifted_structure": Spec(
        _lifted_structure, {"pos_margin": 0.0, "neg_margin": 1.0, **_DISTANCE}
    ),
    "circle": Spec(
        lambda given: metric.circles(given.sides("circle"), **given.settings),
        {"margin": 0.4, "scale": 80.0},
    ),
    "nca": Spec(
        lambda given: metric.neighbours(given.rows("nca"), **given.settings), {"scale": 1.0}
    ),
    "fast_ap": Spec(
        lambda given: metric.average_precision(
            given.sides("fast_ap", "squared_l2"), **given.settings
        ),
        {"bins": 10},
    ),
    "n_pairs": Spec(
        lambda given: metric.pairs_of_classes(
            given.z, given.labels, images=given.images, **given.settings
        ),
        {"l2": 0.0, "normalized": False},
        memory=False,
    ),
    "proxy_nca": Spec(
        _proxies(losses.proxy_nca),
        {"scale": 1.0, "denominator": "all"},
        memory=False,
        proxies=True,
    ),
    "proxy_anchor": Spec(
        _proxies(losses.proxy_anchor), {"margin": 0.1, "alpha": 32.0}, memory=False, proxies=True
    ),
    "arcface": Spec(
        _proxies(losses.arcface), {"margin": 28.6, "scale": 64.0}, memory=False, proxies=True
    ),
}

WITH_PROXIES = tuple(name for name, spec in LOSSES.items() if spec.proxies)
"""Losses with a trained vector for each class, which needs a learning rate of its own."""

CHOICES = {
    "distance": DISTANCES,
    "reduction": triplets.REDUCTIONS,
    "learn_beta": ("no", "one", "class"),
    "denominator": ("all", "others"),
}
FUNCTIONS = {"margin": "margin_loss", "nt_xent": "nt_xent_pairs"}
"""Loss -> its name in `jaxcl.losses`, where that is another."""
