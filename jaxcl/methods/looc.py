"""LooC (Xiao et al., ICLR 2021): a space for each augmentation in which it is not ignored.

A contrastive method becomes invariant to whatever its views differ in, also to what a later task may need: the colour of a
flower, which way is up. LooC leaves one factor out of the contrast at a time. Of each image there are n + 2 views,

    q                               the query
    k_0                             everything drawn anew
    k_i,  i = 1..n                  factor i as it was drawn for q, everything else drawn anew

and n + 1 heads on one backbone. The encoder of the keys, its BatchNorm and the queues are MoCo's:

    head 0      InfoNCE(q, k_0, queue 0)                                 invariant to all factors; alone it is MoCo
    head i      InfoNCE(q, k_i, queue i and k_j of the same image)       tells factor i, is invariant to the others

The loss is the mean over heads. The feature of LooC is the backbone's h, in which all the heads' knowledge is; that of LooC++ is
the heads' hidden layers or outputs, side by side (`jaxcl.probe --layer=heads:hidden` or `heads`). A step costs one pass with
gradient and n + 1 without.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.losses.leave_one_out import HEAD0
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.methods.memory import FILLS, Queue, crowded
from jaxcl.methods.moco import dictionary_metrics, same_class
from jaxcl.methods.momentum import MomentumEncoder
from jaxcl.models import HeadSpec
from jaxcl.views import Views

ENQUEUE = ("k0", "own")


@dataclasses.dataclass(frozen=True)
class LooC(MomentumEncoder):
    """LooC with any number of factors, which the views name: view i + 1 shares factor i with view 0.

    `presets.leave_one_out` makes such views. Its settings are those of `MomentumEncoder`, and

    Attributes:
      examples: images of the training data.
      levels: of the labels of the training data.
      projection: each of the heads.
      temperature: tau.
      queue_size: K of each head's queue; well below the number of images, as in `MoCo`.
      fill: slots that hold no key yet are left out ("mask") or hold random directions ("noise"), as in `MoCo`.
      head0: the positives of head 0: "k0", or "all" the keys of the image.
      enqueue: what enters the queue of head i: its embedding of "k0", or of its "own" key k_i. With k_0 the negatives of all
        heads are of the same views.
      same_image_negatives: whether head i has the image's other keys as negatives (without: the ablation). Then only the queue
        rewards telling factor i, as most of its keys were drawn another one.
    """

    examples: int = 0
    levels: int = 0
    projection: HeadSpec = dataclasses.field(
        default_factory=lambda: HeadSpec(
            layers=(2048, 128), batch_norm=False, bias=True, init_std=None
        )
    )
    temperature: float = 0.2
    queue_size: int = 16384
    fill: str = "mask"
    head0: str = "k0"
    enqueue: str = "k0"
    same_image_negatives: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("fill", FILLS)
        self.check_choice("head0", HEAD0)
        self.check_choice("enqueue", ENQUEUE)
        self.check_groups()
        if self.temperature <= 0:
            raise ValueError(f"method.temperature={self.temperature}: expected a number above 0")
        if self.queue_size < 1:
            raise ValueError(f"method.queue_size={self.queue_size}: expected 1 or more")
        if not self.projection.layers or self.projection.layers[-1] < 1:
            raise ValueError(
                f"method.projection.layers={self.projection.layers}: keys are kept between steps; expected their width as the"
                " last number"
            )
        self._check_views()

    def _check_views(self) -> None:
        if len(self.views.views) < 2:
            raise ValueError(
                f"views.views has {len(self.views.views)} view(s): LooC needs a query, a key with nothing shared, and a key for"
                " each factor (presets.leave_one_out makes them)"
            )
        for index, view in enumerate(self.views.views[:2]):
            if view.share:
                raise ValueError(
                    f"views.views[{index}] shares {sorted(view.share)}: in LooC view 0 is the query and view 1 the key that"
                    " shares nothing with it"
                )
        known: dict[str, int] = {}
        for index, view in enumerate(self.views.views[2:], start=2):
            if not view.share or set(view.share.values()) != {0}:
                raise ValueError(
                    f"views.views[{index}].share = {dict(view.share)}: in LooC each further view shares the ops of one factor"
                    " with view 0, the query"
                )
            for name in view.share:
                if name in known:
                    raise ValueError(
                        f"views.views[{index}] and views.views[{known[name]}] share {name!r}: of each factor LooC has one key"
                    )
                known[name] = index

    @property
    def factors(self) -> tuple[str, ...]:
        """What each head tells: the names of its ops joined by "+"; "" for head 0, which tells nothing.

        In the order of the program: a stored config has the keys of `share` in another one, and metrics have these names.
        """
        order = [name for name, _ in self.views.ops]
        return tuple(
            "+".join(name for name in order if name in view.share) for view in self.views.views[1:]
        )

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """n + 1 heads that differ in nothing but what they learn."""
        return {f"projection_{number}": self.projection for number in range(len(self.factors))}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Queues that are large for the data."""
        return crowded(self.queue_size, self.examples)

    def trivial_loss(self, batch_size: int) -> float:
        """The loss of equal embeddings, with full queues: the mean over heads of the log of the number of keys."""
        n = len(self.factors) - 1
        others = self.queue_size + (n if self.same_image_negatives else 0)
        return (math.log(1 + self.queue_size) + n * math.log(1 + others)) / (n + 1)

    def init_params(self, key: jax.Array) -> PyTree:
        """Nothing of its own to train."""
        return {}

    def init_extra(self, variables: PyTree, key: jax.Array) -> PyTree:
        """The key encoder with all heads, equal to the trained one, and a queue for each head.

        The queues are one `Queue` whose arrays have a leading axis H.
        """
        width = self.projection.width(0)
        dtype = jax.tree.leaves(variables["params"]["backbone"])[0].dtype

        def empty(key: jax.Array) -> Queue:
            return Queue.empty(self.queue_size, width, self.levels, key, self.fill, dtype)

        queues = jax.vmap(empty)(jax.random.split(key, len(self.factors)))
        return {**self.init_encoder(variables, self.heads), "queues": queues}

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
        """The mean over heads of InfoNCE; BN sees the views one by one."""

        def stacked(z: Mapping[str, jax.Array]) -> jax.Array:
            return jnp.stack([z[head] for head in self.heads], axis=1)  # [B, H, D]

        (_, outputs), batch_stats = apply(params, batch_stats, views.images[:, 0], True, key)
        q = stacked({head: layers[-1] for head, layers in outputs.items()})
        stats, keys = extra["key_stats"], []
        for view in range(1, len(self.views.views)):
            z, stats = self.encode(
                apply,
                extra["key_params"],
                stats,
                views.images[:, view],
                jax.random.fold_in(key, view),
                tuple(self.heads),
            )
            keys.append(stacked(z))
        k = jax.lax.stop_gradient(jnp.stack(keys, axis=1))  # [B, key, head, D]

        queues = extra["queues"]
        terms = losses.leave_one_out_terms(
            q,
            k,
            queues.keys,
            self.temperature,
            self.head0,
            queues.valid,
            self.same_image_negatives,
        )
        labels = batch["label"][:, : self.levels]
        kept = k[:, 0] if self.enqueue == "k0" else jnp.diagonal(k, axis1=1, axis2=2).mT
        carry = {
            "stats": batch_stats if self.bn == "ema" else stats,
            "keys": losses.normalize(kept).swapaxes(0, 1),
            "labels": labels,
        }
        q, carry = jax.lax.stop_gradient((q, carry))
        metrics = self._metrics(jax.lax.stop_gradient(terms), q, k, queues, labels)
        embeddings = jnp.stack([q[:, 0], k[:, 0, 0]], axis=1)
        return LossOut(jnp.mean(terms), batch_stats, carry, metrics, embeddings)

    def _metrics(
        self, terms: jax.Array, q: jax.Array, k: jax.Array, queues: Queue, labels: jax.Array
    ) -> dict[str, jax.Array]:
        """Head 0 as MoCo logs it, and for each factor the head's loss and how well it tells the factor."""
        first = jax.tree.map(lambda x: x[0], queues)
        metrics = dictionary_metrics(first.age, first.valid)
        if self.levels:
            metrics["same_class_negatives"] = same_class(labels, first)
        metrics |= losses.info_nce_metrics(
            q[:, 0], k[:, 0, 0], first.keys, self.temperature, first.valid
        )
        told = losses.leave_one_out_metrics(q, k)
        for head, factor in enumerate(self.factors):
            if factor:
                metrics[f"loss_{factor}"] = terms[head]
                metrics |= {f"{name}_{factor}": value[head] for name, value in told.items()}
            else:
                metrics["loss_invariant"] = terms[head]
        return metrics

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Moves the key encoder, and puts each head's keys into its queue."""
        push = jax.vmap(Queue.push, in_axes=(0, 0, None))
        return {
            **self.move_encoder(extra, params, carry["stats"], step),
            "queues": push(extra["queues"], carry["keys"], carry["labels"]),
        }
