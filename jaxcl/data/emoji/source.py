"""The built-in set: 1906 emoji drawn twice, with three levels of labels."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import re
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image

from jaxcl.data.arrays import ArraySource
from jaxcl.data.emoji.atlas import digest_lines, from_atlas
from jaxcl.data.labels import Labels, LabelTree

VENDORS = ("google", "twitter")
SPLITS = ("train", "val", "seen", "test", "all")

_EXPRESSION = re.compile(
    r"(?P<split>\w+)(?:/(?P<vendor>\w+))?(?:\[:(?P<first>\d+)(?P<percent>%)?\])?"
)

# What has been published with these data stays comparable only while they stay the same.
PIXELS_SHA256 = "49141dd5ceebd5d547fffff7cb4a29bfc7ae25bd229b0469b62a301c83df4b62"
LABELS_SHA256 = "9491195da2ebb748371a77d22e27f5895f296ed5ec54f3bb74633dd944940814"
UNSEEN_SHA256 = "779340e7bd132fa20dc813b5077e47f3bd82101553fa985c32994549f509068c"
VALIDATION_SHA256 = "34b9d793f0fe8fa18e0df54ca3f11f2501ab50f3bc1a851375f8fd6fe5a0a815"


class EmojiSource(ArraySource):
    """Emoji images u8[N, 32, 32, 3] with labels category / subcategory / code.

    Attributes:
      vendor: i32[N], who drew the image, an index into `vendors`. It is not a label.
      vendors: the names of the vendors.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: Labels,
        tree: LabelTree,
        names: tuple[str, ...],
        vendor: npt.NDArray[np.int32],
    ) -> None:
        """Use `load` to make one."""
        super().__init__(images, labels, tree, names=names)
        self.vendor = vendor
        self.vendors = VENDORS


def load(split: str) -> EmojiSource:
    """Loads a split of the emoji set, or a part of one; the ids of the labels are the same in all of them.

    Splits are by code, and both drawings of a code are on the same side: "test" has the 25 % of
    codes that training never sees, "val" 10 % of all codes for choosing settings, "train" the
    rest; "seen" is train and val, "all" everything. Images come in the order of the Unicode
    tables, first all of Google's, then all of Twitter's.

    A vendor may draw two codes alike (families, flags of territories): 68 drawings are equal to
    one of another code, pixel by pixel, and 12 of the 952 in "test" to one in "seen".

    Args:
      split: one of `SPLITS`. "train[:10%]" is that share of its codes, rounded, at least one, chosen by a digest, with both
        drawings of each; a smaller share is contained in a larger one. "train[:476]" is so many codes, chosen alike.
        "train/google" has one vendor's drawings only; both may be asked for, "train/google[:10%]".

    Raises:
      ValueError: unknown split or vendor, no share in (0, 100], fewer codes than are asked for, or files that differ from
        the published ones.
    """
    found = _EXPRESSION.fullmatch(split)
    if not found or found["split"] not in SPLITS or found["vendor"] not in (None, *VENDORS):
        raise ValueError(
            f"the emoji set has no split {split!r}; it has {list(SPLITS)}, parts of them by vendor, as in 'train/google',"
            " and shares or numbers of their codes, as in 'train[:10%]' or 'train[:476]'"
        )
    images, labels, tree, names, vendor, part = _all()
    member = _members(found["split"], part)
    if found["vendor"]:
        member &= vendor == VENDORS.index(found["vendor"])
    if found["first"]:
        first = int(found["first"])
        member &= _few(labels[:, -1], tree.names[-1], member, first, bool(found["percent"]))
    rows = np.flatnonzero(member)
    return EmojiSource(
        images[rows], labels[rows], tree, tuple(names[i] for i in rows), vendor[rows]
    )


def _members(split: str, part: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    if split == "all":
        return np.ones(len(part), bool)
    if split == "seen":
        return part != "test"
    return part == split


def _few(
    codes: npt.NDArray[np.int32],
    names: tuple[str, ...],
    member: npt.NDArray[np.bool_],
    first: int,
    percent: bool,
) -> npt.NDArray[np.bool_]:
    """Which drawings are of a share, or of a number, of the members' codes, the first ones by a digest of their names."""
    known = np.unique(codes[member]).tolist()
    if percent and not 0 < first <= 100:
        raise ValueError(f"[:{first}%]: expected a share of the codes in (0, 100]")
    if not percent and not 0 < first <= len(known):
        raise ValueError(f"[:{first}]: expected a number of codes from 1 to {len(known)}")
    count = max(1, round(first / 100 * len(known))) if percent else first
    known.sort(key=lambda code: hashlib.sha256(names[code].encode()).digest())
    return np.isin(codes, known[:count])


@functools.cache
def _all() -> tuple[
    npt.NDArray[np.uint8],
    Labels,
    LabelTree,
    tuple[str, ...],
    npt.NDArray[np.int32],
    npt.NDArray[np.str_],
]:
    """Images, labels, tree, names, vendor and part ("train", "val", "test") of every drawing."""
    folder = resources.files("jaxcl.data.emoji")
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    unseen = (folder / "unseen.txt").read_text(encoding="utf-8").splitlines()
    validation = (folder / "validation.txt").read_text(encoding="utf-8").splitlines()
    _require("labels.csv", digest_lines(lines), LABELS_SHA256)
    _require("unseen.txt", digest_lines(unseen), UNSEEN_SHA256)
    _require("validation.txt", digest_lines(validation), VALIDATION_SHA256)

    rows = list(csv.DictReader(lines))
    levels = (
        [row["category"] for row in rows],
        [row["subcategory"] for row in rows],
        [row["unified"] for row in rows],
    )
    names = tuple(tuple(dict.fromkeys(column)) for column in levels)
    tree = LabelTree(("category", "subcategory", "code"), names, unique=True)
    ids = [{name: i for i, name in enumerate(level)} for level in names]

    tiles = sorted(
        (int(row[vendor]), v, i)
        for i, row in enumerate(rows)
        for v, vendor in enumerate(VENDORS)
        if row[vendor]
    )
    with Image.open(io.BytesIO((folder / "atlas.png").read_bytes())) as atlas:
        images = from_atlas(np.asarray(atlas), len(tiles))
    _require("atlas.png", hashlib.sha256(images.tobytes()).hexdigest(), PIXELS_SHA256)

    of_row = np.array(
        [[ids[level][column[i]] for level, column in enumerate(levels)] for i in range(len(rows))],
        np.int32,
    )
    held = dict.fromkeys(unseen, "test") | dict.fromkeys(validation, "val")
    part = np.array([held.get(rows[i]["unified"], "train") for _, _, i in tiles])
    texts = tuple(f"{VENDORS[v]} {rows[i]['unified']} {rows[i]['name']}" for _, v, i in tiles)
    vendor = np.array([v for _, v, _ in tiles], np.int32)
    return images, of_row[[i for _, _, i in tiles]], tree, texts, vendor, part


def _require(file: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"jaxcl/data/emoji/{file} is not the published one: its digest is {found}, expected "
            f"{expected}; restore the file, or rebuild it with python -m jaxcl.data.emoji.rebuild"
        )
