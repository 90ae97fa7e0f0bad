"""The cross-entropy baseline: its loss, its classifier, whole steps and whole runs."""

import jax
import labelled_run
import numpy as np
import pytest
import tiny_network
from labelled_run import BATCH, TREE, config, linear_params, linear_views, loss_of

from jaxcl import checkpoint, data, models, train
from jaxcl import config as config_lib
from jaxcl.data import LabelTree
from jaxcl.methods import Supervised
from jaxcl.methods.labels import LabelLevels

LEVELS = LabelLevels(TREE.levels, (2, 3))
LABELS = np.array([[0, 0], [0, 1], [0, 0], [1, 2], [1, -1], [1, 2]])


def supervised(**changes):
    return Supervised(config("supervised").build_method().views, labels=LEVELS, **changes)


@pytest.mark.parametrize(("views", "smoothing"), [(1, 0.0), (2, 0.2)])
def test_the_loss_and_its_gradient_are_those_of_the_logits(views, smoothing):
    """Every view counts, but for the image without a label at this level."""
    method, params = supervised(smoothing=smoothing), linear_params(0)
    images = linear_views(0, views).images.reshape(views * BATCH, -1)
    h = np.asarray(images @ params["w"], np.float64)
    logits = h @ params["c"] + params["b"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.repeat(LABELS[:, 1], views)
    known = labels >= 0
    target = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    expected = -(target * np.log(p)).sum(1)[known].mean()

    def loss(params):
        out = loss_of(method, params, LABELS, views=views)
        return out.loss, out.metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    right = (logits.argmax(1) == labels)[known].mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
    wanted = h[known].T @ (p - target)[known] / known.sum()
    np.testing.assert_allclose(gradient["c"], wanted, rtol=1e-3, atol=1e-6)
    assert np.any(gradient["w"])


def test_the_classifier_is_as_wide_as_the_level_has_classes():
    for settings, width in (({}, 3), ({"level": "coarse"}, 2), ({"classes": 10}, 10)):
        spec = supervised(**settings).heads["classifier"]
        assert spec.layers == (width,)
        assert spec.bias
        assert not spec.batch_norm
        np.testing.assert_allclose(supervised(**settings).trivial_loss(8), np.log(width))


def test_one_class_is_finite():
    value = loss_of(supervised(), linear_params(0), np.zeros(BATCH)).loss
    assert np.isfinite(value)
    assert loss_of(supervised(), linear_params(0), np.full(BATCH, -1)).loss == 0


@pytest.mark.parametrize(
    ("changes", "tree", "message"),
    [
        ({}, LabelTree(), r"method 'supervised' learns from labels, and the training data have none"),
        ({"method.level": "genus"}, TREE, r"the data have the levels \['coarse', 'fine'\]"),
        ({"method.classes": 2}, TREE, r"method.classes=2: the data have 3 at level 'fine'; set it to"),
        ({"method.smoothing": 1.0}, TREE, r"smoothing=1.0: expected 0 <= value < 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, tree, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config("supervised", **changes).for_labels(tree)


def test_without_data_the_number_of_classes_has_to_be_given():
    with pytest.raises(ValueError, match="the number of classes is not known"):
        _ = config("supervised").build_method().heads
    given = config("supervised", **{"method.classes": 1000}).build_method()
    assert given.heads["classifier"].layers == (1000,)


def test_eight_devices_give_the_same_as_one():
    made = config("supervised", **{"method.smoothing": 0.1}).for_labels(TREE)
    labelled_run.same_on_eight_devices(made)


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_as_one():
    """Of two views."""
    made = config("supervised", **{"views.views": ({}, {})}).for_labels(TREE)
    labelled_run.same_on_devices(made, (2, 4, 8))


def test_a_run_learns_and_an_interrupted_one_becomes_the_same(tmp_path, monkeypatch):
    """Sixty steps on ten digits; the loss falls well below that of guessing."""
    monkeypatch.setattr(models, "build", tiny_network.build)
    digits = tmp_path / "digits"
    digits.mkdir()
    made = config(
        "supervised",
        **{
            "steps": 60,
            "batch_size": 32,
            "data.path": str(labelled_run.write_digits(digits)),
            "run.checkpoint_every": 30,
            "mesh.compile_cache": str(tmp_path / "xla"),
        },
    )
    whole = train.train(made, str(tmp_path / "whole"))
    assert whole["metrics"]["loss"] < 0.7 * np.log(10)
    assert whole["metrics"]["accuracy"] > 0.4
    real = data.train_batches

    def breaks(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 40:
                raise OSError("gone")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data, "train_batches", breaks)
        with pytest.raises(OSError, match="gone"):
            train.train(made, str(tmp_path / "again"))
    train.train(made, str(tmp_path / "again"))
    first, second = (
        checkpoint.read_manifest(tmp_path / name, 60).leaves for name in ("whole", "again")
    )
    assert first == second
    # What is stored says how many classes there are, so that the checkpoint can be read without the data.
    stored = checkpoint.read_manifest(tmp_path / "whole" / "checkpoints", 60).config
    assert config_lib.from_dict(stored).build_method().heads["classifier"].layers == (10,)
