"""NT-Xent and SupCon as functions: golden values, analytic cases, degenerate and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pair_oracles as oracle
import pytest
from jax.sharding import Mesh

from jaxcl import losses

nt_xent = jax.jit(losses.nt_xent, static_argnums=1)
info_nce = jax.jit(losses.info_nce, static_argnames="temperature")
sup_con = jax.jit(losses.sup_con, static_argnums=(2, 3, 4))
nt_xent_and_gradient = jax.jit(jax.value_and_grad(losses.nt_xent), static_argnums=1)
sup_con_and_gradient = jax.jit(jax.value_and_grad(losses.sup_con), static_argnums=(2, 3))
metrics_of = jax.jit(losses.nt_xent_metrics, static_argnames=("temperature", "anchors"))

GOLDEN = oracle.two_views(oracle.sines(8, 8, 1.0))
LABELS = np.array([0, 0, 1, 2])


def random_z(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.1, 6.302796487552753), (0.5, 2.2802074641200814), (1.0, 2.0553571845551835)],
)
def test_nt_xent_golden(temperature, expected):
    value = nt_xent(jnp.asarray(GOLDEN, jnp.float32), temperature)
    assert value.shape == ()
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    with jax.enable_x64(True):
        value = nt_xent(jnp.asarray(GOLDEN), temperature)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("variant", "temperature", "expected"),
    [
        ("out", 0.1, 7.0132470876305675),
        ("out", 0.5, 2.4222975841356438),
        ("in", 0.1, 6.712623036521341),
        ("in", 0.5, 2.4088165291886607),
    ],
)
def test_sup_con_golden(variant, temperature, expected):
    value = sup_con(jnp.asarray(GOLDEN, jnp.float32), LABELS, temperature, variant)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_sup_con_scale_golden():
    value = sup_con(jnp.asarray(GOLDEN, jnp.float32), LABELS, 0.1, "out", 0.1 / 0.07)
    np.testing.assert_allclose(value, 10.01892441090081, rtol=1e-6)


def test_sup_con_single_view_keeps_lonely_anchors_in_the_mean():
    value = sup_con(jnp.asarray(GOLDEN[:, :1], jnp.float32), np.array([0, 1, 1, 2]), 0.1)
    np.testing.assert_allclose(value, 1.4387995455106943, rtol=1e-6)


def test_info_nce_in_every_form():
    """37 slots, which no number of devices divides; what is in the empty ones is of no account."""
    q, k, queue = random_z(0, 8, 5), random_z(1, 8, 5), random_z(2, 37, 5)
    valid = np.arange(37) % 3 > 0
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    def run(negatives, valid, impl, mesh):
        loss = functools.partial(losses.info_nce, temperature=0.2, impl=impl, mesh=mesh)
        run = jax.jit(jax.value_and_grad(loss, (0, 1)))
        return run(q, k, negatives, queue_valid=valid)

    value, gradients = run(queue, valid, "dense", None)
    rows = oracle.info_nce_rows(q, k, queue, np.tile(valid, (8, 1)), 0.2)
    np.testing.assert_allclose(value, rows.mean(), rtol=1e-6)
    got, got_gradients = run(np.where(valid[:, None], queue, 9.0), valid, "tiled", mesh)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    np.testing.assert_allclose(got_gradients, gradients, rtol=1e-5, atol=1e-8)
    value, gradients = run(None, None, "dense", None)
    rows = oracle.info_nce_rows(q, k, k, ~np.eye(8, dtype=bool), 0.2)
    np.testing.assert_allclose(value, rows.mean(), rtol=1e-6)
    got, got_gradients = run(None, None, "ring", mesh)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    np.testing.assert_allclose(got_gradients, gradients, rtol=1e-5, atol=1e-8)


def test_info_nce_among_orthogonal_keys():
    eye = jnp.eye(8)
    expected = np.log1p(7 * np.exp(-1 / 0.2))
    np.testing.assert_allclose(info_nce(eye, eye, temperature=0.2), expected, rtol=1e-6)
    expected = np.log1p(4 * np.exp(-1 / 0.2))
    value = info_nce(eye[:4], eye[:4], eye[4:], temperature=0.2)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 2, 7), (3, 3, 5), (4, 4, 2), (9, 1, 3)])
@pytest.mark.parametrize("variant", ["out", "in"])
def test_losses_and_gradients_equal_the_oracle(shape, variant):
    z = random_z(sum(shape), *shape)
    labels = np.random.default_rng(1).integers(-1, 3, shape[0])
    value, gradient = sup_con_and_gradient(z, labels, 0.2, variant)
    np.testing.assert_allclose(value, oracle.group_loss(z, labels, 0.2, variant), rtol=2e-6)
    expected = oracle.group_gradient(z, labels, 0.2, variant)
    assert np.linalg.norm(gradient - expected) <= 3e-6 * np.linalg.norm(expected)
    if variant == "out":
        value, gradient = nt_xent_and_gradient(z, 0.2)
        np.testing.assert_allclose(value, oracle.group_loss(z, None, 0.2), rtol=2e-6, atol=1e-7)
        expected = oracle.group_gradient(z, None, 0.2)
        assert np.linalg.norm(gradient - expected) <= 3e-6 * np.linalg.norm(expected) + 1e-9


def test_the_oracles_own_gradient_is_right():
    z = random_z(3, 4, 2, 3).astype(np.float64)
    labels = np.array([0, 1, 0, -1])
    for variant in ("out", "in"):
        gradient = oracle.group_gradient(z, labels, 0.3, variant)
        for index in np.ndindex(z.shape):
            step = np.zeros_like(z)
            step[index] = 1e-6
            rise = oracle.group_loss(z + step, labels, 0.3, variant)
            fall = oracle.group_loss(z - step, labels, 0.3, variant)
            np.testing.assert_allclose(gradient[index], (rise - fall) / 2e-6, atol=1e-8)


def test_equal_rows_give_log_of_the_candidates():
    z = jnp.ones((6, 2, 5))
    np.testing.assert_allclose(nt_xent(z, 0.1), np.log(11), rtol=1e-6)
    np.testing.assert_allclose(sup_con(z, jnp.zeros(6, int), 0.1), np.log(11), rtol=1e-6)


def test_distinct_labels_make_sup_con_nt_xent():
    z = random_z(0, 16, 2, 8)
    for variant in ("out", "in"):
        np.testing.assert_allclose(
            sup_con(z, jnp.arange(16), 0.1, variant), nt_xent(z, 0.1), rtol=1e-6
        )
    np.testing.assert_allclose(sup_con(z, jnp.full(16, -1), 0.1), nt_xent(z, 0.1), rtol=1e-6)


def test_in_is_never_above_out():
    for seed in range(20):
        z = random_z(seed, 12, 2, 4)
        labels = np.random.default_rng(seed).integers(0, 4, 12)
        below = sup_con(z, labels, 0.1, "in")
        assert below <= sup_con(z, labels, 0.1, "out") + 1e-6


def test_only_the_direction_of_a_row_counts():
    z = random_z(2, 8, 2, 5)
    stretch = np.random.default_rng(3).uniform(1e-3, 1e3, (8, 2, 1)).astype(np.float32)
    np.testing.assert_allclose(nt_xent(z * stretch, 0.1), nt_xent(z, 0.1), rtol=2e-6)


def test_an_identical_pair_of_views_lowers_the_loss_of_its_image_only():
    z = random_z(5, 6, 2, 16)
    same = z.copy()
    same[2, 1] = same[2, 0]
    wrong = z.copy()
    wrong[2, 1] = wrong[3, 0]
    assert nt_xent(same, 0.1) < nt_xent(z, 0.1) < nt_xent(wrong, 0.1)


@pytest.mark.parametrize("variant", ["out", "in"])
def test_no_positives_and_zero_rows_are_finite(variant):
    z = random_z(4, 6, 1, 4)
    value, gradient = sup_con_and_gradient(z, jnp.arange(6), 0.1, variant)
    assert value == 0
    assert not np.any(gradient)
    alone, gradient = sup_con_and_gradient(z[:1], jnp.zeros(1, int), 0.1, variant)
    assert alone == 0
    assert not np.any(gradient)
    z = random_z(4, 6, 2, 4)
    z[1, 0] = 0
    labels = np.array([0, 0, 1, 1, 2, 3])
    value, gradient = sup_con_and_gradient(z, labels, 0.1, variant)
    np.testing.assert_allclose(value, oracle.group_loss(z, labels, 0.1, variant), rtol=2e-6)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[1, 0])


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_a_nan_is_not_hidden(impl, temperature):
    z = random_z(4, 6, 2, 4)
    z[3, 1, 2] = np.nan
    loss = functools.partial(losses.nt_xent, temperature=temperature, impl=impl)
    value, gradient = jax.jit(jax.value_and_grad(loss))(z)
    assert np.isnan(value)
    assert np.isnan(gradient).all()


def test_bfloat16_embeddings_are_contrasted_in_float32():
    z = jnp.asarray(random_z(6, 16, 2, 32), jnp.bfloat16)
    value = nt_xent(z, 0.05)
    assert value.dtype == jnp.float32
    exact = oracle.group_loss(np.asarray(z.astype(jnp.float32)), None, 0.05)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert nt_xent_and_gradient(z, 0.05)[1].dtype == jnp.bfloat16


def test_normalize_keeps_a_zero_row_zero():
    z = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(losses.normalize(z), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(losses.normalize(z))))(z)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[1])


def test_metrics_against_loops():
    z = random_z(7, 20, 2, 3)
    z[:, 1] = z[:, 0] + 0.5 * z[:, 1]
    rows = oracle.unit_rows(z).reshape(20, 2, 3)
    top1, top5, entropy = 0, 0, 0.0
    for i in range(20):
        logits = rows[:, 1] @ rows[i, 0] / 0.2
        rank = list(np.argsort(-logits)).index(i)
        top1, top5 = top1 + (rank < 1), top5 + (rank < 5)
        p = np.exp(logits - oracle.log_sum_exp(logits))
        entropy -= np.sum(p * np.log(p))
    metrics = metrics_of(z, temperature=0.2)
    assert 0 < top1 < top5 < 20
    np.testing.assert_allclose(metrics["contrastive_top1"], top1 / 20, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive_top5"], top5 / 20, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive_entropy"], entropy / 20, rtol=1e-5)


def test_metrics_of_a_large_batch_measure_every_nth_anchor():
    z = random_z(8, 24, 2, 3)
    every = metrics_of(z, anchors=8)
    rows = oracle.unit_rows(z).reshape(24, 2, 3)
    right = [np.argmax(rows[:, 1] @ rows[i, 0]) == i for i in range(0, 24, 3)]
    np.testing.assert_allclose(every["contrastive_top1"], np.mean(right), rtol=1e-6)
    batch = jax.ShapeDtypeStruct((65536, 2, 128), jnp.float32)
    compiled = jax.jit(losses.nt_xent_metrics).lower(batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 4 * 1024 * 65536


def test_metrics_of_a_collapsed_encoder_are_chance_and_have_no_gradient():
    z = jnp.ones((10, 2, 4))
    metrics = metrics_of(z)
    np.testing.assert_allclose(metrics["contrastive_top1"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive_top5"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive_entropy"], np.log(10), rtol=3e-6)
    entropy = jax.jit(jax.grad(lambda z: losses.nt_xent_metrics(z)["contrastive_entropy"]))
    gradient = entropy(jnp.asarray(random_z(0, 10, 2, 4)))
    assert not np.any(gradient)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_a_learned_temperature_has_a_gradient(impl):
    z = random_z(9, 10, 2, 4)
    run = jax.jit(jax.value_and_grad(functools.partial(losses.nt_xent, impl=impl), argnums=1))
    value, gradient = run(z, jnp.float32(0.2))
    np.testing.assert_allclose(value, oracle.group_loss(z, None, 0.2), rtol=1e-6)
    rise, fall = oracle.group_loss(z, None, 0.2 + 1e-6), oracle.group_loss(z, None, 0.2 - 1e-6)
    np.testing.assert_allclose(gradient, (rise - fall) / 2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "lowest", "refused"),
    [
        ("bfloat16", 0.005, (1e-3, 1e-6)),
        ("float16", 1e-3, (1e-4, 1e-6)),
        ("float32", 1e-6, (1e-8, 1e-10, 1e-38)),
    ],
)
@pytest.mark.parametrize("x64", [False, True])
def test_a_temperature_below_the_rounding_of_the_embeddings_is_refused(dtype, lowest, refused, x64):
    with jax.enable_x64(x64):
        z = jnp.asarray(random_z(0, 6, 2, 8), dtype)
        labels = jnp.arange(6)
        value, gradient = nt_xent_and_gradient(z, lowest)
        assert np.isfinite(value)
        assert np.isfinite(gradient.astype(jnp.float32)).all()
        for temperature in (*refused, *map(jnp.float32, refused), *map(np.asarray, refused)):
            for loss in (
                lambda t: losses.nt_xent(z, t),
                lambda t: losses.sup_con(z, labels, t),
                lambda t: losses.info_nce(z[:, 0], z[:, 1], temperature=t),
                lambda t: losses.sup_con_overlap(z, labels[:, None], t),
                lambda t: losses.hierarchical_con(z, labels[:, None], t),
                lambda t: losses.nt_xent_pairs(z[:, 0], labels, t),
                lambda t: losses.info_nce_metrics(z[:, 0], z[:, 1], temperature=t),
            ):
                with pytest.raises(
                    ValueError, match=f"what rounding to {dtype} does|positive number"
                ):
                    loss(temperature)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_an_array_that_is_no_temperature_is_refused_like_a_number(temperature):
    for given in (temperature, np.float32(temperature), jnp.float32(temperature)):
        with pytest.raises(ValueError, match="temperature must be a positive number"):
            losses.nt_xent(jnp.ones((4, 2, 3)), given)


def test_bad_input_is_named():
    z = jnp.ones((4, 2, 3))
    with pytest.raises(ValueError, match=r"nt_xent: z must be \[batch, views, features\]"):
        losses.nt_xent(z[0])
    with pytest.raises(ValueError, match="floating type, got int32"):
        losses.nt_xent(z.astype(int))
    for temperature in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be a positive number"):
            losses.nt_xent(z, temperature)
    with pytest.raises(ValueError, match=r'variant must be "out" or "in", got "mean"|\'mean\''):
        losses.sup_con(z, jnp.zeros(4, int), variant="mean")
    with pytest.raises(ValueError, match=r"labels must be int\[4\]"):
        losses.sup_con(z, jnp.zeros(3, int))
    with pytest.raises(ValueError, match=r"labels must be int\[4\]"):
        losses.sup_con(z, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"q and k must both be \[queries, features\]"):
        losses.info_nce(z[:, 0], z[:2, 0])
    with pytest.raises(ValueError, match="queue_valid is given, but no queue"):
        losses.info_nce(z[:, 0], z[:, 1], queue_valid=jnp.ones(4, bool))
    with pytest.raises(ValueError, match=r"queue must be \[keys, 3\], as wide as q; got \[8, 2\]"):
        losses.info_nce(z[:, 0], z[:, 1], jnp.ones((8, 2)))
    with pytest.raises(ValueError, match=r"queue_valid must be bool\[8\]; got bool\[4\]"):
        losses.info_nce(z[:, 0], z[:, 1], jnp.ones((8, 3)), queue_valid=jnp.ones(4, bool))
    with pytest.raises(ValueError, match="two views are needed"):
        losses.nt_xent_metrics(z[:, :1])
