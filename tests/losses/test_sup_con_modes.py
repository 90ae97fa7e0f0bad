"""SupCon's denominators, anchors, label sets and queue, and cross-entropy, against loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pair_oracles as oracle
import pytest

from jaxcl import losses

GOLDEN = oracle.two_views(oracle.sines(8, 8, 1.0))
LABELS = np.array([0, 0, 1, 2])
nt_xent = jax.jit(losses.nt_xent, static_argnums=1)
overlap_and_gradient = jax.jit(jax.value_and_grad(losses.sup_con_overlap), static_argnums=(2, 3, 4))
memory_and_gradients = jax.jit(
    jax.value_and_grad(losses.sup_con_memory, argnums=(0, 1, 2)),
    static_argnums=(5, 6),
    static_argnames=("in_batch",),
)
cross_entropy_and_gradient = jax.jit(jax.value_and_grad(losses.cross_entropy), static_argnums=2)
accuracy = jax.jit(losses.accuracy)

MODES = [
    ("all", "one", "out"),
    ("one_positive", "all", "out"),
    ("one_positive", "all", "in"),
    ("only_negatives", "all", "out"),
    ("only_negatives", "all", "in"),
    *(
        pytest.param(*mode, marks=pytest.mark.slow)
        for mode in (
            ("all", "one", "in"),
            ("one_positive", "one", "out"),
            ("one_positive", "one", "in"),
            ("only_negatives", "one", "out"),
            ("only_negatives", "one", "in"),
        )
    ),
]


@functools.cache
def modes(denominator, contrast, variant, temperature=0.2, impl="auto"):
    """Value and gradient of a mode, compiled."""

    def loss(z, labels):
        return losses.sup_con_modes(
            z,
            labels,
            temperature,
            variant,
            denominator=denominator,
            contrast=contrast,
            impl=impl,
        )

    return jax.jit(jax.value_and_grad(loss))


def random_z(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def anchor_losses(rows, keys, scale, positive, negative, denominator, variant):
    """The loss of each row: keys[M, D], positive and negative lists of key numbers of each row."""
    out = []
    for row, near, far in zip(rows, positive, negative, strict=True):
        s = keys @ row * scale
        if not near or (denominator == "only_negatives" and not far):
            out.append(0.0)
            continue
        log_p = []
        for p in near:
            below = {"all": near + far, "one_positive": [p, *far], "only_negatives": far}
            log_p.append(s[p] - oracle.log_sum_exp([s[j] for j in below[denominator]]))
        if variant == "out":
            out.append(-sum(log_p) / len(log_p))
        else:
            out.append(np.log(len(log_p)) - oracle.log_sum_exp(log_p))
    return np.array(out)


def by_loops(z, labels, temperature, denominator, contrast, variant):
    batch, views, _ = z.shape
    rows = oracle.unit_rows(z)
    positive, negative = [], []
    for i in range(batch * views):
        near, far = [], []
        for j in range(batch * views):
            a, b = i // views, j // views
            same = a == b or (labels[a] == labels[b] and labels[a] >= 0)
            if i != j:
                (near if same else far).append(j)
        positive.append(near)
        negative.append(far)
    every = views if contrast == "one" else 1
    found = anchor_losses(
        rows[::every],
        rows,
        1 / temperature,
        positive[::every],
        negative[::every],
        denominator,
        variant,
    )
    return found.mean()


def capped_by_loops(z, labels, temperature, denominator, contrast, variant, cap, reduction):
    """An image takes the next cap / V images of its class, in the order of the batch and round its end."""
    batch, views, _ = z.shape
    rows = oracle.unit_rows(z)
    near, far = [], []
    for i in range(0, batch * views, views if contrast == "one" else 1):
        a = i // views
        following = [b % batch for b in range(a + 1, a + batch)]
        same = [b for b in following if labels[b] == labels[a] and labels[a] >= 0]
        taken = [a, *same[: cap // views]]
        near.append([b * views + v for b in taken for v in range(views) if b * views + v != i])
        far.append([b * views + v for b in following if b not in same for v in range(views)])
    anchors = rows[:: views if contrast == "one" else 1]
    found = anchor_losses(anchors, rows, 1 / temperature, near, far, denominator, variant)
    if reduction == "mean":
        return found.mean()
    counted = [
        bool(n) and (bool(f) or denominator == "all") for n, f in zip(near, far, strict=True)
    ]
    return found[counted].sum() / max(1, sum(counted))


@pytest.mark.parametrize(
    ("denominator", "contrast", "variant", "impl"),
    [
        ("all", "all", "out", "tiled"),
        ("all", "one", "in", "dense"),
        ("one_positive", "all", "in", "dense"),
        ("only_negatives", "all", "out", "dense"),
    ],
)
def test_a_cap_on_the_positives_equals_loops(denominator, contrast, variant, impl):
    """Caps of no other image, of one, of two, and of more than a class has; value and gradient."""
    z, labels = random_z(11, 8, 2, 3), np.array([0, 1, 0, -1, 0, 1, 0, -1])
    choices = (denominator, contrast, variant)
    seen = set()
    for cap in (0, 2, 4, 100):

        def loss(z, cap=cap):
            settings = {"denominator": denominator, "contrast": contrast, "positives_cap": cap}
            return losses.sup_con_modes(z, labels, 0.2, variant, impl=impl, **settings)

        value, gradient = jax.jit(jax.value_and_grad(loss))(z)

        def expected(z, cap=cap):
            return capped_by_loops(z, labels, 0.2, *choices, cap, "mean")

        exact = z.astype(np.float64)
        np.testing.assert_allclose(value, expected(exact), rtol=2e-6)
        seen.add(round(float(value), 5))
        if cap == 2:
            numbers = numerical_gradient(expected, exact)
            np.testing.assert_allclose(gradient, numbers, rtol=1e-3, atol=1e-5)
    assert len(seen) == 4
    uncapped = losses.sup_con_modes(
        z, labels, 0.2, variant, denominator=denominator, contrast=contrast
    )
    np.testing.assert_allclose(value, uncapped, rtol=2e-6)


def test_a_cap_on_the_positives_is_the_same_on_four_devices():
    """Positives are on other devices; the places of images in their classes are those of the whole batch."""
    z, labels = random_z(13, 16, 2, 3), np.random.default_rng(0).integers(-1, 3, 16)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("data",), auto, devices=jax.devices()[:4])
    sharding = jax.NamedSharding(mesh, jax.P("data"))

    def loss(z, labels, impl, mesh):
        return losses.sup_con_modes(z, labels, 0.2, positives_cap=4, impl=impl, mesh=mesh)

    found = jax.jit(jax.value_and_grad(loss), static_argnums=(2, 3))
    value, gradient = found(z, labels, "dense", None)
    spread = jax.device_put((z, labels), sharding)
    for impl in ("dense", "ring"):
        there, slope = found(*spread, impl, mesh)
        np.testing.assert_allclose(there, value, rtol=1e-6)
        np.testing.assert_allclose(slope, gradient, rtol=1e-4, atol=1e-7)


def test_the_mean_of_the_anchors_that_have_positives():
    """One view of each image: lonely classes and unknown labels have no positives."""
    z, labels = random_z(12, 7, 1, 3), np.array([0, 0, 4, -1, 5, -1, 0])
    exact = z.astype(np.float64)
    for denominator in ("all", "one_positive"):
        for reduction in ("mean", "mean_valid"):
            value = losses.sup_con_modes(
                z, labels, 0.2, denominator=denominator, reduction=reduction
            )
            expected = capped_by_loops(
                exact, labels, 0.2, denominator, "all", "out", 100, reduction
            )
            np.testing.assert_allclose(value, expected, rtol=2e-6)
    valid = losses.sup_con(z, labels, reduction="mean_valid")
    np.testing.assert_allclose(valid, losses.sup_con(z, labels) * 7 / 3, rtol=1e-6)
    overlap = losses.sup_con_overlap(z, labels[:, None], reduction="mean_valid")
    np.testing.assert_allclose(overlap, valid, rtol=1e-6)
    alone = jax.value_and_grad(lambda z: losses.sup_con(z, np.arange(7), reduction="mean_valid"))(z)
    assert alone[0] == 0
    np.testing.assert_array_equal(alone[1], 0)


def test_a_cap_or_a_reduction_that_cannot_be():
    z, labels = random_z(0, 4, 2, 3), np.zeros(4, int)
    for cap in (1, 3, -2):
        with pytest.raises(ValueError, match=r"positives_cap=.* with 2 views: expected a multiple"):
            losses.sup_con_modes(z, labels, positives_cap=cap)
    for loss in (losses.sup_con, losses.sup_con_modes):
        with pytest.raises(ValueError, match="reduction"):
            loss(z, labels, reduction="sum")


def numerical_gradient(function, z, step=1e-6):
    gradient = np.zeros_like(z)
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize(
    ("variant", "temperature", "scale", "expected"),
    [
        ("out", 0.1, 1.0, 7.0132470876305675),
        ("in", 0.5, 1.0, 2.4088165291886607),
        ("out", 0.1, 0.1 / 0.07, 10.01892441090081),
        ("out", 0.1, 0.1, 0.70132470876305675),
    ],
)
def test_golden(variant, temperature, scale, expected):
    run = jax.jit(losses.sup_con_modes, static_argnums=(2, 3, 4))
    value = run(jnp.asarray(GOLDEN, jnp.float32), LABELS, temperature, variant, scale)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(("denominator", "contrast", "variant"), MODES)
def test_every_mode_equals_loops(denominator, contrast, variant):
    """Two unknown labels, one lonely class, one class of four."""
    z, labels = random_z(1, 7, 2, 3), np.array([0, 0, 4, -1, 0, -1, 0])
    settings = (denominator, contrast, variant)
    value, gradient = modes(*settings)(z, labels)
    np.testing.assert_allclose(value, by_loops(z, labels, 0.2, *settings), rtol=2e-6)
    wide = z.astype(np.float64)
    expected = numerical_gradient(lambda z: by_loops(z, labels, 0.2, *settings), wide)
    assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected)


def test_in_is_never_above_out_in_any_mode():
    for denominator in ("all", "one_positive", "only_negatives"):
        inside, outside = (modes(denominator, "all", variant) for variant in ("in", "out"))
        for seed in range(10):
            z, labels = random_z(seed, 7, 2, 3), np.random.default_rng(seed).integers(-1, 3, 7)
            assert inside(z, labels)[0] <= outside(z, labels)[0] + 1e-6


def test_unique_labels_give_nt_xent():
    """With one positive the first two denominators are the same sum."""
    z = random_z(0, 7, 2, 3)
    expected = nt_xent(z, 0.2)
    for denominator in ("all", "one_positive"):
        for variant in ("out", "in"):
            for labels in (np.arange(7), np.full(7, -1)):
                value, _ = modes(denominator, "all", variant)(z, labels)
                np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(("denominator", "contrast", "variant"), MODES)
def test_lonely_anchors_and_one_class_are_finite(denominator, contrast, variant):
    run = modes(denominator, contrast, variant)
    if contrast == "all":  # of a single view both are the same
        lonely, gradient = run(random_z(2, 7, 1, 3), np.arange(7))
        assert lonely == 0
        assert not np.any(gradient)
    one_class, gradient = run(random_z(2, 7, 2, 3), np.zeros(7, int))
    assert np.all(np.isfinite(gradient))
    if denominator == "all":
        assert one_class > 0
    else:  # there is nothing to be told from
        assert one_class == 0
        assert not np.any(gradient)
    z = random_z(2, 7, 2, 3)
    z[0, 0], z[1] = 0, z[2]
    value, gradient = run(z, np.array([0, 0, 1, 1, 2, 3, -1]))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("temperature", [0.01, 0.005])
def test_cold_temperatures_are_finite_and_right(temperature):
    z, labels = random_z(3, 7, 2, 3), np.array([0, 0, 1, 1, 2, 3, -1])
    for settings in (("one_positive", "all", "in"), ("only_negatives", "all", "out")):
        value, gradient = modes(*settings, temperature)(z, labels)
        expected = by_loops(z, labels, temperature, *settings)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.all(np.isfinite(gradient))


def test_a_nan_is_not_hidden():
    z = random_z(4, 7, 2, 3)
    z[3, 1, 2] = np.nan
    for denominator in ("one_positive", "only_negatives"):
        value, _ = modes(denominator, "all", "out")(z, np.array([0, 0, 1, 1, 2, 3, -1]))
        assert np.isnan(value)


def test_the_number_of_devices_changes_nothing():
    """Rows and labels sharded over eight devices, in every form that a mesh can take."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    z, labels = random_z(5, 16, 2, 3), np.random.default_rng(5).integers(-1, 4, 16)
    for denominator, contrast, impl in (
        ("all", "one", "dense"),
        ("only_negatives", "all", "ring"),
        ("one_positive", "one", "tiled"),
    ):

        def loss(z, labels, mesh=None, impl=impl, denominator=denominator, contrast=contrast):
            return losses.sup_con_modes(
                z, labels, denominator=denominator, contrast=contrast, impl=impl, mesh=mesh
            )

        alone = jax.jit(jax.value_and_grad(functools.partial(loss, impl="dense")))(z, labels)
        spread = jax.jit(
            jax.value_and_grad(functools.partial(loss, mesh=mesh)),
            in_shardings=(sharding, sharding),
        )(z, labels)
        np.testing.assert_allclose(spread[0], alone[0], rtol=1e-6)
        assert np.linalg.norm(spread[1] - alone[1]) <= 1e-5 * np.linalg.norm(alone[1])


