"""The evaluator of a run in training."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from tiny_network import build

from jaxcl import data
from jaxcl.data import ArraySource, DataConfig, LabelTree
from jaxcl.evaluators import EvalConfig, Online, effective_rank, knn, knn_selected, linear_probe

TREE = LabelTree(
    ("parity", "digit", "image"),
    (("even", "odd"), tuple("0123456789"), tuple(map(str, range(600)))),
)
LOAD = data.load
ROWS = {"train": (0, 100), "val": (100, 150), "test": (150, 203), "seen": (0, 150)}
CONFIG = EvalConfig(
    gallery="train", validation="val", test="test", test_gallery="seen", ks=(1, 5), batch_size=16
)


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)

    def load(config, split):
        rows = np.arange(*ROWS[split.removeprefix("bare ")])
        if split.startswith("bare"):
            return ArraySource(images[rows])
        labels = np.stack([y[rows] % 2, y[rows], rows], 1)
        return ArraySource(images[rows], labels.astype(np.int32), TREE)

    monkeypatch.setattr(data, "load", load)


def online(config=CONFIG, devices=8):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    return Online(config, DataConfig(image_size=8, channels=1, threads=1), build(), mesh)


@functools.cache
def variables():
    return build().init(jax.random.key(0), (8, 8, 1))


def test_levels_without_common_classes_are_left_out_and_unknown_ones_refused():
    assert online().levels == {"parity": 0, "digit": 1}
    with pytest.raises(ValueError, match="no label level 'colour'"):
        online(EvalConfig(gallery="train", validation="val", levels=("colour",)))


def test_monitor_is_the_best_knn_on_validation_and_its_mean():
    made, trees = online(), variables()
    scores = made.run(trees["params"], trees["batch_stats"])
    gallery, validation = (made.features(trees, split) for split in ("train", "val"))
    for name, level in made.levels.items():
        tried = [
            value
            for metric in ("cosine", "centred_cosine")
            for value in knn(gallery, validation, level, (1, 5), 0.1, metric).accuracy.values()
        ]
        assert scores[f"knn/{name}"] == max(tried)
    assert scores["knn"] == pytest.approx((scores["knn/parity"] + scores["knn/digit"]) / 2)
    assert scores["effective_rank"] == pytest.approx(effective_rank(gallery.h))
    assert set(scores) == {"knn", "knn/parity", "knn/digit", "effective_rank"}


def test_features_are_of_each_image_once_and_of_the_encoder_alone():
    made, trees = online(), variables()
    got = made.features(trees, "test")
    images = np.concatenate([b["image"][b["mask"]] for b in made.batches("test")])
    assert images.shape == (53, 8, 8, 1)
    expected = build().encode(trees["params"], trees["batch_stats"], images / np.float32(255))
    np.testing.assert_allclose(got.h, expected, atol=1e-5)
    np.testing.assert_array_equal(got.labels, made.source("test").labels)
    alone = {kind: {"backbone": tree["backbone"]} for kind, tree in trees.items()}
    np.testing.assert_array_equal(made.features(alone, "test").h, got.h)
    one = online(devices=1).features(trees, "test")
    np.testing.assert_allclose(one.h, got.h, atol=1e-5)
    pixels = made.features(None, "test")
    np.testing.assert_allclose(pixels.h, images.reshape(53, -1) / 255, rtol=1e-6)


def test_table_chooses_on_validation_and_scores_the_test_split():
    made, trees = online(dataclasses.replace(CONFIG, levels=("digit",))), variables()
    rows = made.table_rows({"raw pixels": None})
    assert [(r.features, r.method, r.level) for r in rows] == [
        ("raw pixels", method, "digit") for method in ("knn", "linear")
    ]
    made = online(dataclasses.replace(CONFIG, linear=False))
    assert [(r.features, r.method, r.level) for r in made.table_rows({"net": trees})] == [
        ("net", "knn", level) for level in ("parity", "digit")
    ]
    assert {r.queries for r in rows} == {53}
    train, val, test, seen = (made.features(None, s) for s in ("train", "val", "test", "seen"))
    by_hand = knn_selected(train, val, test, 1, (1, 5), test_gallery=seen)
    assert rows[0].accuracy == by_hand.accuracy
    assert rows[0].settings["gallery"] == 150
    assert rows[1].accuracy == linear_probe(train, val, test, 1).accuracy
    assert rows[1].settings["trained_on"] == 150


def test_images_of_files_are_as_large_as_the_view_needs_and_pixels_as_many_as_there_is_room(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(data, "load", LOAD)
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (90, 100), np.uint8)).save(tmp_path / f"{i}.png")
    settings = DataConfig(
        name="folder", path=str(tmp_path), labels="none", image_size=40, channels=1, threads=1
    )
    config = EvalConfig(gallery="train", validation="train", batch_size=4, ks=(1,))
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def made():
        return Online(config, settings, build(), mesh)

    (first, _) = made().batches("train")
    assert first["image"].shape == (4, 46, 46, 1)  # 87.5 % of it are 40
    assert made().features(None, "train").h.shape == (6, 46 * 46)
    assert not caplog.text
    monkeypatch.setattr("jaxcl.evaluators.base.PIXEL_BYTES", 4 * 6 * 46 * 46 - 1)
    reduced = made()
    for _ in range(2):
        assert reduced.features(None, "train").h.shape == (6, 32 * 32)
    assert caplog.text.count("reduced to 32 pixels a side: of 6 images of 46 x 46") == 1
    some = data.subset(reduced.source("train"), np.array([4, 1]))
    np.testing.assert_array_equal(
        reduced.features(None, some).h, reduced.features(None, "train").h[[4, 1]]
    )


def test_data_without_labels_have_features_and_no_scores():
    made, trees = online(EvalConfig(gallery="bare train", validation="bare val")), variables()
    assert made.levels == {}
    assert set(made.run(trees["params"], trees["batch_stats"])) == {"effective_rank"}
    assert made.table_rows({"trained encoder": trees}) == []
    assert len(made.features(trees, "bare val")) == 50


def test_a_table_of_pairs_is_scored_without_the_images_that_cannot_be_read(
    tmp_path, monkeypatch, caplog
):
    """One damaged file costs the pairs that name it, and nothing else."""
    monkeypatch.setattr(data, "load", LOAD)
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / names[2]).write_bytes(b"no image")
    (tmp_path / "images.csv").write_text("path\n" + "\n".join(names) + "\n")
    pairs = list(itertools.combinations(names, 2))
    lines = [f"{a},{b},{rng.normal()}" for a, b in pairs]
    (tmp_path / "pairs.csv").write_text("a,b,similarity\n" + "\n".join(lines) + "\n")
    settings = DataConfig(
        name="table",
        path=str(tmp_path / "images.csv"),
        pairs={"train": str(tmp_path / "pairs.csv")},
        on_bad="skip",
        image_size=8,
        channels=1,
        threads=1,
    )
    config = EvalConfig(
        gallery="train",
        validation="train",
        test="train",
        linear=False,
        batch_size=2,
        ks=(1,),
        extra=("similarity",),
    )
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    made = Online(config, settings, build(), mesh)
    rows = made.table_rows({"pixels": None})
    (spearman,) = [row for row in rows if row.method == "similarity/spearman"]
    h = dict(zip((0, 1, 3, 4), made.features(None, "train").h, strict=True))
    left = [(i, j) for i, j in itertools.combinations(range(5), 2) if 2 not in (i, j)]
    scores = [h[i] @ h[j] / np.linalg.norm(h[i]) / np.linalg.norm(h[j]) for i, j in left]
    truth = [float(line.split(",")[2]) for line in lines if names[2] not in line]
    assert spearman.accuracy == pytest.approx(spearmanr(scores, truth).statistic)
    assert spearman.settings["pairs"] == 6
    assert "4 of the 10 pairs of the table are left out" in caplog.text
    # Another table is another content.
    before = made.content_ids()
    assert set(before) == {"train", "pairs/train"}
    (tmp_path / "pairs.csv").write_text("a,b,similarity\n" + "\n".join(lines[1:]) + "\n")
    after = made.content_ids()
    assert after["train"] == before["train"]
    assert after["pairs/train"] != before["pairs/train"]
