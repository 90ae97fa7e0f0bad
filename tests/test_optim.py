import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import config as config_lib
from jaxcl.models import BackboneConfig, HeadSpec, build
from jaxcl.optim import OptimConfig, describe, make_optimizer, make_schedule, peak_lr, rules

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

PLAIN = OptimConfig(scaling="none", warmup_epochs=0.0)

# ---------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("scaling", "base", "batch", "expected"),
    [
        ("linear", 0.3, 4096, 4.8),
        ("linear", 1.0, 512, 2.0),
        ("sqrt", 0.075, 4096, 4.8),
        ("sqrt", 0.1, 4096, 6.4),
        ("none", 0.03, 4096, 0.03),
    ],
)
def test_peak(scaling, base, batch, expected):
    config = OptimConfig(scaling=scaling, base_lr=base)
    assert peak_lr(config, batch) == pytest.approx(expected, rel=1e-12)


def test_warmup_and_cosine():
    config = OptimConfig(base_lr=0.3, warmup_epochs=2)
    schedule = make_schedule(config, total_steps=100, steps_per_epoch=10, batch=512)
    assert float(schedule(0)) == 0
    assert float(schedule(20)) == pytest.approx(0.6, rel=1e-6)
    assert float(schedule(100)) == pytest.approx(0, abs=1e-7)
    for step in range(101):
        if step <= 20:
            expected = 0.6 * step / 20
        else:
            expected = 0.3 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-7), step


def test_warmup_steps_and_parts_of_the_peak():
    config = OptimConfig(
        base_lr=1.0, scaling="none", warmup_epochs=9, warmup_steps=4, warmup_init=0.25, end=0.1
    )
    schedule = make_schedule(config, 20, 2, 64)
    np.testing.assert_allclose(
        [schedule(i) for i in (0, 2, 4, 12, 20)], [0.25, 0.625, 1, 0.55, 0.1], rtol=1e-6
    )


def test_constant():
    config = OptimConfig(base_lr=0.2, scaling="none", schedule="constant", warmup_epochs=1)
    schedule = make_schedule(config, 20, 4, 64)
    np.testing.assert_allclose([schedule(i) for i in (0, 1, 4, 20)], [0, 0.05, 0.2, 0.2], rtol=1e-6)


def test_step():
    config = OptimConfig(
        base_lr=0.03,
        scaling="none",
        schedule="step",
        boundaries=(12, 16),
        warmup_epochs=1,
    )
    schedule = make_schedule(config, 200, 10, 64)
    steps = (5, 10, 119, 120, 159, 160, 199)
    expected = [0.015, 0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003]
    np.testing.assert_allclose([schedule(i) for i in steps], expected, rtol=1e-5)


def test_steps_of_the_rate_that_fall_together_count_each():
    config = OptimConfig(
        base_lr=1.0, scaling="none", schedule="step", boundaries=(0.6, 1.2, 1.8), warmup_epochs=0
    )
    schedule = make_schedule(config, 3, 1, 64)
    np.testing.assert_allclose([schedule(i) for i in range(3)], [1, 0.01, 0.001], rtol=1e-5)


