"""MoCo (He et al., CVPR 2020; version 2: Chen et al., 2020; version 3: Chen et al., ICCV 2021): look-up in a dictionary of keys.

    q = f_q(x_q)                    a view of each image, the queries
    k = f_k(x_k)                    another view of it, the keys; without gradient
    loss = InfoNCE(q, k, queue)     each query has to find its key among the keys of earlier batches
    f_q <- optimizer                queue <- k, the oldest leave it                 f_k <- m f_k + (1 - m) f_q

The slow f_k (`jaxcl.probe --encoder=key`) keeps keys of different batches comparable, so the dictionary may be larger than any
batch. Its BatchNorm has statistics of its own passes, and by `bn` other rows in its groups than the query encoder's: a query and
its key that share statistics know each other by them.

| | v1 | v2 | v3 |
|---|---|---|---|
| head | linear | two layers | two or three layers with BatchNorm; on top of the queries' a predictor |
| negatives | queue of 65,536 | the same | the keys of the same batch of 4096 |
| loss | one direction, tau 0.07 | the same, tau 0.2 | both directions, times 2 tau |
| BatchNorm | 8 groups, keys shuffled | the same | global |

The two mechanisms that the paper compares with are here too: "end_to_end" (keys from the trained network, with gradient, and so no
more of them than a batch has) and "memory_bank" (a row for each image of the data set, with what was seen of it last).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.methods.memory import CROWDED, FILLS, Bank, Queue, crowded
from jaxcl.methods.momentum import MomentumEncoder
from jaxcl.models import HeadOn, HeadSpec
from jaxcl.views import Views

KEY_HEADS = ("projection",)

_SETTINGS = {
    "queue": ("queue_size", "fill", "momentum", "momentum_schedule", "bn"),
    "batch": ("momentum", "momentum_schedule", "bn"),
    "end_to_end": ("bn",),
    "memory_bank": ("queue_size", "fill", "bank_momentum"),
}
"""What each mechanism reads."""
_OPTIONAL = set().union(*_SETTINGS.values())


@dataclasses.dataclass(frozen=True)
class MoCo(MomentumEncoder):
    """MoCo, versions 1 to 3.

    Its views are two, which may share parameters (a rotation, say), or one for "memory_bank". Its settings are those of
    `MomentumEncoder`, and

    Attributes:
      examples: images of the training data.
      levels: levels of their labels.
      mechanism: what the negatives are: "queue", keys of earlier batches; "batch", the batch's other keys (version 3);
        "end_to_end", the same with gradient and without a key encoder; "memory_bank", rows drawn from what was last seen of all
        images, where the own row is the positive (Wu et al., CVPR 2018). As in their code all rows can be drawn, the own one too:
        1 - (1 - 1/M)^K of the queries have it among their negatives, M being the number of images (1 % on ImageNet with K 16,384).
        One draw serves all queries of a batch; theirs is one for each.
      projection: the head of both encoders.
      prediction: the predictor on top of it, for queries only; no layers: none.
      symmetric: both views are queries and keys, and the loss is the sum of both directions.
      temperature: tau of InfoNCE.
      scale: factor of the loss.
      scale_by_temperature: multiply it by tau, too (version 3, with scale 2).
      queue_size: K, keys of the queue or rows drawn from the bank. Any number, whatever the batch. It should be well below the number
        of images (5 % on ImageNet, 8 % on CIFAR): a key of a query's own image that is left from the epoch before is a negative.
      fill: slots that hold no key yet are left out ("mask") or hold random directions ("noise", the official code). Either way
        the loss rises at first, as real keys come in. An image that the bank has not seen is its own positive under "mask".
      bank_momentum: weight of what a row of the bank was before (its code: 0.5).
    """

    examples: int = 0
    levels: int = 0
    mechanism: str = "queue"
    projection: HeadSpec = dataclasses.field(
        default_factory=lambda: HeadSpec(layers=(128,), batch_norm=False, bias=True, init_std=None)
    )
    prediction: HeadSpec = dataclasses.field(
        default_factory=lambda: HeadSpec(layers=(), init_std=None)
    )
    symmetric: bool = False
    temperature: float = 0.07
    scale: float = 1.0
    scale_by_temperature: bool = False
    queue_size: int = 65536
    fill: str = "mask"
    bank_momentum: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("mechanism", ("queue", "batch", "end_to_end", "memory_bank"))
        self.check_choice("fill", FILLS)
        self.check_share("bank_momentum")
        if self.temperature <= 0:
            raise ValueError(f"method.temperature={self.temperature}: expected a number above 0")
        if self.queue_size < 1:
            raise ValueError(f"method.queue_size={self.queue_size}: expected 1 or more")
        bank = self.mechanism == "memory_bank"
        expected: tuple[dict[str, Any], ...] = ({},) if bank else ({}, {})
        if len(self.views.views) != len(expected):
            raise ValueError(
                f"method.mechanism={self.mechanism!r} with {len(self.views.views)} view(s) of each image: expected"
                f" {len(expected)}, views.views={expected}"
            )
        if bank and self.symmetric:
            raise ValueError(
                "method.symmetric=True with mechanism='memory_bank', whose keys are no view: expected False"
            )
        if self.remembers and (not self.projection.layers or self.projection.layers[-1] < 1):
            raise ValueError(
                f"method.projection.layers={self.projection.layers}: mechanism={self.mechanism!r} keeps z between steps;"
                " expected its width as the last number"
            )
        if self.mechanism == "end_to_end" and self.bn == "ema":
            raise ValueError(
                "method.bn='ema' with mechanism='end_to_end': there is no key encoder; choose shuffle, groups or global"
            )
        self.check_groups(keys=not bank)

    @property
    def heads(self) -> Mapping[str, HeadSpec | HeadOn]:
        """The projection head, and on top of it the predictor if there is one."""
        if not self.prediction.layers:
            return {"projection": self.projection}
        return {
            "projection": self.projection,
            "prediction": HeadOn("projection", self.prediction),
        }

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """(view of the queries, view of the keys)."""
        return ((0, 1), (1, 0)) if self.symmetric else ((0, 1),)

    @property
    def remembers(self) -> bool:
        """Whether embeddings are kept between steps."""
        return self.mechanism in ("queue", "memory_bank")

    @property
    def factor(self) -> float:
        """Of the loss."""
        return self.scale * (self.temperature if self.scale_by_temperature else 1.0)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The settings that its mechanism does not read, and a dictionary that is large for the data."""
        return (*self._unused, *self._crowded)

    @property
    def _unused(self) -> tuple[str, ...]:
        """Not refused: comparisons of mechanisms share their settings."""
        unused = _OPTIONAL.difference(_SETTINGS[self.mechanism])
        found = [
            f"method.{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name in unused and getattr(self, field.name) != field.default
        ]
        return tuple(
            f"{setting} does nothing with mechanism={self.mechanism!r}" for setting in found
        )

    @property
    def _crowded(self) -> tuple[str, ...]:
        if not self.examples:
            return ()
        if self.mechanism == "queue":
            return crowded(self.queue_size, self.examples, len(self.directions))
        if self.mechanism == "memory_bank":
            share = 1 - (1 - 1 / self.examples) ** self.queue_size
            if share >= CROWDED:
                return (
                    f"method.queue_size={self.queue_size}: {share:.0%} of the queries find their own row among those drawn from"
                    f" {self.examples:,} as negatives; a smaller number avoids it",
                )
        return ()

    def trivial_loss(self, batch_size: int) -> float:
        """The loss of equal embeddings: the log of the dictionary's size (of a full one), in each direction."""
        size = self.queue_size + 1 if self.remembers else batch_size
        return self.factor * len(self.directions) * math.log(size)

    def init_params(self, key: jax.Array) -> PyTree:
        """Nothing of its own to train."""
        return {}

    def init_extra(self, variables: PyTree, key: jax.Array) -> PyTree:
        """The key encoder, equal to the query encoder; the queue, or the bank.

        Raises:
          ValueError: a bank, and the number of images is not known.
        """
        if self.mechanism == "end_to_end":
            return {}
        width = self.projection.width(0)
        dtype = jax.tree.leaves(variables["params"]["backbone"])[0].dtype
        if self.mechanism == "memory_bank":
            if not self.examples:
                raise ValueError(
                    "method.mechanism='memory_bank': the number of images is not known: it comes from the training data"
                    " (Config.for_run), or give examples"
                )
            return {"bank": Bank.empty(self.examples, width, key, self.fill, dtype)}
        extra = self.init_encoder(variables, KEY_HEADS)
        if self.mechanism == "batch":
            return extra
        queue = Queue.empty(self.queue_size, width, self.levels, key, self.fill, dtype)
        return {**extra, "queue": queue}

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
        """InfoNCE of queries and keys; BN sees the views one by one."""
        q: dict[int, jax.Array] = {}
        for view, _ in self.directions:
            (_, heads), batch_stats = apply(params, batch_stats, views.images[:, view], True, key)
            q[view] = heads["prediction" if "prediction" in heads else "projection"][-1]

        k: dict[int, jax.Array] = {}
        queue = valid = None
        carry: PyTree = {}
        metrics: dict[str, jax.Array] = {}
        if self.mechanism == "memory_bank":
            bank, index = extra["bank"], batch["index"]
            k[1] = jnp.where(bank.valid[index, None], bank.rows[index], q[0])
            drawn = bank.draw(key, self.queue_size)
            queue, valid = bank.rows[drawn], bank.valid[drawn]
            metrics = dictionary_metrics(bank.age[drawn], valid)
            carry = {"index": index, "z": losses.normalize(q[0])}
        else:
            end_to_end = self.mechanism == "end_to_end"
            encoder = params if end_to_end else extra["key_params"]
            stats = batch_stats if end_to_end else extra["key_stats"]
            for _, view in self.directions:
                key_view = jax.random.fold_in(key, view)
                k[view], stats = self.encode_keys(
                    apply, encoder, stats, views.images[:, view], key_view
                )
            if end_to_end:
                batch_stats = stats
            else:
                carry = {"stats": batch_stats if self.bn == "ema" else stats}
        if self.mechanism != "end_to_end":
            k = jax.lax.stop_gradient(k)
        if self.mechanism == "queue":
            held = extra["queue"]
            queue, valid = held.keys, held.valid
            labels = batch["label"][:, : self.levels]
            metrics = dictionary_metrics(held.age, valid)
            if self.levels:
                metrics["same_class_negatives"] = same_class(labels, held)
            # The keys of an image stand together, so that rows stay where they are.
            keys = jnp.stack([losses.normalize(k[view]) for view in sorted(k)], axis=1)
            carry["keys"] = keys.reshape(-1, keys.shape[-1])
            carry["labels"] = jnp.repeat(labels, len(k), axis=0)

        each = [
            losses.info_nce(q[a], k[b], queue, self.temperature, valid) for a, b in self.directions
        ]
        loss = self.factor * jnp.stack(each).sum()
        z_q, z_k, carry = jax.lax.stop_gradient((q[0], k[1], carry))
        metrics |= losses.info_nce_metrics(z_q, z_k, queue, self.temperature, valid)
        return LossOut(loss, batch_stats, carry, metrics, jnp.stack([z_q, z_k], axis=1))

    def encode_keys(
        self,
        apply: Apply,
        params: PyTree,
        batch_stats: PyTree,
        images: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, PyTree]:
        """Keys float[N,D] of images float[N,h,w,C], in their order, and the encoder's batch_stats."""
        z, batch_stats = self.encode(apply, params, batch_stats, images, key, KEY_HEADS)
        return z["projection"], batch_stats

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Moves the key encoder, and puts the keys into the queue or the bank."""
        if self.mechanism == "end_to_end":
            return extra
        if self.mechanism == "memory_bank":
            bank = extra["bank"].update(carry["index"], carry["z"], self.bank_momentum)
            return {"bank": bank}
        new = self.move_encoder(extra, params, carry["stats"], step)
        if self.mechanism == "queue":
            new["queue"] = extra["queue"].push(carry["keys"], carry["labels"])
        return new


def dictionary_metrics(age: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    """The mean age of the keys in updates, and the share of slots that hold one; age i32[K], valid bool[K].

    Random directions (fill="noise") have age 0 and are no keys: they are negatives, but nothing that the encoder has made.
    """
    keys = valid & (age > 0)
    count = jnp.sum(keys)
    total = jnp.sum(jnp.where(keys, age, 0))
    return {
        "key_age": total / jnp.maximum(count, 1).astype(jnp.float32),
        "dictionary_filled": count / len(valid),
    }


def same_class(labels: jax.Array, queue: Queue) -> jax.Array:
    """The share of negatives that are of the query's own class, at the finest level; labels i32[N,L] of the queries."""
    own, others = labels[:, -1:], queue.labels[:, -1]
    same = (own == others) & (own >= 0) & queue.valid
    return jnp.sum(same) / jnp.maximum(len(labels) * jnp.sum(queue.valid), 1).astype(jnp.float32)
