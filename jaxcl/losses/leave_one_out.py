"""The loss of LooC: one InfoNCE for each head, each with negatives of its own (Xiao et al., ICLR 2021).

An image has a query and H keys: key 0 shares nothing with the query that was drawn at random, key i shares factor i
(a rotation, a colour distortion) and nothing else. There are as many heads. Head 0 pulls query and key 0 together, and so
becomes invariant to all factors. Head i pulls query and key i together and pushes the same image's other keys away, which differ
in factor i: it stays sensitive to that factor and becomes invariant to the others.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcl.losses import nce
from jaxcl.losses.contrastive import every_valid_key, inverse_temperature, normalize

HEAD0 = ("k0", "all")
"""What the positives of head 0 can be."""


def leave_one_out(
    q: jax.Array,
    k: jax.Array,
    queues: jax.Array,
    temperature: float | jax.Array = 0.2,
    head0: str = "k0",
    queue_valid: jax.Array | None = None,
    same_image_negatives: bool = True,
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """The mean of `leave_one_out_terms` over heads; with one head it is `info_nce`.

    Args:
        q: ``float[B, H, D]``, the query of each image in each head; normalised here, in at least
            float32.
        k: ``float[B, H, H, D]``; ``k[b, j, h]`` is key j in head h. Normalised here.
        queues: ``float[H, K, D]``, for each head keys of other images, the negatives of all queries.
            Normalised here; no gradient flows into them. With a mesh, the same on every device.
        temperature: divides the cosines.
        head0: the positives of head 0: "k0", or "all" the keys of the image, each in a softmax of its
            own against the queue, of which the mean is taken.
        queue_valid: ``bool[K]``, or ``bool[H, K]`` for each head, the filled rows of the queues; None:
            all.
        same_image_negatives: whether the image's other keys are negatives of heads 1 and up. Without
            them nothing asks for the sensitivity (the ablation).
        precision: of the similarity product, as in `jax.numpy.matmul`.
        impl: "dense" or "tiled" (`jaxcl.losses.nce`); "auto" chooses.
        mesh: the devices over whose axis "data" the images are sharded; None takes the mesh set by
            `jax.set_mesh`, if any.
        kernel: what walks over the tiles of "tiled": "xla", or "pallas" for TPU, with which "auto" takes
            it; "auto" is "xla" unless `jaxcl.losses.nce.using` says otherwise.

    Returns:
        A scalar in at least float32.

    Raises:
        ValueError: shapes that do not fit, or an unknown `head0`.
    """
    terms = leave_one_out_terms(
        q,
        k,
        queues,
        temperature,
        head0,
        queue_valid,
        same_image_negatives,
        precision=precision,
        impl=impl,
        mesh=mesh,
        kernel=kernel,
    )
    return jnp.mean(terms)


def leave_one_out_terms(
    q: jax.Array,
    k: jax.Array,
    queues: jax.Array,
    temperature: float | jax.Array = 0.2,
    head0: str = "k0",
    queue_valid: jax.Array | None = None,
    same_image_negatives: bool = True,
    *,
    precision: Any = "highest",
    impl: nce.Impl = "auto",
    mesh: nce.AnyMesh | None = None,
    kernel: nce.Kernel = "auto",
) -> jax.Array:
    """The loss of each head, ``float[H]``: means over the images.

    With ``E_hj = <q_h, k_jh> / temperature`` and the queue of head h, the loss of head 0 is
    ``-log(e^E_00 / (e^E_00 + queue))``, over 1 + K logits, and that of head i > 0 is
    ``-log(e^E_ii / (sum_j e^E_ij + queue))``, over H + K.

    The similarities to the queues go through `nce.row_stats`, so that memory is linear in B x K where
    that is large; those to the image's own keys are B x H x H numbers.

    Args and Raises: as `leave_one_out`.
    """
    _check(q, k, queues, head0, queue_valid)
    heads, keys = queues.shape[:2]
    scale = inverse_temperature(temperature, q.dtype)
    q, k = normalize(q), normalize(k)
    valid = jnp.ones(keys, bool) if queue_valid is None else queue_valid
    valid = jnp.broadcast_to(valid, (heads, keys))
    # Of each head a matrix of its own: [B, H] rows as one would meet the queues of other heads.
    others = [
        nce.row_stats(
            q[:, head],
            normalize(lax.stop_gradient(queues[head])),
            nce.Relation(every_valid_key),
            {},
            {"valid": valid[head]},
            scale=scale,
            bound=scale if isinstance(scale, float) else None,
            want=("lse",),
            precision=precision,
            impl=impl,
            mesh=mesh,
            keys_everywhere=True,
            kernel=kernel,
        )["lse"]
        for head in range(heads)
    ]
    own = scale * own_similarities(q, k)  # [B, H, J]
    if head0 == "all":
        first = jax.nn.softplus(others[0][:, None] - own[:, 0])
    else:
        first = jax.nn.softplus(others[0] - own[:, 0, 0])
    terms = [jnp.mean(first)]
    for head in range(1, heads):
        negatives = others[head]
        if same_image_negatives:
            rest = jnp.delete(own[:, head], head, axis=1)
            negatives = jnp.logaddexp(negatives, jax.nn.logsumexp(rest, axis=1))
        # log(exp(positive) + sum of negatives) - positive, without cancellation.
        terms.append(jnp.mean(jax.nn.softplus(negatives - own[:, head, head])))
    return jnp.stack(terms)


def leave_one_out_metrics(q: jax.Array, k: jax.Array) -> dict[str, jax.Array]:
    """How well the heads tell the keys of an image apart. No gradient flows.

    Args:
        q: ``float[B, H, D]``, queries.
        k: ``float[B, H, H, D]``, ``k[b, j, h]`` is key j in head h.

    Returns:
        ``own_key_top1`` ``float[H]``: the share of queries to which key h is nearer in head h than the
        image's other keys (another key that is as near counts as nearer); a head that is invariant to
        all factors is at about 1 / H. ``own_key_margin`` ``float[H]``: the mean of that cosine minus the
        mean cosine of the other keys, 0 where H is 1.
    """
    own = own_similarities(*(lax.stop_gradient(normalize(x)) for x in (q, k)))
    heads = q.shape[1]
    right = jnp.diagonal(own, axis1=1, axis2=2)  # [B, H]
    nearer = jnp.sum(own >= right[..., None], axis=2) - 1
    rest = (jnp.sum(own, axis=2) - right) / max(heads - 1, 1)
    margin = jnp.mean(right - rest, axis=0)
    return {
        "own_key_top1": jnp.mean(nearer < 1, axis=0, dtype=own.dtype),
        "own_key_margin": margin if heads > 1 else jnp.zeros_like(margin),
    }


def own_similarities(q: jax.Array, k: jax.Array) -> jax.Array:
    """``float[B, H, J]``, the inner products of q[B, H, D] and k[B, J, H, D] in each head."""
    # As a product and a sum and not as a matrix product: full precision on any device.
    return jnp.sum(q[:, :, None] * k.swapaxes(1, 2), axis=-1)


def _check(
    q: jax.Array, k: jax.Array, queues: jax.Array, head0: str, queue_valid: jax.Array | None
) -> None:
    if q.ndim != 3 or 0 in q.shape:
        raise ValueError(
            f"leave_one_out: q must be [images, heads, features], none of them 0; got {list(q.shape)}."
        )
    batch, heads, features = q.shape
    if k.shape != (batch, heads, heads, features):
        raise ValueError(
            f"leave_one_out: k must be [{batch}, {heads}, {heads}, {features}], as many keys of each "
            f"image as heads, each key in every head; got {list(k.shape)}."
        )
    if queues.ndim != 3 or queues.shape[::2] != (heads, features):
        raise ValueError(
            f"leave_one_out: queues must be [{heads}, keys, {features}], a queue for each head; "
            f"got {list(queues.shape)}."
        )
    if head0 not in HEAD0:
        raise ValueError(f'leave_one_out: head0 must be "k0" or "all", got {head0!r}.')
    keys = queues.shape[1]
    if queue_valid is not None and (
        queue_valid.shape not in ((keys,), (heads, keys)) or queue_valid.dtype != bool
    ):
        raise ValueError(
            f"leave_one_out: queue_valid must be bool[{keys}] or bool[{heads}, {keys}]; "
            f"got {queue_valid.dtype}{list(queue_valid.shape)}."
        )