def test_a_rate_that_falls_right_after_the_warmup_has_its_peak_for_a_step():
    """Epochs so short that both are the same step."""
    config = OptimConfig(
        base_lr=1.0, scaling="none", schedule="step", boundaries=(1.1, 2), warmup_epochs=1
    )
    schedule = make_schedule(config, 6, 2, 64)
    rates = [0, 0.5, 1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose([schedule(i) for i in range(6)], rates, rtol=1e-5)


def test_per_epoch_holds_the_rate_after_the_warmup():
    config = OptimConfig(base_lr=1.0, scaling="none", warmup_epochs=1, per_epoch=True)
    schedule = make_schedule(config, 50, 10, 64)
    for step in range(50):
        epoch = step // 10 - 1
        expected = step / 10 if step < 10 else 0.5 * (1 + math.cos(math.pi * epoch / 4))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize(("epochs", "warm"), [(100, 10), (7, 2), (5, 0)])
def test_epoch_cosine_is_that_of_supcontrast(epochs, warm):
    """Their adjust_learning_rate at the start of an epoch, and warmup_learning_rate at each batch of the first ones."""
    batches, base, start, decay = 3, 0.5, 0.01, 0.1
    floor = base * decay**3
    warmup_to = floor + (base - floor) * (1 + math.cos(math.pi * warm / epochs)) / 2
    expected = []
    for epoch in range(1, epochs + 1):
        rate = floor + (base - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for batch in range(batches):
            if epoch <= warm:
                p = (batch + (epoch - 1) * batches) / (warm * batches)
                rate = start + p * (warmup_to - start)
            expected.append(rate)
    config = OptimConfig(
        base_lr=base,
        scaling="none",
        schedule="epoch_cosine",
        end=decay**3,
        warmup_epochs=warm,
        warmup_init=start / base,
    )
    schedule = make_schedule(config, epochs * batches, batches, 512)
    np.testing.assert_allclose([schedule(i) for i in range(epochs * batches)], expected, rtol=2e-5)
    if epochs == 100:
        after = make_schedule(dataclasses.replace(config, schedule="cosine"), 300, 3, 512)
        assert [round(float(schedule(3 * e - 1)), 3) for e in (20, 50)] == [0.452, 0.250]
        assert float(after(3 * 20 - 1)) > 0.48


def test_the_demonstration_of_moco_counts_epochs_from_one():
    """Its log begins with 0.059996 for epoch 1 of 200, and its last epoch learns nothing."""
    c = config_lib.load(CONFIGS / "moco_cifar10.py")
    batches = 50_000 // c.batch_size
    schedule = make_schedule(config_lib.from_dict(c).optim, 200 * batches, batches, c.batch_size)
    first, last = range(batches), range(199 * batches, 200 * batches)
    assert {round(float(schedule(i)), 6) for i in first} == {0.059996}
    assert max(float(schedule(i)) for i in last) < 1e-9
    before = 0.06 * (1 + math.cos(math.pi * 199 / 200)) / 2
    assert float(schedule(last[0] - 1)) == pytest.approx(before, rel=1e-3)


def test_schedule_of_a_traced_count_and_in_float64():
    config = OptimConfig(base_lr=0.3, warmup_epochs=2)
    schedule = make_schedule(config, 100, 10, 256)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(33)), schedule(33), rtol=1e-6)
    assert jax.jit(schedule)(jnp.int32(33)).dtype == jnp.float32
    with jax.enable_x64(True):
        rate = schedule(jnp.int32(33))
        assert rate.dtype == jnp.float64
        assert float(rate) == pytest.approx(0.15 * (1 + math.cos(math.pi * 13 / 80)), rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 8), "total_steps=0"),
        ((10, 0, 8), "steps_per_epoch=0"),
        ((10, 10, 0), "batch=0"),
        ((10, 10, 8), "warm-up takes 100 steps, the training 10"),
    ],
)
def test_bad_lengths(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(OptimConfig(), *arguments)


def test_boundary_within_the_warmup():
    config = OptimConfig(schedule="step", boundaries=(5, 20), warmup_epochs=10)
    with pytest.raises(ValueError, match="expected epochs after the warm-up"):
        make_schedule(config, 300, 10, 8)


# --------------------------------------------------------------------------------- three steps

RATES = (0.1, 0.4, 0.2)


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "backbone": {
            "conv": {"kernel": rng.normal(size=(3, 2))},
            "bn": {"scale": rng.normal(size=2), "bias": rng.normal(size=2)},
        },
        "head": {"dense": {"kernel": rng.normal(size=(2, 2)), "bias": rng.normal(size=2)}},
    }


def leaves(params):
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(v) for p, v in flat}


def steps(config, params, gradients):
    """Parameters after each of the gradients, in float64, at the rates of RATES."""
    with jax.enable_x64(True):
        rates = jnp.asarray(RATES)
        params = jax.tree.map(jnp.asarray, params)
        tx = make_optimizer(config, params, lambda count: rates[count])
        state, history = tx.init(params), []
        for gradient in gradients:
            updates, state = jax.jit(tx.update)(gradient, state, params)
            params = optax.apply_updates(params, updates)
            history.append(leaves(params))
        inexact = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.inexact)]
        assert {a.dtype for a in inexact} == {jnp.dtype("float64")}
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    return history