def test_float64_stays():
    with jax.enable_x64(True):
        z, labels = random_z(1, 7, 2, 3).astype(np.float64), np.array([0, 0, 4, -1, 0, -1, 0])
        value, _ = modes("one_positive", "all", "in")(z, labels)
        expected = by_loops(z, labels, 0.2, "one_positive", "all", "in")
        np.testing.assert_allclose(value, expected, rtol=1e-13)


# Sets of labels


def overlap_by_loops(z, labels, temperature, variant):
    batch, views, _ = z.shape
    rows = oracle.unit_rows(z)
    count, total = batch * views, 0.0
    sets = [{(column, label) for column, label in enumerate(row) if label >= 0} for row in labels]
    for i in range(count):
        s = rows @ rows[i] / temperature
        weights = {}
        for j in range(count):
            a, b = sets[i // views], sets[j // views]
            if i // views == j // views:
                weight = 1.0
            else:
                weight = len(a & b) / len(a | b) if a | b else 0.0
            if i != j and weight:
                weights[j] = weight
        if not weights:
            continue
        everyone = oracle.log_sum_exp([s[j] for j in range(count) if j != i])
        whole = sum(weights.values())
        if variant == "out":
            total += sum(w * (everyone - s[j]) for j, w in weights.items()) / whole
        else:
            total -= np.log(sum(w * np.exp(s[j] - everyone) for j, w in weights.items()) / whole)
    return total / count


SETS = np.array([[0, 1, 2], [0, 1, -1], [-1, 1, 2], [5, -1, -1], [-1, -1, -1], [0, 9, 9]])


@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("views", [1, 2])
def test_overlapping_labels_equal_loops(views, variant):
    """The fourth image shares nothing, the fifth has no label: with one view both are lonely."""
    z = random_z(6, 6, views, 3)
    value, gradient = overlap_and_gradient(z, SETS, 0.3, variant)
    np.testing.assert_allclose(value, overlap_by_loops(z, SETS, 0.3, variant), rtol=2e-6)
    wide = z.astype(np.float64)
    expected = numerical_gradient(lambda z: overlap_by_loops(z, SETS, 0.3, variant), wide)
    assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected)


