"""The leaves of a pytree by path: to the host and back to devices, digests, finiteness."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import mesh

PyTree = Any

_DIGEST_BYTES = 32


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by their path, "params/backbone/conv/kernel", in the tree's order.

    Python scalars become the arrays that JAX makes of them.

    Raises:
      ValueError: two leaves have the same path, be it only after "/" is replaced by ".".
    """
    named: dict[str, Any] = {}
    stored: dict[str, str] = {}
    for keys, leaf in jax.tree.leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        # Orbax joins the keys by dots, so "a.b" and "a/b" would be written to one place.
        twin = stored.setdefault(path.replace("/", "."), path)
        if path in named or twin != path:
            raise ValueError(f"two leaves of the tree are stored as {path!r}: rename a key of one")
        named[path] = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return named


def dtype_name(leaf: Any) -> str:
    """The dtype as a manifest has it: "float32", "bfloat16", "key<threefry2x32>"."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(np.dtype(leaf.dtype))
    names: list[Any] = []  # key_impl wants an array, or a tracer of one
    abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    jax.eval_shape(lambda key: names.append(jax.random.key_impl(key)), abstract)
    return f"key<{names[0]}>"


def generator(dtype: str) -> str | None:
    """The generator of typed PRNG keys in a manifest's dtype, None for other dtypes."""
    return dtype[len("key<") : -1] if dtype.startswith("key<") else None


def host_format(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype that `to_host` gives to a leaf of this shape and manifest dtype."""
    impl = generator(dtype)
    if impl is None:
        return shape, jnp.dtype(dtype)
    data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl)))
    return (*shape, *data.shape), np.dtype(data.dtype)


def start_to_host(named: Iterable[Any]) -> None:
    """Begins the transfers of all leaves, so that `to_host` need not wait for each in turn."""
    for leaf in named:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and not is_key:
            leaf.copy_to_host_async()


def to_host(leaf: Any) -> np.ndarray:
    """A copy of the whole leaf in this process's memory, whatever its sharding; of keys, the data.

    The copy is independent of the device's buffer, which the next train step may reuse. A leaf that
    spans processes and is not replicated is gathered: every process has to call.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(mesh.to_host(leaf), order="C", copy=True)


def to_devices(host: np.ndarray, dtype: str, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """The inverse of `to_host`.

    Args:
      host: the whole array (of keys, their data), equal on every process.
      dtype: as in `dtype_name`.
      sharding: of the result; None for the default device.

    Raises:
      ValueError: a 64-bit array while JAX is in 32-bit mode.
    """
    if jax.dtypes.canonicalize_dtype(host.dtype) != host.dtype:
        raise ValueError(f"an array of {host.dtype} needs jax_enable_x64, which is off")
    if sharding is None:
        array = jnp.array(host)
    else:
        # A sharding that fits keys fits their data too, which have one more axis at the end.
        array = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    impl = generator(dtype)
    if impl is None:
        return array
    return _wrap_keys(impl, sharding)(array)


@functools.lru_cache
def _wrap_keys(impl: str, sharding: jax.sharding.Sharding | None) -> Callable[..., jax.Array]:
    """Jitted, because only so it works on arrays that span processes; cached, for its compiling."""
    return jax.jit(functools.partial(jax.random.wrap_key_data, impl=impl), out_shardings=sharding)


def digest(array: np.ndarray) -> str:
    """BLAKE2b of the elements in C order, `blake2b(array.tobytes(), digest_size=32)`, in hex."""
    return hashlib.blake2b(_bytes(array).data, digest_size=_DIGEST_BYTES).hexdigest()


def text_digest(text: str) -> str:
    """BLAKE2b of a text in UTF-8, of 32 bytes, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def is_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; true of integers, bools and the data of keys."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    return bool(np.isfinite(array).all())


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal in shape, dtype and every bit."""
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    return same_kind and np.array_equal(_bytes(a), _bytes(b))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in named.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