def expect(config, rule, excluded=lambda path: path.endswith(("scale", "bias"))):
    """Runs the optimizer and `rule`, a hand-written step of one parameter, side by side."""
    params, gradients = tree(), [tree(seed) for seed in (1, 2, 3)]
    memory = {path: {} for path in leaves(params)}
    values = leaves(params)
    for i, after in enumerate(steps(config, params, gradients)):
        for path, gradient in leaves(gradients[i]).items():
            values[path] = rule(values[path], gradient, memory[path], i, excluded(path))
            np.testing.assert_allclose(after[path], values[path], rtol=1e-9, err_msg=path)


def norm(x):
    return math.sqrt((x**2).sum())


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_as_in_simclr(nesterov):
    """v <- m v + lr trust (g + wd w); w <- w - v: the rate is inside the momentum."""

    def rule(w, g, memory, i, excluded):
        trust = 1.0
        if not excluded:
            g = g + 0.01 * w
            trust = 0.02 * norm(w) / norm(g)
        step = RATES[i] * trust * g
        v = memory["v"] = 0.9 * memory.get("v", 0) + step
        return w - (0.9 * v + step if nesterov else v)

    config = dataclasses.replace(PLAIN, weight_decay=0.01, trust_coefficient=0.02)
    expect(dataclasses.replace(config, nesterov=nesterov), rule)


def test_lars_as_in_moco_v3():
    """mu <- m mu + trust (g + wd w); w <- w - lr mu: the rate is outside the momentum."""

    def rule(w, g, memory, i, excluded):
        if not excluded:
            g = g + 0.01 * w
            g = g * 0.02 * norm(w) / norm(g)
        mu = memory["mu"] = 0.9 * memory.get("mu", 0) + g
        return w - RATES[i] * mu

    config = dataclasses.replace(
        PLAIN, weight_decay=0.01, trust_coefficient=0.02, momentum_of="gradient"
    )
    expect(config, rule)


def test_lars_trust_is_one_at_zero_norms():
    params = {"kernel": np.zeros((2, 2))}
    gradient = {"kernel": np.ones((2, 2))}
    after = steps(PLAIN, params, [gradient])[0]["kernel"]
    np.testing.assert_allclose(after, -RATES[0])
    after = steps(dataclasses.replace(PLAIN, weight_decay=0), gradient, [params])[0]["kernel"]
    np.testing.assert_array_equal(after, np.ones((2, 2)))


def test_lars_that_decays_and_adapts_biases_but_not_norms():
    """As in Google's SupCon: BatchNorm is excluded, the biases of dense layers are not."""

    def rule(w, g, memory, i, excluded):
        trust = 1.0
        if not excluded:
            g = g + 0.01 * w
            trust = 0.001 * norm(w) / norm(g)
        v = memory["v"] = 0.9 * memory.get("v", 0) + RATES[i] * trust * g
        return w - v

    config = dataclasses.replace(
        PLAIN, weight_decay=0.01, decayed=(r"kernel$", r"dense/bias$"), excluded=(r"(^|/)bn/",)
    )
    expect(config, rule, excluded=lambda path: "/bn/" in path)


def test_unadapted_apart_from_excluded():
    def rule(w, g, memory, i, excluded):
        v = memory["v"] = 0.9 * memory.get("v", 0) + RATES[i] * (g + 0.01 * w)
        return w - v

    config = dataclasses.replace(
        PLAIN, weight_decay=0.01, decayed=(".",), excluded=(), unadapted=(".",)
    )
    expect(config, rule)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov):
    def rule(w, g, memory, i, excluded):
        g = g + (0 if excluded else 0.01) * w
        v = memory["v"] = 0.9 * memory.get("v", 0) + g
        return w - RATES[i] * (g + 0.9 * v if nesterov else v)

    expect(dataclasses.replace(PLAIN, name="sgd", weight_decay=0.01, nesterov=nesterov), rule)


