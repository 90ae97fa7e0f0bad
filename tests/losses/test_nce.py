"""The engine: every form against loops in float64, on any number of devices, in little memory."""

import contextlib
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pair_oracles as oracle
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcl import losses
from jaxcl.bench.loss import plain_nt_xent
from jaxcl.losses import nce

WANT = ("lse", "positive_sum", "positive_lse", "positives")
NEW_PRODUCTS = jax.__version_info__ >= (0, 12)
"""Whether XLA's products on CPU are those that add in another order, and are rounded more."""


def same_group(queries, keys):
    other = queries["index"] != keys["index"]
    return nce.Pairs(other, other & (queries["group"] == keys["group"]))


def not_next_to(queries, keys):
    """Not symmetric, and with pairs that are positive though not counted."""
    return nce.Pairs(
        counted=queries["index"] + 1 < keys["index"],
        positive=queries["group"] == keys["group"],
    )


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))


def random_rows(seed, count, features):
    rows = np.random.default_rng(seed).normal(size=(count, features))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def meta_of(group):
    return {"index": np.arange(len(group), dtype=np.int32), "group": np.asarray(group, np.int32)}


def masks(pairs, query_meta, key_meta):
    """The relation, asked pair by pair."""
    queries = [{k: v[i] for k, v in query_meta.items()} for i in range(len(query_meta["index"]))]
    keys = [{k: v[j] for k, v in key_meta.items()} for j in range(len(key_meta["index"]))]
    answers = [[pairs(q, k) for k in keys] for q in queries]
    counted = np.array([[bool(a.counted) for a in row] for row in answers])
    return counted, np.array([[bool(a.positive) for a in row] for row in answers])


def agree(got, expected, gradients, expected_gradients, tolerance):
    for name in WANT:
        finite = np.isfinite(expected[name])
        assert np.array_equal(np.isfinite(got[name]), finite)
        np.testing.assert_allclose(
            np.asarray(got[name])[finite], expected[name][finite], rtol=tolerance, atol=tolerance
        )
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(gradient - wanted) <= 5 * tolerance * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    # form, devices of the mesh (0: none), rows of a tile, whether the bound is told, block
    ("form", "devices", "tile", "bounded", "block"),
    [
        ("dense", 0, 512, True, 2),
        ("dense", 0, 512, False, 0),
        ("tiled", 0, 8, True, 2),  # whole groups in whole tiles
        ("tiled", 0, 11, False, 2),  # tiles of 8: larger ones would cut groups or fill up
        ("tiled", 1, 7, False, 0),
        ("tiled", 4, 512, True, 2),
        ("ring", 2, 7, False, 0),
        ("ring", 8, 2, True, 2),
    ],
)
def test_self_contrast_in_every_form(form, devices, tile, bounded, block):
    rows = random_rows(0, 48, 5)
    # 21 rows without a partner if groups are random, with group -1 - i meaning unknown.
    group = np.arange(48) // 2 if block else np.random.default_rng(1).integers(0, 30, 48)
    meta = meta_of(group)
    gradient = {k: np.random.default_rng(i).normal(size=48) for i, k in enumerate(WANT)}
    counted, positive = masks(same_group, meta, meta)
    assert block or not positive.any(axis=1).all()
    scale = 4.0
    expected = oracle.row_sums(rows, rows, scale, counted, positive)
    to_queries, to_keys, to_scale = oracle.row_sums_gradient(
        rows, rows, scale, counted, positive, gradient
    )
    with jax.enable_x64(True):

        def total(rows, scale):
            stats = nce.row_stats(
                rows,
                None,
                nce.Relation(same_group, block),
                {k: jnp.asarray(v) for k, v in meta.items()},
                scale=scale,
                want=WANT,
                bound=4.0 if bounded else None,
                impl=form,
                mesh=mesh_of(devices) if devices else None,
                tile=tile,
            )
            finite = {k: jnp.where(v > -jnp.inf, v, 0) for k, v in stats.items()}
            return sum(jnp.sum(finite[k] * gradient[k]) for k in WANT), stats

        run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, stats), gradients = run(jnp.asarray(rows), scale)
        assert all(v.dtype == jnp.float64 for v in stats.values())
        agree(stats, expected, gradients, (to_queries + to_keys, to_scale), 1e-13)


