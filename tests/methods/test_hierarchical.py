"""HiMulCon, HiConE and HiMulConE: the loss that they make of a network's outputs, and of the levels of the data."""

import jax
import labelled_run
import numpy as np
import pytest
import tiny_network
from labelled_run import BATCH, TREE, config, linear_params, linear_views, loss_of

from jaxcl import checkpoint, data, experiment, losses, models, train
from jaxcl import config as config_lib
from jaxcl.data import LabelTree
from jaxcl.methods import Hierarchical
from jaxcl.methods.labels import LabelLevels

LEVELS = LabelLevels(TREE.levels, (2, 3))
DEEP = LabelLevels(("genus", "species", "leaf"), (2, 3, 5))
PATHS = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 2, 2], [1, 2, 3], [1, 2, 4]])


def hierarchical(labels=DEEP, **changes):
    return Hierarchical(config("hierarchical").build_method().views, 5, labels, **changes)


def embeddings(params, seed=0):
    images = linear_views(seed).images
    return (images.reshape(2 * BATCH, -1) @ params["w"] @ params["p"]).reshape(BATCH, 2, -1)


@pytest.mark.parametrize(
    ("variant", "form"), [("himulcon", "official"), ("hicone", "official"), ("himulcone", "paper")]
)
def test_the_loss_is_that_of_the_projections_and_the_paths(variant, form):
    params = linear_params(0)
    method = hierarchical(variant=variant, form=form, temperature=0.2)
    out = loss_of(method, params, PATHS)
    expected = getattr(losses, variant)(embeddings(params), PATHS, 0.2, form)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-6)


def test_the_settings_of_the_loss_arrive():
    params = linear_params(1)
    settings = {"constraint": "pair_anchor", "penalty": "pow2", "detach_floor": True}
    method = hierarchical(form="paper", **settings)
    out = loss_of(method, params, PATHS)
    expected = losses.himulcone(embeddings(params), PATHS, 0.1, "paper", **settings)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-6)
    assert method.settings == {
        **settings,
        "temperature": 0.1,
        "dedup": False,
        "divisor": "levels",
        "scale": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"dedup": "off"}, {"dedup": False}),
        ({"variant": "himulcon", "form": "paper", "dedup": "on"}, {"form": "paper", "dedup": True}),
        ({"divisor": "levels"}, {"divisor": "levels"}),
        ({"form": "paper", "divisor": "levels+1"}, {"form": "paper", "divisor": "levels+1"}),
        ({"weights": (0.5, 0.0, 2.0)}, {"penalty": (0.5, 0.0, 2.0)}),
    ],
)
def test_parts_of_a_form_can_be_set_alone(changes, arguments):
    params = linear_params(3)
    out = loss_of(hierarchical(probe=False, **changes), params, PATHS)
    loss = getattr(losses, changes.get("variant", "himulcone"))
    np.testing.assert_allclose(out.loss, loss(embeddings(params), PATHS, **arguments), rtol=1e-6)
    (changed,) = set(changes) - {"variant", "form"}
    others = {name: value for name, value in changes.items() if name != changed}
    assert abs(out.loss - loss_of(hierarchical(probe=False, **others), params, PATHS).loss) > 1e-3


def test_some_of_the_levels():
    params = linear_params(0)
    out = loss_of(hierarchical(hierarchy=("genus", "leaf")), params, PATHS)
    expected = losses.himulcone(embeddings(params), PATHS[:, [0, 2]])
    np.testing.assert_allclose(out.loss, expected, rtol=1e-6)
    assert {"loss_genus", "loss_leaf", "floored_genus"} <= set(out.metrics)
    assert not {"loss_species", "floored_leaf"} & set(out.metrics)


def test_what_is_logged():
    params = linear_params(0)
    out = loss_of(hierarchical(form="paper"), params, PATHS)
    terms = losses.hierarchical_terms(embeddings(params), PATHS, 0.1, "pair_global", dedup=False)
    for number, name in enumerate(DEEP.names):
        np.testing.assert_allclose(out.metrics[f"loss_{name}"], terms.levels[number], rtol=1e-6)
    np.testing.assert_allclose(out.metrics["floored_genus"], terms.floored[0], rtol=1e-6)
    assert 0 < out.metrics["floored_species"] <= 1
    np.testing.assert_allclose(out.metrics["same_leaf"], 2 / 6, rtol=1e-6)
    assert "floored_genus" not in loss_of(hierarchical(variant="himulcon"), params, PATHS).metrics


