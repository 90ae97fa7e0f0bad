"""The train state and the one train step, which has no branch on the method."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcl import metrics
from jaxcl.methods import Method
from jaxcl.models import Model, gradient_cache

PyTree = Any
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a run is, in one pytree: what is saved, restored and compared.

    Attributes:
      step: i32[], number of completed updates.
      params: trained parameters: "backbone", "head_<name>", and "method" (the method's own).
      batch_stats: running statistics of BatchNorm.
      opt_state: the optimizer's state.
      extra: the method's own state (key encoder, queue, ...).
      key: typed PRNG key, never changed; the key of a step is fold_in(key, step).
      rejected: i32[], updates that were left out because the loss or the gradient was not finite.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    extra: PyTree
    key: jax.Array
    rejected: jax.Array


def make_init(
    method: Method,
    model: Model,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
) -> Callable[[jax.Array], TrainState]:
    """Makes `init(key, start) -> TrainState`, a pure function to be jitted with the state's shardings.

    `start` has parts of {"params": ..., "batch_stats": ...} that are not drawn but given, such as a trained "backbone"; None or
    {} for none. What a method keeps is made of them, as it would be of drawn ones.

    Args:
      method: the method.
      model: its network, with its heads.
      tx: the optimizer.
      image_shape: (h, w, C) of one view.
    """

    def init(key: jax.Array, start: Mapping[str, PyTree] | None = None) -> TrainState:
        key_model, key_method, key_extra, key_run = jax.random.split(key, 4)
        variables = model.init(key_model, image_shape)
        variables = {
            kind: {**part, **(start or {}).get(kind, {})} for kind, part in variables.items()
        }
        params = {**variables["params"], "method": method.init_params(key_method)}
        variables = {"params": params, "batch_stats": variables["batch_stats"]}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(params),
            extra=method.init_extra(variables, key_extra),
            key=key_run,
            rejected=jnp.zeros((), jnp.int32),
        )

    return init


def make_train_step(
    method: Method,
    model: Model,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    micro_batch: int = 0,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Makes `step(state, batch) -> (state, metrics)`, a pure function to be jitted over the mesh.

    The batch has "image" u8[B,H,W,C] (or u8[B,V,h,w,C] with "crop/...", crops made on the host), "label" i32[B,L] and
    "index" i32[B]. An update whose loss or gradient is not finite is left out and counted; the state then stays as it was, but
    for `step` and `rejected`.
    """

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key_views, key_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch_size = batch["image"].shape[0]
        groups = model.config.groups_in_backbone
        pieces = gradient_cache.count_pieces(batch_size, micro_batch, groups)
        network = dataclasses.replace(model, pieces=pieces)
        keys = jax.random.split(key_views, batch_size)
        views = method.views(keys, batch["image"], host_crop(batch))

        def loss_fn(params: PyTree) -> tuple[jax.Array, Any]:
            out = method.loss(
                network.apply, params, state.batch_stats, state.extra, batch, views, key_loss
            )
            return out.loss, out

        grads, out = jax.grad(loss_fn, has_aux=True)(state.params)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = method.after_update(state.extra, params, out.carry, state.step + 1)

        finite = jnp.isfinite(out.loss) & jnp.isfinite(grad_norm)
        new = (params, out.batch_stats, opt_state, extra)
        old = (state.params, state.batch_stats, state.opt_state, state.extra)
        params, batch_stats, opt_state, extra = jax.tree.map(
            lambda n, o: jnp.where(finite, n, o), new, old
        )
        rejected = state.rejected + jnp.where(finite, 0, 1).astype(jnp.int32)
        report = {
            "loss": out.loss,
            **out.metrics,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step)),
            "rejected": rejected,
        }
        if out.embeddings is not None:
            report |= metrics.collapse_meters(out.embeddings)
        return TrainState(
            state.step + 1, params, batch_stats, opt_state, extra, state.key, rejected
        ), report

    return step


def host_crop(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array] | None:
    """The parameters of crops that were made on the host ("crop/<name>" in the batch), or None."""
    drawn = {k.removeprefix("crop/"): v for k, v in batch.items() if k.startswith("crop/")}
    return drawn or None
