"""SupCon: the loss that it makes of a network's outputs, its joint probe, and its two stages."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import labelled_run
import numpy as np
import pytest
import tiny_network
from labelled_run import BATCH, TREE, config, distance, linear_params, linear_views, loss_of
from PIL import Image

from jaxcl import checkpoint, data, evaluators, losses, models, probe, train
from jaxcl import config as config_lib
from jaxcl.data import LabelTree
from jaxcl.methods import SimCLR, SupCon
from jaxcl.methods.labels import LabelLevels
from jaxcl.probe import Options

LEVELS = LabelLevels(TREE.levels, (2, 3))
LABELS = np.array([[0, 0], [0, 1], [0, 0], [1, 2], [1, 2], [1, 2]])


def supcon(**changes):
    method = config("supcon").build_method()
    return SupCon(method.views, features=5, labels=LEVELS, **changes)


def embeddings(params, seed=0):
    images = linear_views(seed).images
    return (images.reshape(2 * BATCH, -1) @ params["w"] @ params["p"]).reshape(BATCH, 2, -1)


def by_loops(z, labels, temperature, variant="out", denominator="all", contrast="all"):
    """SupCon of z[B,V,D] in float64; every image has a label."""
    rows = np.asarray(z, np.float64).reshape(-1, z.shape[-1])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels, anchors = np.repeat(labels, z.shape[1]), range(len(rows))
    losses_of_anchors = []
    for i in anchors if contrast == "all" else anchors[:: z.shape[1]]:
        s = np.exp(rows @ rows[i] / temperature)
        positives = [j for j in anchors if j != i and labels[j] == labels[i]]
        negatives = sum(s[j] for j in anchors if labels[j] != labels[i])
        pushed = {
            "all": [sum(s[j] for j in positives) + negatives for _ in positives],
            "one_positive": [s[j] + negatives for j in positives],
            "only_negatives": [negatives for _ in positives],
        }[denominator]
        p = [s[j] / below for j, below in zip(positives, pushed, strict=True)]
        losses_of_anchors.append(-np.mean(np.log(p)) if variant == "out" else -np.log(np.mean(p)))
    return np.mean(losses_of_anchors)


def overlap_by_loops(z, labels, temperature):
    """Pairs of rows by the Jaccard index of their images' labels[B,L], all of which are known; "out"."""
    rows = np.asarray(z, np.float64).reshape(-1, z.shape[-1])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    image, total = np.repeat(np.arange(len(z)), z.shape[1]), 0.0
    sets = [set(enumerate(row)) for row in np.asarray(labels).tolist()]
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        s = rows @ row / temperature
        push = np.log(sum(np.exp(s[j]) for j in others))
        a = sets[image[i]]
        weights = [len(a & sets[image[j]]) / len(a | sets[image[j]]) for j in others]
        total += sum(w * (push - s[j]) for w, j in zip(weights, others, strict=True)) / sum(weights)
    return total / len(rows)


def test_the_loss_is_that_of_the_projections_and_the_chosen_labels():
    """With both repositories' scales: tau / 0.07 and tau."""
    params = linear_params(0)
    z = embeddings(params)
    for settings, level, scale in (
        ({}, 1, 1.0),
        ({"level": "coarse", "base_temperature": 0.07}, 0, 0.1 / 0.07),
        ({"level": "0", "base_temperature": 1.0}, 0, 0.1),
    ):
        out = loss_of(supcon(**settings), params, LABELS)
        expected = by_loops(z, LABELS[:, level], 0.1) * scale
        np.testing.assert_allclose(out.loss, expected, rtol=2e-6)


def test_the_settings_of_the_loss_arrive():
    params = linear_params(0)
    z = embeddings(params)
    modes = {"variant": "in", "denominator": "one_positive", "contrast": "one"}
    for settings in (modes, {"variant": "in"}, {"denominator": "only_negatives"}):
        out = loss_of(supcon(temperature=0.2, **settings), params, LABELS)
        expected = by_loops(z, LABELS[:, 1], 0.2, **settings)
        np.testing.assert_allclose(out.loss, expected, rtol=2e-6)
    modes = {"positives_cap": 2, "reduction": "mean_valid"}
    out = loss_of(supcon(**modes), params, LABELS)
    np.testing.assert_allclose(out.loss, losses.sup_con_modes(z, LABELS[:, 1], **modes), rtol=1e-6)
    out = loss_of(supcon(overlap=True), params, LABELS)
    np.testing.assert_allclose(out.loss, overlap_by_loops(z, LABELS, 0.1), rtol=2e-6)
    assert abs(out.loss - by_loops(z, LABELS[:, 1], 0.1)) > 1e-3