@pytest.mark.parametrize(
    ("form", "devices", "tile", "bounded"),
    [
        ("dense", 0, 512, False),
        ("tiled", 0, 7, False),
        ("tiled", 4, 512, True),
        ("ring", 8, 3, True),
    ],
)
def test_queries_against_keys_in_every_form(form, devices, tile, bounded):
    queries, keys = random_rows(2, 16, 3), 0.5 * random_rows(3, 40, 3)
    query_meta = meta_of(np.random.default_rng(4).integers(0, 8, 16))
    key_meta = meta_of(np.random.default_rng(5).integers(0, 8, 40))
    query_meta["index"] += 30  # the last queries count no key at all
    gradient = {k: np.random.default_rng(i).normal(size=16) for i, k in enumerate(WANT)}
    counted, positive = masks(not_next_to, query_meta, key_meta)
    assert not counted.any(axis=1).all()
    expected = oracle.row_sums(queries, keys, 6.0, counted, positive)
    wanted = oracle.row_sums_gradient(queries, keys, 6.0, counted, positive, gradient)
    with jax.enable_x64(True):

        def total(queries, keys, scale):
            stats = nce.row_stats(
                queries,
                keys,
                nce.Relation(not_next_to),
                {k: jnp.asarray(v) for k, v in query_meta.items()},
                {k: jnp.asarray(v) for k, v in key_meta.items()},
                scale=scale,
                want=WANT,
                bound=3.0 if bounded else None,
                impl=form,
                mesh=mesh_of(devices) if devices else None,
                tile=tile,
            )
            finite = {k: jnp.where(v > -jnp.inf, v, 0) for k, v in stats.items()}
            return sum(jnp.sum(finite[k] * gradient[k]) for k in WANT), stats

        run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
        (_, stats), gradients = run(jnp.asarray(queries), jnp.asarray(keys), 6.0)
        agree(stats, expected, gradients, wanted, 1e-13)


