"""Probing a checkpoint: what is restored, on which data, and what is written."""

import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import struct
import sys

import jax
import numpy as np
import pytest
import tiny_network
from etils import epath
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from jaxcl import checkpoint, data, evaluators, mesh, models, optim, probe
from jaxcl import config as config_lib
from jaxcl.data.command import setting_value
from jaxcl.evaluators import Layer
from jaxcl.probe import Options, ProbeError
from jaxcl.state import make_init
from jaxcl.views import presets

SHAPE = (8, 8, 1)
TRAIN, TEST = 200, 80


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits as IDX files."""
    directory = tmp_path_factory.mktemp("digits")
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    for prefix, rows in (("train", slice(0, TRAIN)), ("t10k", slice(TRAIN, TRAIN + TEST))):
        count = len(images[rows])
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 8, 8)
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(header + images[rows].tobytes())
        header = struct.pack(">BBBBI", 0, 0, 8, 1, count)
        labels = y[rows].astype(np.uint8).tobytes()
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels)
    return directory


@pytest.fixture
def tiny(monkeypatch):
    """A small network in the place of every ResNet."""
    monkeypatch.setattr(models, "build", tiny_network.build)


def make_config(directory, method="simclr", **changes):
    c = config_lib.base(method, presets.simclr(8, strength=0.5, blur=False))
    c.name, c.steps, c.batch_size, c.seed = "tiny", 40, 16, 3
    c.data.name, c.data.path = "idx", str(directory)
    c.data.image_size, c.data.channels, c.data.threads = 8, 1, 1
    c.model.width, c.model.stem = 1 / 32, "cifar"
    if "projection" in c.method:
        c.method.projection.layers = (12, 6)
    c.evaluation.gallery, c.evaluation.validation, c.evaluation.test = "train", "test", ""
    c.evaluation.ks, c.evaluation.batch_size = (1, 7), 32
    c.mesh.compile_cache = ""
    c.update_from_flattened_dict(changes)
    return config_lib.from_dict(c)


def make_state(config, seed):
    method = config.build_method()
    model = models.build(config.model, method.heads)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), SHAPE))["params"]
    params["method"] = jax.eval_shape(method.init_params, jax.random.key(0))
    schedule = optim.make_schedule(config.optim, 400, 10, 16)
    tx = optim.make_optimizer(config.optim, params, schedule)
    return jax.jit(make_init(method, model, tx, SHAPE))(jax.random.key(seed))


def save(workdir, config, state, step=40, place="checkpoints"):
    with checkpoint.Checkpoints(
        workdir / place, config=config_lib.to_dict(config), content_id="x", log=lambda line: None
    ) as saved:
        saved.save(step, state)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """(config, state, directory) of a run whose network is not the one that its seed gives."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", tiny_network.build)
        config = make_config(digits)
        state = make_state(config, seed=99)
        save(directory, config, state)
    return config, state, directory


@pytest.fixture
def workdir(tiny, run, tmp_path):
    """A copy of the run's directory."""
    return shutil.copytree(run[2], tmp_path / "run")


def arrays(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


def digest(directory):
    found = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(directory)).encode() + path.read_bytes())
    return found.hexdigest()


def restore(workdir, config, layer="h"):
    method = config.build_method()
    model = models.build(config.model, method.heads)
    network = Layer.parse(layer, tuple(method.heads)).of(model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), SHAPE))
    sharding = mesh.replicated(mesh.make_mesh())
    return (
        network,
        probe.restore(workdir / "checkpoints", None, network, shapes, sharding)[0],
    )


def test_table_of_three_networks(workdir, digits, capsys):
    before = digest(workdir / "checkpoints")
    record = probe.probe(Options(str(workdir)))
    assert [(r["features"], r["method"]) for r in record["rows"]] == [
        (name, method)
        for name in ("raw pixels", "untrained encoder", "trained encoder")
        for method in ("knn", "linear", "linear top-5")
    ]
    assert {r["queries"] for r in record["rows"]} == {TEST}
    by_name = {(r["features"], r["method"]): r for r in record["rows"]}
    pixels = by_name["raw pixels", "linear"]
    assert pixels["accuracy"] > 0.8
    assert pixels["settings"]["trained_on"] == TRAIN
    # The config names no test split: its validation split is scored, and chooses nothing.
    assert record["splits"] == {
        "train": "the rest of train",
        "validation": "10% of train",
        "last": "train",
        "test": "test",
    }
    # The numbers are those of the evaluators on the same features.
    config = make_config(digits)
    last, test = (data.load(config.data, split) for split in ("train", "test"))
    features = [
        evaluators.raw_pixels(data.eval_batches(source, 50, config.data)) for source in (last, test)
    ]
    expected = evaluators.knn(*features, ks=(1, 5), metric="cosine").accuracy
    details = record["details"]["raw pixels/knn/label"]["cosine"]
    assert details["1"] == expected[1]
    assert details["5"] == expected[5]
    # What was written, and what was not.
    assert digest(workdir / "checkpoints") == before
    assert json.loads((workdir / "probe.json").read_text()) == [json.loads(json.dumps(record))]
    printed = capsys.readouterr().out
    assert "verified" in printed
    assert f"{100 * pixels['accuracy']:.1f}" in printed
    probe.probe(Options(str(workdir), evaluations=("knn",), baselines=False))
    assert len(json.loads((workdir / "probe.json").read_text())) == 2


def test_only_what_the_layer_needs_is_restored_bit_by_bit(workdir, run):
    config, state, _ = run
    images = jax.random.uniform(jax.random.key(0), (5, *SHAPE))
    whole = {"params": state.params, "batch_stats": state.batch_stats}
    for layer, parts in (
        ("h", {"backbone"}),
        ("z", {"backbone", "head_projection"}),
        ("head:1", {"backbone", "head_projection"}),
    ):
        network, variables = restore(workdir, config, layer)
        assert set(variables["params"]) == set(variables["batch_stats"]) == parts
        assert equal(variables, network.select(whole))
        features = network.encode(variables, images)
        assert np.array_equal(features, network.encode(network.select(whole), images))