def test_the_joint_probe_learns_the_category():
    """Or another level; the loss stays what it is."""
    params = linear_params(0)
    h = np.asarray(linear_views(0).images.reshape(2 * BATCH, -1) @ params["w"], np.float64)
    logits = h @ params["method"]["kernel"] + params["method"]["bias"]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    without = loss_of(hierarchical(probe=False), params, PATHS)
    for settings, level in (({"classes": 3}, 0), ({"level": "species"}, 1)):
        out = loss_of(hierarchical(**settings), params, PATHS)
        expected = -log_p[np.arange(2 * BATCH), np.repeat(PATHS[:, level], 2)].mean()
        np.testing.assert_allclose(out.metrics["probe_loss"], expected, rtol=1e-5)
        assert out.loss == without.loss
    assert "probe_loss" not in without.metrics
    assert hierarchical(probe=False).init_params(jax.random.key(0)) == {}
    assert hierarchical().init_params(jax.random.key(0))["kernel"].shape == (5, 2)
    assert hierarchical(level="leaf").init_params(jax.random.key(0))["kernel"].shape == (5, 5)


def test_equal_embeddings_give_the_trivial_loss():
    params = linear_params(0)
    params["w"] = np.zeros_like(params["w"])
    for variant in ("himulcon", "hicone", "himulcone"):
        method = hierarchical(variant=variant, form="paper", probe=False)
        value = loss_of(method, params, PATHS).loss
        np.testing.assert_allclose(value, method.trivial_loss(BATCH), rtol=1e-6)
    for changes in ({"divisor": "levels+1"}, {"form": "official"}, {"weights": (1.0, 0.0, 3.0)}):
        fields = {"form": "paper", "dedup": "off", "probe": False, **changes}
        method = hierarchical(**fields)
        value = loss_of(method, params, PATHS).loss
        np.testing.assert_allclose(value, method.trivial_loss(BATCH), rtol=1e-6)
    assert hierarchical().trivial_loss(BATCH) is None
    assert hierarchical(LabelLevels(), form="paper").trivial_loss(BATCH) is None


# Labels of the data


def test_the_levels_of_the_data_are_learned_from_the_data():
    bound = config("hierarchical").for_labels(TREE)
    method = bound.build_method()
    assert method.labels == LEVELS
    assert method.learned_levels == ("coarse", "fine")
    assert config_lib.from_dict(config_lib.to_dict(bound)).build_method() == method


ONE_CLASS = LabelTree(("root", "coarse", "fine"), (("all",), *TREE.names))