def test_levels_by_name_and_number():
    for level, column in (("", 1), ("fine", 1), ("coarse", 0), ("0", 0), ("-1", 1), ("-2", 0)):
        assert LEVELS.column(level) == column
    labels = jnp.asarray(LABELS)
    np.testing.assert_array_equal(LEVELS.of(labels, "coarse"), LABELS[:, 0])
    np.testing.assert_array_equal(LabelLevels().of(labels, ""), LABELS[:, 1])


def test_without_labels_it_is_simclr():
    params = linear_params(1)
    simclr = SimCLR(supcon().views)
    expected = loss_of(simclr, params, LABELS).loss
    for labels in (np.full(BATCH, -1), np.arange(BATCH)):
        for variant in ("out", "in"):
            out = loss_of(supcon(variant=variant, probe=False), params, labels)
            np.testing.assert_allclose(out.loss, expected, rtol=1e-6)


def test_a_batch_of_one_class_is_finite():
    method, params = supcon(), linear_params(2)

    def loss(params):
        return loss_of(method, params, np.zeros(BATCH)).loss

    value, gradient = jax.value_and_grad(loss)(params)
    assert value > 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


def test_equal_embeddings_give_the_trivial_loss():
    params = linear_params(0)
    params["w"] = np.zeros_like(params["w"])
    params["p"] = np.zeros_like(params["p"])
    for method in (supcon(), supcon(base_temperature=0.07, variant="in")):
        value = loss_of(method, params, LABELS).loss
        np.testing.assert_allclose(value, method.trivial_loss(BATCH), rtol=1e-6)
    assert supcon(denominator="one_positive").trivial_loss(BATCH) is None


# The joint probe


