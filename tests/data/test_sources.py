"""From configurations to sources."""

import dataclasses
import gzip

import numpy as np
import pytest
from corpus import picture, png
from test_idx import idx_bytes

from jaxcl.data import (
    ArraySource,
    DataConfig,
    FolderSource,
    LabelTree,
    load,
    write_records,
)


def make(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(10 + i, 12)))


def labels_of(source):
    return {source.name(i): source.tree.describe(source.labels[i]) for i in range(len(source))}


def test_emoji_is_the_default():
    assert len(load(DataConfig(), "val")) == 380
    with pytest.raises(ValueError, match="no split 'dev'"):
        load(DataConfig(), "dev")


def test_a_folder_without_splits(tmp_path):
    make(tmp_path, "cat/1.png", "dog/2.png")
    config = DataConfig(name="folder", path=str(tmp_path))
    assert labels_of(load(config, "train")) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    with pytest.raises(ValueError, match=r"no split 'val': .* has \['train'\].*data\.holdout"):
        load(config, "val")


def test_folders_of_splits_share_their_ids(tmp_path):
    make(tmp_path, "training/dog/1.png", "training/eel/2.png", "check/cat/3.png", "check/dog/4.png")
    splits = {"train": "training", "val": "check"}
    config = DataConfig(name="folder", path=str(tmp_path), splits=splits)
    train, val = load(config, "train"), load(config, "val")
    assert train.tree == val.tree
    assert labels_of(train) == {"dog/1.png": "dog", "eel/2.png": "eel"}
    assert labels_of(val) == {"cat/3.png": "cat", "dog/4.png": "dog"}
    np.testing.assert_array_equal(train.labels[0], val.labels[1])
    with pytest.raises(ValueError, match=r"no split 'test': .*\['train', 'val'\]"):
        load(config, "test")


def test_records_are_checked_where_each_label_is_declared_to_have_one_parent(tmp_path):
    tree = LabelTree(("kind", "sort"), (("bird", "cat"), ("big", "small")))
    image = png(picture(8, 9))
    write_records(tmp_path / "twice", [(image, (0, 0)), (image, (1, 0))], tree)
    write_records(tmp_path / "once", [(image, (0, 0)), (image, (1, 1))], tree)
    config = DataConfig(name="records", path=str(tmp_path / "twice"))
    assert not load(config, "train").tree.unique
    with pytest.raises(
        ValueError, match=r"sort 'big' stands under two parents .* 'bird' and 'cat'"
    ):
        load(dataclasses.replace(config, unique_names=True), "train")
    once = dataclasses.replace(config, path=str(tmp_path / "once"), unique_names=True)
    assert load(once, "train").tree.unique


def test_views_of_one_object_are_held_out_together(tmp_path):
    make(tmp_path, *(f"kind{i % 3}/object{i}/{view}.png" for i in range(30) for view in range(4)))
    config = DataConfig(
        name="folder", path=str(tmp_path), labels="path", holdout=0.3, holdout_together="level1"
    )
    parts = {split: load(config, split) for split in ("train", "val", "seen")}
    objects = {split: set(map(tuple, part.labels.tolist())) for split, part in parts.items()}
    assert not objects["train"] & objects["val"]
    assert len(parts["val"]) == 4 * len(objects["val"]) > 0
    assert len(parts["train"]) + len(parts["val"]) == len(parts["seen"]) == 120
    assert len(objects["train"]) > 2 * len(objects["val"])
    alone = load(dataclasses.replace(config, holdout_together=""), "val")
    assert set(map(tuple, alone.labels.tolist())) & {*objects["train"]}
    with pytest.raises(ValueError, match="no label level 'object'"):
        load(dataclasses.replace(config, holdout_together="object"), "val")
    with pytest.raises(
        ValueError, match=r"of 120 examples, the classes of level1 together, leaves"
    ):
        load(dataclasses.replace(config, holdout=1e-12), "val")


def test_holdout(tmp_path):
    make(tmp_path, *(f"{kind}/{i}.png" for kind in "ab" for i in range(30)))
    config = DataConfig(name="folder", path=str(tmp_path), holdout=0.3)
    train, val, seen = (load(config, split) for split in ("train", "val", "seen"))
    assert labels_of(train) | labels_of(val) == labels_of(seen)
    assert len(train) + len(val) == len(seen) == 60
    assert 8 <= len(val) <= 28
    assert train.tree == val.tree == seen.tree
    with pytest.raises(ValueError, match=r"holdout=1e-12 of 60 examples leaves none for 'val'"):
        load(DataConfig(name="folder", path=str(tmp_path), holdout=1e-12), "val")


def test_folder_options(tmp_path):
    make(tmp_path, "a/x/1.png", "b/x/2.png")
    config = DataConfig(name="folder", path=str(tmp_path), labels="path", channels=1)
    source = load(config, "train")
    assert isinstance(source, FolderSource)
    assert source.tree.levels == ("level0", "level1")
    assert source[0]["image"].shape == (10, 12, 1)
    with pytest.raises(ValueError, match="level1 'x' stands under two parents"):
        load(
            DataConfig(name="folder", path=str(tmp_path), labels="path", unique_names=True), "train"
        )


