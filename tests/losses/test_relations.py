"""What a relation can say beyond two masks: levels, weights, thresholds; and the hardest pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pair_oracles as oracle
import pytest
from jax.sharding import AxisType, Mesh

from jaxcl.losses import nce

SUMS = ("lse", "positive_sum", "positive_lse", "positives")
EXTREMES = ("max", "argmax", "positive_min", "positive_argmin")
DIFFERENTIABLE = ("lse", "positive_sum", "positive_lse", "max", "positive_min")


def by_level(queries, keys):
    """Level l: alive rows are counted; positive are those that agree down to it, with weights."""
    other = queries["index"] != keys["index"]
    agree, counted, positive = other, [], []
    for level in range(2):
        agree = agree & (queries["label"][level] == keys["label"][level])
        positive.append(agree * (queries["weight"] + keys["weight"]))
        counted.append(other & queries["alive"][level] & keys["alive"][level])
    return nce.Pairs(tuple(counted), tuple(positive))


def weighted(queries, keys):
    """One level; the weights of the counted pairs are not symmetric, and some are 0."""
    weight = jnp.where(queries["index"] < keys["index"], keys["weight"], 0.5 * queries["weight"])
    return nce.Pairs(weight, queries["label"][0] == keys["label"][0])


def harder(queries, keys, s):
    """Counted are negatives above the query's threshold, positive are positives below it."""
    same = queries["label"][0] == keys["label"][0]
    above = s > queries["threshold"]
    return nce.Pairs(~same & above, same & ~above)


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))


def random_rows(seed, count, features):
    rows = np.random.default_rng(seed).normal(size=(count, features))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_meta(seed, count):
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0, 2, count)
    weight[::5] = 0
    return {
        "index": np.arange(count, dtype=np.int32),
        "label": np.stack([rng.integers(0, n, count) for n in (2, 3)], axis=1).astype(np.int32),
        "alive": rng.uniform(size=(count, 2)) < np.array([0.9, 0.3]),
        "weight": weight,
        "threshold": rng.normal(size=count),
    }


def asked_pair_by_pair(pairs, query_meta, key_meta, s):
    """The relation's masks, [levels, N, K] each; NumPy scalars in, one pair at a time."""
    counted, positive = [], []
    for i in range(len(query_meta["index"])):
        for j in range(len(key_meta["index"])):
            query = {name: x[i] for name, x in query_meta.items()}
            key = {name: x[j] for name, x in key_meta.items()}
            answer = pairs(query, key, s[i, j]) if pairs is harder else pairs(query, key)
            counted.append(np.array(answer.counted, float).reshape(-1))
            positive.append(np.array(answer.positive, float).reshape(-1))
    shape = (len(query_meta["index"]), len(key_meta["index"]), -1)
    return [np.moveaxis(np.reshape(m, shape), 2, 0) for m in (counted, positive)]


def expected_of(queries, keys, scale, counted, positive, gradient):
    """Oracle statistics [N, levels], and the gradients of their sum times `gradient`."""
    levels = range(max(len(counted), len(positive)))
    sums, totals = [], []
    for level in levels:
        masks = counted[min(level, len(counted) - 1)], positive[min(level, len(positive) - 1)]
        sums.append(oracle.row_sums(queries, keys, scale, *masks))
        here = {name: g[:, level] for name, g in gradient.items()}
        finite = {name: np.where(np.isfinite(sums[-1][name]), g, 0) for name, g in here.items()}
        totals.append(oracle.row_sums_gradient(queries, keys, scale, *masks, finite))
    stats = {name: np.stack([s[name] for s in sums], axis=1) for name in sums[0]}
    return stats, [sum(parts) for parts in zip(*totals, strict=True)]


def run(pairs, queries, keys, query_meta, key_meta, gradient, want=SUMS + EXTREMES, **options):
    """Statistics and gradients from the engine, in float64; keys None: rows against themselves."""

    def total(queries, keys, scale):
        stats = nce.row_stats(
            queries,
            keys,
            nce.Relation(pairs, sees_similarity=pairs is harder),
            query_meta,
            key_meta,
            scale=scale,
            want=want,
            **options,
        )
        out = 0.0
        for name, g in gradient.items():
            values = stats[name].reshape(g.shape)
            out += jnp.sum(jnp.where(jnp.isfinite(values), values, 0) * g)
        return out, stats

    argnums = (0, 2) if keys is None else (0, 1, 2)
    function = jax.jit(jax.value_and_grad(total, argnums=argnums, has_aux=True))
    (_, stats), gradients = function(queries, keys, 4.0)
    return stats, gradients


def agree(stats, expected, gradients, expected_gradients):
    for name, value in stats.items():
        wanted = expected[name].reshape(value.shape)
        if "arg" in name:
            np.testing.assert_array_equal(value, wanted)
        else:
            np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(got - wanted) <= 1e-12 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("form", "devices", "tile", "bound", "want"),
    [
        ("dense", 0, 512, 4.0, SUMS + EXTREMES),
        ("tiled", 0, 9, None, SUMS + EXTREMES),
        ("ring", 4, 4, 4.0, ("lse", *EXTREMES)),
    ],
)
def test_levels_weights_and_extremes_of_rows_against_themselves(form, devices, tile, bound, want):
    rows, meta = random_rows(0, 24, 3), random_meta(1, 24)
    rng = np.random.default_rng(2)
    gradient = {name: rng.normal(size=(24, 2)) for name in want if name in DIFFERENTIABLE}
    masks = asked_pair_by_pair(by_level, meta, meta, None)
    assert not np.all(masks[0].any(axis=2))  # some rows count nothing at some level
    expected, (to_rows, to_keys, to_scale) = expected_of(rows, rows, 4.0, *masks, gradient)
    with jax.enable_x64(True):
        mesh = mesh_of(devices) if devices else None
        options = {"impl": form, "mesh": mesh, "tile": tile, "bound": bound, "want": want}
        stats, gradients = run(by_level, rows, None, meta, None, gradient, **options)
        assert {name: x.shape for name, x in stats.items()} == dict.fromkeys(stats, (24, 2))
        assert stats["argmax"].dtype == stats["positive_argmin"].dtype == jnp.int32
        agree(stats, expected, gradients, (to_rows + to_keys, to_scale))


