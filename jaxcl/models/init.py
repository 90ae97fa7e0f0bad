"""Initial values of parameters, from one draw of random numbers for a whole network.

linen draws for each parameter by itself. Compiling those draws, tens of them, takes longer than
compiling the network's forward pass; `initialize` makes one draw and cuts it into pieces.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

# Standard deviation of a standard normal truncated at +-2.
_TRUNCATED_STD = 0.87962566103423978

_DISTRIBUTIONS: dict[str, Callable[[jax.Array, tuple[int, ...], Any], jax.Array]] = {
    "normal": jax.random.normal,
    "truncated_normal": lambda key, shape, dtype: (
        jax.random.truncated_normal(key, -2, 2, shape, dtype) / _TRUNCATED_STD
    ),
    "uniform": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1),
}


class _Draws:
    """Hands out consecutive pieces of one array of random numbers for each distribution.

    Without a key it only counts what is asked for.
    """

    def __init__(self, counted: "_Draws | None" = None, key: jax.Array | None = None) -> None:
        self.taken: dict[tuple[str, Any], int] = {}
        self.numbers: dict[tuple[str, Any], jax.Array] = {}
        if counted is not None and key is not None:
            keys = jax.random.split(key, len(counted.taken))
            for k, ((distribution, dtype), size) in zip(keys, counted.taken.items(), strict=True):
                draw = _DISTRIBUTIONS[distribution]
                self.numbers[distribution, dtype] = draw(k, (size,), dtype)

    def take(self, distribution: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        kind = distribution, jnp.dtype(dtype)
        start = self.taken.get(kind, 0)
        end = self.taken[kind] = start + math.prod(shape)
        if not self.numbers:
            return jnp.zeros(shape, dtype)
        return self.numbers[kind][start:end].reshape(shape)


_draws: contextvars.ContextVar[_Draws | None] = contextvars.ContextVar("_draws", default=None)


@contextlib.contextmanager
def _from(draws: _Draws) -> Iterator[None]:
    token = _draws.set(draws)
    try:
        yield
    finally:
        _draws.reset(token)


def scaled(distribution: str, scale: float) -> Initializer:
    """An initializer: `scale` times a number of the distribution.

    Args:
      distribution: "normal" (standard), "truncated_normal" (at two standard deviations, with a
        standard deviation of 1 after that) or "uniform" (in -1..1).
      scale: factor.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        draws = _draws.get()
        if draws is None:
            return scale * _DISTRIBUTIONS[distribution](key, shape, dtype)
        return scale * draws.take(distribution, shape, dtype)

    return init


def initialize(module: nn.Module, key: jax.Array, *args: Any) -> Any:
    """The variables `module.init(key, *args)`, from one draw for each distribution.

    The order in which the module makes its parameters decides which numbers each one gets.
    """
    counted = _Draws()
    with _from(counted):
        jax.eval_shape(lambda: module.init(jax.random.key(0), *args))

    # Under jit only the parameters' own computation remains of the forward pass.
    @jax.jit
    def init(key: jax.Array) -> Any:
        with _from(_Draws(counted, key)):
            return module.init(key, *args)

    return init(key)