def test_tables(tmp_path):
    make(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "a.csv").write_text("file,kind\n1.png,dog\n2.png,eel\n")
    (tmp_path / "b.csv").write_text("file,kind\n3.png,cat\n")
    options = {"name": "table", "image_key": "file", "label_keys": ("kind",)}
    config = DataConfig(path=str(tmp_path), splits={"train": "a.csv", "test": "b.csv"}, **options)
    train, test = load(config, "train"), load(config, "test")
    assert train.tree == test.tree == LabelTree(("kind",), (("cat", "dog", "eel"),))
    assert labels_of(test) == {"3.png": "cat"}
    alone = load(DataConfig(path=str(tmp_path / "a.csv"), **options), "train")
    assert labels_of(alone) == labels_of(train)


def test_idx(tmp_path):
    for prefix, n in (("train", 40), ("t10k", 6)):
        for kind, array in (
            ("images-idx3", np.zeros((n, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(n, dtype=np.uint8) % 10),
        ):
            data = gzip.compress(idx_bytes(array))
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(data)
    config = DataConfig(name="idx", path=str(tmp_path), dataset="fashion_mnist", holdout=0.25)
    train, val, test = (load(config, split) for split in ("train", "val", "test"))
    assert (len(train) + len(val), len(test)) == (40, 6)
    assert isinstance(train, ArraySource)
    assert isinstance(val, ArraySource)
    assert val.tree.names[0][9] == "ankle boot"
    with pytest.raises(ValueError, match=r"no split 'dev': IDX files have \['test', 'train'\]"):
        load(config, "dev")


def test_tfds(tfds_dir):
    splits = {"train": "train[:12]", "val": "train[12:]"}
    config = DataConfig(name="tfds", path=tfds_dir, dataset="tiny_shapes", splits=splits)
    assert [len(load(config, split)) for split in ("train", "val", "test")] == [12, 6, 6]


def test_records(tmp_path):
    tree = LabelTree(("kind",), (("a", "b"),))
    write_records(tmp_path / "one", [(png(picture()), (1,))], tree)
    write_records(tmp_path / "two", [(png(picture()), (0,))], tree)
    write_records(tmp_path / "odd", [(png(picture()), (0,))], LabelTree(("kind",), (("b", "a"),)))
    config = DataConfig(name="records", path=str(tmp_path), splits={"train": "one", "test": "two"})
    assert labels_of(load(config, "train")) == {"record 0": "b"}
    assert labels_of(load(config, "test")) == {"record 0": "a"}
    config = DataConfig(name="records", path=str(tmp_path), splits={"train": "one", "test": "odd"})
    with pytest.raises(ValueError, match="'train' and 'test' have different label trees"):
        load(config, "train")
    assert len(load(DataConfig(name="records", path=str(tmp_path / "one")), "train")) == 1


def test_noise():
    config = DataConfig(name="noise", image_size=7)
    train, again, other = (load(config, split) for split in ("train", "train", "val"))
    assert isinstance(train, ArraySource)
    assert train.images.shape == (4096, 7, 7, 3)
    assert train.content_id == again.content_id != other.content_id
    counts = np.bincount(train.images.reshape(-1), minlength=256)
    expected = train.images.size / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(2 * 255)


def test_texts_of_a_source_tell_its_content_and_not_its_place(tmp_path, tfds_dir):
    make(tmp_path, "a/1.png")
    for config in (
        DataConfig(),
        DataConfig(name="folder", path=str(tmp_path)),
        DataConfig(name="tfds", path=tfds_dir, dataset="tiny_shapes"),
    ):
        source = load(config, "train")
        assert source.content_id in repr(source)
        assert str(tmp_path) not in repr(source)  # not where it lies
        assert source.describe().startswith(f"{len(source):,} images, labels: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "folders"}, r"data\.name='folders'"),
        ({"name": "folder"}, r"data\.path is empty"),
        ({"name": "tfds"}, r"data\.dataset is empty"),
        ({"name": "idx", "path": "x", "dataset": "mnst"}, r"data\.dataset='mnst'"),
        ({"labels": "path/"}, r"data\.labels="),
        ({"channels": 4}, r"data\.channels=4"),
        ({"crop": "host "}, r"data\.crop="),
        ({"on_bad": "ignore"}, r"data\.on_bad='ignore': expected one of \['error', 'skip'\]"),
        ({"name": "noise", "image_size": 0}, r"data\.image_size=0: expected the size of the noise"),
        ({"image_size": -1}, r"data\.image_size=-1"),
        ({"max_pixels": 0}, r"data\.max_pixels=0"),
        ({"max_pixels": 400_000_000}, r"at most 178956970, above which Pillow opens no image"),
        ({"workers": -1}, r"data\.workers=-1: expected 0 or more"),
        ({"threads": 0}, r"data\.threads=0"),
        ({"prefetch": 0}, r"data\.prefetch=0"),
        ({"name": "folder", "path": "x", "holdout": 1.0}, r"data\.holdout=1\.0"),
        ({"holdout_together": "model"}, r"holdout_together='model': nothing is held out"),
        ({"holdout": 0.1}, "the emoji set has a fixed split 'val'"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
