"""Metric learning: an embedding in which images of a class are near each other and far from others, for search and matching.

One view of an image is usual, batches hold several images of each class (`data.sampler="m_per_class"`), and the embedding is
the output of a head on the encoder. The losses are those of `jaxcl.losses`, each with the mining that goes with it; batches are
global, and so is what is mined. Proxies and learned borders are the method's own parameters: `optim.method_lr` is theirs.

Images that a batch has twice, in one view each, are neither positives nor negatives of themselves. What has no label is left out;
but in several views it is a class of its own, of which only the network learns: borders are those of classes.

A memory (XBM: Wang et al., CVPR 2020) keeps embeddings and labels of the last batches, as further positives and negatives of
the anchors, without a key encoder: embeddings drift slowly once the first steps are over, which is what `memory_start` waits for.
It knows images too, and of an image that the batch has it gives none: a positive that is the anchor's own image of some steps ago
is at a distance near 0 and teaches nothing, and for all other anchors the batch has that image as it is now. The paper's memory
has labels alone; in its authors' code a positive of a cosine above 1 - 1e-5 is left out, which is the row of the step itself, and an
earlier embedding of the same image stays a positive. That shows where the memory is as large as the data set, as in the paper.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.losses.distances import Distance
from jaxcl.losses.limits import misfit
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.methods.labels import IMAGE, LabelLevels
from jaxcl.methods.memory import Queue
from jaxcl.methods.metric_losses import CHOICES, FUNCTIONS, LOSSES, Given, Spec
from jaxcl.methods.moco import dictionary_metrics
from jaxcl.methods.supcon import same_class
from jaxcl.models import HeadSpec
from jaxcl.views import ViewProgram, Views

UNKNOWN = 2**30
"""Labels from here on are of images without one, whose views agree with each other alone."""

AT_0 = ("all", "hard", "violating", "batch_hard", "facenet", "distance_weighted")
"""Minings of triplets that have something to take where all distances are equal."""

DRAWS = 1
"""Folded into the step's key: for what the loss draws."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """Metric learning.

    Fields from `margin` on are of some losses only; None is the loss's own default. Another value of a field that the loss does
    not have is refused.

    Attributes:
      views: one view of each image or more, without shared parameters.
      labels: what the training data have.
      projection: the head whose output is the embedding.
      objective: one of `LOSSES`; see the function of that name in `jaxcl.losses` ("margin" is `margin_loss`, "nt_xent"
        `nt_xent_pairs`).
      mining: which pairs or triplets; None for the loss's default, which is all of them.
      level: the label level to learn: its name or number (0 is the coarsest, -1 the finest); "" is the finest; "image": every
        image is a class of its own, whose members are its views. An image without a label has its own views for positives, and
        is left out if there is one view.
      memory_size: embeddings of earlier batches that are kept; 0 for none. Those of images that the batch has are not used.
      memory_start: completed updates before they are used.
      margin: of "hadsell", "triplet", "margin", "circle", "proxy_anchor" and, in degrees, "arcface".
      pos_margin: of "margin_contrastive" and "lifted_structure".
      neg_margin: of the same.
      distance: of "margin_contrastive", "hadsell", "triplet", "margin" and "lifted_structure".
      p: the exponent of the distance "lp".
      normalized: whether rows are L2-normalised first, of the losses that have `distance` and of "n_pairs", where they are
        not unless it is set; losses of cosines always do, and so does the memory.
      reduction: "nonzero" or "mean", of "margin_contrastive", "triplet" and "margin".
      swap: of "triplet".
      smooth: of "triplet".
      temperature: of "nt_xent" and "nt_logistic".
      scale: of "circle", "nca", "proxy_nca" and "arcface".
      alpha: of "multi_similarity" and "proxy_anchor".
      beta: of "multi_similarity"; of "margin" the border, or where it starts.
      learn_beta: whether "margin" learns its border: "no", "one" for all, or one for each "class".
      nu: of "margin" with `learn_beta`.
      base: of "multi_similarity".
      epsilon: of the mining "multi_similarity".
      mining_pos_margin: of the mining "pair_margin": positives that are farther than that.
      mining_neg_margin: of the same: negatives that are nearer than that.
      bins: of "fast_ap".
      l2: of "n_pairs".
      denominator: of "proxy_nca".
      classes: proxies, or learned borders; 0 for as many as the data have.
    """

    views: ViewProgram
    labels: LabelLevels = dataclasses.field(default_factory=LabelLevels)
    projection: HeadSpec = dataclasses.field(
        default_factory=lambda: HeadSpec(layers=(128,), batch_norm=False, bias=True, init_std=None)
    )
    objective: str = "triplet"
    mining: str | None = None
    level: str = ""
    memory_size: int = 0
    memory_start: int = 0
    margin: float | None = None
    pos_margin: float | None = None
    neg_margin: float | None = None
    distance: str | None = None
    p: float | None = None
    normalized: bool | None = None
    reduction: str | None = None
    swap: bool | None = None
    smooth: bool | None = None
    temperature: float | None = None
    scale: float | None = None
    alpha: float | None = None
    beta: float | None = None
    learn_beta: str | None = None
    nu: float | None = None
    base: float | None = None
    epsilon: float | None = None
    mining_pos_margin: float | None = None
    mining_neg_margin: float | None = None
    bins: int | None = None
    l2: float | None = None
    denominator: str | None = None
    classes: int = 0

    def __post_init__(self) -> None:
        if self.objective not in LOSSES:
            raise ValueError(
                f"method.objective={self.objective!r}: expected one of {', '.join(LOSSES)}"
            )
        self._check_settings()
        self._check_memory()
        by_image = self.level == IMAGE
        if by_image and len(self.views.views) < 2:
            raise ValueError(
                "method.level='image' with one view of each image, so that there are no positives: add a view to views.views"
            )
        if by_image and self.trains_classes:
            raise ValueError(
                f"method.level='image': {self.objective!r} trains something for each class; expected a label level"
                + (", or learn_beta='one'" if self.objective == "margin" else "")
            )
        if self.classes and not self.trains_classes:
            raise ValueError(
                f"method.classes={self.classes}: {self.objective!r} trains nothing for each class; expected 0"
            )
        if self.labels.names and not by_image:
            self.labels.column(self.level)
            if self.trains_classes:
                self.labels.class_count(self.level, self.classes)

    def _check_settings(self) -> None:
        function = FUNCTIONS.get(self.objective, self.objective)
        for field in sorted({name for spec in LOSSES.values() for name in spec.settings}):
            value = getattr(self, field)
            if value is None:
                continue
            if field not in self.spec.settings:
                raise ValueError(
                    f"method.{field}={value!r} does nothing in the loss {self.objective!r}, which has"
                    f" {', '.join(self.spec.settings)}; leave it at None"
                )
            if field in CHOICES and value not in CHOICES[field]:
                raise ValueError(
                    f"method.{field}={value!r}: expected one of {', '.join(CHOICES[field])}"
                )
            expected = misfit(function, field, value, self.setting("distance") or "")
            if expected:
                raise ValueError(f"method.{field}={value}: expected {expected}")
        if self.mined not in self.spec.minings:
            raise ValueError(
                f"method.mining={self.mining!r} with the loss {self.objective!r}: expected one of"
                f" {', '.join(self.spec.minings)}"
            )
        if self.mined == "distance_weighted" and self.setting("distance") != "l2":
            raise ValueError(
                f"method.distance={self.distance!r} with mining='distance_weighted': expected 'l2'"
            )
        if self.normalized is False and self.setting("distance") == "cosine":
            raise ValueError(
                "method.normalized=False does nothing with distance='cosine': leave it at None, or choose another distance"
            )
        if self.normalized is False and self.mined == "distance_weighted":
            raise ValueError(
                "method.normalized=False with mining='distance_weighted', which goes by the distances of points on a sphere:"
                " leave it at None, or choose another mining"
            )
        if self.p is not None and self.distance != "lp":
            raise ValueError(f"method.p={self.p} does nothing without distance='lp'")
        if self.distance == "lp":
            Distance("lp", self.setting("p"))
        for field, mining in (
            ("epsilon", "multi_similarity"),
            ("mining_pos_margin", "pair_margin"),
            ("mining_neg_margin", "pair_margin"),
        ):
            if getattr(self, field) is not None and self.mined != mining:
                raise ValueError(
                    f"method.{field}={getattr(self, field)} does nothing without mining={mining!r}"
                )
        if self.nu is not None and self.setting("learn_beta") == "no":
            raise ValueError(
                f"method.nu={self.nu} does nothing to a border that is not learned: set method.learn_beta='one' or 'class'"
            )
        self._check_negatives()

    def _check_negatives(self) -> None:
        """Refuses mining that leaves no negative which costs anything: the positives would pull all into one point."""
        mining, settings = f"method.mining={self.mined!r}", self.spec.settings
        costs_beyond = self.setting("smooth") or self.setting("swap")
        if self.objective == "triplet" and self.mined == "easy" and not costs_beyond:
            raise ValueError(
                f"{mining} with the loss 'triplet' takes triplets that cost nothing: choose 'semihard' or 'all', or"
                " method.smooth=True"
            )
        hinges = ("triplet", "margin")
        if self.objective in hinges and "semihard" in self.mined and not self.setting("margin") > 0:
            raise ValueError(
                f"{mining} with method.margin={self.setting('margin'):g} takes negatives farther than the positive by more than 0"
                " and at most that margin, of which there are none: expected a margin above 0"
            )
        if self.objective not in ("margin_contrastive", "hadsell"):
            return
        # The margins that `mining.negative_kind` goes by; the loss 'hadsell' has no margin of positives.
        near = self.setting("pos_margin") if "pos_margin" in settings else 0.0
        far = self.setting("neg_margin" if "neg_margin" in settings else "margin")
        if not far > 0 and self.setting("distance") != "dot":
            raise ValueError(
                f"method.neg_margin={far:g}: there are no negatives nearer than that, so that none costs anything; expected a"
                " number above 0"
            )
        if self.mined == "easy":
            raise ValueError(
                f"{mining} with the loss {self.objective!r} takes negatives beyond the margin, which cost nothing: choose"
                " 'semihard' or 'all'"
            )
        if self.mined == "hard" and not near > 0 and self.setting("distance") != "dot":
            raise ValueError(
                f"{mining} with the loss {self.objective!r} takes negatives nearer than {near:g}, of which there are none: choose"
                " 'semihard'"
                + (", or a method.pos_margin above 0" if "pos_margin" in settings else "")
            )
        if self.mined == "pair_margin":
            self._check_mining_margins(near, far)
        if self.mined == "semihard" and not near < far:
            raise ValueError(
                f"{mining} with the loss {self.objective!r} takes negatives from {near:g} to {far:g}, of which there are none:"
                " choose a margin of negatives above that of positives"
            )

    def _check_mining_margins(self, near: float, far: float) -> None:
        """Refuses margins of the mining "pair_margin" that choose nothing, or nothing but what costs something anyway."""
        from_, to = self.setting("mining_pos_margin"), self.setting("mining_neg_margin")
        shown = f"method.mining_pos_margin={from_:g}, method.mining_neg_margin={to:g}"
        if not to > 0 and self.setting("distance") != "dot":
            raise ValueError(
                f"{shown}: there are no negatives nearer than {to:g}; expected a number above 0"
            )
        if self.setting("reduction") == "nonzero" and from_ <= near and to >= far:
            raise ValueError(
                f"{shown} with the margins {near:g} and {far:g} of the loss takes all pairs that cost something, as mining='all'"
                " does: choose mining='all', or narrower margins"
            )

    def _check_memory(self) -> None:
        for field in ("memory_size", "memory_start"):
            if getattr(self, field) < 0:
                raise ValueError(f"method.{field}={getattr(self, field)}: expected 0 or more")
        if self.memory_start and not self.memory_size:
            raise ValueError(
                f"method.memory_start={self.memory_start} does nothing without method.memory_size"
            )
        if self.memory_size and not self.spec.memory:
            raise ValueError(
                f"method.memory_size={self.memory_size}: {self.objective!r} holds no row against other rows of its kind;"
                " expected 0"
            )
        if self.memory_size and self.normalized is False:
            raise ValueError(
                f"method.memory_size={self.memory_size} with normalized=False: the memory keeps rows of length 1; expected 0,"
                " or normalized=None"
            )
        if self.memory_size and not self.projection.layers:
            raise ValueError(
                "method.projection.layers=(): a memory keeps z between steps; expected its width as the last number"
            )

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """One head, the embedding."""
        return {"projection": self.projection}

    @property
    def spec(self) -> Spec:
        """What the loss has to be set."""
        return LOSSES[self.objective]

    @property
    def mined(self) -> str:
        """The mining: the chosen one, or the loss's default."""
        return self.spec.minings[0] if self.mining is None else self.mining

    @property
    def own_rate(self) -> str:
        """What it trains itself that needs a learning rate of its own."""
        if self.spec.proxies:
            return "proxies"
        return "" if self.setting("learn_beta") in (None, "no") else "borders"

    @property
    def trains_classes(self) -> bool:
        """Whether each class has parameters of its own."""
        return self.spec.proxies or self.setting("learn_beta") == "class"

    def setting(self, field: str) -> Any:
        """The value of a field: the chosen one, or the loss's default; None if it has none."""
        value = getattr(self, field)
        return self.spec.settings.get(field) if value is None else value

    @property
    def advice(self) -> str:
        """What to do where embeddings tell nothing."""
        found = []
        if "semihard" in self.spec.minings and self.mined != "semihard":
            found.append("begin with semi-hard negatives (method.mining='semihard')")
        if self.objective == "margin_contrastive" and not self.setting("pos_margin"):
            found.append("set a method.pos_margin above 0")
        if self.objective in ("nt_xent", "nt_logistic"):
            found.append("lower method.temperature")
        if self.memory_size:
            found.append(
                "use the memory later, when embeddings drift slowly (method.memory_start), or a smaller one"
            )
        return ", ".join(
            [
                *found,
                "lower the learning rate or lengthen the warm-up",
                "take larger batches",
                "check that a batch has several images of each class (data.sampler, data.per_class) and that method.level is meant",
            ]
        )

    def trivial_loss(self, batch_size: int) -> float | None:
        """The loss of equal embeddings, where it says something: the margin, for a triplet loss."""
        if self.objective in ("triplet", "margin") and self.mined in AT_0:
            return self._trivial_triplets()
        if self.objective == "margin_contrastive":
            return self._trivial_pairs()
        if self.level == IMAGE and self.mined == "all" and not self.memory_size:
            views = len(self.views.views)
            if self.objective == "nt_xent":
                return math.log1p(views * (batch_size - 1))
            if self.objective == "nt_logistic":
                s = 1 / self.setting("temperature")
                return s + 2 * math.log1p(math.exp(-s))
        return None

    def _trivial_triplets(self) -> float | None:
        """Of triplets whose two distances are equal, and in the loss "margin" are 0."""
        margin = self.setting("margin")
        if self.objective == "triplet":
            return math.log1p(math.exp(margin)) if self.setting("smooth") else margin
        if self.setting("learn_beta") != "no" or self.setting("distance") == "dot":
            return None
        near, far = (max(0.0, margin + side * self.setting("beta")) for side in (-1, 1))
        nonzero = self.setting("reduction") == "nonzero"
        return (near + far) / max(1, (near > 0) + (far > 0)) if nonzero else near + far

    def _trivial_pairs(self) -> float | None:
        """Of negatives at distance 0; positives there cost nothing."""
        near, far = self.setting("pos_margin"), self.setting("neg_margin")
        none = self.mined == "easy_positive" or (self.mined == "semihard" and near > 0)
        if none or near < 0 or self.setting("distance") == "dot":
            return None
        return float(far)

    def init_params(self, key: jax.Array) -> PyTree:
        """Proxies of random direction; borders at `beta`.

        Raises:
          ValueError: the number of classes, or the width of the embedding, is not known.
        """
        learned = self.setting("learn_beta") or "no"
        count = self.labels.class_count(self.level, self.classes) if self.trains_classes else 0
        if self.spec.proxies:
            if not self.projection.layers:
                raise ValueError(
                    "method.projection.layers=(): proxies are as wide as z; expected its width as the last number"
                )
            return {"proxies": losses.random_proxies(key, count, self.projection.layers[-1])}
        if learned == "no":
            return {}
        return {"beta": jnp.full((count,) if learned == "class" else (), self.setting("beta"))}

    def init_extra(self, variables: PyTree, key: jax.Array) -> PyTree:
        """The memory, which is empty, and the number of completed updates."""
        if not self.memory_size:
            return {}
        dtype = jax.tree.leaves(variables["params"]["backbone"])[0].dtype
        # Of each key the label that is learned, and the number of its image.
        queue = Queue.empty(self.memory_size, self.projection.layers[-1], 2, key, dtype=dtype)
        return {"queue": queue, "updates": jnp.zeros((), jnp.int32)}

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
        """The loss of all views of the global batch, which BN sees together."""
        b, v = views.images.shape[:2]
        images = views.images.reshape(b * v, *views.images.shape[2:])
        (_, heads), batch_stats = apply(params, batch_stats, images, True, key)
        z = heads["projection"][-1]
        by_image = self.level == IMAGE
        labels = batch["index"] if by_image else self.labels.of(batch["label"], self.level)
        rows = jnp.broadcast_to(labels[:, None], (b, v)).reshape(b * v)
        metrics: dict[str, jax.Array] = {}
        reference, carry = None, {}
        if self.memory_size:
            queue = extra["queue"]
            classes, numbers = queue.labels[:, 0], queue.labels[:, 1]
            valid = queue.valid & (extra["updates"] >= self.memory_start)
            valid &= ~jnp.isin(numbers, batch["index"])
            reference = losses.Reference(queue.keys, classes, valid)
            metrics = dictionary_metrics(queue.age, valid)
            z_kept = losses.normalize(jax.lax.stop_gradient(z))
            of_image = jnp.repeat(batch["index"], v)
            carry = {"keys": z_kept, "labels": jnp.stack([rows, of_image], axis=1)}
        trained = dict(params["method"])
        # An image that the batch has twice is no pair: its views are.
        image = batch["index"] if v == 1 else None
        group = rows
        if v > 1 and not self.spec.proxies:
            # The views of an image without a label agree with each other alone.
            own = jnp.broadcast_to(UNKNOWN + batch["index"][:, None], (b, v)).reshape(b * v)
            group = jnp.where(rows < 0, own, rows)
        if "beta" in trained:
            metrics["beta"] = jnp.mean(jax.lax.stop_gradient(trained["beta"]))
            if trained["beta"].ndim:
                border = trained["beta"][jnp.maximum(rows, 0)]
                trained["beta"] = jnp.where(rows < 0, metrics["beta"], border)
        settings = {name: self.setting(name) for name in self.spec.settings}
        drawn = jax.random.fold_in(key, DRAWS)
        loss, mined = self.spec.run(
            Given(z, group, image, settings, self.mined, reference, drawn, trained)
        )
        metrics |= mined
        if not by_image:
            metrics["same_class"] = same_class(labels)
        embeddings = jax.lax.stop_gradient(z).reshape(b, v, -1)
        return LossOut(loss, batch_stats, carry, metrics, embeddings)

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Puts the step's embeddings into the memory."""
        if not self.memory_size:
            return extra
        return {"queue": extra["queue"].push(carry["keys"], carry["labels"]), "updates": step}
