"""Glyphs drawn from the DejaVu fonts that Matplotlib brings: where the ink is, what is left out, and what each split has."""

import collections
import json
import pathlib
import shutil
import unicodedata
import urllib.parse

import matplotlib
import numpy as np
import pytest
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont

from jaxcl.data import DataConfig, glyphs, load, splits

FONTS = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
THREE = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
LIMIT = 5


def copy_fonts(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(FONTS / f"{name}.ttf", folder)
    return folder


def changed(name, family, characters, place):
    """A font with some characters of another one, in a family of its own."""
    font = TTFont(FONTS / f"{name}.ttf")
    cut = subset.Subsetter()
    cut.populate(unicodes=list(map(ord, characters)))
    cut.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 16):
            record.string = family
    font.save(place)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of the fonts, folder of the data, report)."""
    root = tmp_path_factory.mktemp("glyphs")
    fonts = copy_fonts(root / "fonts", THREE[:2])
    copy_fonts(fonts / "more fonts", THREE[2:])
    (fonts / "torn.ttf").write_bytes((FONTS / "DejaVuSans.ttf").read_bytes()[:5000])
    (fonts / "text.otf").write_text("no font")
    (fonts / "two.ttc").write_bytes(b"ttcf")
    (fonts / "LICENSE.txt").write_text("no font, and not called one")
    changed("DejaVuSans-Oblique", "Guest", "ABCαβγδεζηθικλμνξοπρστυφχψω", fonts / "guest.ttf")
    return fonts, root / "data", glyphs.write(fonts, root / "data", LIMIT)


def drawn(data):
    """(split, script, character, font file) of every picture."""
    found = []
    for path in sorted(data.rglob("*.png")):
        split, script, code, font = path.relative_to(data).parts
        file = urllib.parse.unquote(font.removesuffix(".png"))
        found.append((split, script, chr(int(code.removeprefix("U+"), 16)), file, path))
    return found


def test_scripts_and_characters(made):
    _, data, report = made
    characters = collections.defaultdict(set)
    for _, script, character, *_ in drawn(data):
        characters[script].add(character)
        # Unicode's names begin with the script's.
        assert unicodedata.name(character).startswith(script.upper().replace("_", " "))
        assert unicodedata.category(character) in ("Lu", "Ll", "Lo", "Nd")
    assert {"Latin", "Greek", "Cyrillic"} <= set(characters)
    assert characters["Latin"] == set("ABCDE")
    assert not {"Common", "Inherited"} & set(characters)
    assert report.characters == {script: len(found) for script, found in characters.items()}
    assert set(map(len, characters.values())) <= set(range(1, LIMIT + 1))
    # Hebrew is in one family alone.
    assert "Hebrew" in report.undivided
    assert "Hebrew" not in characters


def test_each_character_is_in_both_splits_in_other_families(made):
    fonts, data, report = made
    families = collections.defaultdict(set)
    leaves = collections.defaultdict(set)
    for split, script, character, file, _ in drawn(data):
        family = ImageFont.truetype(fonts / file, 20).getname()[0]
        families[script, split].add(family)
        leaves[script, character].add(split)
    assert set(map(frozenset, leaves.values())) == {frozenset({"train", "test"})}
    for script in report.characters:
        assert not families[script, "train"] & families[script, "test"]
        for split in ("train", "test"):
            assert report.families[script][split] == sorted(families[script, split])
    count = collections.Counter(split for split, *_ in drawn(data))
    assert report.images == count
    # Both weights of a family that is trained on, or of the one that is tested, stand together.
    both = {file for split, script, _, file, _ in drawn(data) if script == "Latin"}
    assert {"DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "more fonts/DejaVuSerif.ttf"} <= both


def test_a_font_of_another_script_does_not_take_part(made):
    """It has three of the Latin letters, and more than half of no other script's."""
    _, data, report = made
    assert all(file != "guest.ttf" for *_, file, _ in drawn(data))
    assert all(
        "Guest" not in family for parts in report.families.values() for family in parts.values()
    )
    assert (report.guests["Latin"], report.guests["Greek"]) == (1, 1)
    assert "Latin (1)" in "\n".join(report.lines())
    assert "Cyrillic" not in report.guests