def test_overlaps_are_the_same_on_eight_devices():
    z = np.concatenate([random_z(6, 6, 2, 3)] * 4)
    labels = np.concatenate([SETS, SETS[::-1], SETS, np.roll(SETS, 2, 0)])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def value_and_gradient(**form):
        loss = functools.partial(losses.sup_con_overlap, temperature=0.3, **form)
        return jax.jit(jax.value_and_grad(loss))(z, labels)

    alone = value_and_gradient(impl="dense")
    for form in ({"impl": "ring", "mesh": mesh}, {"impl": "tiled"}):
        spread = value_and_gradient(**form)
        np.testing.assert_allclose(spread[0], alone[0], rtol=1e-6)
        assert np.linalg.norm(spread[1] - alone[1]) <= 1e-5 * np.linalg.norm(alone[1])


def test_one_label_an_image_is_sup_con():
    z, labels = random_z(7, 8, 2, 3), np.array([0, 0, 1, 1, 2, -1, -1, 3])
    for variant in ("out", "in"):
        value, gradient = overlap_and_gradient(z, labels[:, None], 0.2, variant, 0.5)
        expected, expected_gradient = modes("all", "all", variant)(z, labels)
        np.testing.assert_allclose(value, 0.5 * expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, 0.5 * expected_gradient, rtol=1e-4, atol=1e-7)


