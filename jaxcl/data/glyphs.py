"""Draws a data set of letters and digits from a folder of fonts: a label tree of scripts and characters, for tests and studies.

    apt-get install fonts-noto-core                  (SIL Open Font License; or any other folder of fonts)
    python -m jaxcl.data.glyphs --fonts=/usr/share/fonts/truetype/noto --out=glyphs
    python -m jaxcl.data.splits --data=folder:glyphs --set labels=path --set "splits={'train': 'train', 'test': 'test'}" \
        --by=level1 --test_split=test --out=glyphs/split.json

It leaves `<split>/<script>/<character>/<font>.png`, which `data.name=folder` reads with `data.labels=path`. A character is called by
its number, `U+0041`, so that the A of each script is a class of its own. Splits are by family of fonts: "test" has the drawings
of families from which the script has none in "train", and each character is in both. The second command holds out characters
too. `glyphs.json` says which families were tested and what was drawn with what.

A character is drawn with 44 pixels to the em, in black on a white square of 64, its ink in the middle, and reduced to 32. The same
fonts, flags and versions (of Pillow, FreeType and Python's Unicode tables) give the same files.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import sys
import tempfile
import unicodedata
import urllib.parse
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fontTools import unicodedata as scripts  # type: ignore[import-untyped]
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from PIL import Image, ImageDraw, ImageFont, features

SUFFIXES = (".ttf", ".otf")
COLLECTIONS = (".ttc", ".otc")
SPLITS = ("train", "test")
CATEGORIES = ("Lu", "Ll", "Lo", "Nd")
"""Unicode's capital, small and other letters, and digits."""

OF_NO_SCRIPT = ("Zyyy", "Zinh", "Zzzz")
"""Characters that several scripts use, such as 0 to 9."""

EM, CANVAS = 44, 64

SHOWN = 5
"""Names of bad fonts and of scripts that are shown."""

Tile = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Font:
    """A font file.

    Attributes:
      file: path relative to the folder, with "/".
      family: its family; weights and slopes are of the same.
      covers: script -> the code points of that script that it has.
    """

    file: str
    family: str
    covers: dict[str, frozenset[int]]


@dataclasses.dataclass
class Report:
    """What was drawn, and what was left out.

    Attributes:
      families: script -> split -> the families of its drawings.
      characters: script -> how many characters were drawn.
      images: split -> number of drawings.
      left_out: why -> drawings that were left out.
      guests: script -> fonts that have less than half of it, and so take no part in it.
      undivided: scripts of which no character has a drawing in each split: one family alone has them,
        or they look alike in all.
      bad: font file -> why it cannot be read.
    """

    families: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    characters: dict[str, int] = dataclasses.field(default_factory=dict)
    images: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    guests: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    undivided: list[str] = dataclasses.field(default_factory=list)
    bad: dict[str, str] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report, for people."""
        images = ", ".join(f"{self.images[split]:,} to {split}" for split in SPLITS)
        lines = [
            f"{len(self.characters)} scripts, {sum(self.characters.values()):,} characters,"
            f" {self.images.total():,} images: {images}"
        ]
        for why, count in sorted(self.left_out.items()):
            lines.append(f"  {count:,} drawings left out: {why}")
        for what, names in (
            ("scripts left out, as no character has a drawing in each split", self.undivided),
            (
                "scripts without the fonts that have less than half of them",
                [f"{script} ({count:,})" for script, count in self.guests.most_common()],
            ),
            ("fonts cannot be read", [f"{file}: {why}" for file, why in self.bad.items()]),
        ):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                lines.append(f"  {len(names)} {what}: {'; '.join(names[:SHOWN])}{more}")
        return lines


def read_fonts(folder: Path) -> tuple[list[Font], dict[str, str]]:
    """The fonts below a folder, by their paths, and those that cannot be read: file -> why.

    Raises:
      ValueError: no such folder, or no font in it that can be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder: expected a folder of fonts")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    fonts, bad = [], {}
    for path in files:
        file = path.relative_to(folder).as_posix()
        if path.suffix.lower() in COLLECTIONS:
            bad[file] = "a collection, expected a file for each font"
        if path.suffix.lower() not in SUFFIXES:
            continue
        try:
            fonts.append(_read_font(path, file))
        except Exception as error:  # a damaged table makes the parser raise anything
            bad[file] = " ".join(f"{type(error).__name__}: {error}".split())
    if not fonts:
        text = "; ".join(f"{file}: {why}" for file, why in list(bad.items())[:SHOWN])
        raise ValueError(
            f"no fonts below {str(folder)!r}: expected files named {' or '.join(SUFFIXES)}"
            + (f"; {len(bad)} files cannot be read: {text}" if bad else "")
        )
    return fonts, bad