def test_the_ink_is_in_the_middle(made):
    fonts, data, _ = made
    for _, _, character, file, path in drawn(data)[::7]:
        with Image.open(path) as image:
            tile = np.asarray(image)
        assert tile.shape == (32, 32)
        assert tile.dtype == np.uint8
        ink = np.argwhere(tile < 255)
        middle = (ink.min(0) + ink.max(0)) / 2
        np.testing.assert_allclose(middle, 15.5, atol=0.5)
        # Drawn alone, without a canvas, put into the square and averaged by hand.
        font = ImageFont.truetype(fonts / file, 44, layout_engine=ImageFont.Layout.BASIC)
        mask = font.getmask(character, "L")
        grey = np.array(mask, np.float64).reshape(mask.size[1], mask.size[0])
        rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
        grey = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        square = np.zeros((64, 64))
        top, left = ((64 - side) // 2 for side in grey.shape)
        square[top : top + grey.shape[0], left : left + grey.shape[1]] = grey
        small = np.zeros((32, 32))
        for y in range(32):
            for x in range(32):
                small[y, x] = square[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
        np.testing.assert_allclose(255 - tile.astype(np.float64), small, atol=1)


def test_bad_fonts_are_named_and_counted(made):
    *_, report = made
    assert sorted(report.bad) == ["text.otf", "torn.ttf", "two.ttc"]
    text = "\n".join(report.lines())
    assert "3 fonts cannot be read" in text
    assert "two.ttc: a collection" in text
    assert "torn.ttf: " in text
    assert "TTLibError" in report.bad["text.otf"]


def test_the_same_fonts_give_the_same_files(made, tmp_path):
    fonts, data, report = made
    again = glyphs.write(fonts, tmp_path / "again", LIMIT)
    assert again == report
    files = [p.relative_to(data) for p in sorted(data.rglob("*")) if p.is_file()]
    assert files == [
        p.relative_to(tmp_path / "again")
        for p in sorted((tmp_path / "again").rglob("*"))
        if p.is_file()
    ]
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (data / file).read_bytes(), file
    record = json.loads((data / "glyphs.json").read_text())
    assert record["settings"] == {"characters": LIMIT, "test": 0.25, "seed": 0}
    assert record["characters"] == report.characters


def test_equal_drawings_are_kept_once(tmp_path):
    """A family that is a copy of another has nothing of its own, and so no script two families."""
    fonts = copy_fonts(tmp_path / "fonts", ["DejaVuSans"])
    changed("DejaVuSans", "Copy", "ABC", fonts / "copy.ttf")
    changed("DejaVuSans", "Original", "ABC", fonts / "DejaVuSans.ttf")
    with pytest.raises(ValueError, match=r"no script of the 2 fonts .* that draw them differently"):
        glyphs.drawings(fonts)
    changed("DejaVuSerif", "Serif", "ABC", fonts / "serif.ttf")
    families = ("Copy", "Original", "Serif")
    seed = next(s for s in range(99) if glyphs.divide(families, 0.1, s) == {"Serif"})
    tiles, report = glyphs.drawings(fonts, share=0.1, seed=seed)
    assert report.images["train"] + report.images["test"] == len(tiles) == 6
    assert report.left_out == {"equal to another font's": 3}


def test_what_only_one_split_has_is_counted(tmp_path):
    """A and B are in both; C and D in two families of one split, of which one has nothing else."""
    for family, name, characters in (
        ("One", "DejaVuSans", "ABCD"),
        ("Two", "DejaVuSerif", "AB"),
        ("Three", "DejaVuSansMono", "CD"),
    ):
        changed(name, family, characters, tmp_path / f"{family}.ttf")
    seed = next(s for s in range(99) if glyphs.divide(("One", "Two", "Three"), 0.1, s) == {"Two"})
    tiles, report = glyphs.drawings(tmp_path, share=0.1, seed=seed)
    assert len(tiles) == 4
    assert report.left_out == {"of a character of one split": 4}
    assert report.families == {"Latin": {"train": ["One"], "test": ["Two"]}}


def test_characters_without_a_picture():
    font = ImageFont.truetype(FONTS / "DejaVuSans.ttf", 44)
    assert glyphs.draw(font, "\u00a0") == "without ink"
    large = ImageFont.truetype(FONTS / "DejaVuSans.ttf", 100)
    assert glyphs.draw(large, "W") == "larger than 64 pixels"
    assert glyphs.draw(large, ".").shape == (32, 32)


def test_families_are_divided():
    names = [f"Family {i}" for i in range(8)]
    tested = glyphs.divide(names, 0.25, 0)
    assert len(tested) == 2
    assert tested == glyphs.divide(names[::-1], 0.25, 0)
    assert len({glyphs.divide(names, 0.25, seed) for seed in range(20)}) > 5
    assert len(glyphs.divide(names[:2], 0.01, 0)) == len(glyphs.divide(names[:2], 0.99, 0)) == 1
    assert glyphs.divide(names[:1], 0.5, 0) == frozenset()
    # Who is tested among many is tested among few.
    assert tested & set(names[:5]) <= glyphs.divide(names[:5], 0.4, 0)


def test_the_command_and_the_splits_of_characters(tmp_path, capsys):
    fonts = copy_fonts(tmp_path / "fonts", THREE)
    out = tmp_path / "made" / "data"
    glyphs.main([f"--fonts={fonts}", f"--out={out}", "--characters=12", "--seed=1"])
    printed = capsys.readouterr().out
    assert f"data.path={out}" in printed
    assert "scripts left out" in printed
    fields = {"labels": "path", "splits": {"train": "train", "test": "test"}}
    config = DataConfig(name="folder", path=str(out), **fields)
    train, test = load(config, "train"), load(config, "test")
    assert f"{len(train):,} to train, {len(test):,} to test" in printed
    assert train.tree.levels == ("level0", "level1")
    assert train.tree == test.tree
    assert train[0]["image"].shape == (32, 32, 3)
    splits.main(
        [
            f"--data=folder:{out}",
            "--set",
            "labels=path",
            "--set",
            "splits={'train': 'train', 'test': 'test'}",
            "--by=level1",
            "--test_split=test",
            f"--out={out / 'split.json'}",
        ]
    )
    config = DataConfig(
        name="folder", path=str(out), split_file=str(out / "split.json"), channels=1, **fields
    )
    parts = {name: load(config, name) for name in ("seen", "test", "unseen_train", "unseen_test")}
    characters = {name: {tuple(row) for row in p.labels.tolist()} for name, p in parts.items()}
    assert characters["seen"] == characters["test"]
    assert characters["unseen_train"] == characters["unseen_test"]
    assert not characters["seen"] & characters["unseen_test"]
    assert parts["test"][0]["image"].shape == (32, 32, 1)


def test_what_cannot_be_is_named(tmp_path):
    empty, fonts = tmp_path / "empty", copy_fonts(tmp_path / "fonts", ["DejaVuSans"])
    empty.mkdir()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.ttf").write_text("x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    out = tmp_path / "out"
    for source, place, more, message in (
        (tmp_path / "none", out, [], "is not a folder: expected a folder of fonts"),
        (empty, out, [], r"no fonts below .*empty.*: expected files named \.ttf or \.otf$"),
        (bad, out, [], r"no fonts below .*; 1 files cannot be read: x\.ttf: TTLibError"),
        (fonts, full, [], "is there already: name a new folder"),
        (fonts, out, ["--characters=0"], "characters=0"),
        (fonts, out, ["--test=1"], r"test=1\.0"),
        (fonts, out, [], "no script of the 1 fonts"),
    ):
        with pytest.raises(SystemExit, match=message):
            glyphs.main([f"--fonts={source}", f"--out={place}", *more])
        assert not out.exists()
    assert sorted(tmp_path.iterdir()) == sorted([empty, fonts, bad, full])