def test_sgd_with_decay_of_everything():
    """As in MoCo v1 and v2."""

    def rule(w, g, memory, i, excluded):
        v = memory["v"] = 0.9 * memory.get("v", 0) + g + 0.01 * w
        return w - RATES[i] * v

    config = dataclasses.replace(
        PLAIN, name="sgd", weight_decay=0.01, decayed=(r".*",), excluded=()
    )
    expect(config, rule)


def test_rmsprop_is_that_of_tensorflow():
    """A second moment that starts at 1, eps within its root, and rates within the momentum."""

    def rule(w, g, memory, i, excluded):
        g = g + (0 if excluded else 0.01) * w
        s = memory["s"] = 0.8 * memory.get("s", 1) + 0.2 * g**2
        v = memory["v"] = 0.9 * memory.get("v", 0) + RATES[i] * g / np.sqrt(s + 1e-3)
        return w - v

    expect(dataclasses.replace(PLAIN, name="rmsprop", weight_decay=0.01, b2=0.8, eps=1e-3), rule)


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_adam_family(name):
    def rule(w, g, memory, i, excluded):
        decay = 0 if excluded else 0.01
        if name == "adam":
            g = g + decay * w
        m = memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
        s = memory["s"] = 0.99 * memory.get("s", 0) + 0.01 * g**2
        step = (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(s / (1 - 0.99 ** (i + 1))) + 1e-6)
        if name != "adam":
            step = step + decay * w
        if name == "lamb" and not excluded:
            step = step * norm(w) / norm(step)
        return w - RATES[i] * step

    config = dataclasses.replace(PLAIN, name=name, weight_decay=0.01, b1=0.9, b2=0.99, eps=1e-6)
    expect(config, rule)


def test_clip_norm_is_of_the_whole_unfrozen_gradient():
    params, gradient = tree(), tree(1)
    plain = dataclasses.replace(PLAIN, name="sgd", weight_decay=0.0, frozen=(r"^head/",))
    clipped = dataclasses.replace(plain, clip_norm=0.5)
    total = math.sqrt(sum((g**2).sum() for p, g in leaves(gradient).items() if "head" not in p))
    assert total > 0.5
    before = leaves(params)
    free, bound = (steps(c, params, [gradient])[0] for c in (plain, clipped))
    for path, value in before.items():
        move = (free[path] - value) * 0.5 / total
        np.testing.assert_allclose(bound[path] - value, move, rtol=1e-9, atol=1e-15)
    loose = dataclasses.replace(plain, clip_norm=1e6)
    np.testing.assert_allclose(
        steps(loose, params, [gradient])[0]["backbone/conv/kernel"], free["backbone/conv/kernel"]
    )


def test_frozen_does_not_move():
    params, gradients = tree(), [tree(seed) for seed in (1, 2, 3)]
    config = dataclasses.replace(PLAIN, weight_decay=0.1, frozen=(r"^backbone/",))
    last = steps(config, params, gradients)[-1]
    for path, value in leaves(params).items():
        assert np.array_equal(last[path], value) == path.startswith("backbone/"), path


def test_method_has_its_own_rate_and_decay_and_no_adaptation():
    params = {**tree(), "method": {"proxies": np.full((3, 2), 2.0)}}
    gradient = {**tree(1), "method": {"proxies": np.full((3, 2), 0.5)}}
    config = dataclasses.replace(PLAIN, method_lr=10.0, method_weight_decay=0.25)
    after = steps(config, params, [gradient, gradient])
    v1 = 10 * RATES[0] * (0.5 + 0.25 * 2)
    w1 = 2 - v1
    v2 = 0.9 * v1 + 10 * RATES[1] * (0.5 + 0.25 * w1)
    np.testing.assert_allclose(after[0]["method/proxies"], w1, rtol=1e-12)
    np.testing.assert_allclose(after[1]["method/proxies"], w1 - v2, rtol=1e-12)
    alone = steps(config, tree(), [tree(1), tree(1)])
    for path, value in alone[1].items():
        np.testing.assert_array_equal(after[1][path], value, err_msg=path)


