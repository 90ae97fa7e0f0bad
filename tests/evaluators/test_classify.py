"""Linear probes by SGD and fine-tuning, on scikit-learn's digits."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tiny_network import build

from jaxcl import data
from jaxcl.data import ArraySource, DataConfig
from jaxcl.evaluators import (
    Layer,
    Recipe,
    Task,
    TooFewImages,
    finetune,
    linear_sgd,
    transfer_bn_momentum,
)
from jaxcl.views import EvalView, Flip, View, ViewProgram

SHAPE = (8, 8, 1)
CONFIG = DataConfig(image_size=8, channels=1, threads=1)
IDENTITY = ViewProgram((), (View(),))


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, *SHAPE) * 255 / 16).astype(np.uint8)
    return images, y.astype(np.int32)[:, None]


def task(digits, train=slice(0, 300), test=slice(1000, 1400), devices=1, views=IDENTITY):
    images, labels = digits
    sharding = NamedSharding(
        Mesh(np.array(jax.devices()[:devices]), ("data",)), PartitionSpec("data")
    )

    def source(rows):
        return rows if isinstance(rows, ArraySource) else ArraySource(images[rows], labels[rows])

    def feed(source, sampler, steps):
        for batch in data.train_batches(source, sampler, CONFIG, 0, steps, views=views):
            yield {k: jax.device_put(v, sharding) for k, v in data.arrays(batch).items()}

    return Task(
        train=source(train),
        test=source(test),
        level=-1,
        views=views,
        view=EvalView(8),
        image_shape=SHAPE,
        feed=feed,
        test_batches=lambda source: data.eval_batches(source, 64, CONFIG),
        sharding=sharding,
    )


def nesterov(lr, momentum=0.9):
    return lambda params, steps, per_epoch, batch: optax.sgd(
        optax.cosine_decay_schedule(lr, steps), momentum, nesterov=True
    )


def network(layer="h", **changes):
    model = build()
    model = dataclasses.replace(model, **changes)
    return Layer.parse(layer, tuple(name for name, _ in model.heads)).of(model)


@functools.cache
def start():
    return build().init(jax.random.key(0), SHAPE)


def leaves(tree):
    return [np.asarray(x).copy() for x in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_linear_sgd_comes_near_the_logistic_optimum_and_leaves_the_encoder_alone(digits):
    variables = start()
    before = leaves(variables)
    trained = linear_sgd(task(digits), network(), variables, Recipe(60, 100, nesterov(1.0)))
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves(variables), strict=True))
    assert trained.variables is variables
    assert set(trained.params) == {"classifier"}

    images, y = digits[0].astype(np.float32) / 255, digits[1][:, 0]
    h = np.asarray(network().encode(variables, jax.numpy.asarray(images)), np.float64)
    oracle = LogisticRegression(C=1e4, max_iter=5000).fit(h[:300], y[:300])
    best = oracle.score(h[1000:1400], y[1000:1400])
    result = trained.result
    assert best > 0.7
    assert result.accuracy > best - 0.04
    assert result.train_loss < 0.3 * result.first_loss
    np.testing.assert_allclose(result.first_loss, np.log(10), rtol=1e-5)  # starts at zero
    assert (result.queries, result.trained_on, result.classes) == (400, 300, 10)
    assert (result.steps, result.batch_size) == (180, 100)
    assert result.scalars("sgd/")["sgd/accuracy"] == result.accuracy


@pytest.mark.parametrize("train", [linear_sgd, finetune])
def test_normalised_features_and_smoothed_targets(digits, train):
    """One step with all images from random weights, against softmax regression in NumPy."""
    smoothing, rate, std = 0.3, 0.7, 0.5
    variables, job = start(), task(digits)
    recipe = Recipe(0, 300, lambda *_: optax.sgd(rate), 0, 1, std, True, smoothing)
    trained = train(job, network(), variables, recipe)
    kernel = std * np.asarray(jax.random.normal(jax.random.key(0), (16, 10)), np.float64)
    images = jax.numpy.asarray(job.train.images / 255, jax.numpy.float32)
    # Fine-tuning has the statistics of the batch.
    h, _ = network().apply(variables["params"], variables["batch_stats"], images, train is finetune)
    h = np.asarray(h, np.float64)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    p = np.exp(h @ kernel)
    p /= p.sum(1, keepdims=True)
    targets = 0.7 * np.eye(10)[job.train.labels[:, 0]] + 0.3 / 10
    np.testing.assert_allclose(
        trained.result.first_loss, -(targets * np.log(p)).sum(1).mean(), rtol=1e-5
    )
    gradient = h.T @ (p - targets) / 300
    assert np.abs(gradient).max() > 1e-3
    found = trained.params["classifier"]["kernel"]
    np.testing.assert_allclose(found, kernel - rate * gradient, rtol=1e-4, atol=1e-6)


def test_finetuning_beats_chance_and_the_control_from_scratch(digits):
    few = data.class_balanced_subset(digits[1][:300, 0], per_class=10, seed=0)
    # Pre-trained here means: fine-tuned on other digits.
    fresh = start()
    other = task(digits, train=slice(400, 900))
    pretrained = finetune(other, network(), fresh, Recipe(6, 50, nesterov(0.2))).variables
    before = leaves(pretrained)
    recipe = Recipe(8, 50, nesterov(0.05))
    tuned = finetune(task(digits, train=few), network(), pretrained, recipe)
    scratch = finetune(task(digits, train=few), network(), fresh, recipe)
    assert scratch.result.accuracy > 0.3
    assert tuned.result.accuracy > scratch.result.accuracy + 0.05
    assert set(tuned.params) == {"backbone", "classifier"}
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves(pretrained), strict=True))
    assert not same(tuned.variables["params"], pretrained["params"])
    assert not same(tuned.variables["batch_stats"], pretrained["batch_stats"])


def test_the_seed_decides_order_and_views(digits):
    flips = ViewProgram((("flip", Flip(prob=0.5)),), (View(),))
    variables = start()
    recipe = Recipe(1, 100, nesterov(0.1))
    first, again, seeded, plain = (
        linear_sgd(task(digits, views=views), network(), variables, r)
        for views, r in (
            (flips, recipe),
            (flips, recipe),
            (flips, dataclasses.replace(recipe, seed=1)),
            (IDENTITY, recipe),
        )
    )
    assert same(first.params, again.params)
    assert first.result == again.result
    assert not same(first.params, seeded.params)
    assert not same(first.params, plain.params)


def test_batch_norm_momentum_of_the_network_is_the_one_that_acts(digits):
    job = task(digits, train=slice(0, 32))
    means = {}
    for momentum in (0.5, 0.9):
        net = network(backbone=dataclasses.replace(build().backbone, momentum=momentum))
        variables = start()
        one_step = Recipe(1, 32, nesterov(0.0))
        stats = finetune(job, net, variables, one_step).variables["batch_stats"]
        means[momentum] = np.asarray(stats["backbone"]["bn"]["mean"])
    np.testing.assert_allclose(means[0.5], 5 * means[0.9], rtol=1e-5)


def test_a_layer_of_the_head_is_tuned_with_it(digits):
    net = network("head:1")
    variables = net.select(start())
    tuned = finetune(task(digits), net, variables, Recipe(2, 100, nesterov(0.1)))
    assert tuned.params["classifier"]["kernel"].shape == (12, 10)
    head, before = (v["params"]["head_projection"] for v in (tuned.variables, variables))
    assert not same(head["dense1"], before["dense1"])
    assert same(head["dense2"], before["dense2"])


def test_eight_devices_give_the_same_classifier(digits):
    variables = start()
    recipe = Recipe(2, 64, nesterov(0.1))
    one, eight = (finetune(task(digits, devices=n), network(), variables, recipe) for n in (1, 8))
    np.testing.assert_allclose(eight.result.train_loss, one.result.train_loss, rtol=1e-4)
    for a, b in zip(leaves(one.variables), leaves(eight.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_missing_and_unseen_labels_and_small_data(digits):
    images, labels = digits
    train, test = labels[:60].copy(), labels[1000:1100].copy()
    train[:10], test[:20] = -1, -1
    train[train == 3] = -1
    job = task(
        digits,
        train=ArraySource(images[:60], np.minimum(train, 9)),
        test=ArraySource(images[1000:1100], test),
        devices=8,
    )
    kept = int((train >= 0).sum())
    result = linear_sgd(job, network(), start(), Recipe(0.01, 512, nesterov(0.1))).result
    assert result.trained_on == kept
    assert result.classes == 9
    assert result.batch_size == kept // 8 * 8
    assert result.steps == 1
    three = linear_sgd(job, network(), start(), Recipe(0, 512, nesterov(0.1), steps=3)).result
    assert three.steps == 3
    assert (result.queries, result.unlabelled) == (80, 20)
    assert result.unseen == int((test == 3).sum()) > 0
    assert result.top5 is None  # of 9 classes


def test_bn_momentum_for_transfer():
    assert transfer_bn_momentum(1000) == 0.99
    assert transfer_bn_momentum(20) == 0.9


def test_errors(digits):
    variables = start()
    recipe = Recipe(1, 32, nesterov(0.1))
    images = digits[0]
    one_class = ArraySource(images[:9], np.zeros((9, 1), np.int32))
    with pytest.raises(ValueError, match="1 class"):
        linear_sgd(task(digits, train=one_class), network(), variables, recipe)
    with pytest.raises(TooFewImages, match="do not fill a batch over 8 devices"):
        linear_sgd(task(digits, train=slice(0, 5), devices=8), network(), variables, recipe)
    with pytest.raises(ValueError, match="one view of each image, got 2"):
        task(digits, views=ViewProgram((), (View(), View())))
    for epochs, size, steps, text in (
        (0, 32, 0, "epochs=0, steps=0"),
        (1, 32, 5, "epochs=1, steps=5"),
        (-1, 32, 5, "epochs=-1, steps=5"),
        (1, 0, 0, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=text):
            Recipe(epochs, size, nesterov(0.1), steps=steps)
    with pytest.raises(ValueError, match=r"smoothing=1\.0: expected 0 <= value < 1"):
        Recipe(1, 32, nesterov(0.1), smoothing=1.0)
    with pytest.raises(FloatingPointError, match="not finite from step"):
        linear_sgd(task(digits), network(), variables, Recipe(2, 32, nesterov(1e38)))