def test_untrained_encoder_is_the_one_that_the_run_started_from(workdir, digits, monkeypatch):
    seen = {}

    def features(self, variables, source):
        seen[len(seen)] = variables
        return evaluators.raw_pixels(self.batches(source))

    monkeypatch.setattr(probe.Networks, "features", features)
    probe.probe(Options(str(workdir), evaluations=("knn",)))
    config = make_config(digits)
    started = make_state(config, config.seed).params["backbone"]
    assert [v is None for v in seen.values()] == [True, True, False, False, False, False]
    assert equal(seen[2]["params"]["backbone"], started)
    assert not equal(seen[4]["params"]["backbone"], started)


def test_sgd_and_finetuning_with_few_labels_and_the_control(workdir, capsys):
    before = digest(workdir / "checkpoints")
    record = probe.probe(
        Options(
            str(workdir),
            evaluations=("sgd", "finetune"),
            labels=(0.5,),
            baselines=False,
            epochs=3.0,
            batch_size=64,
            lr=0.5,
        )
    )
    rows = {(r["features"], r["method"]): r for r in record["rows"]}
    assert list(rows) == [
        ("trained encoder", "sgd 50%"),
        ("trained encoder", "sgd 50% top-5"),
        ("trained encoder", "finetune 50%"),
        ("untrained encoder", "finetune 50%"),
    ]
    first, top5 = list(rows.values())[:2]
    assert first["accuracy"] <= top5["accuracy"] <= 1
    probed, _, tuned, control = (row["settings"] for row in rows.values())
    assert probed["trained_on"] == tuned["trained_on"] == control["trained_on"] == 100
    assert (tuned["batch_size"], probed["steps"], tuned["steps"], control["steps"]) == (64, 3, 3, 6)
    assert "50% of the labels" in capsys.readouterr().out
    assert digest(workdir / "checkpoints") == before


def falls(rate, epochs, factor):
    """A learning rate that is multiplied by `factor` after these epochs."""
    return lambda epoch: rate * factor ** sum(epoch >= e for e in epochs)


def cosine(rate, epochs):
    """MoCo v3's, which counts whole epochs from 0."""
    return lambda epoch: rate * (1 + math.cos(math.pi * math.floor(epoch) / epochs)) / 2


def exponential(rate):
    """Google's SupCon: a warm-up of 12 epochs, then times 0.97 with every half of an epoch that is over."""
    return lambda epoch: rate * (epoch / 12 if epoch < 12 else 0.97 ** math.floor(2 * (epoch - 12)))


def momentum_sgd(g, w, v, memory, rate):
    return 0.9 * v + g, rate


def tensorflow_rmsprop(g, w, v, memory, rate):
    """Epsilon 0.001, and the rate within the momentum."""
    g = g + 1e-6 * w
    memory["square"] = 0.9 * memory.get("square", 1) + 0.1 * g**2
    return 0.9 * v + rate * g / np.sqrt(memory["square"] + 1e-3), 1