def test_the_joint_probe_changes_nothing_but_itself():
    """The encoder's gradient and the loss are the same bits whatever the classifier is."""
    method = supcon()
    step = jax.jit(jax.value_and_grad(lambda params: loss_of(method, params, LABELS).loss))
    params = linear_params(0)
    value, gradient = step(params)
    other = {**params, "method": linear_params(9)["method"]}
    other_value, other_gradient = step(other)
    assert value == other_value
    for name in ("w", "p"):
        np.testing.assert_array_equal(gradient[name], other_gradient[name])
        assert np.any(gradient[name])
    assert distance(other_gradient["method"], gradient["method"]) > 0.1
    # It gets the gradient of its own cross-entropy, on both views of each image.
    h = np.asarray(linear_views(0).images.reshape(2 * BATCH, -1) @ params["w"], np.float64)
    logits = h @ params["method"]["kernel"] + params["method"]["bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(2 * BATCH), np.repeat(LABELS[:, 1], 2)] -= 1
    np.testing.assert_allclose(gradient["method"]["kernel"], h.T @ p / 12, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient["method"]["bias"], p.mean(0), rtol=1e-4, atol=1e-6)


def test_the_joint_probe_is_measured():
    params = linear_params(0)
    out = loss_of(supcon(), params, np.where(np.arange(BATCH)[:, None] < 5, LABELS, -1))
    h = linear_views(0).images.reshape(2 * BATCH, -1) @ params["w"]
    logits = h @ params["method"]["kernel"] + params["method"]["bias"]
    right = logits.argmax(1)[:10] == np.repeat(LABELS[:5, 1], 2)
    np.testing.assert_allclose(out.metrics["probe_accuracy"], right.mean(), rtol=1e-6)
    assert out.metrics["probe_loss"] > 0
    # Of five labelled images two are alone or in pairs: 1 + 0 + 1 + 1 + 1 others, over six images.
    np.testing.assert_allclose(out.metrics["same_class"], 4 / 6, rtol=1e-6)
    silent = loss_of(supcon(probe=False), params, LABELS)
    assert "probe_accuracy" not in silent.metrics
    assert supcon(probe=False).init_params(jax.random.key(0)) == {}
    shapes = jax.tree.map(jnp.shape, supcon().init_params(jax.random.key(0)))
    assert shapes == {"kernel": (5, 3), "bias": (3,)}
    assert supcon(classes=7).init_params(jax.random.key(0))["bias"].shape == (7,)


# Labels of the data


def test_the_levels_of_the_data_are_learned_from_the_data():
    unbound = config("supcon", **{"method.level": "coarse"})
    bound = unbound.for_labels(TREE)
    method = bound.build_method()
    assert method.labels == LEVELS
    assert method.features == 16
    # A stored config says it all.
    assert config_lib.from_dict(config_lib.to_dict(bound)) == bound
    assert config_lib.from_dict(config_lib.to_dict(bound)).build_method() == method
    assert config("simclr").for_labels(TREE) == config("simclr")


@pytest.mark.parametrize(
    ("changes", "tree", "message"),
    [
        ({}, LabelTree(), r"'supcon' learns from labels, and the training data have none: say where"),
        ({"method.level": "genus"}, TREE, r"'genus': the data have the levels \['coarse', 'fine'\]"),
        ({"method.level": "2"}, TREE, r"'2': the data have the levels \['coarse', 'fine'\]"),
        ({"method.level": "-3"}, TREE, r"'-3': the data have the levels"),
        ({"method.classes": 2}, TREE, r"method.classes=2: the data have 3 at level 'fine'"),
        ({"method.variant": "mean"}, TREE, r"method.variant='mean': expected one of out, in"),
        ({"method.denominator": "none"}, TREE, r"expected one of all, one_positive, only_negatives"),
        ({"method.overlap": True, "method.contrast": "one"}, TREE, r"expected 'all' for both"),
        ({"method.positives_cap": 3}, TREE, r"positives_cap=3 with 2 views: expected a multiple"),
        ({"method.overlap": True, "method.positives_cap": 2}, TREE, r"positives have weights"),
        ({"method.reduction": "sum"}, TREE, r"reduction='sum': expected one of mean, mean_valid"),
        ({"method.base_temperature": -1.0}, TREE, r"base_temperature=-1.0: expected"),
        ({"method.temperature": 0.0}, TREE, r"temperature=0.0: expected a number above 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, tree, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config("supcon", **changes).for_labels(tree)


def test_what_is_not_known_yet_is_named():
    unbound = config("supcon").build_method()
    with pytest.raises(ValueError, match="number of classes is not known"):
        unbound.init_params(jax.random.key(0))
    with pytest.raises(ValueError, match="needs the width of h"):
        SupCon(unbound.views, labels=LEVELS).init_params(jax.random.key(0))
    with pytest.raises(ValueError, match="names of the label levels are not known"):
        LabelLevels().column("fine")
    with pytest.raises(ValueError, match="labels of 0 level"):
        LabelLevels().of(jnp.zeros((4, 0), int), "")


# Whole steps and whole runs, on a small network


def test_eight_devices_give_the_same_as_one():
    """Labels are gathered with the embeddings: positives are on other devices."""
    made = config("supcon").for_labels(TREE)
    learned, measured = labelled_run.same_on_eight_devices(made)
    assert np.any(learned["method"]["kernel"])
    assert measured["same_class"] > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, (2, 4)),
        ({"variant": "in", "denominator": "one_positive", "contrast": "one"}, (2, 8)),
        ({"denominator": "only_negatives", "base_temperature": 0.07}, (4, 8)),
        ({"overlap": True, "variant": "in"}, (2, 8)),
    ],
)
def test_every_form_of_the_loss_on_any_number_of_devices(changes, counts):
    made = config("supcon", **{f"method.{name}": value for name, value in changes.items()})
    labelled_run.same_on_devices(made.for_labels(TREE), counts)


@pytest.fixture
def tiny(monkeypatch):
    """A small network in the place of every ResNet."""
    monkeypatch.setattr(models, "build", tiny_network.build)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return labelled_run.write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def stage_one(digits, tmp_path_factory):
    """(config, workdir) of a whole run."""
    workdir = tmp_path_factory.mktemp("stage one")
    made = config(
        "supcon",
        **{
            "data.path": str(digits),
            "evaluation.gallery": "train",
            "evaluation.validation": "test",
            "evaluation.ks": (1, 5),
            "mesh.compile_cache": str(tmp_path_factory.mktemp("xla")),
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", tiny_network.build)
        result = train.train(made, str(workdir))
    assert result["complete"]
    assert 0 <= result["metrics"]["probe_accuracy"] <= 1
    return made, workdir


def leaves(root, step=6):
    """A digest of every array of the train state."""
    return checkpoint.read_manifest(root, step).leaves


def test_an_interrupted_run_becomes_the_run_that_was_not(stage_one, tiny, tmp_path, monkeypatch):
    made, workdir = stage_one
    real = data.train_batches

    def breaks(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 3:
                raise OSError("gone")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data, "train_batches", breaks)
        with pytest.raises(OSError, match="gone"):
            train.train(made, str(tmp_path))
    train.train(made, str(tmp_path))
    assert any("params/method/kernel" in name for name in leaves(tmp_path))
    assert leaves(tmp_path) == leaves(workdir)


def test_several_labels_of_an_image_stay_apart_in_a_run(tiny, tmp_path, monkeypatch):
    """From a table to the method: two images share what they share in any column, whatever the columns before it say."""
    rows = [("m", "red", "yes"), ("n", "red", "yes"), ("", "red", "yes"), ("m", "blue", "")] * 2
    lines = ["path,style,colour,tag"]
    for i, row in enumerate(rows):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(",".join((f"{i}.png", *row)))
    (tmp_path / "images.csv").write_text("\n".join(lines))
    columns = {
        "data.name": "table",
        "data.path": str(tmp_path / "images.csv"),
        "data.label_keys": ("style", "colour", "tag"),
        "method.level": "colour",
    }
    seen, real = [], data.train_batches

    def watched(*args, **kwargs):
        for batch in real(*args, **kwargs):
            seen.append(batch)
            yield batch

    monkeypatch.setattr(data, "train_batches", watched)

    def shared_in_a_run(**changes):
        made = config("supcon", **columns, **changes, steps=1, batch_size=8)
        train.train(made, str(tmp_path / str(len(seen))))
        (batch,), seen[:] = seen[:], ()
        (label, index) = (np.asarray(batch[name]) for name in ("label", "index"))
        label = label[np.argsort(index)]
        stored = json.loads((tmp_path / "0" / "config.json").read_text())["method"]["labels"]
        return ((label[:, None] == label[None]) & (label[:, None] >= 0)).sum(-1), stored

    expected = [[sum(x == y != "" for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    assert expected[0][1] == expected[1][2] == 2
    found, labels = shared_in_a_run(**{"method.overlap": True})
    np.testing.assert_array_equal(found, expected)
    assert labels == {"names": ["style", "colour", "tag"], "classes": [2, 2, 1]}
    shutil.rmtree(tmp_path / "0")
    by_path, labels = shared_in_a_run()  # as levels of a tree
    assert by_path[0, 1] == by_path[1, 2] == 0
    assert labels["classes"] == [2, 3, 2]


def digest(directory):
    found = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(directory)).encode() + path.read_bytes())
    return found.hexdigest()


def test_the_second_stage_cannot_change_the_first(stage_one, tiny, monkeypatch):
    """Hashes of the checkpoint, and of the encoder's arrays as the classifier's training saw them."""
    _, workdir = stage_one
    before, seen = digest(workdir / "checkpoints"), []
    real = evaluators.linear_sgd

    def hash_of(tree):
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(tree):
            found.update(np.asarray(leaf).tobytes())
        return found.hexdigest()

    def watched(task, network, variables, recipe):
        first = hash_of(variables)
        trained = real(task, network, variables, recipe)
        assert np.any(trained.params["classifier"]["kernel"])
        assert set(trained.params) == {"classifier"}
        seen.append((first, hash_of(variables), hash_of(trained.variables)))
        return trained

    monkeypatch.setattr(evaluators, "linear_sgd", watched)
    options = Options(str(workdir), evaluations=("sgd",), epochs=2, batch_size=32, baselines=False)
    record = probe.probe(options)
    assert [row["method"] for row in record["rows"]] == ["sgd", "sgd top-5"]
    assert len(seen) == 1
    first, after, returned = seen[0]
    assert first == after == returned
    assert digest(workdir / "checkpoints") == before
