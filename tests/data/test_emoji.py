import collections
import csv
import hashlib
import json
import pathlib
import re
from importlib import resources

import numpy as np
import pytest
from corpus import png
from PIL import Image

from jaxcl.data import DataConfig, emoji, load
from jaxcl.data.emoji import atlas, rebuild, source

FOLDER = pathlib.Path(str(resources.files("jaxcl.data.emoji")))


@pytest.fixture(scope="module")
def everything():
    return emoji.load("all")


def test_counts(everything):
    assert everything.images.shape == (3812, 32, 32, 3)
    assert everything.images.dtype == np.uint8
    assert everything.labels.shape == (3812, 3)
    assert everything.tree.levels == ("category", "subcategory", "code")
    assert [len(names) for names in everything.tree.names] == [9, 98, 1906]
    assert everything.vendors == ("google", "twitter")
    np.testing.assert_array_equal(np.bincount(everything.vendor), [1906, 1906])


def test_stored_digests_are_those_of_the_files(everything):
    digests = json.loads((FOLDER / "digests.json").read_text())
    assert digests["pixels"] == hashlib.sha256(everything.images.tobytes()).hexdigest()
    for file, key in (
        ("labels.csv", "labels"),
        ("unseen.txt", "unseen"),
        ("validation.txt", "validation"),
    ):
        lines = "\n".join((FOLDER / file).read_text().splitlines())
        assert digests[key] == hashlib.sha256(lines.encode()).hexdigest()
    assert digests == {
        "pixels": source.PIXELS_SHA256,
        "labels": source.LABELS_SHA256,
        "unseen": source.UNSEEN_SHA256,
        "validation": source.VALIDATION_SHA256,
    }


def test_labels_and_pixels_belong_together(everything):
    """Some emoji whose colours everybody knows, looked up by their code."""
    codes = everything.tree.names[2]
    for code, name, category, strongest in (
        ("1F34E", "RED APPLE", "Food & Drink", 0),
        ("1F438", "FROG FACE", "Animals & Nature", 1),
        ("1F499", "BLUE HEART", "Smileys & Emotion", 2),
        ("1F7E5", "LARGE RED SQUARE", "Symbols", 0),
    ):
        rows = np.flatnonzero(everything.labels[:, 2] == codes.index(code))
        assert [everything.name(i) for i in rows] == [
            f"google {code} {name}",
            f"twitter {code} {name}",
        ]
        for row in rows:
            assert everything.tree.names[0][everything.labels[row, 0]] == category
            ink = everything.images[row].reshape(-1, 3)
            ink = ink[ink.sum(axis=1) < 700]
            assert ink.mean(axis=0).argmax() == strongest


def test_splits_are_by_code_with_both_drawings_on_one_side(everything):
    parts = {name: emoji.load(name) for name in source.SPLITS}
    codes = {name: set(part.labels[:, 2].tolist()) for name, part in parts.items()}
    assert not codes["train"] & codes["val"]
    assert not codes["seen"] & codes["test"]
    assert codes["train"] | codes["val"] == codes["seen"]
    assert codes["seen"] | codes["test"] == codes["all"]
    assert len(codes["test"]) == 476  # a quarter of 1906
    assert len(codes["val"]) == 190  # a tenth
    for name, part in parts.items():
        assert len(part) == 2 * len(codes[name])
        for vendor in (0, 1):
            assert set(part.labels[part.vendor == vendor, 2].tolist()) == codes[name]
        assert part.tree == everything.tree
    assert len({part.content_id for part in parts.values()}) == len(parts)


def test_rows_of_a_split_are_rows_of_all(everything):
    test = emoji.load("test")
    where = {everything.name(i): i for i in range(len(everything))}
    rows = [where[test.name(i)] for i in range(len(test))]
    np.testing.assert_array_equal(test.images, everything.images[rows])
    np.testing.assert_array_equal(test.labels, everything.labels[rows])
    np.testing.assert_array_equal(test.vendor, everything.vendor[rows])
    example = test[5]
    np.testing.assert_array_equal(example["image"], test.images[5])
    np.testing.assert_array_equal(example["label"], test.labels[5])


