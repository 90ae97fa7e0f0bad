"""SimCLR (Chen et al., ICML 2020, Algorithm 1; v2: Chen et al., NeurIPS 2020).

Two random views of every image -> encoder f -> h -> projection head g -> z, and NT-Xent over the global batch: a view has to
find the other view of its image among the 2N - 1 others. Version 2 differs in the network (deeper head, selective kernels),
not in the method.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax

from jaxcl import losses
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.models import HeadSpec
from jaxcl.views import ViewProgram, Views


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """SimCLR.

    Attributes:
      views: two (or more) views without shared parameters.
      projection: the head g; the paper's is one hidden layer, the official code's default two.
      temperature: tau of NT-Xent.
      scale: 1 is the mean over the 2N anchors (the paper); 2 is the sum of both directions (the official code).
    """

    views: ViewProgram
    projection: HeadSpec = dataclasses.field(default_factory=lambda: HeadSpec(layers=(2048, 128)))
    temperature: float = 0.1
    scale: float = 1.0

    def __post_init__(self) -> None:
        if len(self.views.views) < 2:
            raise ValueError(
                f"SimCLR needs at least two views of each image, got {len(self.views.views)}: add a view to views.views"
            )
        if self.temperature <= 0:
            raise ValueError(f"method.temperature={self.temperature}: expected a number above 0")

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """One projection head."""
        return {"projection": self.projection}

    def trivial_loss(self, batch_size: int) -> float:
        """log(2N - 1): NT-Xent when all embeddings are equal."""
        return self.scale * math.log(batch_size * len(self.views.views) - 1)

    def init_params(self, key: jax.Array) -> PyTree:
        """Nothing of its own to train."""
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
        """NT-Xent of z = g(f(view)); BN sees all views of the global batch together."""
        b, v = views.images.shape[:2]
        images = views.images.reshape(b * v, *views.images.shape[2:])
        (_, heads), batch_stats = apply(params, batch_stats, images, True, key)
        z = heads["projection"][-1].reshape(b, v, -1)
        loss = self.scale * losses.nt_xent(z, self.temperature)
        z = jax.lax.stop_gradient(z)
        metrics = losses.nt_xent_metrics(z, self.temperature)
        return LossOut(loss, batch_stats, {}, metrics, z)

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Nothing to carry."""
        return extra