# --------------------------------------------------------------------------------------- rules


def network():
    model = build(BackboneConfig(), {"z": HeadSpec((-1, 128)), "bias": HeadSpec((8,), bias=True)})
    return jax.eval_shape(lambda key: model.init(key, (32, 32, 3)), jax.random.key(0))["params"]


def test_excluded_set_of_a_network_is_norms_and_biases():
    found = jax.tree.leaves(rules(OptimConfig(), network()))
    assert len(found) == len(jax.tree.leaves(network()))
    excluded = {rule.path for rule in found if not rule.decay}
    assert excluded == {rule.path for rule in found if not rule.adapt}
    assert excluded == {rule.path for rule in found if len(rule.shape) <= 1}
    assert "head_bias/dense1/bias" in excluded
    assert "backbone/stem/bn/scale" in excluded
    assert "backbone/stem/conv/kernel" not in excluded
    assert len(excluded) == 2 * 20 + 3 + 1 + 1
    assert not any(rule.adapt for rule in jax.tree.leaves(rules(OptimConfig("sgd"), network())))


def test_description():
    text = describe(OptimConfig(frozen=(r"/stem/",)), {**network(), "method": {"p": np.ones(3)}})
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    assert lines["backbone/stem/conv/kernel"][-3:] == ["frozen", "-", "-"]
    assert lines["backbone/stage1_block1/conv1/kernel"][-3:] == ["network", "1e-06", "yes"]
    assert lines["backbone/stage1_block1/bn1/scale"][-3:] == ["network", "-", "-"]
    assert lines["method/p"][-3:] == ["method", "-", "-"]
    assert "22 with weight decay, 22 layer-adapted, 3 frozen" in text.splitlines()[-1]


def test_an_uncovered_parameter_is_an_error():
    params = {"backbone": {"conv": {"kernel": np.ones((2, 2))}, "position": np.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"backbone/position \(4, 2\) matches no pattern"):
        make_optimizer(OptimConfig(), params, lambda count: 0.1)
    frozen = OptimConfig(frozen=("position",))
    make_optimizer(frozen, params, lambda count: 0.1)


def test_a_frozen_pattern_without_parameters_is_an_error():
    with pytest.raises(ValueError, match=r"optim\.frozen: layer3 matches no parameter"):
        rules(OptimConfig(frozen=("layer3", "kernel")), tree())


def test_state_from_shapes_and_under_jit():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree())
    shapes = jax.eval_shape(lambda: params)
    tx = make_optimizer(OptimConfig(clip_norm=1.0), shapes, lambda count: 0.1)
    state = jax.jit(tx.init)(params)
    _, after = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "LARS"}, r"optim\.name='LARS': expected one of lars, sgd"),
        ({"scaling": "log"}, r"optim\.scaling='log'"),
        ({"schedule": "poly"}, r"optim\.schedule='poly'"),
        ({"momentum_of": "velocity"}, r"optim\.momentum_of='velocity'"),
        ({"base_lr": -1.0}, r"optim\.base_lr=-1\.0"),
        ({"base_lr": math.nan}, r"optim\.base_lr=nan"),
        ({"weight_decay": math.inf}, r"optim\.weight_decay=inf"),
        ({"momentum": 1.0}, r"optim\.momentum=1\.0"),
        ({"trust_coefficient": 0.0}, r"optim\.trust_coefficient=0\.0"),
        ({"clip_norm": -1.0}, r"optim\.clip_norm=-1\.0"),
        ({"end": 2.0}, r"optim\.end=2\.0"),
        ({"warmup_steps": -1}, r"optim\.warmup_steps=-1"),
        ({"boundaries": (3,)}, "expected schedule='step'"),
        ({"schedule": "step"}, r"expected boundaries="),
        ({"schedule": "step", "boundaries": (5, 3)}, "ascending epochs"),
        ({"frozen": ("(",)}, r"optim\.frozen: '\(' is no regular expression"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**arguments)