@pytest.mark.parametrize("form", ["dense", "tiled"])
def test_only_what_is_wanted_is_made(form):
    rows = random_rows(6, 12, 4).astype(np.float32)
    meta = meta_of(np.arange(12) // 2)
    relation = nce.Relation(same_group, block=2)

    def total(rows):
        stats = nce.row_stats(rows, None, relation, meta, want=("positive_sum",), impl=form, tile=4)
        assert list(stats) == ["positive_sum"]
        return jnp.sum(stats["positive_sum"])

    value, gradient = jax.jit(jax.value_and_grad(total))(rows)
    partner = rows[np.arange(12) ^ 1]
    np.testing.assert_allclose(value, np.sum(rows * partner), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * partner, rtol=1e-6)


@functools.cache
def compiled_nt_xent(form, temperature, devices=0):
    mesh = mesh_of(devices) if devices else None
    return jax.jit(
        jax.value_and_grad(lambda z: losses.nt_xent(z, temperature, impl=form, mesh=mesh))
    )


compiled_sup_con = jax.jit(
    jax.value_and_grad(losses.sup_con), static_argnames=("temperature", "variant", "impl")
)


def embeddings(kind, images, views=2, features=128):
    z = np.random.default_rng(images).normal(size=(images, views, features)).astype(np.float32)
    if kind == "duplicates":
        z[images // 2 :] = z[: images - images // 2]
    if kind == "zero rows":
        z[0, 1] = z[-1, 0] = 0
    return z


@pytest.mark.optimised
@pytest.mark.parametrize(
    "temperature",
    [0.1, 0.005, *(pytest.param(t, marks=pytest.mark.slow) for t in (1, 0.5, 0.05, 0.01))],
)
def test_float32_is_exact_at_every_temperature(temperature):
    """999 rows: two tiles of 500, one row of which fills up, with groups of three cut in two."""
    for kind in ("random", "duplicates", "zero rows"):
        z = embeddings(kind, 333, 3)
        rows, gradient = oracle.nt_xent_by_rows(z, temperature)
        for form in ("dense", "tiled"):
            value, got = compiled_nt_xent(form, temperature)(z)
            np.testing.assert_allclose(value, rows.mean(), rtol=1e-6)
            error = np.linalg.norm(got.reshape(999, -1) - gradient)
            limit = 2.5e-6 if form == "dense" and NEW_PRODUCTS else 2e-6
            assert error <= limit * np.linalg.norm(gradient), (kind, form)


@pytest.mark.optimised
@pytest.mark.parametrize(
    # The limit is of the gradient. Products of rows are rounded by as much as they are long, so that fewer features, and
    # with them more similar rows, cost digits; a matrix in one piece is summed in one chain, which costs more than a tile.
    ("features", "temperature", "dense", "tiled"),
    [
        (128, 0.005, *((3e-6, 2.6e-6) if NEW_PRODUCTS else (2.2e-6, 1.5e-6))),
        pytest.param(128, 0.1, 1e-6, 1e-6, marks=pytest.mark.slow),
        pytest.param(
            64,
            0.005,
            *((3.5e-6, 2.8e-6) if NEW_PRODUCTS else (3e-6, 2.2e-6)),
            marks=pytest.mark.slow,
        ),
        pytest.param(16, 0.005, 6e-6, 6e-6, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("variant", ["out", "in"])
def test_float32_is_exact_with_labels(variant, features, temperature, dense, tiled):
    """666 rows: two tiles of 333, with groups cut in two."""
    z = embeddings("random", 333, 2, features)
    some = np.random.default_rng(0).integers(0, 30, 333)
    for kind, labels in (("some", some), ("one", np.zeros(333, int)), ("none", np.arange(333))):
        rows, gradient = oracle.sup_con_by_rows(z, labels, temperature, variant)
        for form, limit in (("dense", dense), ("tiled", tiled)):
            value, got = compiled_sup_con(z, labels, temperature, variant, impl=form)
            np.testing.assert_allclose(value, rows.mean(), rtol=1e-6)
            # Of one class L_in is the same number whatever the rows are: there is nothing to be relative to.
            size = 1 / temperature if (kind, variant) == ("one", "in") else np.linalg.norm(gradient)
            assert np.linalg.norm(got - gradient) <= limit * size, (kind, form)


@pytest.mark.optimised
@pytest.mark.parametrize(
    "temperature", [0.005, *(pytest.param(t, marks=pytest.mark.slow) for t in (1, 0.05))]
)
@pytest.mark.parametrize(("images", "views"), [(3, 1), (2, 2), (1, 3), (7, 1), (7, 2), (35, 2)])
def test_float32_is_exact_for_a_few_rows(images, views, temperature):
    """3 to 70 rows, fewer than of one register or tile, with labels that leave some rows alone."""
    z = embeddings("random", images, views)
    labels = np.arange(images) % max(2, images // 3)
    expected = {v: oracle.sup_con_by_rows(z, labels, temperature, v) for v in ("out", "in")}
    if views > 1:
        expected["no labels"] = oracle.nt_xent_by_rows(z, temperature)
    for form, (kind, (rows, gradient)) in itertools.product(("dense", "tiled"), expected.items()):
        if kind == "no labels":
            value, got = compiled_nt_xent(form, temperature)(z)
        else:
            value, got = compiled_sup_con(z, labels, temperature, kind, impl=form)
        # Where few rows make it small, the roundings of logits, as large as 1 / temperature, are all that is left.
        np.testing.assert_allclose(value, rows.mean(), rtol=1e-6, atol=1e-8 / temperature)
        # Of one class L_in is the same number whatever the rows are: there is nothing to be relative to.
        size = 1 / temperature if (images, kind) == (1, "in") else np.linalg.norm(gradient)
        error = np.linalg.norm(np.reshape(got, gradient.shape) - gradient)
        assert error <= 2e-6 * size, (kind, form)


def test_one_image_in_each_class_in_one_view_has_nothing_to_pull():
    z = embeddings("random", 333, 1)
    for variant, form in itertools.product(("out", "in"), ("dense", "tiled")):
        value, gradient = compiled_sup_con(z, np.arange(333), 0.005, variant, impl=form)
        assert value == 0
        assert not np.any(gradient)


@pytest.mark.parametrize("form", ["dense", "tiled"])
def test_a_single_image_has_nothing_to_tell_apart(form):
    for temperature in (0.1, 0.005):
        value, gradient = compiled_nt_xent(form, temperature)(embeddings("random", 1))
        # One rounding of the logit 1 / temperature.
        assert np.abs(value) <= 1.2e-7 / temperature
        assert np.max(np.abs(gradient)) <= 1e-6 / temperature


def test_the_yardstick_computes_the_same():
    z = embeddings("random", 35)
    rows, gradient = oracle.nt_xent_by_rows(z, 0.1)
    value, got = jax.jit(jax.value_and_grad(plain_nt_xent), static_argnums=1)(z, 0.1)
    np.testing.assert_allclose(value, rows.mean(), rtol=1e-6)
    np.testing.assert_allclose(got.reshape(70, -1), gradient, atol=1e-8)


@pytest.mark.parametrize("form", ["dense", "tiled", "ring"])
@pytest.mark.parametrize(
    "devices", [8, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 4))]
)
def test_the_number_of_devices_changes_nothing(form, devices):
    z = embeddings("random", 48, features=16)
    labels = np.random.default_rng(0).integers(-1, 6, 48)
    value, gradient = compiled_nt_xent("dense", 0.1)(z)
    label_value, label_gradient = compiled_sup_con(z, labels)
    mesh = mesh_of(devices)
    sharded = jax.device_put(z, NamedSharding(mesh, P("data")))
    got, got_gradient = compiled_nt_xent(form, 0.1, devices)(sharded)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    assert np.linalg.norm(got_gradient - gradient) <= 2e-6 * np.linalg.norm(gradient)
    run = jax.jit(jax.value_and_grad(functools.partial(losses.sup_con, impl=form, mesh=mesh)))
    got, got_gradient = run(sharded, labels)
    np.testing.assert_allclose(got, label_value, rtol=1e-6)
    error = np.linalg.norm(got_gradient - label_gradient)
    assert error <= 2e-6 * np.linalg.norm(label_gradient)


@pytest.mark.parametrize("form", ["dense", "tiled", "ring"])
@pytest.mark.parametrize("kind", ["duplicates", "zero rows", "one class", "no positives"])
def test_odd_rows_over_devices(form, kind):
    views = 1 if kind == "no positives" else 2
    z = embeddings(kind if kind in ("duplicates", "zero rows") else "random", 48, views, 16)
    labels = np.arange(48) if kind == "no positives" else np.zeros(48, int)
    mesh = mesh_of(8)
    sharded = jax.device_put(z, NamedSharding(mesh, P("data")))
    if kind in ("duplicates", "zero rows"):
        rows, gradient = oracle.nt_xent_by_rows(z, 0.05)
        value, got = compiled_nt_xent(form, 0.05, 8)(sharded)
    else:
        rows, gradient = oracle.sup_con_by_rows(z, labels, 0.05, "out")
        loss = functools.partial(losses.sup_con, temperature=0.05, impl=form, mesh=mesh)
        value, got = jax.jit(jax.value_and_grad(loss))(sharded, labels)
    np.testing.assert_allclose(value, rows.mean(), rtol=1e-6)
    assert (np.linalg.norm(gradient) == 0) == (kind == "no positives")
    error = np.linalg.norm(np.reshape(got, gradient.shape) - gradient)
    assert error <= 4e-6 * np.linalg.norm(gradient)  # 16 features


@pytest.mark.parametrize(
    ("form", "devices"), [("dense", 1), ("tiled", 1), ("tiled", 8), ("ring", 8)]
)
def test_bfloat16_rows_are_summed_in_float32(form, devices):
    """The value is as exact as of the same rows in float32; the gradient is rounded once, at its end."""
    z = jnp.asarray(embeddings("random", 160, features=32), jnp.bfloat16)
    exact, gradient = oracle.nt_xent_by_rows(np.asarray(z, np.float32), 0.05)
    if devices > 1:
        z = jax.device_put(z, NamedSharding(mesh_of(devices), P("data")))
    value, got = compiled_nt_xent(form, 0.05, devices)(z)
    assert (value.dtype, got.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(value, exact.mean(), rtol=1e-6)
    error = np.linalg.norm(np.asarray(got, np.float64).reshape(gradient.shape) - gradient)
    assert error <= 2e-3 * np.linalg.norm(gradient)  # of one rounding 1.6e-3


def test_the_mesh_that_is_set_is_used():
    z = jax.ShapeDtypeStruct((8192, 2, 128), jnp.float32)
    with jax.set_mesh(mesh_of(8)):
        text = jax.jit(losses.nt_xent).lower(z).as_text()
    assert "collective_permute" in text
    assert "collective_permute" not in jax.jit(losses.nt_xent).lower(z).as_text()


@pytest.mark.parametrize(
    ("form", "way"),
    [
        ("dense", "mesh"),
        ("tiled", "set_mesh"),
        ("ring", "mesh"),
        *(
            pytest.param(form, way, marks=pytest.mark.slow)
            for form, way in (("dense", "set_mesh"), ("tiled", "mesh"), ("ring", "set_mesh"))
        ),
    ],
)
def test_the_mesh_that_jax_makes_has_explicit_axes(form, way):
    """Rows that are typed as sharded, and rows that are not; labels, and a loss that is no sum of exponentials."""
    mesh = jax.make_mesh((8,), ("data",))
    assert mesh.axis_types == (AxisType.Explicit,)
    whole = embeddings("random", 24, features=8)
    labels = np.arange(24) % 5

    def loss(z, impl, mesh):
        settings = {"impl": impl, "mesh": mesh}
        two = losses.nt_xent(z, **settings) + losses.sup_con(z, labels, variant="in", **settings)
        keys = losses.info_nce(z[:, 0], z[:, 1], **settings)
        return two + keys + losses.triplet(z[:, 0], labels, mesh=mesh)

    expected, gradient = jax.jit(
        jax.value_and_grad(functools.partial(loss, impl="dense", mesh=None))
    )(whole)
    given = mesh if way == "mesh" else None
    run = jax.jit(jax.value_and_grad(functools.partial(loss, impl=form, mesh=given)))
    for z in (whole, jax.device_put(whole, NamedSharding(mesh, P("data")))):
        with contextlib.nullcontext() if way == "mesh" else jax.set_mesh(mesh):
            value, got = run(z)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert np.linalg.norm(got - gradient) <= 2e-6 * np.linalg.norm(gradient)


EXPLICIT = {
    "sup_con_modes": ({"denominator": "one_positive"}, 3),
    "sup_con_overlap": ({}, 3),
    "hierarchical_con": ({"constraint": "pair_anchor"}, 3),
    "nt_xent_metrics": ({}, 3),
    "info_nce_metrics": ({}, 2),
    "triplet": ({"mining": "batch_hard"}, 2),
    "circle": ({}, 2),
    "multi_similarity": ({}, 2),
    "proxy_anchor": ({"proxies": jnp.ones((5, 8))}, 2),
    "leave_one_out": ({}, 3),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_losses_know_the_mesh_by_the_type_of_their_rows(name):
    """Traced, not compiled: the types of arrays on an Explicit axis are what there is to go wrong."""
    settings, rank = EXPLICIT[name]
    mesh = jax.make_mesh((8,), ("data",))
    shape = (24, 2, 8) if rank == 3 else (24, 8)
    z = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P("data")))
    labels = jnp.arange(24) % 5
    given = {"sup_con_overlap": [labels[:, None]], "nt_xent_metrics": []}.get(name, [labels])
    given = [jnp.stack([labels % 2, labels], axis=1)] if name == "hierarchical_con" else given

    def loss(z):
        if name == "leave_one_out":
            keys = jnp.broadcast_to(z[:, None], (24, 2, 2, 8))
            return losses.leave_one_out(z, keys, jnp.ones((2, 9, 8)))
        if name == "info_nce_metrics":
            return losses.info_nce_metrics(z, z)["contrastive_top1"]
        value = getattr(losses, name)(z, *given, **settings)
        return value["contrastive_top1"] if isinstance(value, dict) else value

    assert jax.jit(jax.value_and_grad(loss)).trace(z).out_info[0].shape == ()
    with jax.set_mesh(mesh):
        assert jax.jit(jax.value_and_grad(lambda z: loss(z))).trace(z).out_info[0].shape == ()


def collectives(form, batch, devices=8):
    """(kind, shape) of every collective of the compiled loss and gradient on a sharded batch."""
    mesh = mesh_of(devices)
    z = jax.ShapeDtypeStruct((batch, 2, 128), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    text = compiled_nt_xent(form, 0.1, devices).lower(z).compile().as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
    return re.findall(rf"= \w+\[([\d,]*)\]\S* ({kinds})(?:-start)?\(", text)


def test_dense_gathers_embeddings_and_vectors_only():
    found = collectives("dense", 256)
    gathered = [shape for shape, kind in found if kind == "all-gather"]
    assert "512,128" in gathered
    assert {kind for _, kind in found} <= {"all-gather", "all-reduce"}
    for shape, kind in found:
        sizes = [int(n) for n in shape.split(",") if n]
        assert np.prod(sizes) <= (512 * 128 if kind == "all-gather" else 512), (shape, kind)


def test_a_ring_gathers_nothing_and_passes_two_arrays_a_hop():
    found = collectives("ring", 8192)
    assert {kind for _, kind in found} == {"collective-permute", "all-reduce"}
    assert all(shape == "" for shape, kind in found if kind == "all-reduce")
    # Forward and backward: one send before the loop, one in its body.
    assert len([1 for _, kind in found if kind == "collective-permute"]) <= 2 * 2 * 2


@functools.cache
def temporary_bytes(function, views):
    z = jax.ShapeDtypeStruct((views // 2, 2, 128), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(function)).lower(z).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_and_far_below_the_matrix():
    views = np.array([65536, 131072, 262144])
    tiled = np.array([temporary_bytes(losses.nt_xent, n) for n in views])
    assert temporary_bytes(plain_nt_xent, 262144) >= 465 * tiled[-1]
    slope, start = np.polyfit(views, tiled, 1)
    residual = tiled - (start + slope * views)
    assert 1 - residual.var() / tiled.var() > 0.999
    assert slope <= 24 * 128
    assert tiled[-1] <= 6 * 4 * 262144 * 128 + 16 * 2**20


def test_labels_cost_little_more_memory():
    z = jax.ShapeDtypeStruct((65536, 2, 128), jnp.float32)
    labels = jax.ShapeDtypeStruct((65536,), jnp.int32)
    run = jax.jit(jax.value_and_grad(functools.partial(losses.sup_con, variant="in")))
    compiled = run.lower(z, labels).compile()
    bound = 1.1 * temporary_bytes(losses.nt_xent, 131072)
    assert compiled.memory_analysis().temp_size_in_bytes <= bound


def test_auto_is_the_written_rule():
    assert nce.choose(1448, 1448) == "dense"
    assert nce.choose(1449, 1449) == "tiled"
    assert nce.choose(1024, 1024, itemsize=8) == "dense"
    assert nce.choose(1448, 1448, itemsize=8) == "tiled"
    assert nce.choose(8192, 8192, devices=8) == "ring"
    assert nce.choose(8192, 8192, devices=8, platform="tpu") == "dense"
    assert nce.choose(16384, 16384, devices=8, platform="tpu") == "ring"
    assert nce.choose(32768, 32768, devices=64, platform="gpu") == "tiled"
    assert nce.choose(2048, 65536, platform="tpu") == "tiled"


def test_auto_without_a_mesh_is_for_one_device():
    """However many the process has."""
    assert jax.device_count() == 8
    assert temporary_bytes(losses.nt_xent, 4096) == temporary_bytes(tiled_nt_xent, 4096)
    assert temporary_bytes(losses.nt_xent, 4096) < 16 * 2**20
    assert temporary_bytes(losses.nt_xent, 1024) == temporary_bytes(dense_nt_xent, 1024)
    assert temporary_bytes(dense_nt_xent, 1024) > 2 * temporary_bytes(tiled_nt_xent, 1024)


tiled_nt_xent = functools.partial(losses.nt_xent, impl="tiled")
dense_nt_xent = functools.partial(losses.nt_xent, impl="dense")


@pytest.mark.parametrize(
    ("mesh", "impl", "kernel", "expected"),
    [
        (8, "auto", "auto", "dense"),
        (8, "ring", "auto", "ring"),
        (0, "ring", "auto", "tiled"),  # nothing to pass on
        (8, "tiled", "auto", "tiled"),
        (8, "auto", "pallas", "tiled"),  # which has no dense form
        (8, "ring", "pallas", "ring"),
    ],
)
def test_a_form_that_is_preferred_is_taken(mesh, impl, kernel, expected):
    z = jax.ShapeDtypeStruct((64, 2, 8), jnp.float32)
    mesh = mesh_of(mesh) if mesh else None
    with nce.using(impl, kernel), nce.watched() as matrices:
        program = jax.make_jaxpr(functools.partial(losses.nt_xent, mesh=mesh))(z)
    assert [m.form for m in matrices] == [expected]
    assert ("pallas_call" in str(program)) == (kernel == "pallas")
    with nce.watched() as matrices:
        jax.eval_shape(lambda z: losses.nt_xent(z), z)
    assert [m.form for m in matrices] == ["dense"]


def test_keys_that_are_everywhere_do_not_travel_where_a_ring_is_preferred():
    z = jax.ShapeDtypeStruct((64, 8), jnp.float32)
    with nce.using("ring"), nce.watched() as matrices:
        jax.eval_shape(functools.partial(losses.info_nce, mesh=mesh_of(8)), z, z, z)
    assert [m.form for m in matrices] == ["tiled"]


def test_impossible_forms_are_named():
    rows, meta = jnp.ones((6, 4)), meta_of(np.zeros(6))
    relation = nce.Relation(same_group)
    with pytest.raises(ValueError, match='impl="fast" is unknown; it is one of "auto", "dense"'):
        nce.row_stats(rows, None, relation, meta, impl="fast")
    with pytest.raises(ValueError, match='kernel="cuda" is unknown'):
        nce.row_stats(rows, None, relation, meta, kernel="cuda")
    with pytest.raises(ValueError, match='impl="ring" passes rows between devices'):
        nce.row_stats(rows, None, relation, meta, impl="ring")
    message = (
        'impl="ring": 6 rows and 6 keys do not divide over the 4 devices .* a multiple of 4 images'
    )
    with pytest.raises(ValueError, match=message):
        nce.row_stats(rows, None, relation, meta, impl="ring", mesh=mesh_of(4))
    z = jax.ShapeDtypeStruct((8192, 2, 128), jnp.float32)
    message = 'impl="auto" takes "ring": 16,384 rows .* the 7 devices .* of 7 images, such as one of 16,380'
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(losses.nt_xent, mesh=mesh_of(7)), z)
    message = 'kernel="pallas" walks over tiles, which impl="dense" has not; use "tiled"'
    with pytest.raises(ValueError, match=message):
        nce.row_stats(rows, None, relation, meta, impl="dense", kernel="pallas")
    with pytest.raises(ValueError, match=message), nce.using("dense", "pallas"):
        pass
    with pytest.raises(ValueError, match='impl="quick" is unknown'), nce.using("quick"):
        pass
    with pytest.raises(ValueError, match='mesh has no axis "model", only'):
        nce.row_stats(rows, None, relation, meta, mesh=mesh_of(2), axis="model")
    with pytest.raises(ValueError, match="keys_everywhere is for keys that do not travel"):
        nce.row_stats(rows, None, relation, meta, keys_everywhere=True)
    with pytest.raises(ValueError, match="keys and key_meta go together"):
        nce.row_stats(rows, rows, relation, meta)
    with pytest.raises(ValueError, match=r"query rows must be \[rows, features\], got \[6\]"):
        nce.row_stats(rows[:, 0], None, relation, meta)
    with pytest.raises(ValueError, match=r"query_meta\['group'\] must be \[6\]"):
        nce.row_stats(rows, None, relation, {**meta, "group": np.zeros(5, np.int32)})
