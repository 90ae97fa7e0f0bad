"""Similarity learning: embeddings whose scores follow a similarity that is given for pairs of images.

The similarity comes from a label tree, as the depth of the common ancestor of any two images of the batch, or from a table of
pairs or triples (`jaxcl.data.pairs`). It is learned in one of three ways:

* regression: the score of a pair is its similarity;
* classification: the score tells whether a pair is similar, or its grade;
* ranking: of two images the more similar one to a third has the higher score.

All three see the same scores and the same targets, in rows: an image with every other view of the batch (tree), an anchor with
its positive and its negative (triples), or all pairs of the batch as one row (pairs).

Pairs may be similar in several respects (style, colour, ...), which the table gives in columns of their own and knows or not for
each pair. Each respect then has a head and a scorer, and so a space of its own, as those that are similar in one need not be in
another; what is asked of the scores is asked in each. With `objective="binary"` that is classification with several labels.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.losses import similarity
from jaxcl.losses.anchors import over_anchors
from jaxcl.losses.scorers import ScorerSpec, Scoring
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.models import HeadSpec
from jaxcl.views import ViewProgram, Views

LOSSES = {
    "regression": ("mse", "huber"),
    "classification": ("ordinal", "binary", "multi_class", "multi_label"),
    "ranking": ("softplus", "hinge", "list_net", "ndcg"),
}
TARGETS = ("tree", "pairs", "triples")
_SETTINGS = {
    "mse": (),
    "huber": ("delta",),
    "ordinal": ("temperature", "edges"),
    "binary": ("temperature", "threshold"),
    "multi_class": ("temperature", "edges"),
    "multi_label": ("temperature", "edges"),
    "softplus": ("temperature",),
    "hinge": ("margin",),
    "list_net": ("temperature", "sharpness"),
    "ndcg": ("temperature",),
}
"""What each objective reads."""
_OPTIONAL = {"balanced"}.union(*_SETTINGS.values())


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Similarity learning.

    Attributes:
      views: one view or more; with a label tree two views of an image are a pair of the highest similarity.
      features: width of h.
      levels: of the labels of the training data.
      projection: the head g.
      mode: "regression", "classification" or "ranking".
      objective: the loss of the mode, "" for the first of
        regression: "mse", "huber";
        classification: "ordinal" (is the grade above 0, above 1, ...), "binary" (is the similarity at least `threshold`),
          "multi_class" (grades without order), "multi_label" (each question of "ordinal" is a label by itself, with its own slope);
        ranking: "softplus" and "hinge" (on all ordered triples of a row; time goes with its square), "list_net", "ndcg".
      target: where similarities come from: "tree", "pairs" or "triples".
      respects: with pairs, the respects that are learned, columns "similarity:NAME" of the table, which count alike; each has a head
        of its name. () for the one column "similarity".
      by_depth: with a tree, the similarity of images that agree at 0, 1, ..., L levels; () for the share of levels.
      scorer: what scores two embeddings.
      temperature: divides the scores in ranking; in classification their slope is trained and starts at 1 / temperature.
      margin: of "hinge", on scores that are not divided.
      delta: of "huber".
      threshold: of "binary".
      edges: between grades, ascending; () for those between the similarities of the tree.
      sharpness: of the targets in "list_net".
      balanced: with a tree, every similarity weighs the same in regression and classification, however rare its pairs are.
    """

    views: ViewProgram
    features: int = 0
    levels: int = 0
    projection: HeadSpec = dataclasses.field(
        default_factory=lambda: HeadSpec(
            layers=(2048, 128), batch_norm=False, bias=True, init_std=None
        )
    )
    mode: str = "ranking"
    objective: str = ""
    target: str = "tree"
    respects: tuple[str, ...] = ()
    by_depth: tuple[float, ...] = ()
    scorer: ScorerSpec = dataclasses.field(default_factory=ScorerSpec)
    temperature: float = 0.1
    margin: float = 0.2
    delta: float = 0.1
    threshold: float = 0.5
    edges: tuple[float, ...] = ()
    sharpness: float = 5.0
    balanced: bool = True

    def __post_init__(self) -> None:
        if self.mode not in LOSSES:
            raise ValueError(f"method.mode={self.mode!r}: expected one of {', '.join(LOSSES)}")
        if self.objective and self.objective not in LOSSES[self.mode]:
            raise ValueError(
                f"method.objective={self.objective!r}: mode {self.mode!r} has {', '.join(LOSSES[self.mode])}"
            )
        if self.target not in TARGETS:
            raise ValueError(f"method.target={self.target!r}: expected one of {', '.join(TARGETS)}")
        for field in ("temperature", "delta", "sharpness"):
            if not getattr(self, field) > 0:
                raise ValueError(
                    f"method.{field}={getattr(self, field)}: expected a number above 0"
                )
        if self.margin < 0:
            raise ValueError(f"method.margin={self.margin}: expected 0 or more")
        if not self.views.views:
            raise ValueError("similarity learning needs a view of each image: views.views is empty")
        if self.by_depth and self.target != "tree":
            raise ValueError(
                f"method.by_depth={self.by_depth}: it is for target='tree', not {self.target!r}"
            )
        if self.respects and self.target != "pairs":
            raise ValueError(
                f"method.respects={self.respects}: they are for target='pairs', not {self.target!r}"
            )
        if len(set(self.respects)) != len(self.respects) or not all(
            name.isidentifier() and name.isascii() for name in self.respects
        ):
            raise ValueError(
                f"method.respects={self.respects}: expected different names of letters, digits and _"
            )
        if self.edges:
            similarity.check_edges(self.edges)
        elif self._graded and self.target != "tree":
            raise ValueError(
                f"method.edges=(): {self.loss_name!r} needs the numbers that divide the similarities of a table into grades"
            )
        self._check_used()
        if self.levels and self.target == "tree":
            similarity.depth_similarities(self.levels, self.by_depth)

    def _check_used(self) -> None:
        """Refuses settings that the objective does not read."""
        name, used = self.loss_name, set(_SETTINGS[self.loss_name])
        if self.mode != "ranking" and self.target == "tree":
            used.add("balanced")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _OPTIONAL - used and value != field.default:
                has = f"which has {', '.join(sorted(used))}" if used else "which has no settings"
                raise ValueError(
                    f"method.{field.name}={value} does nothing in {name!r} with target={self.target!r}, {has}; leave it at"
                    f" {field.default}"
                )

    @property
    def loss_name(self) -> str:
        """The objective, or the mode's first."""
        return self.objective or LOSSES[self.mode][0]

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """One projection head, or one for each respect."""
        return dict.fromkeys(self.respects or ("projection",), self.projection)

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads of a batch beside images and labels: f32[B] each, in the order of the heads."""
        if self.target == "tree":
            return ()
        column = _COLUMNS[self.target]
        return tuple(f"{column}/{name}" for name in self.respects) or (column,)

    @property
    def _graded(self) -> bool:
        return self.loss_name in ("ordinal", "multi_class", "multi_label")

    def grade_edges(self, levels: int) -> tuple[float, ...]:
        """What divides similarities into grades, for labels of so many levels."""
        if self.loss_name == "binary":
            return (self.threshold,)
        if self.edges:
            return self.edges
        return similarity.edges_between(similarity.depth_similarities(levels, self.by_depth))

    def init_params(self, key: jax.Array) -> PyTree:
        """Those of the scorer, and of what makes predictions of scores.

        Returns:
          {"scorer": ...}, and in regression and classification "calibration": {"slope": f32[], "offset": f32[]} or, for several
          logits, [K]; of respects {respect: such a dict}.

        Raises:
          ValueError: the width of z, or the levels of the labels, are not known.
        """
        width = self.projection.width(self.features)
        if not width:
            raise ValueError(
                "the width of z is that of h, which is not known: it comes from the network (Config.build_method)"
            )
        if self.respects:
            keys = jax.random.split(key, len(self.respects))
            return {
                name: self._init_space(own, width)
                for name, own in zip(self.respects, keys, strict=True)
            }
        return self._init_space(key, width)

    def _init_space(self, key: jax.Array, width: int) -> PyTree:
        """The parameters of a space of z float[..., width]; see `init_params`."""
        params: dict[str, PyTree] = {"scorer": self.scorer.init(key, width)}
        if self.mode == "regression":
            # Two equal embeddings are similar by 1 at first.
            params["calibration"] = {"slope": jnp.zeros(()), "offset": jnp.ones(())}
            if self.scorer.highest is None:
                params["calibration"]["offset"] = jnp.zeros(())
        elif self.mode == "classification":
            params["calibration"] = self._questions()
        return params

    def _questions(self) -> PyTree:
        """Slopes and offsets of the logits: the higher the grade, the higher the score that it takes."""
        if self.target == "tree" and not (self.levels or self.loss_name == "binary"):
            raise ValueError(
                "the number of label levels is not known: it comes from the training data (Config.for_run); they need labels,"
                " or a table of pairs or triples with method.target"
            )
        count = len(self.grade_edges(self.levels))
        place = 1 - jnp.arange(1, count + 1) / (count + 1)  # where scores reach from -1 to 0
        slope = -math.log(self.temperature)
        if self.loss_name == "ordinal":
            step = math.log(math.expm1(1 / ((count + 1) * self.temperature)))
            return {
                "slope": jnp.full((), slope),
                "offset": place[0] / self.temperature,
                "steps": jnp.full(count - 1, step),
            }
        if self.loss_name == "multi_class":
            # The logits' differences from grade to grade are those of the other objectives.
            return {
                "slope": jnp.arange(count + 1) / self.temperature,
                "offset": jnp.concatenate([jnp.zeros(1), jnp.cumsum(place) / self.temperature]),
            }
        return {"slope": jnp.full(count, slope), "offset": place / self.temperature}

    def init_extra(self, variables: PyTree, key: jax.Array) -> PyTree:
        """No state between steps."""
        return {}

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
        """The prices of the batch's pairs or rows; BN sees all views of the global batch together."""
        b, v = views.images.shape[:2]
        images = views.images.reshape(b * v, *views.images.shape[2:])
        (_, heads), batch_stats = apply(params, batch_stats, images, True, key)
        spaces = {head: layers[-1].reshape(b, v, -1) for head, layers in heads.items()}
        if self.target == "tree":
            given = params["method"], spaces["projection"], batch["label"], batch["index"]
            found = [self._all_pairs(*given)]
        else:
            found = [
                self._table_pairs(
                    params["method"][head] if self.respects else params["method"],
                    spaces[head],
                    self._known(batch, column),
                )
                for head, column in zip(self.heads, self.columns, strict=True)
            ]
        sums = jax.tree.map(lambda *parts: jnp.stack([jnp.sum(x, axis=0) for x in parts]), *found)
        metrics = {}
        for name, moments in zip(self.respects or ("",), sums["moments"], strict=True):
            suffix = f"_{name}" if name else ""
            metrics[f"pearson{suffix}"] = _pearson(jax.lax.stop_gradient(moments))
            metrics[f"known_pairs{suffix}"] = moments[0]
        z = spaces[next(iter(self.heads))]
        if self.respects:
            z = jnp.concatenate([losses.normalize(spaces[name]) for name in self.respects], axis=-1)
        return LossOut(
            _mean_of_means(sums["price"], sums["count"]),
            batch_stats,
            {},
            metrics,
            jax.lax.stop_gradient(z),
        )

    def _all_pairs(
        self, params: PyTree, z: jax.Array, labels: jax.Array, images: jax.Array
    ) -> PyTree:
        """The sums of each row of all views against all others; an image that the batch has twice, `images` i32[B], is one."""
        b, v, width = z.shape
        if not labels.shape[1]:
            raise ValueError(
                "method.target='tree': the images have no labels; say where they are (data.labels, data.label_keys), or learn"
                " from a table with method.target='pairs' or 'triples'"
            )
        steps = similarity.depth_similarities(labels.shape[1], self.by_depth)
        everyone = {
            "z": z.reshape(b * v, width),
            "label": jnp.repeat(labels, v, axis=0),
            "image": jnp.repeat(images, v),
            "row": jnp.arange(b * v, dtype=jnp.int32),
        }

        def rows(anchors: PyTree, whole: PyTree) -> PyTree:
            params, keys = whole["params"], whole["keys"]

            def same(name: str) -> jax.Array:
                return anchors[name][:, None] == keys[name][None, :]

            target = similarity.target_similarity(anchors["label"], keys["label"], steps)
            target = jnp.where(same("image"), steps[-1], target)
            target = jnp.where(same("row"), jnp.nan, target)
            scores = self.scorer.of_pairs(params["scorer"], anchors["z"], keys["z"])
            return self._sums(params, scores, target, steps)

        pairs = b * v * max(self.scorer.numbers_of_a_pair(width), labels.shape[1])
        quadratic = self.loss_name in ("softplus", "hinge", "ndcg")
        elements = max(pairs, (b * v) ** 2) if quadratic else pairs
        return over_anchors(rows, everyone, {"params": params, "keys": everyone}, elements)

    def _known(self, batch: Mapping[str, jax.Array], column: str) -> jax.Array:
        """A column f32[B] of the batch, which says what is known of each image's row of the table."""
        if column in batch:
            return batch[column]
        kind = _COLUMNS[self.target]
        there = sorted(name for name in batch if name.partition("/")[0] == kind)
        there = ["similarity" + name.removeprefix(kind).replace("/", ":") for name in there]
        if not there:
            raise ValueError(
                f"method.target={self.target!r}: the batch has no {self.target}; name a table of them in data.pairs['train']"
            )
        raise ValueError(
            f"method.respects={self.respects}: the table in data.pairs['train'] has the columns {', '.join(there)}; expected names"
            " after 'similarity:', or () for a column 'similarity'"
        )

    def _table_pairs(self, params: PyTree, z: jax.Array, known: jax.Array) -> PyTree:
        """The sums of the pairs or triples of the batch, whose images z [B, V, D] stand next to each other; known f32[B]."""
        size = _SIZES[self.target]
        b, v, width = z.shape
        z = z.reshape(b // size, size, v, width)
        # A row whose image could not be read has no number, nor has its pair then.
        known = known.reshape(b // size, size, 1)
        known = jnp.broadcast_to(known.min(axis=1), (b // size, v))
        if self.target == "pairs":
            scores = self.scorer.of_rows(params["scorer"], z[:, 0], z[:, 1])
            scores, target = scores.reshape(1, -1), known.reshape(1, -1)
        else:
            scores = self.scorer.of_rows(params["scorer"], z[:, :1], z[:, 1:])
            scores = jnp.moveaxis(scores, 1, 2).reshape(-1, 2)
            likeness = jnp.asarray([1.0, 0.0], known.dtype)
            target = jnp.where(jnp.isnan(known.reshape(-1, 1)), jnp.nan, likeness)
        return self._sums(params, scores, target, ())

    def _sums(
        self, params: PyTree, scores: jax.Array, target: jax.Array, steps: tuple[float, ...]
    ) -> PyTree:
        """Of each row of scores [n, M]: "price" and "count" [n, G] of G groups whose means count alike, "moments" [n, 6]."""
        known = ~jnp.isnan(target)
        moments = _moments(scores, target, known)
        if self.mode == "ranking":
            price = self._row_prices(scores, target)[:, None]
            return {
                "price": price,
                "count": similarity.ranked(target)[:, None].astype(price.dtype),
                "moments": moments,
            }
        price = self._pair_prices(params["calibration"], scores, target)
        values = sorted(set(steps)) if self.balanced else []
        if values:
            edges = similarity.edges_between(values)
            number = similarity.grade(target, edges) if edges else jnp.where(known, 0, -1)
            groups = [number == i for i in range(len(values))]
        else:
            groups = [known]
        return {
            "price": jnp.stack([jnp.sum(jnp.where(g, price, 0), axis=1) for g in groups], 1),
            "count": jnp.stack([jnp.sum(g, axis=1, dtype=price.dtype) for g in groups], 1),
            "moments": moments,
        }

    def _row_prices(self, scores: jax.Array, target: jax.Array) -> jax.Array:
        """[n] of the ranking's objective."""
        name = self.loss_name
        if name == "hinge":
            return similarity.ordered_triples(scores, target, "hinge", self.margin)
        scores = scores / self.temperature
        if name == "softplus":
            return similarity.ordered_triples(scores, target, "softplus")
        if name == "list_net":
            return similarity.list_net(scores, target, self.sharpness)
        return similarity.smooth_ndcg(scores, target)

    def _pair_prices(self, calibration: PyTree, scores: jax.Array, target: jax.Array) -> jax.Array:
        """[n, M] of the objectives of regression and classification."""
        name: Any = self.loss_name
        if self.mode == "regression":
            predicted = self.predicted(calibration, scores)
            return similarity.regression(predicted, target, name, self.delta)
        grades = similarity.grade(target, self.grade_edges(self.levels))
        logits = self._logits(calibration, scores)
        if name == "multi_class":
            return similarity.multi_class(logits, grades)
        if name == "ordinal":
            return similarity.ordinal(logits, grades)
        reached = grades[..., None] > jnp.arange(logits.shape[-1])
        similar = jnp.where(grades[..., None] < 0, jnp.nan, reached.astype(logits.dtype))
        return similarity.multi_label(logits, similar)

    def _logits(self, calibration: PyTree, scores: jax.Array) -> jax.Array:
        """[..., K] of the grades in "multi_class", of the questions of the other objectives of classification."""
        slope, offset = calibration["slope"], calibration["offset"]
        if self.loss_name == "multi_class":
            return slope * scores[..., None] + offset
        if self.loss_name == "ordinal":
            # Higher grades take higher scores, whatever is learned.
            steps = jnp.cumsum(jax.nn.softplus(calibration["steps"]))
            offset = offset - jnp.concatenate([jnp.zeros(1, steps.dtype), steps])
        return jnp.exp(slope) * scores[..., None] + offset

    def scoring(self, params: PyTree, head: str) -> Scoring | None:
        """How two z of a head are scored with params["method"], and what the scores predict; None if there is no such head."""
        if head not in self.heads:
            return None
        own = params[head] if self.respects else params
        predict = None
        edges: tuple[float, ...] = ()
        if self.mode != "ranking":
            predict = functools.partial(self.predicted, own["calibration"])
        if self.mode == "classification":
            edges = self.grade_edges(self.levels)
        return Scoring(self.scorer, own["scorer"], predict, edges, head if self.respects else "")

    def predicted(self, calibration: PyTree, scores: jax.Array) -> jax.Array:
        """What scores float[...] say of pairs: their similarities, or in classification their grades i32[...], from 0.

        The grade is the one of the highest logit in "multi_class", else the number of questions that are answered with yes.
        """
        if self.mode == "regression":
            return jnp.exp(calibration["slope"]) * scores + calibration["offset"]
        logits = self._logits(calibration, scores)
        if self.loss_name == "multi_class":
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jnp.sum(logits > 0, axis=-1, dtype=jnp.int32)

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Nothing to carry."""
        return extra


_COLUMNS = {"pairs": "pair", "triples": "triple"}
_SIZES = {"pairs": 2, "triples": 3}


def _mean_of_means(price: jax.Array, count: jax.Array) -> jax.Array:
    """The mean, over the groups [...] that have anything, of their mean prices; 0 of none."""
    means = price / jnp.maximum(count, 1)
    return jnp.sum(means) / jnp.maximum(jnp.sum(count > 0), 1).astype(means.dtype)


def _moments(scores: jax.Array, target: jax.Array, known: jax.Array) -> jax.Array:
    """Sums over each row's known pairs: of 1, s, t, s^2, t^2, s t."""
    s, t = jnp.where(known, scores, 0), jnp.where(known, target, 0).astype(scores.dtype)
    terms = (known.astype(s.dtype), s, t, s * s, t * t, s * t)
    return jax.lax.stop_gradient(jnp.stack([jnp.sum(x, axis=1) for x in terms], axis=1))


def _pearson(moments: jax.Array) -> jax.Array:
    """The correlation of scores and targets in the batch; 0 where one of them does not vary."""
    n, s, t, ss, tt, st = moments / jnp.maximum(moments[0], 1)
    del n
    spread = jnp.maximum((ss - s * s) * (tt - t * t), 0)
    return jnp.where(spread > 0, (st - s * t) / jnp.sqrt(jnp.where(spread > 0, spread, 1)), 0)