def test_a_single_row_has_no_loss():
    alone, gradient = overlap_and_gradient(
        random_z(7, 1, 1, 3), np.zeros((1, 2), int), 0.2, "in", 1
    )
    assert alone == 0
    assert not np.any(gradient)


# A queue


def memory_by_loops(q, k, queue, labels, queue_labels, valid, temperature, variant, in_batch):
    rows = oracle.unit_rows(q)
    keys = np.concatenate([oracle.unit_rows(k), oracle.unit_rows(queue)])
    positive, negative = [], []
    for i in range(len(rows)):
        near, far = [i], []
        for j in range(len(keys)):
            old = j >= len(rows)
            label = queue_labels[j - len(rows)] if old else labels[j]
            if j != i and (valid[j - len(rows)] if old else in_batch):
                (near if label == labels[i] >= 0 else far).append(j)
        positive.append(near)
        negative.append(far)
    found = anchor_losses(rows, keys, 1 / temperature, positive, negative, "all", variant)
    return found.mean()


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("variant", ["out", "in"])
def test_a_queue_with_labels_equals_loops(variant, in_batch):
    q, k, queue = (random_z(seed, n, 3) for seed, n in ((8, 6), (9, 6), (10, 11)))
    labels = np.array([0, 0, 1, -1, 2, -1])
    queue_labels = np.array([0, 1, 1, -1, -2, 0, 3, 2, 2, -1, 0])
    valid = np.arange(11) < 8
    args = (labels, queue_labels)
    value, gradients = memory_and_gradients(
        q, k, queue, *args, 0.3, variant, queue_valid=valid, in_batch=in_batch
    )

    def by_loops_of(q):
        return memory_by_loops(q, k, queue, *args, valid, 0.3, variant, in_batch)

    np.testing.assert_allclose(value, by_loops_of(q), rtol=2e-6)
    expected = numerical_gradient(by_loops_of, q.astype(np.float64))
    assert np.linalg.norm(gradients[0] - expected) <= 1e-5 * np.linalg.norm(expected)
    assert not np.any(gradients[1])
    assert not np.any(gradients[2])


