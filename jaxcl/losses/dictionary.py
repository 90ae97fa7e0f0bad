"""What is logged beside InfoNCE: how well a query finds its key in the dictionary."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcl.losses.contrastive import inverse_temperature, normalize
from jaxcl.losses.spread import whole


def info_nce_metrics(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array | None = None,
    temperature: float | jax.Array = 0.07,
    queue_valid: jax.Array | None = None,
    *,
    precision: Any = "highest",
    anchors: int = 1024,
) -> dict[str, jax.Array]:
    """The contrast accuracy that MoCo's code logs. No gradient flows.

    Args:
        q: ``float[N, D]``, queries.
        k: ``float[N, D]``, the key of each.
        queue: ``float[K, D]``, the other keys; None: those of the other queries.
        temperature: divides the cosines.
        queue_valid: ``bool[K]``, which keys of the queue count; None: all.
        precision: of the similarity product, as in `jax.numpy.matmul`.
        anchors: from twice as many queries on, only every n-th is looked at, so that at least this
            many are; the dictionary remains whole. It keeps memory and time linear in N.

    Returns:
        Scalars: ``contrastive_top1`` and ``contrastive_top5``, shares of queries whose own key is the
        nearest or among the five nearest (another key that is as near counts as nearer; where there is
        no other key, as in a queue that is still empty, nothing is told apart and both are 0), and
        ``contrastive_entropy``, the mean entropy of the softmax over the dictionary, in nats.
    """
    scale = lax.stop_gradient(inverse_temperature(temperature, q.dtype))
    every = max(1, len(q) // anchors)
    q, k = (whole(lax.stop_gradient(normalize(x))) for x in (q, k))
    own = scale * jnp.sum(q * k, axis=1, keepdims=True)[::every]
    if queue is None:
        keys = k
        counted = jnp.arange(0, len(q), every)[:, None] != jnp.arange(len(k))[None, :]
    else:
        keys = lax.stop_gradient(normalize(queue))
        counted = jnp.ones(len(queue), bool) if queue_valid is None else queue_valid
    others = scale * jnp.matmul(q[::every], keys.T, precision=precision)
    others = jnp.where(counted, others, -jnp.inf)
    nearer = jnp.sum(others >= own, axis=1)
    told = jnp.any(counted, axis=-1)
    log_p = jax.nn.log_softmax(jnp.concatenate([own, others], axis=1), axis=1)
    terms = jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * log_p, 0)
    return {
        "contrastive_top1": jnp.mean(told & (nearer < 1), dtype=own.dtype),
        "contrastive_top5": jnp.mean(told & (nearer < 5), dtype=own.dtype),
        "contrastive_entropy": -jnp.mean(jnp.sum(terms, axis=1)),
    }
