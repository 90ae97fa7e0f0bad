"""Seen and unseen classes: what each split has, from any source, and the command."""

import json
import re

import numpy as np
import pytest
from corpus import picture, png

from jaxcl.data import ArraySource, DataConfig, LabelTree, command, load, split_file, splits

TREE = LabelTree(
    ("kind", "breed"), (("bird", "cat", "dog", "fish"), tuple("abcdefgh")), unique=False
)


def source(n=400, missing=7, seed=0):
    """Four kinds, names of breeds shared by kinds, each image with a name of its own."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, 4, n), rng.integers(0, 8, n)], 1).astype(np.int32)
    labels[:missing, 0] = -1
    images = np.zeros((n, 1, 1, 1), np.uint8)
    return ArraySource(images, labels, TREE, names=[f"image {i}" for i in range(n)])


def names(part):
    return {part.name(i) for i in range(len(part))}


def opened(file, data):
    return {name: file.load(lambda split: data, name) for name in file.parts}


def test_classes_and_images_are_divided_without_overlap():
    data = source()
    file = split_file.make(data, "kind", 0.25, seed=3)
    assert (len(file.seen), len(file.unseen)) == (3, 1)
    parts = opened(file, data)
    assert set(parts) == {
        "train", "val", "seen", "test", "unseen_train", "unseen_test", "unseen"
    }  # fmt: skip
    unseen = TREE.names[0].index(file.unseen[0][0])
    for name, part in parts.items():
        assert ((part.labels[:, 0] == unseen) == name.startswith("unseen")).all(), name
        assert part.tree == TREE  # the same numbers everywhere
    assert names(parts["seen"]) == names(parts["train"]) | names(parts["val"])
    assert names(parts["unseen"]) == names(parts["unseen_train"]) | names(parts["unseen_test"])
    disjoint = ["train", "val", "test", "unseen_train", "unseen_test"]
    assert sum(len(parts[name]) for name in disjoint) == 393  # all with a label
    assert len(set().union(*(names(parts[name]) for name in disjoint))) == 393
    count = len(parts["seen"]) + len(parts["test"])
    for name, share in (("val", 0.1), ("test", 0.2)):
        assert abs(len(parts[name]) - share * count) < 4 * np.sqrt(share * count)


def test_a_place_depends_on_name_and_seed_alone():
    data = source()
    file = split_file.make(data, "kind", 0.25, seed=3)
    order = np.random.default_rng(1).permutation(400)[:300]
    moved = ArraySource(
        data.images[order], data.labels[order], TREE, names=[data.name(i) for i in order]
    )
    for name in file.parts:
        kept = names(file.load(lambda split: data, name)) & names(moved)
        assert names(file.load(lambda split: moved, name)) == kept
    choices = {split_file.make(data, "kind", 0.25, seed=s).unseen for s in range(20)}
    assert len(choices) == 4  # each kind has its turn
    other = split_file.make(data, "kind", 0.25, seed=3, val=0.2)
    assert other.unseen == file.unseen
    assert names(opened(other, data)["test"]) == names(opened(file, data)["test"])
    again = split_file.SplitFile(**{**vars(file), "seed": 4})
    assert names(opened(again, data)["test"]) != names(opened(file, data)["test"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_of_unseen_classes_is_by_the_path(share):
    file = split_file.make(source(), "breed", share)
    assert len(file.unseen) == round(share * 32)  # four kinds with eight breeds each
    assert len(file.unseen) + len(file.seen) == 32
    assert all(len(name) == 2 for name in file.unseen)


def test_a_finer_level_may_stay_together():
    data = source(2000)
    file = split_file.make(data, "kind", 0.25, together="breed", test=0.4)
    parts = opened(file, data)
    train, test = (
        {tuple(row) for row in parts[name].labels.tolist()} for name in ("train", "test")
    )
    assert not train & test
    assert test
    apart = opened(split_file.make(data, "kind", 0.25, test=0.4), data)
    assert {tuple(r) for r in apart["train"].labels.tolist()} & {
        tuple(r) for r in apart["test"].labels.tolist()
    }


def test_content_follows_the_split():
    data = source()
    ids = {
        (seed, name): part.content_id
        for seed in (0, 3)
        for name, part in opened(split_file.make(data, "kind", 0.25, seed=seed), data).items()
        if name != "unseen"  # two seeds may choose the same class
    }
    assert len(set(ids.values())) == len(ids)
    same = opened(split_file.make(source(), "kind", 0.25, seed=3), source())
    assert same["train"].content_id == ids[3, "train"]


def test_a_file_is_read_as_it_was_written(tmp_path):
    file = split_file.make(source(), "breed", 0.5, seed=1, together="")
    path = tmp_path / "split.json"
    path.write_text(file.to_json(), encoding="utf-8")
    assert split_file.read(path) == file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "colour"}, "no label level 'colour'"),
        ({"unseen": 0.0}, r"unseen=0\.0"),
        ({"unseen": 1.0}, r"unseen=1\.0"),
        ({"unseen_test": 0.0}, r"unseen_test=0\.0"),
        ({"val": 0.5, "test": 0.5}, "leave some for training"),
        ({"test": 0.0}, "test=0"),
        ({"together": "kind"}, "finer than 'kind'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        split_file.make(source(), **{"by": "kind", "unseen": 0.25, **settings})


def test_one_class_and_empty_sides_and_strangers_are_named():
    data = source()
    one = ArraySource(data.images, np.minimum(data.labels, 0), TREE)
    with pytest.raises(ValueError, match=r"1 class\(es\) have images at level 'kind'"):
        split_file.make(one, "kind", 0.25)
    file = split_file.make(data, "kind", 0.25)
    kept = np.flatnonzero(data.labels[:, 0] != TREE.names[0].index(file.unseen[0][0]))
    rest = ArraySource(data.images[kept], data.labels[kept], TREE)
    with pytest.raises(ValueError, match="'unseen_test' has no image: none of the"):
        file.load(lambda split: rest, "unseen_test")
    with pytest.raises(ValueError, match=r"no split 'dev': the split file has \['train'"):
        file.load(lambda split: data, "dev")
    tree = LabelTree(("kind", "breed"), (("bird", "cat", "dog", "horse"), TREE.names[1]))
    other = ArraySource(data.images, data.labels, tree)
    with pytest.raises(ValueError, match=r"does not know the kind 'horse' \(1 such"):
        file.load(lambda split: other, "train")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "split.json"
    with pytest.raises(ValueError, match="cannot be read"):
        split_file.read(path)
    good = json.loads(split_file.make(source(), "kind", 0.25).to_json())
    for change, message in (
        ({"format": "other"}, "expected an object with the format"),
        ({"seed": "0"}, "seed must be int"),
        ({"seen": []}, "no seen class"),
        ({"unseen": good["seen"]}, "both seen and unseen"),
        ({"unseen": [[1]]}, "lists of names"),
        ({"parts": {"train": {"split": "train"}}}, "missing"),
        ({"parts": {"train": {**good["parts"]["train"], "low": 2}}}, "0 <= low < high"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            split_file.read(path)
    del good["by"]
    path.write_text(json.dumps(good))
    with pytest.raises(ValueError, match="'by' is missing"):
        split_file.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        split_file.read(path)


def folder(root, per_class=12):
    for kind in ("cat", "dog", "eel", "fox"):
        for breed in "ab":
            (root / kind / breed).mkdir(parents=True)
            for i in range(per_class):
                (root / kind / breed / f"{i}.png").write_bytes(png(picture(4, 5)))
    (root / "stray.png").write_bytes(png(picture(4, 5)))


def test_command_for_a_folder_and_its_use_by_the_config(tmp_path, capsys):
    folder(tmp_path / "zoo")
    out = tmp_path / "made" / "split.json"
    splits.main(
        [
            f"--data=folder:{tmp_path / 'zoo'}",
            "--set",
            "labels=path",
            "--by=level0",
            "--unseen=0.5",
            "--seed=1",
            f"--out={out}",
        ]
    )
    printed = capsys.readouterr().out
    assert "2 seen and 2 unseen classes" in printed
    assert "1 images of train have no level0: in none of them" in printed
    assert f"data.split_file={out}" in printed
    config = DataConfig(
        name="folder", path=str(tmp_path / "zoo"), labels="path", split_file=str(out)
    )
    train, unseen = load(config, "train"), load(config, "unseen")
    assert f"train {len(train):>16,} images of train; classes: level0 2, level1 4" in printed
    assert len(unseen) == 48
    kinds = json.loads(out.read_text())
    assert {unseen.name(i).split("/")[0] for i in range(48)} == {k for (k,) in kinds["unseen"]}
    assert {train.name(i).split("/")[0] for i in range(len(train))} == {k for (k,) in kinds["seen"]}
    assert train.tree == unseen.tree
    # Moved data keep their splits and their content.
    (tmp_path / "zoo").rename(tmp_path / "moved")
    moved = load(
        DataConfig(name="folder", path=str(tmp_path / "moved"), labels="path", split_file=str(out)),
        "train",
    )
    assert moved.content_id == train.content_id
    with pytest.raises(ValueError, match="holdout"):
        DataConfig(holdout=0.1, name="folder", path="x", split_file=str(out))


def test_settings_of_the_command_line_have_the_type_of_their_field():
    config = command.data_config(
        "inaturalist:/x",
        ("dataset=2019", "image_key='7'", "holdout=0", "label_keys=['species']", "per_class=2", "unique_names=True"),
    )  # fmt: skip
    assert config == DataConfig(
        "inaturalist", "/x", "2019", image_key="7", label_keys=("species",), per_class=2, unique_names=True
    )  # fmt: skip
    assert command.data_config("idx:1", ()).path == "1"
    for setting, expected in (
        ("label_keys=species", r"tuple, as in \('a',\) or \(4,\), got 'species'"),
        ("taxonomy_depth=7", "tuple"),
        ("per_class=two", "int, got 'two'"),
        ("per_class=True", "int, got True"),
        ("unique_names=1", "bool"),
        ("dataset=(2019,)", "str"),
        ("splits=train", "dict"),
    ):
        with pytest.raises(ValueError, match=f"^--set {re.escape(setting)}: expected {expected}"):
            command.data_config("folder:/x", (setting,))


def test_command_with_a_split_of_its_own_to_test_on(tmp_path, capsys):
    for split, count in (("train", 8), ("test", 5)):
        folder(tmp_path / split, count)
    out = tmp_path / "split.json"
    settings = ["--set", "labels=path", "--set", "splits={'train': 'train', 'test': 'test'}"]
    splits.main(
        [
            f"--data=folder:{tmp_path}",
            *settings,
            "--by=level0",
            "--test_split=test",
            f"--out={out}",
        ]
    )
    config = command.data_config(f"folder:{tmp_path}", settings[1::2])
    config = DataConfig(**{**vars(config), "split_file": str(out)})
    sizes = {name: len(load(config, name)) for name in json.loads(out.read_text())["parts"]}
    assert sizes["seen"] == 3 * 2 * 8
    assert sizes["test"] == 3 * 2 * 5
    assert (sizes["unseen_train"], sizes["unseen_test"]) == (2 * 8, 2 * 5)
    assert "unseen" not in sizes
    assert "images of test; classes: level0 1, level1 2" in capsys.readouterr().out


def test_command_for_tables_idx_tfds_and_emoji(tmp_path, tfds_dir, capsys):
    rows = [f"{k}{i}.png,{k},{i % 3}" for k in ("cat", "dog") for i in range(40)]
    (tmp_path / "table.csv").write_text("\n".join(["path,kind,breed", *rows]))
    for data, settings, by, unseen in (
        (f"table:{tmp_path / 'table.csv'}", ("label_keys=('kind', 'breed')",), "breed", 2),
        (f"tfds:tiny_shapes@{tfds_dir}", (), "label", 1),
        ("emoji", (), "subcategory", 24),
    ):
        out = tmp_path / "split.json"
        base = "--split=all" if data == "emoji" else "--split=train"
        flags = [part for s in settings for part in ("--set", s)]
        splits.main([f"--data={data}", *flags, f"--by={by}", base, f"--out={out}", "--val=0.2"])
        assert f"{unseen} unseen classes" in capsys.readouterr().out
        config = command.data_config(data, (*settings, f"split_file={out}"))
        train, test = load(config, "train"), load(config, "unseen_test")
        level = train.tree.level(by) + 1
        assert not {tuple(r) for r in train.labels[:, :level].tolist()} & {
            tuple(r) for r in test.labels[:, :level].tolist()
        }


def test_command_names_what_is_wrong(tmp_path):
    folder(tmp_path)
    out = tmp_path / "x" / "split.json"
    for flags, message in (
        (["--by=kind"], "no label level 'kind'"),
        (["--by=label", "--set", "labls=path"], "did you mean 'labels'"),
        (["--by=label", "--set", "labels=all"], "data.labels='all'"),
        (["--by=label", "--test_split=test"], "no split 'test'"),
        (["--by=label", "--unseen=2"], "unseen=2"),
        (["--by=label", "--val=0.00001"], "'val' has no image"),
    ):
        with pytest.raises(SystemExit, match=message):
            splits.main([f"--data=folder:{tmp_path}", *flags, f"--out={out}"])
        assert not out.exists()