def test_equal_drawings_are_as_many_as_the_text_says(everything):
    drawings = collections.Counter(image.tobytes() for image in everything.images)
    assert sum(count for count in drawings.values() if count > 1) == 68
    seen = {image.tobytes() for image in emoji.load("seen").images}
    assert sum(image.tobytes() in seen for image in emoji.load("test").images) == 12


@pytest.mark.parametrize(
    "split", ["valid", "", "train/apple", "train[10%:]", "train[:10%]/google", "train[:]"]
)
def test_unknown_split(split):
    with pytest.raises(ValueError, match=re.escape(f"no split {split!r}; it has ['train', 'val'")):
        emoji.load(split)


def test_a_share_of_the_codes_with_both_drawings():
    train = emoji.load("train")
    codes, small, large = (
        set(emoji.load(split).labels[:, 2].tolist())
        for split in ("train", "train[:10%]", "train[:50%]")
    )
    assert small < large < codes
    assert (len(codes), len(small), len(large)) == (1240, 124, 620)
    part = load(DataConfig(splits={"train": "train[:10%]"}), "train")
    rows = [i for i in range(len(train)) if train.labels[i, 2] in small]
    np.testing.assert_array_equal(part.images, train.images[rows])
    np.testing.assert_array_equal(part.labels, train.labels[rows])
    assert part.tree == train.tree
    assert part.content_id != train.content_id
    np.testing.assert_array_equal(np.bincount(part.vendor), [124, 124])
    assert len(np.unique(part.labels[:, 0])) == 9  # all categories
    assert emoji.load("train[:100%]").content_id == train.content_id
    with pytest.raises(ValueError, match=r"\[:0%\]: expected a share"):
        emoji.load("train[:0%]")
    as_many = emoji.load("train/google[:476]").labels[:, 2]
    assert set(small) < set(as_many.tolist()) == set(emoji.load("train/twitter[:476]").labels[:, 2])
    assert len(as_many) == len(emoji.load("test/google")) == 476
    for split in ("train[:0]", "train[:1241]"):
        with pytest.raises(ValueError, match=r"expected a number of codes from 1 to 1240"):
            emoji.load(split)


def test_the_drawings_of_one_vendor():
    seen, google, few = (emoji.load(s) for s in ("seen", "seen/google", "seen/twitter[:1%]"))
    np.testing.assert_array_equal(google.labels, seen.labels[seen.vendor == 0])
    assert set(google.vendor.tolist()) == {0}
    assert len(few) == round(len(google) / 100)
    assert all(few.name(i).startswith("twitter ") for i in range(len(few)))