# What the papers' code does: batch, rate of it by the epoch, epochs, smallest crop, deviation of the first weights.
PAPERS = {
    "moco": (256, falls(30.0, (60, 80), 0.1), 100, 0.08, 0.01),
    "moco_v3": (1024, cosine(0.4, 90), 90, 0.08, 0.01),
    "supcon": (512, falls(5.0, (60, 75, 90), 0.2), 100, 0.2, 0.0),
    # Glorot's limit for 2048 features and 1000 classes is 0.04437; a uniform distribution deviates by a root of 3 less.
    "supcon_imagenet": (6144, exponential(1.2), 90, 0.08, 0.025616),
    "looc": (256, falls(30.0, (120, 160), 0.1), 200, 0.08, 0.01),
    "himulcone": (256, falls(0.5, (30, 60, 90), 0.2), 100, None, 0.0),
}


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_of_linear_probes_against_a_replay(workdir, monkeypatch, name):
    """Optimizer and rate over all epochs of four steps, in NumPy."""
    batch, rate, epochs, crop, std = PAPERS[name]
    seen = []

    def linear_sgd(task, network, variables, recipe):
        seen.append((task, recipe))
        return trained_to(0.5)

    monkeypatch.setattr(evaluators, "linear_sgd", linear_sgd)
    options = Options(str(workdir), evaluations=("sgd",), recipe=name, baselines=False)
    record = probe.probe(options)
    assert record["rows"][0]["settings"]["recipe"] == name
    (task, recipe), *_ = seen
    assert (recipe.epochs, recipe.batch_size, recipe.steps) == (epochs, batch, 0)
    assert recipe.init_std == pytest.approx(std, rel=1e-4)
    google = name == "supcon_imagenet"
    assert (recipe.normalize, recipe.smoothing) == ((True, 0.05) if google else (False, 0.0))
    if crop is None:
        assert task.views is None
    else:
        assert dict(task.views.ops)["crop"].scale == (crop, 1.0)
    weights = {"classifier": {"kernel": np.ones(2), "bias": np.zeros(2)}}
    rule, memory = tensorflow_rmsprop if google else momentum_sgd, {}
    with jax.enable_x64(True):
        tx = recipe.optimizer(weights, 4 * epochs, 4, batch)
        update = jax.jit(lambda g, state, w: tx.update(g, state, w))
        state, w, v = tx.init(weights), np.ones(2), np.zeros(2)
        for step in range(4 * epochs):
            gradient = np.random.default_rng(step).normal(size=2)
            v, factor = rule(gradient, w, v, memory, rate(step / 4))
            w = w - factor * v
            slopes = {"classifier": {"kernel": gradient, "bias": gradient}}
            moves, state = update(slopes, state, weights)
            weights = jax.tree.map(np.add, weights, moves)
    np.testing.assert_allclose(weights["classifier"]["kernel"], w, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_long_recipe_in_a_few_steps(workdir, steps):
    """Its warm-up and its 155 falls of the rate come together then, which is no error."""
    changes = {"recipe": "supcon_imagenet", "epochs": 1.0, "batch_size": TRAIN // steps}
    record = probe.probe(Options(str(workdir), evaluations=("sgd",), baselines=False, **changes))
    assert [row["method"] for row in record["rows"]] == ["sgd", "sgd top-5"]
    for row in record["rows"]:
        assert row["settings"]["steps"] == steps
        assert row["settings"]["recipe"] == "supcon_imagenet"


def test_none_of_the_command_line_is_none_and_a_number_may_be_text():
    assert setting_value("None", "semihard") is None
    assert setting_value("2019", "2017") == "2019"
    assert setting_value("3", None) == 3


def test_settings_of_a_recipe_can_be_replaced(workdir, monkeypatch):
    """A tenth of the epochs: the rate falls after a tenth of those of the paper."""
    seen = []

    def linear_sgd(task, network, variables, recipe):
        params = {"classifier": {"kernel": np.ones(()), "bias": np.ones(())}}
        tx = recipe.optimizer(params, 100, 10, recipe.batch_size)
        state, ones, moves = tx.init(params), jax.tree.map(np.ones_like, params), []
        for _ in range(100):
            move, state = tx.update(ones, state, params)
            moves.append(float(move["classifier"]["bias"]))
        seen.append((recipe, moves))
        return trained_to(0.5)

    monkeypatch.setattr(evaluators, "linear_sgd", linear_sgd)
    changes = {"epochs": 10.0, "lr": 0.5, "batch_size": 128}
    options = Options(str(workdir), evaluations=("sgd",), recipe="moco", baselines=False, **changes)
    probe.probe(options)
    (recipe, moves), *_ = seen
    assert (recipe.epochs, recipe.batch_size) == (10, 128)
    velocity = np.cumsum(0.9 ** np.arange(100))
    rates = 0.25 * 0.1 ** ((np.arange(100) >= 60) + 1.0 * (np.arange(100) >= 80))
    np.testing.assert_allclose(moves, -rates * velocity, rtol=1e-5)


def test_a_recipe_without_augmentation_learns_from_images_as_they_are_scored(workdir, monkeypatch):
    """Two steps with all images, against softmax regression in NumPy on the features of a test."""
    seen, real = [], evaluators.linear_sgd

    def linear_sgd(task, network, variables, recipe):
        seen.append((task, network, variables, real(task, network, variables, recipe)))
        return seen[-1][-1]

    monkeypatch.setattr(evaluators, "linear_sgd", linear_sgd)
    changes = {"recipe": "himulcone", "epochs": 2.0, "batch_size": TRAIN, "lr": 0.01}
    probe.probe(Options(str(workdir), evaluations=("sgd",), baselines=False, **changes))
    (task, network, variables, trained), *_ = seen
    h = np.asarray(network.encode(variables, task.train.images / 255), np.float64)
    y = np.eye(10)[task.train.labels[:, 0]]
    w, b, v = np.zeros((h.shape[1], 10)), np.zeros(10), 0
    # Of 100 epochs, 30 and 60 are 0.6 and 1.2 of two: both falls are after the first step.
    for rate in (0.01, 0.01 * 0.2**2):
        p = np.exp(h @ w + b)
        p = (p / p.sum(1, keepdims=True) - y) / TRAIN
        v = 0.9 * v + np.concatenate([h.T @ p, p.sum(0)[None]])
        move = rate * TRAIN / 256 * v
        w, b = w - move[:-1], b - move[-1]
    np.testing.assert_allclose(trained.params["classifier"]["kernel"], w, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(trained.params["classifier"]["bias"], b, rtol=2e-3, atol=1e-6)


def test_the_key_encoder_is_probed(digits, tiny, tmp_path):
    """With the parameters and the statistics of its own; a run without one is refused."""
    config = make_config(digits, "moco", **{"method.bn": "global", "method.queue_size": 20})
    state, other = make_state(config, 1), make_state(config, 2)
    stats = jax.tree.map(lambda x: x + 0.5, other.extra["key_stats"])
    keys = {"key_params": other.extra["key_params"], "key_stats": stats}
    save(tmp_path / "moco", config, dataclasses.replace(state, extra=state.extra | keys))
    twin = dataclasses.replace(other, batch_stats=stats)
    save(tmp_path / "twin", config, twin)
    settings = {"evaluations": ("knn", "linear"), "baselines": False, "layer": "z"}
    rows = {
        (name, encoder): probe.probe(Options(str(tmp_path / name), encoder=encoder, **settings))
        for name, encoder in (("moco", "key"), ("moco", "trained"), ("twin", "trained"))
    }
    assert [record["encoder"] for record in rows.values()] == ["key", "trained", "trained"]
    key, trained, expected = (record["rows"] for record in rows.values())
    assert key == expected
    assert key != trained
    save(tmp_path / "simclr", simclr := make_config(digits), make_state(simclr, 1))
    with pytest.raises(ProbeError, match="--encoder=key: 'simclr' has kept no key encoder"):
        probe.probe(Options(str(tmp_path / "simclr"), encoder="key"))


@pytest.mark.parametrize("method", ["supervised", "supcon"])
def test_the_own_classifier_is_scored(digits, tiny, tmp_path, method):
    """Its head, or its joint probe, as NumPy scores them."""
    config = make_config(digits, method)
    config = config.for_labels(data.load(config.data, "train").tree)
    state = make_state(config, 1)
    rng = np.random.default_rng(0)
    own = {"kernel": rng.normal(size=(16, 10)), "bias": rng.normal(size=10)}
    own = jax.tree.map(lambda x: x.astype(np.float32), own)
    params = dict(state.params)
    if method == "supcon":
        params["method"] = own
    save(tmp_path, config, dataclasses.replace(state, params=params))
    options = Options(str(tmp_path), evaluations=("classifier",), baselines=False)
    (found,) = probe.probe(options)["rows"]
    model = models.build(config.model, config.build_method().heads)
    test = data.load(config.data, "test")
    images = test.images.astype(np.float32) / 255
    (h, heads), _ = model.apply(params, state.batch_stats, images, False)
    logits = heads["classifier"][-1] if method == "supervised" else h @ own["kernel"] + own["bias"]
    expected = np.mean(np.argmax(logits, 1) == test.labels[:, 0])
    assert (found["method"], found["level"], found["queries"]) == ("classifier", "label", TEST)
    np.testing.assert_allclose(found["accuracy"], expected)
    assert 0 < expected < 1


def test_a_method_without_a_classifier_has_none_to_score(workdir):
    options = Options(str(workdir), evaluations=("classifier",), baselines=False)
    with pytest.raises(ProbeError, match="'simclr' of this run has trained none; --eval=linear"):
        probe.probe(options)


def test_other_evaluators_of_frozen_features(workdir, digits, capsys, monkeypatch):
    some = {k: evaluators.CORRUPTIONS[k] for k in ("impulse_noise", "contrast")}
    monkeypatch.setattr(sys.modules["jaxcl.evaluators.corruption"], "CORRUPTIONS", some)
    record = probe.probe(
        Options(
            str(workdir),
            evaluations=("retrieval", "rotation", "corruption"),
        )
    )
    rows = {(r["features"], r["method"], r["level"]): r for r in record["rows"]}
    assert len(rows) == len(record["rows"])
    config = make_config(digits)
    test = data.load(config.data, "test")
    pixels = evaluators.raw_pixels(data.eval_batches(test, 50, config.data))
    found = evaluators.retrieval(pixels)
    for k in (1, 10):
        assert rows["raw pixels", f"retrieval/recall@{k}", "label"]["accuracy"] == found.recall[k]
    turns = rows["raw pixels", "rotation/accuracy", "all"]
    assert turns["queries"] == 4 * TEST
    assert turns["settings"]["trained_on"] == 4 * TRAIN
    assert turns["accuracy"] > 0.7
    for name in ("raw pixels", "untrained encoder", "trained encoder"):
        clean = rows[name, "corruption/clean", "label"]["accuracy"]
        assert clean > rows[name, "corruption/mean", "label"]["accuracy"] > 0.1
        details = record["details"][f"{name}/corruption/label"][0]
        assert len(details["severities"]["contrast"]) == 5
    assert "method" in capsys.readouterr().out  # many numbers: the table is turned
    other = probe.probe(
        Options(
            str(workdir),
            evaluations=("retrieval", "factor"),
            factors=("flip.on",),
            gallery="train",
            baselines=False,
        )
    )
    assert other["rows"][0]["settings"]["gallery"] == TRAIN
    assert other["splits"]["gallery"] == "train"
    assert other["rows"][-1]["method"] == "factor/flip.on"
    assert other["rows"][-1]["settings"]["chance"] < 0.6


def test_features_are_taken_of_what_is_needed(workdir, monkeypatch):
    """Without anything to learn those of the test alone, with the same numbers; with something of all."""
    taken, real = [], probe.networks.Networks.features

    def features(self, variables, source):
        taken.append(len(source))
        return real(self, variables, source)

    monkeypatch.setattr(probe.networks.Networks, "features", features)
    rows = {}
    for more, expected in (((), {TEST}), (("knn",), {TEST, TRAIN})):
        options = Options(
            str(workdir), evaluations=("retrieval", "clustering", *more), baselines=False
        )
        rows[more] = {
            (r["method"], r["level"]): r["accuracy"] for r in probe.probe(options)["rows"]
        }
        assert set(taken) == expected
    assert rows[()]
    assert rows[()] == {key: rows["knn",][key] for key in rows[()]}


def test_unseen_classes_are_scored_besides(workdir, capsys):
    options = Options(
        str(workdir), evaluations=("knn", "retrieval"), unseen="train", baselines=False
    )
    alone = probe.probe(options)
    methods = {r["method"] for r in alone["rows"]}
    assert {"knn", "retrieval/recall@1", "unseen/retrieval/recall@1"} <= methods
    assert "unseen/knn" not in methods
    both = probe.probe(dataclasses.replace(options, unseen_train="test"))
    rows = {r["method"]: r for r in both["rows"]}
    assert rows["unseen/knn"]["queries"] == TRAIN
    assert rows["unseen/knn"]["settings"]["gallery"] == TEST
    assert rows["knn"]["queries"] == TEST
    assert both["unseen"]["splits"]["last"] == "test"
    assert "unseen classes, 'train'" in capsys.readouterr().out


def test_transfer_to_a_folder(workdir, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, level in (("dark", 40), ("light", 200)):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for i in range(12):
                pixels = np.clip(rng.normal(level, 30, (10, 9, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / split / name / f"{i}.png")
    bad = tmp_path / "own" / "test" / "dark" / "bad.png"
    bad.write_bytes(b"no image")
    momenta = []
    real = evaluators.finetune

    def finetune(task, network, variables, recipe):
        momenta.append(network.model.config.bn_momentum)
        return real(task, network, variables, recipe)

    monkeypatch.setattr(evaluators, "finetune", finetune)
    record = probe.probe(
        Options(
            str(workdir),
            data=f"folder:{tmp_path / 'own'}",
            settings=(
                "data.splits={'train': 'train', 'test': 'test'}",
                "data.on_bad=skip",
                "model.bn_momentum=0.5",
            ),
            evaluations=("knn", "linear", "finetune"),
            baselines=False,
            epochs=1.0,
            batch_size=8,
            scratch=0.0,
            out=str(tmp_path / "elsewhere" / "v1.2"),
        )
    )
    rows = {r["method"]: r for r in record["rows"]}
    assert set(rows) == {"knn", "linear", "finetune"}
    assert {r["queries"] for r in rows.values()} == {24}
    assert rows["linear"]["accuracy"] > 0.9
    assert record["data"]["name"] == "folder"
    assert record["data"]["channels"] == 1  # what the network was trained on
    assert momenta == [0.9]  # by the rule for transfer
    assert (tmp_path / "elsewhere" / "v1.2").exists()
    named = (tmp_path / "elsewhere" / "v1.2.skipped.txt").read_text()
    assert named.startswith(f"{str(bad)!r}\t")
    assert named.count("\n") == 1
    assert record["skipped"] >= 1
    assert not (workdir / "probe.json").exists()


def test_the_spaces_of_a_run_name_the_images_that_they_leave_out(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    config = make_config(tmp_path, **{"data.name": "folder", "data.on_bad": "skip"})
    batches = list(probe.Spaces(config, {}, {}, 8, 1).batches("train"))
    assert sum(int(batch["mask"].sum()) for batch in batches) == 2
    assert f"skipped, cannot be read: {str(tmp_path / '1.png')!r}" in capsys.readouterr().out


def test_images_of_files_are_as_large_as_the_view_needs(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((90, 100), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    changes = {"data.name": "folder", "data.labels": "none", "data.image_size": 40}
    config = make_config(tmp_path, **changes)
    source, said = data.load(config.data, "train"), []
    names = dict.fromkeys(("test", "last"), "train")
    splits = probe.inputs.Splits(source, source, None, None, None, False, names)
    networks = probe.Networks(
        Options(""),
        config,
        splits,
        None,
        (40, 40, 1),
        mesh.make_mesh(),
        {},
        Console(quiet=True),
        data.Skipped(said.append),
    )
    for batches in (networks.batches(source), probe.Spaces(config, {}, {}, 40, 1).batches("train")):
        (batch,) = batches
        assert batch["image"].shape == (32, 46, 46, 1)
    assert networks.features(None, source).h.shape == (3, 40 * 40)


def pair_of(recipe):
    """(learning rate, weight decay * rate) of a recipe, read off the first update that it makes."""
    params = {"classifier": {"kernel": np.ones((), np.float32), "bias": np.ones((), np.float32)}}
    tx = recipe.optimizer(params, 100, 10, 256)

    def update(gradient):
        slopes = jax.tree.map(lambda x: gradient * x, params)
        return jax.tree.map(float, tx.update(slopes, tx.init(params), params)[0])["classifier"]

    # Nesterov: the momentum of the first step is its gradient, and 0.9 of it is taken once more.
    assert update(0.0)["bias"] == 0
    return -update(1.0)["bias"] / 1.9, -update(0.0)["kernel"] / 1.9


def trained_to(accuracy):
    """What a training would give."""
    fields = {field.name: 1 for field in dataclasses.fields(evaluators.ClassifierResult)}
    result = evaluators.ClassifierResult(**{**fields, "accuracy": accuracy})
    return evaluators.Trained(result, {}, {})


def test_the_recipe_for_transfer_is_chosen_on_the_validation_images(workdir, monkeypatch, capsys):
    grids = {
        "grid": probe.Grid((0.01, 0.5), (0.0, 1e-3)),
        "scratch_grid": probe.Grid((0.2,), (1e-4,)),
    }
    monkeypatch.setattr(probe.run, "Descent", functools.partial(probe.Descent, **grids))
    real, calls = evaluators.finetune, []
    told = [0.3, 0.4, 0.6, 0.5, None, 0.7, 0.1]

    def finetune(task, network, variables, recipe):
        accuracy = told[len(calls)]
        trained = trained_to(accuracy) if accuracy else real(task, network, variables, recipe)
        calls.append((task, network, recipe, trained.result))
        return trained

    monkeypatch.setattr(evaluators, "finetune", finetune)
    options = Options(
        str(workdir),
        evaluations=("finetune",),
        recipe="transfer",
        baselines=False,
        epochs=2.0,
        batch_size=64,
        scratch=1.5,
    )
    record = probe.probe(options)
    tuned, control = record["rows"]
    pairs = [pair_of(recipe) for _, _, recipe, _ in calls]
    np.testing.assert_allclose(
        pairs[:4], [(0.01, 0), (0.01, 1e-3), (0.5, 0), (0.5, 1e-3)], rtol=1e-5, atol=1e-9
    )
    held = len(calls[0][0].test)
    assert 15 <= held <= 25  # a tenth of each class
    sizes = [(len(task.train), len(task.test)) for task, _, _, _ in calls]
    choosing, last = (TRAIN - held, held), (TRAIN, TEST)
    assert sizes == [choosing] * 4 + [last, choosing, last]
    np.testing.assert_allclose(pairs[4], pairs[2])
    assert tuned["accuracy"] == calls[4][-1].accuracy
    assert tuned["settings"] == tuned["settings"] | {
        "learning_rate": 0.5,
        "weight_decay": 0.0,
        "validation": 0.6,
        "trained_on": TRAIN,
        "steps": 6,
        "batch_size": 64,
    }
    np.testing.assert_allclose(pairs[5:], [(0.2, 1e-4)] * 2, rtol=1e-5)
    assert (control["features"], control["accuracy"]) == ("untrained encoder", 0.1)
    assert control["settings"]["validation"] == 0.7
    np.testing.assert_allclose(control["settings"]["weight_decay"], 1e-4 / 0.2)
    assert [recipe.epochs for _, _, recipe, _ in calls] == [2, 2, 2, 2, 2, 3, 3]
    # Three steps an epoch: max(1 - 10 / 3, 0.9).
    assert {network.model.config.bn_momentum for _, network, _, _ in calls} == {0.9}
    printed = capsys.readouterr().out
    assert (
        "trained encoder: 4 pairs of learning rate and weight decay, chosen on '10% of train'"
        in printed
    )
    assert "fine-tuned at learning rate 0.5, weight decay 0 / rate: label" in printed


def test_lengths_and_rates_of_the_recipe_for_transfer(workdir, monkeypatch):
    """The paper's, and what --lr changes; nothing is trained."""
    calls = []

    def finetune(task, network, variables, recipe):
        calls.append((network, recipe))
        return trained_to(0.5)

    monkeypatch.setattr(evaluators, "finetune", finetune)
    options = Options(
        str(workdir), evaluations=("finetune",), recipe="transfer", baselines=False, scratch=0.0
    )
    probe.probe(options)
    assert len(calls) == 57
    assert {(r.steps, r.epochs, r.batch_size) for _, r in calls} == {(20_000, 0.0, 256)}
    pairs = [pair_of(recipe) for _, recipe in calls]
    expected = [(r, d) for r in probe.TRANSFER.rates for d in probe.TRANSFER.decays]
    np.testing.assert_allclose(pairs[:56], expected, rtol=1e-4, atol=1e-9)
    calls.clear()
    probe.probe(dataclasses.replace(options, lr=0.03, batch_size=1, scratch=2.0))
    assert [recipe.steps for _, recipe in calls] == [20_000] * 9 + [40_000] * 57
    np.testing.assert_allclose([pair_of(r)[0] for _, r in calls[:9]], 0.03, rtol=1e-5)
    assert len({pair_of(r)[0] for _, r in calls[9:-1]}) == 7
    # 180 images of 200 are learned from while settings are chosen: 180 steps an epoch, then 200.
    momenta = [network.model.config.bn_momentum for network, _ in calls]
    np.testing.assert_allclose(momenta[:9], [1 - 10 / 180] * 8 + [1 - 10 / 200], rtol=1e-3)


def test_what_diverges_is_left_out_and_the_others_are_written(workdir, monkeypatch, capsys):
    """The control alone; then everything, of which the grid was searched once for seen and unseen images."""
    grid = probe.Grid((0.1,), (0.0, 1e-3))
    descent = functools.partial(probe.Descent, grid=grid, scratch_grid=grid)
    monkeypatch.setattr(probe.run, "Descent", descent)
    calls = []

    def finetune(task, network, variables, recipe):
        calls.append(recipe.epochs)
        if recipe.epochs >= least:
            raise FloatingPointError("not finite")
        return trained_to(0.5)

    monkeypatch.setattr(evaluators, "finetune", finetune)
    least = 3
    options = Options(
        str(workdir), evaluations=("finetune",), recipe="transfer", epochs=2.0, scratch=1.5
    )
    record = probe.probe(options)
    assert [row["features"] for row in record["rows"]] == ["trained encoder"]
    assert calls == [2, 2, 2, 3, 3]
    (line,) = record["left_out"]
    assert line == (
        "untrained encoder, finetune of label on 'test': the loss is not finite at any pair of the grid;"
        " --scratch=0 goes without this control"
    )
    assert f"left out: {line}" in capsys.readouterr().out
    # Without the search it is the training itself.
    record = probe.probe(dataclasses.replace(options, recipe="v1", labels=(0.5,)))
    assert len(record["rows"]) == 1
    assert "finetune 50% of label on 'test': not finite; --scratch=0" in record["left_out"][0]
    calls.clear()
    least = 1
    with pytest.raises(
        SystemExit, match=r"there is no result; trained encoder, .* a lower --lr; untr"
    ):
        probe.main(
            [
                *(f"--workdir={workdir}", "--eval=finetune", "--recipe=transfer", "--epochs=2"),
                *("--set=data.holdout=0.2", "--train=train", "--validation=val", "--test=test"),
                *("--unseen=test", "--unseen_train=seen"),
            ]
        )
    assert calls == [2, 2, 4, 4]
    assert len(json.loads((workdir / "probe.json").read_text())) == 2


def test_settings_of_unseen_classes_are_chosen_once(workdir, monkeypatch):
    """Both parts choose on the same images, and learn from others then."""
    grid = probe.Grid((0.1, 0.2), (0.0,))
    monkeypatch.setattr(probe.run, "Descent", functools.partial(probe.Descent, grid=grid))
    calls = []

    def finetune(task, network, variables, recipe):
        calls.append((len(task.train), len(task.test)))
        return trained_to(0.5)

    monkeypatch.setattr(evaluators, "finetune", finetune)
    names = {"train": "train", "validation": "val", "test": "test", "unseen": "test"}
    options = Options(
        str(workdir),
        evaluations=("finetune",),
        recipe="transfer",
        scratch=0.0,
        settings=("data.holdout=0.2",),
        unseen_train="seen",
        labels=(1.0, 0.5),
        **names,
    )
    record = probe.probe(options)
    held = calls[0][1]
    assert calls[:3] == [(TRAIN - held, held)] * 2 + [(TRAIN - held, TEST)]
    assert len(calls) == 8
    assert calls[6] == (TRAIN, TEST)
    assert {row["settings"]["learning_rate"] for row in record["rows"]} == {0.1}
    assert len(record["rows"]) == 4


def test_the_linear_probe_that_diverges_is_left_out(workdir, monkeypatch):
    def linear_sgd(task, network, variables, recipe):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(evaluators, "linear_sgd", linear_sgd)
    options = Options(str(workdir), evaluations=("knn", "sgd"), baselines=False)
    record = probe.probe(options)
    assert [row["method"] for row in record["rows"]] == ["knn"]
    assert record["left_out"] == [
        "trained encoder, sgd of label on 'test': not finite; give a lower --lr"
    ]


def test_a_share_of_the_labels_that_fills_no_batch_is_left_out(workdir, monkeypatch, capsys):
    """And what was scored before it is written, and that its updates were few said."""

    def finetune(task, network, variables, recipe):
        if len(task.train) < TRAIN / 2:
            raise evaluators.TooFewImages("3 training images do not fill a batch")
        return trained_to(0.5)

    monkeypatch.setattr(evaluators, "finetune", finetune)
    options = Options(
        str(workdir),
        evaluations=("knn", "finetune"),
        labels=(1.0, 0.1),
        baselines=False,
        scratch=0.0,
    )
    record = probe.probe(options)
    assert [row["method"] for row in record["rows"]] == ["knn", "finetune"]
    assert record["left_out"] == [
        "trained encoder, finetune 10% of label on 'test': 3 training images do not fill a batch"
    ]
    # 30 epochs were one update.
    assert "--epochs=15000 makes them 500" in capsys.readouterr().out


@pytest.mark.parametrize(("other", "fraction"), [("", 0.875), ("folder:there", 1.0)])
def test_features_of_other_data_are_of_whole_images(digits, other, fraction):
    """SimCLR, B.8: the shorter side is resized to that of the network's images, and the centre taken."""
    options, config = Options("w", data=other), make_config(digits)
    source = data.load(config.data, "test")
    splits = probe.Splits(source, source, None, None, None, True, {})
    place = mesh.make_mesh()
    networks = probe.Descent(options, config, splits, None, (64, 64, 1), place, {}, None, None)
    assert (networks.view.size, networks.view.fraction) == (64, fraction)
    task = networks.task(source, 0)
    assert task.view.fraction == 0.875
    assert task.test_batches.keywords == {"view": task.view}


def test_best_and_numbered_steps(workdir, run):
    config, state, _ = run
    save(workdir, config, state, step=20, place="best")
    for step, found in (("newest", 40), ("best", 20), ("20", 20), ("40", 40)):
        directory, number = probe.find_step(str(workdir), step)
        assert checkpoint.read_manifest(directory, number).step == found
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of step 30"):
        probe.probe(Options(str(workdir), step="30"))


def test_a_checkpoint_of_another_network_is_refused_by_name(workdir, run, tmp_path):
    config, state, _ = run
    kernel = state.params["backbone"]["conv"]["kernel"]
    for change, text in (
        ({"extra_conv": {"kernel": kernel}}, "extra_conv/kernel"),
        ({"conv": {"bias": np.zeros(8, np.float32)}}, "conv/kernel"),
        ({"conv": {"bias": np.zeros(8, np.float32), "kernel": kernel[:1]}}, "conv/kernel"),
    ):
        params = {**state.params, "backbone": {**state.params["backbone"], **change}}
        other = tmp_path / text.replace("/", "_") / str(len(change))
        save(other, config, dataclasses.replace(state, params=params), step=len(str(change)))
        with pytest.raises(checkpoint.OtherModelError, match=text):
            restore(other, config)
    with pytest.raises(checkpoint.OtherModelError, match="head_projection"):
        probe.probe(
            Options(str(workdir), layer="z", settings=("method.projection.layers=(12, 5)",))
        )


def test_settings_reach_the_config():
    stored = json.loads(json.dumps(config_lib.to_dict(make_config("/there"))))
    config = probe.probed_config(
        stored, "", ("data.path=/else", "evaluation.ks=(3,)", "mesh.cpu_devices=2")
    )
    assert config.data.path == "/else"
    assert config.evaluation.ks == (3,)
    assert config.mesh.cpu_devices == 2
    other = probe.probed_config(stored, "tfds:cifar10@/dir", ("data.image_size=32",)).data
    assert (other.name, other.dataset, other.path) == ("tfds", "cifar10", "/dir")
    assert (other.image_size, other.channels) == (32, 1)
    assert probe.probed_config(stored, "emoji", ()).data.path == ""
    # A year is text, although it is a number.
    year = ("data.dataset=2019", "data.splits={'test': 'val'}", "data.label_keys=('species',)")
    for flag, more in (("inaturalist:/dir", ()), ("", ("data.name=inaturalist",))):
        other = probe.probed_config(stored, flag, (*more, *year)).data
        assert (other.name, other.dataset) == ("inaturalist", "2019")
        assert (other.splits, other.label_keys) == ({"test": "val"}, ("species",))
    with pytest.raises(config_lib.ConfigError, match="image_size"):
        probe.probed_config(stored, "", ("data.imagesize=3",))
    with pytest.raises(ProbeError, match=r"--set=data: expected section\.key=value"):
        probe.probed_config(stored, "", ("data",))
    with pytest.raises(config_lib.ConfigError, match=r"data\.name='disk'"):
        probe.probed_config(stored, "disk:/x", ())


def test_splits_of_the_run_and_of_the_command_line(digits):
    config = make_config(digits)
    evaluation = dataclasses.replace(
        config.evaluation, gallery="train", validation="train", test="test", test_gallery="train"
    )
    config = dataclasses.replace(config, evaluation=evaluation)
    splits = probe.open_splits(config, Options("w"))
    assert splits.validation is not None
    assert splits.names["validation"] == "train"
    named = probe.open_splits(config, Options("w", train="test", validation="train", test="train"))
    assert named.validation is None  # what is scored chooses nothing
    assert (len(named.last), len(named.test)) == (TEST, TRAIN)
    searched = dataclasses.replace(
        config, evaluation=dataclasses.replace(evaluation, retrieval_gallery="train")
    )
    assert probe.open_splits(searched, Options("w")).gallery is not None
    assert probe.open_splits(searched, Options("w", test="train")).gallery is None
    nothing = dataclasses.replace(config, evaluation=evaluators.EvalConfig())
    with pytest.raises(ProbeError, match="give --train and --test"):
        probe.open_splits(nothing, Options("w"))


def test_errors(workdir, tmp_path):
    for bad, text in (
        ({"evaluations": ("knn", "nn")}, "--eval=knn,nn"),
        ({"evaluations": ("retreival",)}, "did you mean 'retrieval'"),
        ({"evaluations": ()}, "--eval=: expected some of"),
        ({"evaluations": ("factor",)}, "go together"),
        ({"evaluations": ("factor",), "factors": ("hue",)}, "expected OP.PARAMETER"),
        ({"labels": (0.1, 2.0)}, "--labels"),
        ({"step": "last"}, "--step=last"),
        ({"retrieval_ks": (0,)}, "--retrieval_ks"),
        ({"recipe": "v3"}, "--recipe=v3: expected one of v1, v2, transfer, moco"),
        ({"recipe": "moco", "evaluations": ("finetune",)}, "fine-tuning has v1, v2, transfer"),
        ({"encoder": "query"}, "--encoder=query: expected one of trained, key"),
        ({"evaluations": ("classifier",), "data": "emoji"}, "knows the classes of its data"),
        ({"epochs": -1.0}, "expected 0 or more"),
    ):
        with pytest.raises(ProbeError, match=text):
            Options("w", **bad)
    with pytest.raises(ProbeError, match="no such directory"):
        probe.probe(Options(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="layer='y'"):
        probe.probe(Options(str(workdir), layer="y"))
    with pytest.raises(ValueError, match="no label level 'colour'"):
        probe.probe(Options(str(workdir), levels=("colour",)))
    (workdir / "probe.json").write_text("{}")
    with pytest.raises(ProbeError, match="not a list of probes"):
        probe.probe(Options(str(workdir), evaluations=("knn",), baselines=False))
    assert (workdir / "probe.json").read_text() == "{}"
    (workdir / "probe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit, match="not a list of probes: move it away"):
        probe.main([f"--workdir={workdir}"])


def test_results_that_cannot_be_written_are_printed(workdir, monkeypatch, capsys):
    """The disk is full after the whole probe."""
    options = Options(str(workdir), evaluations=("knn",), baselines=False)
    probe.probe(options)
    before = (workdir / "probe.json").read_text()
    real = type(epath.Path(workdir)).write_text

    def full(path, *args, **kwargs):
        if "probe.json" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(type(epath.Path(workdir)), "write_text", full)
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^jaxcl.probe: the results could not be .*No space left"):
        probe.main([f"--workdir={workdir}", "--eval=knn", "--no-baselines"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["method"] for row in record["rows"]] == ["knn"]
    assert (workdir / "probe.json").read_text() == before


def test_a_disk_that_cannot_be_read_is_told_in_a_line(monkeypatch):
    def gone(options):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/images")

    monkeypatch.setattr(probe.run, "probe", gone)
    with pytest.raises(SystemExit, match=r"^jaxcl.probe: .*Input/output error: '/data/images'$"):
        probe.main(["--workdir=w"])


def test_command_line(workdir, capsys):
    options = probe.parse(
        [
            "--workdir=w",
            "--eval=knn,finetune",
            "--labels=0.01,0.1",
            "--set=a.b=1",
            "--set=c.d=2",
            "--no-baselines",
            "--lr=0.3",
            "--levels=x,y",
            "--batch_size=64",
            "--retrieval_ks=1,2,4",
        ]
    )
    assert options == Options(
        "w",
        evaluations=("knn", "finetune"),
        labels=(0.01, 0.1),
        settings=("a.b=1", "c.d=2"),
        baselines=False,
        lr=0.3,
        levels=("x", "y"),
        batch_size=64,
        retrieval_ks=(1, 2, 4),
    )
    assert probe.parse(["--workdir=w"]) == Options("w")
    # Commas within brackets do not separate factors.
    factors = ("jitter.hue", "texture.gains[0,1]", "run:rotate.angle")
    options = probe.parse(["--workdir=w", "--eval=factor", f"--factors={','.join(factors)}"])
    assert options.factors == factors
    with pytest.raises(ProbeError, match=r"expected OP\.PARAMETER, as in jitter\.hue"):
        probe.parse(["--workdir=w", "--eval=factor", "--factors=run:rotate"])
    with pytest.raises(SystemExit):
        probe.parse(["--help"])
    assert "2 % of the labels" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match=r"jaxcl\.probe: --eval=all: expected some of"):
        probe.main([f"--workdir={workdir}", "--eval=all"])
    probe.main([f"--workdir={workdir}", "--eval=knn", "--no-baselines"])
    assert "trained encoder" in capsys.readouterr().out


def test_features_of_a_resnet_are_bit_equal_after_restoring(digits, tmp_path):
    config = make_config(digits)
    state = make_state(config, seed=99)
    save(tmp_path, config, state)
    network, variables = restore(tmp_path, config)
    encode = jax.jit(network.encode)
    images = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
    whole = jax.device_put(
        network.select({"params": state.params, "batch_stats": state.batch_stats}),
        mesh.replicated(mesh.make_mesh()),
    )
    features = np.asarray(encode(variables, images))
    assert np.array_equal(features, np.asarray(encode(whole, images)))
    assert features.std() > 0
