"""NT-Xent as one writes it down, left to JAX to differentiate: the yardstick of memory and time."""

import jax
import jax.numpy as jnp


def plain_nt_xent(z, temperature=0.1):
    """Two views; every row against every other, as in the paper's equation 1."""
    rows = z.reshape(-1, z.shape[-1])
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    logits = jnp.matmul(rows, rows.T, precision="highest") / temperature
    index = jnp.arange(len(rows))
    logits = jnp.where(index[:, None] == index[None, :], -jnp.inf, logits)
    # Rows 2b and 2b + 1 are the views of image b.
    positive = jnp.take_along_axis(logits, (index ^ 1)[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)
