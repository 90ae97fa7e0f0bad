"""The loss of LooC: golden values, an oracle with loops, InfoNCE where there is one head, and what the own image's keys are for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pair_oracles as oracle
import pytest
from jax.sharding import Mesh

from jaxcl import losses

STATIC = ("temperature", "head0", "same_image_negatives")
loss = jax.jit(losses.leave_one_out, static_argnames=STATIC)
terms = jax.jit(losses.leave_one_out_terms, static_argnames=STATIC)
metrics_of = jax.jit(losses.leave_one_out_metrics)


def random_input(seed, batch=6, heads=3, keys=11, width=5):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(batch, heads, width)),
        rng.normal(size=(batch, heads, heads, width)),
        rng.normal(size=(heads, keys, width)),
    )


def expected_terms(q, k, queues, tau=0.2, head0="k0", valid=None, same_image=True):
    """Head by head and image by image, as the equation has it."""
    heads, size = queues.shape[:2]
    valid = np.ones(size, bool) if valid is None else valid
    valid = np.broadcast_to(valid, (heads, size))
    out = []
    for h in range(heads):
        held = oracle.unit_rows(queues[h])[valid[h]]
        images = []
        for b in range(len(q)):
            query, keys = oracle.unit_rows(q[b, h][None])[0], oracle.unit_rows(k[b, :, h])
            queue = list(held @ query / tau)
            own = keys @ query / tau
            if h == 0:
                positives = range(heads) if head0 == "all" else [0]
                each = [oracle.log_sum_exp([own[p], *queue]) - own[p] for p in positives]
                images.append(np.mean(each))
            else:
                logits = [*(own if same_image else [own[h]]), *queue]
                images.append(oracle.log_sum_exp(logits) - own[h])
        out.append(np.mean(images))
    return np.array(out)


def golden(shared):
    """q, k, queues of the published values: one embedding for all heads, or one for each."""
    if shared:
        q = np.repeat(oracle.sines(4, 8, 0.1)[:, None], 3, 1)
        keys = np.stack([oracle.sines(4, 8, s) for s in (0.2, 0.4, 0.6)], 1)
        k = np.repeat(keys[:, :, None], 3, 2)
        return q, k, np.repeat(oracle.sines(16, 8, 0.9)[None], 3, 0)
    q = np.stack([oracle.sines(4, 8, 0.1 + 0.05 * h) for h in range(3)], 1)
    k = [[oracle.sines(4, 8, 0.2 + 0.2 * j + 0.07 * h) for h in range(3)] for j in range(3)]
    queues = np.stack([oracle.sines(16, 8, 0.9 + 0.3 * h) for h in range(3)])
    return q, np.stack(k).transpose(2, 0, 1, 3), queues


def test_golden_values():
    shared, own = golden(True), golden(False)
    parts, mean = [0.4494393316, 1.2881734800, 1.7266158335], 1.1547428819
    single = [jnp.asarray(x, jnp.float32) for x in shared]
    np.testing.assert_allclose(terms(*single), parts, rtol=1e-5)
    assert loss(*single).dtype == jnp.float32
    np.testing.assert_allclose(loss(*single), mean, rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(terms(*map(jnp.asarray, shared)), parts, rtol=1e-9)
        np.testing.assert_allclose(loss(*map(jnp.asarray, shared)), mean, rtol=1e-9)
        value = loss(*map(jnp.asarray, own))
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, 1.2191517793120703, rtol=1e-13)
    swapped = own[0], own[1].swapaxes(1, 2), own[2]  # heads in the place of keys
    assert abs(float(loss(*swapped)) - 1.2191517793120703) > 1e-2


@pytest.mark.parametrize("head0", ["k0", "all"])
@pytest.mark.parametrize("same_image", [True, False])
@pytest.mark.parametrize("per_head", [True, False])
def test_it_equals_the_oracle(head0, same_image, per_head):
    q, k, queues = random_input(1)
    valid = np.random.default_rng(2).random((3, 11) if per_head else 11) < 0.6
    if per_head:
        valid[2] = False  # a head whose queue is empty
    with jax.enable_x64(True):
        got = terms(q, k, queues, 0.2, head0, valid, same_image)
        np.testing.assert_allclose(
            got, expected_terms(q, k, queues, 0.2, head0, valid, same_image), rtol=1e-12
        )
        np.testing.assert_allclose(
            loss(q, k, queues, 0.2, head0, valid, same_image), np.mean(got), rtol=1e-12
        )


def test_the_width_of_the_logits():
    """Equal embeddings: 1 + K logits in head 0, H + K in the others, the log of which is the loss."""
    q, k, queues = np.ones((2, 3, 4)), np.ones((2, 3, 3, 4)), np.ones((3, 7, 4))
    np.testing.assert_allclose(terms(q, k, queues), np.log([8, 10, 10]), rtol=1e-6)
    without = terms(q, k, queues, same_image_negatives=False)
    np.testing.assert_allclose(without, np.log([8, 8, 8]), rtol=1e-6)


def test_one_head_is_info_nce():
    q, k, queues = random_input(3, heads=1)
    valid = np.arange(11) < 8

    def moco(q, k):
        return losses.info_nce(q[:, 0], k[:, 0, 0], queues[0], 0.2, valid)

    def looc(q, k):
        return losses.leave_one_out(q, k, queues, 0.2, queue_valid=valid)

    ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1)))(q, k) for f in (looc, moco))
    np.testing.assert_array_equal(ours[0], theirs[0])
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
        assert np.abs(a).max() > 1e-3


def test_the_gradient_is_that_of_differences_and_does_not_reach_the_queues():
    q, k, queues = random_input(4, batch=2, heads=3, keys=4, width=3)
    valid = np.array([True, True, False, True])
    with jax.enable_x64(True):
        gradients = jax.jit(
            jax.grad(functools.partial(losses.leave_one_out, queue_valid=valid), (0, 1, 2))
        )(q, k, queues)
        for x, gradient in zip((q, k), gradients, strict=False):
            for index in list(np.ndindex(x.shape))[::4]:
                step = np.zeros_like(x)
                step[index] = 1e-6

                def value(sign, x=x, step=step):
                    moved = [a + sign * step if a is x else a for a in (q, k, queues)]
                    return expected_terms(*moved, valid=valid).mean()

                slope = (value(1) - value(-1)) / 2e-6
                np.testing.assert_allclose(gradient[index], slope, atol=1e-8)
        assert not np.any(gradients[2])


def test_every_form_gives_the_same_on_any_number_of_devices():
    """37 slots, which no number of devices divides."""
    q, k, queues = (x.astype(np.float32) for x in random_input(5, batch=8, keys=37))
    valid = np.arange(37) % 3 > 0

    def run(impl, devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",)) if devices > 1 else None
        f = functools.partial(losses.leave_one_out, queue_valid=valid, impl=impl, mesh=mesh)
        return jax.jit(jax.value_and_grad(f, (0, 1)))(q, k, queues)

    value, gradients = run("dense", 1)
    np.testing.assert_allclose(value, expected_terms(q, k, queues, valid=valid).mean(), rtol=1e-6)
    for impl, devices in (("tiled", 4), ("dense", 8)):
        got, got_gradients = run(impl, devices)
        np.testing.assert_allclose(got, value, rtol=1e-6)
        for a, b in zip(got_gradients, gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-8)


def test_memory_is_linear_in_the_queue_times_the_batch():
    """No array of B x K in the tiled form, where three of the dense one would be 1.5 GB."""
    batch, heads, keys, width = 8192, 3, 16384, 32

    def gradient(impl):
        f = functools.partial(losses.leave_one_out, impl=impl)
        shapes = ((batch, heads, width), (batch, heads, heads, width), (heads, keys, width))
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return jax.jit(jax.grad(f)).lower(*arguments).compile().memory_analysis()

    assert gradient("tiled").temp_size_in_bytes < 128 * 2**20
    assert gradient("dense").temp_size_in_bytes > 512 * 2**20


def test_degenerate_rows_and_low_precision():
    q, k, queues = (x.astype(np.float32) for x in random_input(6))
    q[0], k[1, 2], queues[0, 3] = 0, 0, 0
    value, gradient = jax.jit(jax.value_and_grad(losses.leave_one_out))(q, k, queues)
    np.testing.assert_allclose(value, expected_terms(q, k, queues).mean(), rtol=2e-6)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[0])
    nothing = np.zeros(11, bool)
    value, gradient = jax.jit(jax.value_and_grad(losses.leave_one_out, (0, 1)))(
        q, k, queues, queue_valid=nothing
    )
    np.testing.assert_allclose(value, expected_terms(q, k, queues, valid=nothing).mean(), rtol=2e-6)
    assert all(np.isfinite(g).all() for g in gradient)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, queues)]
    assert loss(*low).dtype == jnp.float32
    wide = [np.asarray(x, np.float32) for x in low]
    np.testing.assert_allclose(loss(*low), expected_terms(*wide).mean(), rtol=2e-6)


def test_metrics():
    q, k, _ = random_input(7, batch=40)
    found = metrics_of(q, k)
    unit_q, unit_k = (oracle.unit_rows(x).reshape(x.shape) for x in (q, k))
    cosines = np.einsum("bhd,bjhd->bhj", unit_q, unit_k)
    for head in range(3):
        own, rest = cosines[:, head, head], np.delete(cosines[:, head], head, axis=1)
        np.testing.assert_allclose(
            found["own_key_top1"][head], (own > rest.max(1)).mean(), rtol=1e-6
        )
        margin = (own - rest.mean(1)).mean()
        np.testing.assert_allclose(found["own_key_margin"][head], margin, rtol=1e-5)
    equal = metrics_of(np.ones((4, 3, 2)), np.ones((4, 3, 3, 2)))
    assert not np.any(equal["own_key_top1"])
    alone = metrics_of(q[:, :1], k[:, :1, :1])
    assert alone["own_key_top1"] == 1
    assert alone["own_key_margin"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.ones((4, 5))}, "q must be"),
        ({"q": np.ones((0, 3, 5))}, "q must be"),
        ({"k": np.ones((4, 2, 3, 5))}, r"k must be \[4, 3, 3, 5\]"),
        ({"queues": np.ones((2, 9, 5))}, r"queues must be \[3, keys, 5\]"),
        ({"queues": np.ones((3, 9, 4))}, r"queues must be \[3, keys, 5\]"),
        ({"queue_valid": np.ones(8, bool)}, r"queue_valid must be bool\[9\] or bool\[3, 9\]"),
        ({"queue_valid": np.ones(9)}, "queue_valid must be bool"),
        ({"head0": "k1"}, 'head0 must be "k0" or "all"'),
        ({"temperature": 0.0}, "temperature must be a positive number"),
    ],
)
def test_bad_input(change, message):
    good = {"q": np.ones((4, 3, 5)), "k": np.ones((4, 3, 3, 5)), "queues": np.ones((3, 9, 5))}
    with pytest.raises(ValueError, match=message):
        losses.leave_one_out(**good | change)


# ---------------------------------------------------------------------------------------------
# What the own image's keys are for, on a linear toy
# ---------------------------------------------------------------------------------------------

TURNS, CONTENT, STEPS = 4, 12, 150


def toy_views(key, images=64):
    """Query, k_0 and k_1 of images whose content is a direction and whose factor is one of four: x[B, 3, F]."""
    content, noise, factor, fresh = jax.random.split(key, 4)
    what = jax.random.normal(content, (images, 1, CONTENT))
    what = what + 0.3 * jax.random.normal(noise, (images, 3, CONTENT))
    turn = jax.random.randint(factor, (images, 3), 0, TURNS)
    turn = turn.at[:, 1].set((turn[:, 0] + jax.random.randint(fresh, (images,), 1, TURNS)) % TURNS)
    turn = turn.at[:, 2].set(turn[:, 0])
    return jnp.concatenate([what, 0.3 * jax.nn.one_hot(turn, TURNS)], axis=2)


@functools.partial(jax.jit, static_argnums=0)
def toy_margins(same_image_negatives):
    """By how much each head holds the key that shares the factor for nearer than the other one, after training."""
    tx = optax.adam(3e-2)

    def embed(w, x):
        return jnp.einsum("bvf,hfd->bvhd", x, w)

    def step(carry, key):
        w, state, queue = carry
        x = toy_views(key)
        keys = jax.lax.stop_gradient(embed(w, x[:, 1:]))

        def value(w):
            q = embed(w, x[:, :1])[:, 0]
            return losses.leave_one_out(
                q, keys, queue, 0.2, same_image_negatives=same_image_negatives
            )

        updates, state = tx.update(jax.grad(value)(w), state)
        return (optax.apply_updates(w, updates), state, keys[:, 0].swapaxes(0, 1)), None

    w = 0.3 * jax.random.normal(jax.random.key(0), (2, CONTENT + TURNS, 8))
    queue = jax.random.normal(jax.random.key(1), (2, 64, 8))
    keys = jax.random.split(jax.random.key(2), STEPS)
    (w, _, _), _ = jax.lax.scan(step, (w, tx.init(w), queue), keys)
    z = embed(w, toy_views(jax.random.key(3), 512))
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    cosine = jnp.sum(z[:, :1] * z[:, 1:], axis=-1)  # [B, key, head]
    return jnp.mean(cosine[:, 1] - cosine[:, 0], axis=0)


def test_only_the_own_images_keys_ask_for_the_factor():
    """A head that knows each image and not its factor costs log(2) with them, and nothing without."""
    q = jnp.repeat(jnp.eye(6)[:, None], 2, 1)
    k, queues = jnp.repeat(q[:, None], 2, 1), -jnp.repeat(jnp.eye(6)[None], 2, 0)
    asked = terms(q, k, queues, temperature=0.05)
    np.testing.assert_allclose(asked, [0, np.log(2)], atol=1e-6)
    free = terms(q, k, queues, temperature=0.05, same_image_negatives=False)
    np.testing.assert_allclose(free, 0, atol=1e-6)


@pytest.mark.slow
def test_without_the_own_images_keys_a_head_does_not_tell_its_factor():
    """Head 1 has the factor in its positive either way; that it must tell it, only the own image's keys say."""
    told, lost = np.asarray(toy_margins(True)), np.asarray(toy_margins(False))
    assert told[1] > 0.15
    assert lost[1] < 0.25 * told[1]
    assert max(told[0], lost[0]) < 0.1 * told[1]  # head 0 is invariant
