"""SupCon (Khosla et al., NeurIPS 2020): supervised contrastive learning.

SimCLR's pipeline with labels: views of every image -> encoder f -> h -> projection head g -> z, and the images of a class are
drawn together and away from all others. It is the first of two stages. The second is a linear classifier on h of the frozen
encoder: `python -m jaxcl.probe --eval=sgd --recipe=supcon` (on ImageNet `supcon_imagenet`) on the checkpoint. The joint probe is
such a classifier trained beside the encoder in the first stage, behind a stop-gradient (`--eval=classifier` scores it).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.losses.contrastive import Reduction
from jaxcl.losses.supervised import Contrast, Denominator, Variant
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.methods.labels import LabelLevels
from jaxcl.models import HeadSpec
from jaxcl.views import ViewProgram, Views


@dataclasses.dataclass(frozen=True)
class SupCon:
    """SupCon.

    Attributes:
      views: views without shared parameters, usually two.
      features: width of h, for the joint probe.
      labels: what the training data have.
      projection: the head g; the paper's has one hidden layer and no BatchNorm.
      level: the label level to learn: its name or number (0 is the coarsest, -1 the finest); "" is the finest. An image without a
        label there agrees with nothing but its own views.
      temperature: tau.
      base_temperature: the loss is multiplied by tau / base_temperature: 0.07 in the authors' PyTorch code, 1 in Google's; 0
        leaves it as it is in the paper's equations.
      variant: "out" is L_out (equation 2), the recommended one; "in" is L_in (equation 3).
      denominator: "all", "one_positive" or "only_negatives"; see `losses.sup_con_modes`.
      contrast: the anchors: "all" views, or the first of each image ("one").
      positives_cap: how many rows, other than its own views, are an anchor's positives at most, a multiple of the views; -1 for
        no cap. See `losses.sup_con_modes`.
      reduction: "mean" over all anchors, or "mean_valid", over those that have positives.
      overlap: draw together images that share any label, each pair by how many of their labels it shares (Jaccard index). The
        columns of the labels (`data.label_keys`) are then several labels of an image, each by itself: style, colour, ..., and not
        the levels of a tree, so a label that is missing in one says nothing of the others. A tag that an image has or has
        not is a column with one name, or nothing. `level` is the column of the joint probe alone. Evaluations go on reading paths;
        they score one column with `python -m jaxcl.probe --set="data.label_keys=('colour',)"`.
      probe: train a linear classifier of the level on h, behind a stop-gradient. Its parameters are the method's own:
        optim.method_lr and optim.method_weight_decay are theirs, and optim.clip_norm counts their gradient.
      classes: outputs of that classifier; 0 for as many as the data have.
    """

    views: ViewProgram
    features: int = 0
    labels: LabelLevels = dataclasses.field(default_factory=LabelLevels)
    projection: HeadSpec = dataclasses.field(
        default_factory=lambda: HeadSpec(
            layers=(2048, 128), batch_norm=False, bias=True, init_std=None
        )
    )
    level: str = ""
    temperature: float = 0.1
    base_temperature: float = 0.0
    variant: str = "out"
    denominator: str = "all"
    contrast: str = "all"
    positives_cap: int = -1
    reduction: str = "mean"
    overlap: bool = False
    probe: bool = True
    classes: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"method.temperature={self.temperature}: expected a number above 0")
        if self.base_temperature < 0:
            raise ValueError(
                f"method.base_temperature={self.base_temperature}: expected a number above 0, or 0 for the loss as it is"
            )
        for field, choices in (
            ("variant", Variant),
            ("denominator", Denominator),
            ("contrast", Contrast),
            ("reduction", Reduction),
        ):
            if getattr(self, field) not in get_args(choices):
                raise ValueError(
                    f"method.{field}={getattr(self, field)!r}: expected one of {', '.join(get_args(choices))}"
                )
        count = len(self.views.views)
        if self.positives_cap < -1 or (self.positives_cap > 0 and self.positives_cap % count):
            raise ValueError(
                f"method.positives_cap={self.positives_cap} with {count} views: expected a multiple of them, or -1 for no cap"
            )
        if self.overlap and (self.denominator, self.contrast) != ("all", "all"):
            raise ValueError(
                f"method.overlap=True with denominator={self.denominator!r}, contrast={self.contrast!r}: expected 'all' for both"
            )
        if self.overlap and self.positives_cap >= 0:
            raise ValueError(
                f"method.overlap=True with positives_cap={self.positives_cap}: expected -1, as positives have weights then"
            )
        if self.labels.names:
            self.labels.class_count(self.level, self.classes)

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """One projection head."""
        return {"projection": self.projection}

    @property
    def scale(self) -> float:
        """The factor of the loss."""
        return self.temperature / self.base_temperature if self.base_temperature else 1.0

    def trivial_loss(self, batch_size: int) -> float | None:
        """The loss of equal embeddings: the log of all rows but the anchor, if all are in the denominator."""
        rows = batch_size * len(self.views.views)
        if self.denominator != "all" or self.positives_cap >= 0:
            return None
        return self.scale * math.log(max(rows - 1, 1))

    def init_params(self, key: jax.Array) -> PyTree:
        """The joint probe, which starts at zero.

        Raises:
          ValueError: the width of h or the number of classes is not known.
        """
        if not self.probe:
            return {}
        return probe_params(self.features, self.labels.class_count(self.level, self.classes))

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
        """SupCon of z = g(f(view)) and the images' labels; BN sees all views of the global batch together."""
        b, v = views.images.shape[:2]
        images = views.images.reshape(b * v, *views.images.shape[2:])
        (h, heads), batch_stats = apply(params, batch_stats, images, True, key)
        z = heads["projection"][-1].reshape(b, v, -1)
        labels = self.labels.of(batch["label"], self.level)
        settings: dict[str, Any] = {
            "temperature": self.temperature,
            "variant": self.variant,
            "scale": self.scale,
            "reduction": self.reduction,
        }
        if self.overlap:
            loss = losses.sup_con_overlap(z, batch["label"], **settings)
        else:
            settings |= {"denominator": self.denominator, "contrast": self.contrast}
            if self.positives_cap >= 0:
                settings["positives_cap"] = self.positives_cap
            loss = losses.sup_con_modes(z, labels, **settings)
        metrics = {"same_class": same_class(labels)}
        if self.probe:
            probed, measured = joint_probe(params["method"], h.reshape(b, v, -1), labels)
            loss, metrics = loss + probed, metrics | measured
        return LossOut(loss, batch_stats, {}, metrics, jax.lax.stop_gradient(z))

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Nothing to carry."""
        return extra


def probe_params(features: int, classes: int) -> PyTree:
    """The joint probe's parameters, zeros: {"kernel": float[F,C], "bias": float[C]}.

    Raises:
      ValueError: the width of h is not known.
    """
    if not features:
        raise ValueError(
            "the joint probe needs the width of h: it comes from the network (Config.build_method); give features, or probe=False"
        )
    return {"kernel": jnp.zeros((features, classes)), "bias": jnp.zeros(classes)}


def joint_probe(
    classifier: PyTree, h: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A linear classifier on features that it cannot change.

    Args:
      classifier: {"kernel": float[F,C], "bias": float[C]}.
      h: float[B,V,F], the views of an image together.
      labels: i32[B], -1 for missing.

    Returns:
      what a loss has to add for the classifier to be trained: its value is 0 and its gradient that of the classifier's
      cross-entropy, so that the loss remains readable; and the metrics "probe_loss" and "probe_accuracy" of the batch.
    """
    b, v, width = h.shape
    labels = jnp.broadcast_to(labels[:, None], (b, v)).reshape(b * v)
    h = jax.lax.stop_gradient(h).reshape(b * v, width)
    logits = h @ classifier["kernel"] + classifier["bias"]
    loss = losses.cross_entropy(logits, labels)
    value = jax.lax.stop_gradient(loss)
    metrics = {"probe_loss": value, "probe_accuracy": losses.accuracy(logits, labels)}
    return loss - value, metrics


def same_class(labels: jax.Array) -> jax.Array:
    """How many other images of the batch share an image's label, on average: labels i32[B] -> float[].

    Near 0 SupCon is SimCLR: the batch is too small for the number of classes.
    """
    known = labels >= 0
    pairs = (labels[:, None] == labels[None, :]) & known[:, None]
    others = jnp.sum(pairs, axis=1) - known
    return jnp.mean(others, dtype=jnp.float32)
