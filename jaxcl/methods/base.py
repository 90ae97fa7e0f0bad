"""What a method is: two declarations and four pure functions, and no more.

A method sees networks through `Apply` alone, images through the views that it declares, and keeps what it needs between steps
in `extra` (key encoder, queue, ...), which is part of the train state and so of every checkpoint. The number of devices is
nowhere: arrays are global.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from jaxcl.losses import Scoring
from jaxcl.models import HeadOn, HeadSpec
from jaxcl.views import ViewProgram, Views

PyTree = Any

# (params, batch_stats, images[N,h,w,C] in [0,1], train, key, heads=None: names of those to go through)
#   -> (h[N,F], {head: outputs of each of its layers, the last one is z[N,D]}), batch_stats
Apply = Callable[..., tuple[tuple[jax.Array, dict[str, tuple[jax.Array, ...]]], PyTree]]


class LossOut(NamedTuple):
    """What a method's loss gives to the train step.

    Attributes:
      loss: scalar, at least float32: what is differentiated.
      batch_stats: running statistics of the trained network after this step.
      carry: what `after_update` needs from the forward pass (keys for the queue, ...); {} for most.
      metrics: name -> scalar, for the log.
      embeddings: z[B,V,D] without gradient, on which the collapse meters are taken; None for none.
    """

    loss: jax.Array
    batch_stats: PyTree
    carry: PyTree
    metrics: dict[str, jax.Array]
    embeddings: jax.Array | None = None


class Method(Protocol):
    """The protocol of a method; implementations are frozen dataclasses.

    Attributes:
      views: the views that it needs of each image.
      heads: name -> the head on top of the backbone.
    """

    @property
    def views(self) -> ViewProgram:
        """The views that the method needs of each image."""

    @property
    def heads(self) -> Mapping[str, HeadSpec | HeadOn]:
        """The heads that the method trains on top of the backbone, by name."""

    def init_params(self, key: jax.Array) -> PyTree:
        """What it trains itself (proxies, margins, scorers): params["method"]; {} for most."""

    def init_extra(self, variables: PyTree, key: jax.Array) -> PyTree:
        """State without gradient (key encoder, queue), from {"params", "batch_stats"}."""

    def loss(
        self,
        apply: Apply,
        params: PyTree,
        batch_stats: PyTree,
        extra: PyTree,
        batch: Mapping[str, jax.Array],
        views: Views,
        key: jax.Array,
    ) -> LossOut:
        """The loss of one step; `batch` has "label" i32[B,L], "index" i32[B] and the `method_columns` if any."""

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """The next `extra`, after the optimizer's update; step i32[] counts completed updates."""


def method_columns(method: Method) -> tuple[str, ...]:
    """What the method reads of a batch beside images and labels, f32[B] each, if it reads more: see `data.ColumnSampler`."""
    return getattr(method, "columns", ())


def similarity_by_depth(method: Method) -> tuple[float, ...]:
    """The similarity of images that agree at 0, 1, ..., L label levels, if the method sets it; () else."""
    return getattr(method, "by_depth", ())


def scores_pairs(method: Method) -> bool:
    """Whether the method has a way of its own to score two embeddings."""
    return hasattr(method, "scoring")


def scoring(method: Method, params: PyTree, head: str) -> Scoring | None:
    """How the method scores two z of a head with its params["method"]; None if it has no way of its own."""
    known = getattr(method, "scoring", None)
    found: Scoring | None = None if known is None else known(params, head)
    return found


def trivial_loss(method: Method, batch_size: int) -> float | None:
    """The loss of embeddings that carry nothing, if the method knows it (a collapse is then told in words)."""
    known = getattr(method, "trivial_loss", None)
    return None if known is None else known(batch_size)


def advice(method: Method) -> str:
    """What to do where the embeddings tell nothing, in the method's own words; "" for the usual ones."""
    return getattr(method, "advice", "")


def own_rate(method: Method) -> str:
    """What the method trains itself that learns badly at the network's learning rate; "" for nothing."""
    return getattr(method, "own_rate", "")


def remarks(method: Method) -> tuple[str, ...]:
    """What has to be said of its settings before a training, a line each: those that do nothing, or that are risky."""
    return getattr(method, "remarks", ())


def labels_apart(method: Method) -> bool:
    """Whether it takes the label columns of an image as several labels, and not as the levels of one path."""
    return getattr(method, "overlap", False)


def learned_levels(method: Method) -> tuple[str, ...]:
    """Names of the label levels at each of which the method needs classes to tell apart; () if it does not say."""
    return getattr(method, "learned_levels", ())


def own_classifier(method: Method) -> str:
    """Where the classifier is that it trains itself, of its `level` of its `labels`.

    Returns:
      "head", the head of the name "classifier", whose outputs are logits; "probe", {"kernel": float[F,C], "bias": float[C]} on h
      among its own parameters; "" for none.
    """
    if "classifier" in method.heads:
        return "head"
    return "probe" if getattr(method, "probe", False) else ""