@pytest.mark.parametrize(
    ("pairs", "form", "devices", "tile", "everywhere"),
    [
        (weighted, "dense", 0, 512, False),
        (harder, "tiled", 0, 7, False),
        (weighted, "tiled", 4, 6, True),
        (harder, "ring", 2, 6, False),
    ],
)
def test_weights_and_thresholds_of_queries_against_keys(pairs, form, devices, tile, everywhere):
    count = 27 if everywhere else 20  # keys that are everywhere need not divide
    queries, keys = random_rows(3, 12, 3), 0.8 * random_rows(4, count, 3)
    query_meta, key_meta = random_meta(5, 12), random_meta(6, count)
    rng = np.random.default_rng(7)
    gradient = {name: rng.normal(size=(12, 1)) for name in DIFFERENTIABLE}
    with jax.enable_x64(True):
        masks = asked_pair_by_pair(pairs, query_meta, key_meta, 4.0 * queries @ keys.T)
        expected, wanted = expected_of(queries, keys, 4.0, *masks, gradient)
        stats, gradients = run(
            pairs,
            queries,
            keys,
            query_meta,
            key_meta,
            gradient,
            impl=form,
            mesh=mesh_of(devices) if devices else None,
            tile=tile,
            bound=4.0,
            keys_everywhere=everywhere,
        )
        assert all(x.shape == (12,) for x in stats.values())
        agree(stats, expected, gradients, wanted)


def every_key(queries, keys):
    true = queries["index"] >= 0
    return nce.Pairs(true, true & (keys["index"] % 2 == 1))


@pytest.mark.parametrize(("form", "tile", "devices"), [("dense", 512, 0), ("ring", 3, 4)])
def test_of_equal_pairs_the_first_is_the_hardest(form, tile, devices):
    """Eight copies of two rows, over tiles and devices."""
    queries = np.eye(2, dtype=np.float32)[np.arange(8) % 2]
    keys = np.tile(np.eye(2, dtype=np.float32)[:, ::-1], (8, 1))
    index = {"index": np.arange(8)}, {"index": np.arange(16)}
    options = {"impl": form, "tile": tile, "mesh": mesh_of(devices) if devices else None}
    stats = jax.jit(
        lambda q, k: nce.row_stats(q, k, nce.Relation(every_key), *index, want=EXTREMES, **options)
    )(queries, keys)
    np.testing.assert_array_equal(stats["max"], np.ones(8))
    np.testing.assert_array_equal(stats["argmax"], np.arange(8) % 2 ^ 1)
    # Odd keys are positive, all of them copies of the first axis.
    np.testing.assert_array_equal(stats["positive_min"], 1 - np.arange(8) % 2)
    np.testing.assert_array_equal(stats["positive_argmin"], np.ones(8))


def test_extremes_need_little_memory():
    """The hardest positive and negative of each of 131,072 rows; the matrix has 64 GiB."""
    rows = jax.ShapeDtypeStruct((131072, 128), jnp.float32)
    label = jax.ShapeDtypeStruct((131072, 3), jnp.int32)

    def loss(rows, label):
        meta = {"index": jnp.arange(131072), "label": label}
        stats = nce.row_stats(rows, None, nce.Relation(negatives), meta, want=EXTREMES)
        return jnp.mean(jax.nn.softplus(stats["max"] - stats["positive_min"]))

    compiled = jax.jit(jax.value_and_grad(loss)).lower(rows, label).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 6 * 4 * 131072 * 128 + 16 * 2**20


def negatives(queries, keys):
    same = queries["label"][0] == keys["label"][0]
    return nce.Pairs(~same, same & (queries["index"] != keys["index"]))


@pytest.mark.parametrize("form", ["dense", "tiled"])
def test_a_statistic_without_gradient_costs_none(form):
    """Counted in the traced program: products of matrices, and exponentials."""
    queries, keys = np.ones((8, 4), np.float32), np.ones((16, 4), np.float32)
    meta = random_meta(0, 8), random_meta(1, 16)

    def loss(queries, keys, used, stop=False):
        keys = jax.lax.stop_gradient(keys) if stop else keys
        stats = nce.row_stats(
            queries, keys, nce.Relation(weighted), *meta, want=SUMS + EXTREMES, impl=form, tile=8
        )
        return sum(jnp.sum(stats[name]) for name in used)

    def cost(used, argnums=0, stop=False):
        gradient = jax.make_jaxpr(jax.grad(loss, argnums), static_argnums=(2, 3))
        text = str(gradient(queries, keys, used, stop))
        return text.count("dot_general["), text.count(" exp ")

    products, exponentials = cost(("lse",))
    assert cost(("lse",), (0, 1), stop=True)[0] == products
    # Keys with a gradient take one product more, and in tiles the similarities once more.
    assert cost(("lse",), (0, 1))[0] == products + (1 if form == "dense" else 2)
    assert cost(("max",))[1] < exponentials
    assert cost(("positive_sum", "positives"))[1] < exponentials
