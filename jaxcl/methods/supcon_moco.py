"""SupCon with MoCo's queue (Khosla et al., 2020, section 4.4): positives and negatives from more images than a batch has.

MoCo's key encoder and queue, and labels beside the keys: an anchor's positives are its own key and every key of its class, in the
batch and in the queue. The batch can be small, and the classes many.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.methods.labels import LabelLevels
from jaxcl.methods.moco import MoCo, dictionary_metrics
from jaxcl.methods.supcon import joint_probe, probe_params
from jaxcl.models import HeadSpec
from jaxcl.views import Views


@dataclasses.dataclass(frozen=True)
class SupConMoCo(MoCo):
    """SupCon of queries against the keys of the batch and of the queue.

    Its settings are those of `MoCo` with mechanism="queue", and

    Attributes:
      features: width of h, for the joint probe.
      labels: what the training data have.
      level: the label level to learn: its name or number (0 is the coarsest, -1 the finest); "" is the finest. An image without a
        label there has its own key for its only positive.
      base_temperature: the loss is multiplied by tau / base_temperature; 0 leaves it as it is.
      variant: "out" or "in", as in `SupCon`.
      in_batch: whether the keys of the batch's other images take part; in MoCo they do not.
      probe: train a linear classifier of the level on the queries' h, behind a stop-gradient, as in `SupCon`.
      classes: outputs of that classifier; 0 for as many as the data have.
    """

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
    queue_size: int = 8192
    variant: str = "out"
    in_batch: bool = True
    probe: bool = True
    classes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mechanism != "queue":
            raise ValueError(
                f"method.mechanism={self.mechanism!r}: labels are kept beside the keys of a 'queue'"
            )
        if self.variant not in ("out", "in"):
            raise ValueError(f"method.variant={self.variant!r}: expected out or in")
        if self.base_temperature < 0:
            raise ValueError(
                f"method.base_temperature={self.base_temperature}: expected a number above 0, or 0 for the loss as it is"
            )
        if self.labels.names:
            self.labels.class_count(self.level, self.classes)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The settings that do nothing. A large queue is no matter: older keys of an image are of its class, and positives."""
        return self._unused

    @property
    def factor(self) -> float:
        """Of the loss."""
        return super().factor * (
            self.temperature / self.base_temperature if self.base_temperature else 1.0
        )

    def trivial_loss(self, batch_size: int) -> float:
        """The loss of equal embeddings: the log of the number of keys, with a full queue, in each direction."""
        keys = self.queue_size + (batch_size if self.in_batch else 1)
        return self.factor * len(self.directions) * math.log(keys)

    def init_params(self, key: jax.Array) -> PyTree:
        """The joint probe, which starts at zero."""
        if not self.probe:
            return {}
        return probe_params(self.features, self.labels.class_count(self.level, self.classes))

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
        """SupCon of queries and keys; BN sees the views one by one."""
        queue, stats = extra["queue"], extra["key_stats"]
        labels = self.labels.of(batch["label"], self.level)
        q: dict[int, jax.Array] = {}
        k: dict[int, jax.Array] = {}
        h: list[jax.Array] = []
        for view, other in self.directions:
            (features, heads), batch_stats = apply(
                params, batch_stats, views.images[:, view], True, key
            )
            h.append(features)
            q[view] = heads["prediction" if "prediction" in heads else "projection"][-1]
            z, stats = self.encode_keys(
                apply,
                extra["key_params"],
                stats,
                views.images[:, other],
                jax.random.fold_in(key, other),
            )
            k[other] = jax.lax.stop_gradient(z)
        settings: dict[str, Any] = {
            "temperature": self.temperature,
            "variant": self.variant,
            "scale": self.factor,
            "queue_valid": queue.valid,
            "in_batch": self.in_batch,
        }
        queue_labels = self.labels.of(queue.labels, self.level)
        loss = jnp.zeros(())
        for a, b in self.directions:
            loss += losses.sup_con_memory(q[a], k[b], queue.keys, labels, queue_labels, **settings)
        metrics = dictionary_metrics(queue.age, queue.valid)
        if self.probe:
            probed, measured = joint_probe(params["method"], jnp.stack(h, 1), labels)
            loss, metrics = loss + probed, metrics | measured
        # An image's keys together, so that rows stay where they are.
        keys = jnp.stack([losses.normalize(k[view]) for view in sorted(k)], axis=1)
        carry = {
            "stats": batch_stats if self.bn == "ema" else stats,
            "keys": keys.reshape(-1, keys.shape[-1]),
            "labels": jnp.repeat(batch["label"], len(k), axis=0),
        }
        embeddings = jax.lax.stop_gradient(jnp.stack([q[0], k[1]], axis=1))
        return LossOut(loss, batch_stats, carry, metrics, embeddings)
