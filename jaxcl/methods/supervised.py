"""Cross-entropy, end to end: the baseline that supervised contrastive learning is measured by.

Views of an image -> encoder f -> h -> a linear classifier, and softmax cross-entropy with the image's label. Trainer, encoder and
augmentation are those of the other methods, so that nothing but the loss differs. One view an image is usual; with two, which
SupCon sees, the compute of a step is the same too.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.methods.labels import LabelLevels
from jaxcl.models import HeadSpec
from jaxcl.views import ViewProgram, Views


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Softmax cross-entropy.

    Attributes:
      views: of each image; the loss is the mean over all of them.
      labels: what the training data have.
      level: the label level to learn: its name or number (0 is the coarsest, -1 the finest); "" is the finest. Images without a
        label there do not count.
      classes: outputs of the classifier; 0 for as many as the data have.
      smoothing: share of the target that is spread evenly over all classes.
    """

    views: ViewProgram
    labels: LabelLevels = dataclasses.field(default_factory=LabelLevels)
    level: str = ""
    classes: int = 0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"method.smoothing={self.smoothing}: expected 0 <= value < 1")
        if self.labels.names:
            self.labels.class_count(self.level, self.classes)

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """The classifier: one dense layer with a bias."""
        count = self.labels.class_count(self.level, self.classes)
        return {"classifier": HeadSpec(layers=(count,), batch_norm=False, bias=True, init_std=None)}

    def trivial_loss(self, batch_size: int) -> float:
        """log C: the loss of logits that are all equal."""
        return math.log(self.labels.class_count(self.level, self.classes))

    def init_params(self, key: jax.Array) -> PyTree:
        """Nothing besides the head."""
        return {}

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
        """Cross-entropy of every view; BN sees all views of the global batch together."""
        b, v = views.images.shape[:2]
        images = views.images.reshape(b * v, *views.images.shape[2:])
        (_, heads), batch_stats = apply(params, batch_stats, images, True, key)
        logits = heads["classifier"][-1]
        labels = self.labels.of(batch["label"], self.level)
        labels = jnp.broadcast_to(labels[:, None], (b, v)).reshape(b * v)
        loss = losses.cross_entropy(logits, labels, self.smoothing)
        return LossOut(loss, batch_stats, {}, {"accuracy": losses.accuracy(logits, labels)})

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Nothing to carry."""
        return extra