def test_changed_files_are_refused(monkeypatch):
    source._all.cache_clear()
    monkeypatch.setattr(source, "UNSEEN_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"unseen\.txt is not the published one"):
        emoji.load("train")
    monkeypatch.undo()
    assert len(emoji.load("train")) == 2480


def test_the_folder_is_small_and_has_its_notices():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    for name, word in (
        ("NOTICE.google", "Apache License, Version 2.0"),
        ("NOTICE.twitter", "creativecommons.org/licenses/by/4.0"),
        ("NOTICE.emoji-data", "Copyright (c) 2013 Cal Henderson"),
    ):
        assert word in (FOLDER / name).read_text()
        assert name in (FOLDER / "NOTICE").read_text()


# ------------------------------------------------------------------------ the rebuild, in miniature


def drawing(seed, mode):
    rgba = np.random.default_rng(seed).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    image = Image.fromarray(rgba, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").quantize(16)


def make_package(folder, vendor, rows):
    images = folder / "img" / vendor / "64"
    images.mkdir(parents=True)
    (folder / "emoji.json").write_text(json.dumps(rows))
    for seed, row in enumerate(rows):
        if row[f"has_img_{vendor}"]:
            image = drawing(seed + len(vendor), "P" if seed % 3 == 0 else "RGBA")
            (images / row["image"]).write_bytes(png(image))


@pytest.fixture
def packages(tmp_path):
    rows = [
        {
            "unified": f"1F{600 + i}",
            "name": f"FACE, {i}",
            "category": "Component" if i == 4 else "Faces",
            "subcategory": f"sub{i % 2}",
            "image": f"1f{600 + i}.png",
            "sort_order": 100 - i,
            "has_img_google": True,
            "has_img_twitter": i != 2,
        }
        for i in range(8)
    ]
    for vendor in ("google", "twitter"):
        make_package(tmp_path / vendor, vendor, rows)
    return tmp_path


def test_reduced_tiles_are_on_white_and_averaged():
    image = drawing(3, "RGBA")
    rgba = np.asarray(image).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    expected = np.zeros((32, 32, 3))
    for y in range(32):
        for x in range(32):
            expected[y, x] = white[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(axis=(0, 1))
    np.testing.assert_array_equal(rebuild.reduce_tile(image), np.floor(expected + 0.5 + 1e-9))
    with pytest.raises(ValueError, match="64x64"):
        rebuild.reduce_tile(image.resize((32, 32)))


def test_rebuild_in_miniature(packages, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--google", str(packages / "google"), "--twitter", str(packages / "twitter")]
    rebuild.main([*arguments, "--out", str(out)])
    assert "13 drawings of 7 emoji" in capsys.readouterr().out
    with open(out / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # By sort_order, without the component, and with a gap where a vendor has no drawing.
    assert [row["unified"] for row in rows] == [f"1F60{i}" for i in (7, 6, 5, 3, 2, 1, 0)]
    assert [row["google"] for row in rows] == ["0", "1", "2", "3", "4", "5", "6"]
    assert [row["twitter"] for row in rows] == ["7", "8", "9", "10", "", "11", "12"]
    with Image.open(out / "atlas.png") as image:
        tiles = atlas.from_atlas(np.asarray(image), 13)
    with Image.open(packages / "twitter/img/twitter/64/1f603.png") as image:
        np.testing.assert_array_equal(tiles[10], rebuild.reduce_tile(image))

    again = tmp_path / "again"
    rebuild.main([*arguments, "--out", str(again)])
    for path in sorted(out.iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_packages_of_two_versions_are_refused(packages):
    table = json.loads((packages / "twitter/emoji.json").read_text())
    table[0]["name"] = "RENAMED"
    (packages / "twitter/emoji.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="twitter and of google differ"):
        rebuild.build({v: packages / v for v in ("google", "twitter")})


@pytest.mark.parametrize(("count", "columns"), [(1, 4), (4, 4), (7, 3)])
def test_atlas_round_trip(count, columns):
    tiles = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    picture = np.asarray(atlas.to_atlas(tiles, columns))
    assert picture.shape[1] == 32 * columns
    np.testing.assert_array_equal(atlas.from_atlas(picture, count), tiles)


def test_split_depends_on_the_codes_only():
    codes = [f"{i:04X}" for i in range(200)]
    unseen, validation = rebuild.split_codes(codes)
    assert (len(unseen), len(validation)) == (50, 20)
    assert not set(unseen) & set(validation)
    assert rebuild.split_codes(codes[::-1]) == (unseen, validation)
    # A new code moves at most the borders.
    more, _ = rebuild.split_codes([*codes, "FFFF"])
    assert len(set(unseen) - set(more)) <= 1


def test_published_split_is_the_one_that_the_codes_give(everything):
    unseen, validation = rebuild.split_codes(everything.tree.names[2])
    assert unseen == (FOLDER / "unseen.txt").read_text().splitlines()
    assert validation == (FOLDER / "validation.txt").read_text().splitlines()