def _read_font(path: Path, file: str) -> Font:
    with open(path, "rb") as opened, TTFont(opened, lazy=True) as font:
        family = font["name"].getBestFamilyName() or file
        codes = font.getBestCmap() or {}
    _face(path)
    covers = collections.defaultdict(set)
    for code in codes:
        if unicodedata.category(chr(code)) in CATEGORIES:
            script = scripts.script(chr(code))
            if script not in OF_NO_SCRIPT:
                covers[scripts.script_name(script).replace(" ", "_")].add(code)
    return Font(file, family, {script: frozenset(found) for script, found in covers.items()})


def _face(path: Path) -> ImageFont.FreeTypeFont:
    # Without the other layout engine a character is the same wherever that is not installed.
    return ImageFont.truetype(path, EM, layout_engine=ImageFont.Layout.BASIC)


def draw(font: ImageFont.FreeTypeFont, character: str) -> Tile | str:
    """A character in black on white u8[32, 32], its ink in the middle; or why there is no such picture."""
    canvas = Image.new("L", (4 * CANVAS, 4 * CANVAS))
    middle = (2 * CANVAS, 2 * CANVAS)
    try:
        ImageDraw.Draw(canvas).text(middle, character, fill=255, font=font, anchor="mm")
    except OSError:
        return "broken"
    box = canvas.getbbox()
    if box is None:
        return "without ink"
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) > CANVAS:
        return f"larger than {CANVAS} pixels"
    tile = Image.new("L", (CANVAS, CANVAS))
    tile.paste(canvas.crop(box), ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return np.uint8(255) - np.asarray(tile.reduce(2))


def divide(families: Collection[str], share: float, seed: int) -> frozenset[str]:
    """The families that are tested: about the share, but at least one, and not all.

    They come in the order of a digest of seed and name, so that a family is tested in every script rather than in one.
    """
    ordered = sorted(families, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return frozenset(ordered[: min(max(1, round(share * len(ordered))), len(ordered) - 1)])


def drawings(
    folder: Path, limit: int = 32, share: float = 0.25, seed: int = 0
) -> tuple[dict[str, Tile], Report]:
    """Draws the characters of every script that two families of fonts have.

    A font takes part in a script if it has at least half as many of its characters as the font that has most: many fonts of
    another script, its guests, bring a copy of some family's Latin letters. The first characters in the order of their numbers
    are taken that have a drawing in each split. Of equal drawings of a character one is kept, in "train" if there is one.

    Args:
      folder: of the fonts.
      limit: most characters of a script.
      share: of the families of a script, for "test".
      seed: of the choice of families.

    Returns:
      "<split>/<script>/<character>/<font>.png" -> drawing u8[32, 32], and what was left out.

    Raises:
      ValueError: a number out of range, no fonts, or no script of two families.
    """
    if limit < 1 or not 0 < share < 1:
        raise ValueError(
            f"characters={limit}, test={share}: expected 1 or more, and a share above 0 and below 1"
        )
    report = Report()
    fonts, report.bad = read_fonts(folder)
    made: dict[str, Tile] = {}
    for script in sorted({script for font in fonts for script in font.covers}):
        having = [font for font in fonts if script in font.covers]
        most = max(len(font.covers[script]) for font in having)
        able = [font for font in having if 2 * len(font.covers[script]) >= most]
        if len(having) > len(able):
            report.guests[script] = len(having) - len(able)
        tested = divide({font.family for font in able}, share, seed)
        parts = {
            split: [f for f in able if (f.family in tested) == (split == "test")]
            for split in SPLITS
        }
        drawn = 0
        used: dict[str, set[str]] = {split: set() for split in SPLITS}
        if all(parts.values()):
            faces = {font.file: _face(folder / font.file) for font in able}
            for code in sorted(frozenset().union(*(font.covers[script] for font in able))):
                found = _drawings_of(code, script, parts, faces, report)
                count = {split: len(tiles) for split, tiles in found.items()}
                if all(found.values()):
                    drawn += 1
                    made |= _named(code, script, found)
                    report.images.update(count)
                    for split, tiles in found.items():
                        used[split].update(tiles)
                elif any(found.values()):
                    report.left_out["of a character of one split"] += sum(count.values())
                if drawn == limit:
                    break
        if drawn:
            report.characters[script] = drawn
            report.families[script] = {
                split: sorted({font.family for font in able if font.file in used[split]})
                for split in SPLITS
            }
        else:
            report.undivided.append(script)
    if not made:
        raise ValueError(
            f"no script of the {len(fonts)} fonts below {str(folder)!r} has characters in two families, one to train on and one"
            " to test, that draw them differently"
        )
    return made, report


def _named(code: int, script: str, found: dict[str, dict[str, Tile]]) -> dict[str, Tile]:
    """The drawings of a character by their paths; a font in a folder of its own stays one name."""
    return {
        f"{split}/{script}/U+{code:04X}/{urllib.parse.quote(file, safe='')}.png": tile
        for split, tiles in found.items()
        for file, tile in tiles.items()
    }


def _drawings_of(
    code: int,
    script: str,
    parts: dict[str, list[Font]],
    faces: dict[str, ImageFont.FreeTypeFont],
    report: Report,
) -> dict[str, dict[str, Tile]]:
    """Split -> font file -> drawing of one character."""
    found: dict[str, dict[str, Tile]] = {split: {} for split in parts}
    seen: set[bytes] = set()
    for split, part in parts.items():
        for font in part:
            if code not in font.covers[script]:
                continue
            tile = draw(faces[font.file], chr(code))
            if isinstance(tile, str):
                report.left_out[tile] += 1
            elif tile.tobytes() in seen:
                report.left_out["equal to another font's"] += 1
            else:
                seen.add(tile.tobytes())
                found[split][font.file] = tile
    return found


def write(fonts: Path, out: Path, limit: int = 32, share: float = 0.25, seed: int = 0) -> Report:
    """Writes the data set; `out` is there when it is whole, or not at all.

    Args:
      fonts: folder of the fonts.
      out: folder that is not there yet, or is empty.
      limit, share, seed: as for `drawings`.

    Raises:
      ValueError: `out` is not empty, or as `drawings`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is there already: name a new folder, or an empty one")
    out.parent.mkdir(parents=True, exist_ok=True)
    tiles, report = drawings(fonts, limit, share, seed)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        made = Path(temporary) / "made"
        for name, tile in tiles.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tile).save(path)
        record = {
            "settings": {"characters": limit, "test": share, "seed": seed},
            "versions": {
                "Pillow": features.version("pil"),
                "FreeType": features.version("freetype2"),
                "Unicode": unicodedata.unidata_version,
            },
            **vars(report),
        }
        text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
        (made / "glyphs.json").write_text(text + "\n", encoding="utf-8")
        made.rename(out)
    return report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.data.glyphs",
        description="Draws a data set of letters and digits from a folder of fonts.",
        allow_abbrev=False,
    )
    parser.add_argument("--fonts", required=True, type=Path, help="folder of .ttf and .otf files")
    parser.add_argument("--out", required=True, type=Path, help="the folder to make")
    parser.add_argument("--characters", type=int, default=32, help="most of a script")
    parser.add_argument(
        "--test", type=float, default=0.25, help="share of a script's families of fonts"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these families")
    return parser.parse_args(list(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command: draws, and says what was drawn and what was left out."""
    flags = parse(sys.argv[1:] if argv is None else argv)
    try:
        report = write(flags.fonts, flags.out, flags.characters, flags.test, flags.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"jaxcl.data.glyphs: {error}")
    print("\n".join(report.lines()))
    print(
        f"written to {flags.out}: set data.name=folder, data.path={flags.out}, data.labels=path,"
        " data.splits={'train': 'train', 'test': 'test'}"
    )


if __name__ == "__main__":
    main()