@pytest.mark.parametrize(
    ("changes", "tree", "message"),
    [
        ({}, LabelTree(), r"'hierarchical' learns from labels, and the training data have none"),
        ({}, LabelTree(("digit",), (("0", "1"),)), r"only label level is 'digit', and on one level all of these losses are SupCon"),
        ({"method.hierarchy": ("fine",)}, TREE, r"only label level is 'fine'.*use the method 'supcon'"),
        ({}, ONE_CLASS, r"label level 'root' has one class only.*name the other levels in method.hierarchy"),
        ({"method.hierarchy": ("coarse", "genus")}, TREE, r"method.hierarchy=\('coarse', 'genus'\): expected some of .*'fine'"),
        ({"method.hierarchy": ("fine", "coarse")}, TREE, r"expected some of the levels of the data, in their order"),
        ({"method.level": "genus"}, TREE, r"'genus': the data have the levels \['coarse', 'fine'\]"),
        ({"method.classes": 1}, TREE, r"method.classes=1: the data have 2 at level 'coarse'"),
        ({"method.variant": "hmce"}, TREE, r"method.variant='hmce': expected one of himulcon, hicone, himulcone"),
        ({"method.form": "code"}, TREE, r"method.form='code': expected one of official, paper"),
        ({"method.constraint": "pair"}, TREE, r"method.constraint='pair': expected one of none, layer_mean, pair_global, pair_anchor"),
        ({"method.penalty": "linear"}, TREE, r"method.penalty='linear': expected one of exp, pow2, constant"),
        ({"method.dedup": "yes"}, TREE, r"method.dedup='yes': expected one of on, off"),
        ({"method.divisor": "L"}, TREE, r"method.divisor='L': expected one of levels, levels\+1"),
        ({"method.weights": (1.0,)}, TREE, r"penalty=\(1.0,\): expected a weight for each of 2 levels"),
        ({"method.weights": (1.0, -1.0)}, TREE, r"expected finite weights of 0 or more"),
        ({"method.weights": (0.0, 0.0)}, TREE, r"one above 0"),
        ({"method.weights": (1.0, 1.0), "method.penalty": "exp"}, TREE, r"give one of the two"),
        ({"method.variant": "himulcon", "method.detach_floor": True}, TREE, r"detach_floor=True does nothing .* 'himulcon' has none"),
        ({"method.constraint": "none", "method.detach_floor": True}, TREE, r"detach_floor=True does nothing without"),
        ({"method.temperature": 0.0}, TREE, r"temperature=0.0: expected a number above 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, tree, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config("hierarchical", **changes).for_labels(tree)


def test_a_level_of_one_class_may_be_left_out():
    made = config("hierarchical", **{"method.hierarchy": ("coarse", "fine")}).for_labels(ONE_CLASS)
    assert made.build_method().learned_levels == ("coarse", "fine")


@pytest.mark.parametrize(
    ("unique", "message"),
    [
        (True, r"have 1 class at the label level 'coarse'.*names 2"),
        (False, "'coarse' has one class"),
    ],
)
def test_classes_count_that_have_images(unique, message):
    """Names that no image has are kept in a tree declared unique."""
    tree = LabelTree(("coarse", "fine"), (("a", "b"), ("c", "d", "e")), unique)

    def check(labels):
        images = np.zeros((len(labels), 8, 8, 1), np.uint8)
        source = data.ArraySource(images, np.array(labels, np.int32), tree)
        made = config("hierarchical", **{"data.unique_names": unique})
        labelled = experiment.labelled(made, source)
        experiment.check_labels(made.for_labels(labelled.tree), labelled)

    with pytest.raises(ValueError, match=message):
        check([[0, 0], [0, 1], [0, -1], [-1, -1]])
    check([[0, 0], [1, 1], [0, -1], [-1, -1]])


def test_a_batch_without_labels_is_named():
    with pytest.raises(ValueError, match="the batch has no labels"):
        loss_of(hierarchical(probe=False), linear_params(0), np.zeros((BATCH, 0)))


# Whole steps and whole runs, on a small network


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method.form": "paper"},
        {"method.form": "paper", "method.constraint": "pair_anchor"},
    ],
)
def test_eight_devices_give_the_same_as_one(changes):
    """Paths are sorted and gathered with the embeddings: relatives are on other devices."""
    made = config("hierarchical", **{"method.level": "fine", **changes}).for_labels(TREE)
    learned, measured = labelled_run.same_on_eight_devices(made)
    assert np.any(learned["method"]["kernel"])
    assert measured["same_leaf"] > 1


@pytest.fixture
def emoji(tmp_path, monkeypatch):
    """The config of a run on three levels of emoji, in batches of relatives, with a small network."""
    monkeypatch.setattr(models, "build", tiny_network.build)
    changes = {"data.name": "emoji", "data.path": "", "data.image_size": 32, "data.channels": 3}
    changes |= {"data.sampler": "hierarchical", "mesh.compile_cache": str(tmp_path / "xla")}
    return config("hierarchical", **changes)


def test_a_run_on_batches_of_relatives(emoji, tmp_path):
    result = train.train(emoji, str(tmp_path))
    assert result["complete"]
    # A group of five rows has one pair of the same leaf: three of them in a batch of 16.
    assert result["metrics"]["same_leaf"] >= 6 / 16
    assert 0 <= result["metrics"]["floored_category"] <= 1
    assert np.isfinite(result["metrics"]["loss_subcategory"])
    assert result["metrics"]["rejected"] == 0


def leaves(root, step=6):
    """A digest of every array of the train state."""
    return checkpoint.read_manifest(root, step).leaves


@pytest.mark.slow
def test_an_interrupted_run_becomes_the_run_that_was_not(emoji, tmp_path, monkeypatch):
    train.train(emoji, str(tmp_path / "whole"))
    real = data.train_batches

    def breaks(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 3:
                raise OSError("gone")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data, "train_batches", breaks)
        with pytest.raises(OSError, match="gone"):
            train.train(emoji, str(tmp_path / "broken"))
    train.train(emoji, str(tmp_path / "broken"))
    assert any("params/method/kernel" in name for name in leaves(tmp_path / "broken"))
    assert leaves(tmp_path / "broken") == leaves(tmp_path / "whole")
