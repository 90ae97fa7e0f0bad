"""The evaluators by name: their rows, what is said of the data, and the table of a run."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from sklearn.datasets import load_digits
from tiny_network import build

from jaxcl import data, evaluators
from jaxcl.data import ArraySource, DataConfig, LabelTree
from jaxcl.evaluators import EvalConfig, Features, Online, Subject
from jaxcl.losses import ScorerSpec, Scoring
from jaxcl.views import Flip, View, ViewProgram

corruption = sys.modules["jaxcl.evaluators.corruption"]

TREE = LabelTree(("parity", "digit"), (("even", "odd"), tuple("0123456789")))
ROWS = {
    "train": (0, 150),
    "val": (150, 220),
    "test": (220, 300),
    "unseen_train": (300, 420),
    "unseen": (420, 520),
}
UNSEEN = (8, 9)


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8), y


def source(split):
    """Digits 0 to 7 to train on, 8 and 9 unseen."""
    images, y = digits()
    rows = np.arange(*ROWS[split])
    rows = rows[np.isin(y[rows], UNSEEN) == split.startswith("unseen")]
    return ArraySource(images[rows], np.stack([y[rows] % 2, y[rows]], 1).astype(np.int32), TREE)


def features(split):
    part = source(split)
    return Features(part.images.reshape(len(part), -1).astype(np.float32), part.labels)


def subject(**changes):
    said = []
    given = {
        "name": "pixels",
        "levels": TREE.levels,
        "train": features("train"),
        "validation": features("val"),
        "last": features("train"),
        "test": features("test"),
        "gallery": None,
        "take": None,
        "image_shape": (8, 8, 1),
        "classify": {"parity": 0, "digit": 1},
        "say": said.append,
        **changes,
    }
    return Subject(**given), said


def test_rows_hold_the_numbers_of_the_evaluators(monkeypatch):
    monkeypatch.setattr(sys.modules["jaxcl.evaluators.extra"], "SHOTS", (5,))
    made, said = subject(wanted=("digit",))
    rows, details = made.rows(("retrieval", "clustering", "hierarchy", "fewshot"))
    values = {(r.method, r.level): r.accuracy for r in rows}
    assert len(values) == len(rows)  # every name once
    test = made.test
    found = evaluators.retrieval(test, 1)
    for k in (1, 10, 50):
        assert values[f"retrieval/recall@{k}", "digit"] == found.recall[k]
        assert values[f"retrieval/found@{k}", "digit"] == found.found[k]
    assert values["retrieval/map@r", "digit"] == found.map_at_r
    clusters = evaluators.clustering(test, 1)
    assert values["clustering/nmi", "digit"] == pytest.approx(clusters.nmi)
    assert values["clustering/ami", "digit"] == pytest.approx(clusters.ami)
    five = evaluators.few_shot(made.last, test, 1, 5)
    assert values["fewshot/5-shot", "digit"] == five.accuracy
    row = next(r for r in rows if r.method == "fewshot/5-shot")
    assert row.settings["interval"] == five.interval
    assert row.settings["drawn_from"] == "train"
    assert row.queries == five.queries
    tree = evaluators.hierarchy(test)
    assert values["hierarchy/distance", "digit"] == tree.relative(2)
    assert values["hierarchy/violations", "parity"] == tree.violations[1]
    assert values["hierarchy/violations", "all"] == tree.violation
    assert values["hierarchy/precision@10", "all"] == tree.precision[10]
    spread = next(r for r in rows if r.method == "clustering/nmi").settings
    assert spread["seeds"] == 5
    assert "std" in spread
    assert not said
    assert details["pixels/hierarchy/all"][0]["pairs"] == list(tree.pairs)
    assert set(details) >= {"pixels/retrieval/digit", "pixels/fewshot/digit"}
    text = json.dumps([r.as_dict() for r in rows]) + json.dumps(details)
    assert "NaN" not in text


def test_the_runs_own_op_is_a_factor_and_a_sample_is_said(monkeypatch):
    few = functools.partial(evaluators.predict_factor, most=160)
    monkeypatch.setattr(sys.modules["jaxcl.evaluators.extra"], "predict_factor", few)
    splits = {"train": "train", "validation": "val", "last": "train", "test": "test"}

    def take(parts, alter):
        sources = [source(splits[part]) for part in parts]
        every = [
            {"image": part.images, "label": part.labels, "index": np.arange(len(part))}
            for part in sources
        ]
        return [evaluators.raw_pixels(evaluators.altered([batch], alter)) for batch in every]

    own = ViewProgram((("mirror", Flip(prob=0.4)),), (View(),))
    made, said = subject(take=take, factors=("run:mirror.on",), program=own)
    (row,), _ = made.rows(("factor",))
    left_out = len(source("train")) - 40
    assert row.method == "factor/run:mirror.on"
    assert (row.settings["trained_on"], row.settings["left_out"]) == (160, left_out)
    assert row.settings["chance"] == pytest.approx(0.6, abs=0.1)
    assert row.queries == 4 * len(source("test"))
    assert said == [
        f"pixels: run:mirror.on is learned from a sample, drawn by the seed: {left_out} images are left out"
    ]


def test_classes_that_were_not_learned_are_drawn_from_the_test_images():
    made, said = subject(test=features("unseen"), wanted=("digit",))
    rows, _ = made.rows(("fewshot", "retrieval"))
    assert {r.level for r in rows} == {"digit"}
    five = next(r for r in rows if r.method == "fewshot/5-shot")
    assert five.settings["drawn_from"] == "test"
    assert five.accuracy == evaluators.few_shot(made.test, None, 1, 5).accuracy
    # Ten images of each digit are too few to draw ten and ask about another one.
    assert [r.method for r in rows if "shot" in r.method] == ["fewshot/5-shot"]
    (few,) = (line for line in said if "shot" in line)
    assert "10-shot" in few


def test_retrieval_by_the_scorer_of_the_run_has_rows_of_its_own():
    """None for the cosine, which is there already, and for a scorer of one respect of a table."""
    test = features("test")
    weights = np.diag(np.random.default_rng(0).normal(size=64)).astype(np.float32)
    own = Scoring(ScorerSpec("mahalanobis"), {"map": weights})
    rows, details = subject(scoring=own)[0].rows(("retrieval",))
    values = {(r.method, r.level): r.accuracy for r in rows}
    found = evaluators.retrieval(test, 1, scoring=own)
    assert values["scorer/recall@1", "digit"] == found.recall[1]
    assert values["scorer/r_precision", "digit"] == found.r_precision
    assert values["scorer/map@r", "parity"] == evaluators.retrieval(test, 0, scoring=own).map_at_r
    assert values["retrieval/map@r", "digit"] == evaluators.retrieval(test, 1).map_at_r
    assert values["scorer/map@r", "digit"] != values["retrieval/map@r", "digit"]
    assert [x["metric"] for x in details["pixels/retrieval/digit"]] == ["cosine", "mahalanobis"]
    for other in (Scoring(ScorerSpec(), {}), Scoring(ScorerSpec("l2"), {}, respect="style")):
        rows, _ = subject(scoring=other)[0].rows(("retrieval",))
        assert not [row for row in rows if row.method.startswith("scorer/")]


def test_retrieval_may_search_a_gallery():
    gallery = features("train")
    made, _ = subject(gallery=gallery)
    rows, _ = made.rows(("retrieval",))
    found = evaluators.retrieval(made.test, 1, gallery=gallery)
    values = {(r.method, r.level): r for r in rows}
    assert values["retrieval/recall@1", "digit"].accuracy == found.recall[1]
    assert values["retrieval/recall@1", "digit"].settings["gallery"] == len(gallery)


def test_the_depths_of_recall_are_chosen():
    made, said = subject(retrieval_ks=(2, 4000))
    rows, _ = made.rows(("retrieval",))
    of_digits = {r.method: r.accuracy for r in rows if r.level == "digit"}
    found = evaluators.retrieval(made.test, 1, (2,))
    assert of_digits["retrieval/recall@2"] == found.recall[2]
    assert sum("recall" in name for name in of_digits) == 1
    assert "k 4000 left out" in said[0]


def test_nothing_to_compare_is_said():
    made, said = subject(test=features("test").take(np.zeros(3, int)), classify={})
    rows, _ = made.rows(("retrieval", "clustering", "hierarchy", "corruption"))
    assert rows == []
    assert [text.split(": ")[1].split()[0] for text in said] == [
        "retrieval", "clustering", "left", "corruption"
    ]  # fmt: skip
    assert "hierarchy" in said[2]
    assert "no level is classified" in said[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra": ("retreival",)}, "extra=retreival: did you mean 'retrieval'?"),
        ({"extra": ("factor",)}, "name factors"),
        ({"factors": ("jitter.hue",)}, "name factors"),
        ({"extra": ("factor",), "factors": ("hue",)}, r"expected OP\.PARAMETER"),
        ({"extra": ("factor",), "factors": ("jiter.hue",)}, "did you mean 'jitter'?"),
        ({"retrieval_ks": (1, 0)}, r"retrieval_ks=\(1, 0\): expected numbers of 1 or more"),
        ({"unseen": "unseen"}, "name test"),
        ({"unseen_gallery": "unseen"}, "name unseen"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalConfig(**settings)
    with pytest.raises(ValueError, match="did you mean 'clustering'"):
        subject()[0].rows(("clusterin",))


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(data, "load", lambda config, split: source(split))

    def make(**settings):
        mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
        config = EvalConfig(
            gallery="train", validation="val", test="test", ks=(1, 5), batch_size=64, **settings
        )
        return Online(config, DataConfig(image_size=8, channels=1, threads=1), build(), mesh)

    return make


def test_table_of_a_run_has_the_extra_rows_for_seen_and_unseen(online, monkeypatch):
    some = {k: evaluators.CORRUPTIONS[k] for k in ("impulse_noise", "contrast")}
    monkeypatch.setattr(corruption, "CORRUPTIONS", some)
    made = online(
        extra=("retrieval", "rotation", "corruption"),
        extra_levels=("digit",),
        unseen="unseen",
        unseen_gallery="unseen_train",
    )
    rows = made.table_rows({"raw pixels": None})
    values = {(r.method, r.level): r for r in rows}
    assert len(values) == len(rows)
    test, unseen, unseen_train = (
        made.features(None, s) for s in ("test", "unseen", "unseen_train")
    )
    recall = evaluators.retrieval(test, 1).recall[1]
    assert values["retrieval/recall@1", "digit"].accuracy == recall
    assert (
        values["unseen/retrieval/recall@1", "digit"].accuracy
        == (evaluators.retrieval(unseen, 1).recall[1])
    )
    assert ("retrieval/recall@1", "parity") not in values
    train, val = (made.features(None, s) for s in ("train", "val"))
    linear = evaluators.linear_probe(train, val, unseen, 0, refit=unseen_train)
    assert values["unseen/linear", "parity"].accuracy == linear.accuracy > 0.9
    assert values["unseen/knn", "parity"].queries == len(unseen)
    # At the level of the digit the settings were chosen on digits that both sides have.
    assert values["unseen/knn", "digit"].accuracy > 0.9
    assert values["rotation/accuracy", "all"].accuracy > 0.6
    assert values["rotation/accuracy", "all"].queries == 4 * len(test)
    assert values["rotation/accuracy", "all"].settings["trained_on"] == 4 * len(train)
    clean = values["corruption/clean", "digit"].accuracy
    assert clean == values["linear", "digit"].accuracy
    assert values["corruption/mean", "digit"].accuracy < clean
    assert values["corruption/impulse_noise", "parity"].accuracy < 1


def test_unseen_without_a_gallery_is_compared_and_not_classified(online):
    made = online(extra=("clustering",), unseen="unseen", linear=False)
    rows = made.table_rows({"raw pixels": None})
    assert {r.method for r in rows} == {
        "knn", *(f"{prefix}clustering/{name}" for prefix in ("", "unseen/")
                 for name in ("nmi", "ami", "silhouette"))
    }  # fmt: skip


def test_a_network_is_altered_before_its_own_view(online):
    """Features of turned images are those of the images turned by hand."""
    made = online()
    variables = build().init(jax.random.key(0), (8, 8, 1))
    turned = made.features(variables, "test", evaluators.Rotation().alter(1))
    images = np.rot90(source("test").images, 1, axes=(1, 2)) / np.float32(255)
    expected = build().encode(variables["params"], variables["batch_stats"], images)
    np.testing.assert_allclose(turned.h, expected, atol=1e-5)
    assert (turned.labels == 1).all()
    plain = made.features(variables, "test")
    assert np.abs(plain.h - turned.h).max() > 1e-2
    np.testing.assert_array_equal(plain.labels, source("test").labels)


def test_extra_settings_survive_json():
    config = EvalConfig(extra=("retrieval",), test="t", gallery="g", validation="v")
    assert EvalConfig(**dataclasses.asdict(config)) == config