def test_a_queue_without_labels_is_moco():
    q, k, queue = (oracle.sines(n, 8, s) for n, s in ((4, 0.1), (4, 0.2), (16, 0.9)))
    unknown = (np.full(4, -1), np.full(16, -1))

    def value(temperature, valid):
        return memory_and_gradients(
            q, k, queue, *unknown, temperature, "out", queue_valid=valid, in_batch=False
        )[0]

    for temperature, golden in ((0.07, 0.01833675397863166), (0.2, 0.4494393316354346)):
        # A small difference of numbers near 14: what float32 can tell is absolute.
        np.testing.assert_allclose(
            value(temperature, np.ones(16, bool)), golden, rtol=2e-6, atol=1e-6
        )
    assert abs(value(0.2, np.zeros(16, bool))) < 1e-6


# Cross-entropy


def test_cross_entropy_equals_loops():
    rng = np.random.default_rng(11)
    logits, labels = rng.normal(size=(6, 4)) * 3, np.array([0, 3, -1, 2, 2, -1])
    total, right = 0.0, 0
    for row, label in zip(logits, labels, strict=True):
        if label < 0:
            continue
        log_p = row - oracle.log_sum_exp(row)
        target = np.full(4, 0.1 / 4)
        target[label] += 0.9
        total -= (target * log_p).sum()
        right += np.argmax(row) == label
    logits = logits.astype(np.float32)
    np.testing.assert_allclose(
        cross_entropy_and_gradient(logits, labels, 0.1)[0], total / 4, rtol=1e-6
    )
    np.testing.assert_allclose(accuracy(logits, labels), right / 4)


def test_cross_entropy_without_labels_is_zero_and_finite():
    run = cross_entropy_and_gradient
    logits = np.full((3, 4), 1e4, np.float32)
    logits[0, 0] = -1e4
    value, gradient = run(logits, np.full(3, -1))
    assert value == 0
    assert not np.any(gradient)
    value, gradient = run(jnp.full((3, 4), 1e4, jnp.bfloat16), np.array([0, 1, -1]))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
    assert np.all(np.isfinite(gradient.astype(np.float32)))


def test_bad_input_is_named():
    z, labels = jnp.ones((4, 2, 3)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match='denominator must be one of "all", "one_positive"'):
        losses.sup_con_modes(z, labels, denominator="positives")
    with pytest.raises(ValueError, match='contrast must be one of "all", "one", got \'two\''):
        losses.sup_con_modes(z, labels, contrast="two")
    with pytest.raises(ValueError, match='variant must be one of "out", "in"'):
        losses.sup_con_overlap(z, labels[:, None], variant="mean")
    with pytest.raises(ValueError, match=r"labels must be int\[4\]; got float32\[4\]"):
        losses.sup_con_modes(z, jnp.zeros(4), contrast="one")
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        losses.sup_con_modes(z, labels, 0.0, contrast="one")
    with pytest.raises(ValueError, match=r"labels must be int\[4, L\]"):
        losses.sup_con_overlap(z, labels)
    with pytest.raises(ValueError, match=r"q and k of one shape \[N, D\] and queue\[K, D\]"):
        losses.sup_con_memory(z[0], z[1], z[0, :, :2], labels, labels)
    with pytest.raises(ValueError, match=r"queue_labels must be int\[2\]"):
        losses.sup_con_memory(z[:, 0], z[:, 1], z[0], labels, labels)
    with pytest.raises(ValueError, match=r"logits must be \[rows, classes\]"):
        losses.cross_entropy(jnp.ones(3), labels)
