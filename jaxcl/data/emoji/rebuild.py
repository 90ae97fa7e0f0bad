"""Makes the built-in emoji set from the npm packages that publish the drawings.

    npm pack emoji-datasource-google@16.0.0     # 64x64 drawings of Noto Emoji, Apache-2.0
    npm pack emoji-datasource-twitter@16.0.0    # 64x64 drawings of Twemoji, CC-BY-4.0
    for f in emoji-datasource-*.tgz; do mkdir "${f%.tgz}" && tar xf "$f" -C "${f%.tgz}"; done
    python -m jaxcl.data.emoji.rebuild \
        --google emoji-datasource-google-16.0.0/package \
        --twitter emoji-datasource-twitter-16.0.0/package

Rows of `emoji.json` in category "Component" (hair styles and skin tone swatches) and all skin tone
variations are left out. Each drawing is put on white and box-reduced to 32x32 in exact integer
arithmetic, so that every machine makes the same pixels. `digests.json` records them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from jaxcl.data.emoji.atlas import TILE, digest_lines, to_atlas

FIELDS = ("unified", "name", "category", "subcategory")

SPLIT_SEED = 0
UNSEEN_SHARE = 0.25
VALIDATION_SHARE = 0.10

Row = dict[str, str]


def reduce_tile(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Puts a 64x64 drawing of any mode on white and averages 2x2 boxes: u8[32, 32, 3].

    The sum of four alpha-weighted pixels is an integer, and is rounded once, half up.
    """
    if image.size != (2 * TILE, 2 * TILE):
        raise ValueError(f"expected a drawing of {2 * TILE}x{2 * TILE} pixels, got {image.size}")
    rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
    alpha = rgba[..., 3:]
    on_white = rgba[..., :3] * alpha + 255 * (255 - alpha)
    boxes = on_white.reshape(TILE, 2, TILE, 2, 3).sum(axis=(1, 3))
    whole = 4 * 255
    return ((boxes + whole // 2) // whole).astype(np.uint8)


def read_rows(package: Path) -> list[dict[str, Any]]:
    """The rows of `emoji.json` without "Component", by `sort_order`."""
    rows = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row["category"] != "Component"]
    return sorted(rows, key=lambda row: row["sort_order"])


def build(packages: Mapping[str, Path]) -> tuple[npt.NDArray[np.uint8], list[Row]]:
    """Reads the drawings of all vendors.

    Args:
      packages: vendor -> folder of its unpacked npm package.

    Returns:
      tiles u8[N, 32, 32, 3], one vendor after the other, each in the order of the rows; and the
      label table, a row for each code with at least one drawing, in which the column of each
      vendor is the number of its tile, or empty.
    """
    tables = {vendor: read_rows(package) for vendor, package in packages.items()}
    first, *others = tables
    for vendor in others:
        if tables[vendor] != tables[first]:
            raise ValueError(
                f"the emoji.json of {vendor} and of {first} differ; use packages of one version"
            )
    tiles: list[npt.NDArray[np.uint8]] = []
    table: list[Row] = [{field: row[field] for field in FIELDS} for row in tables[first]]
    for vendor, package in packages.items():
        for row, source in zip(table, tables[first], strict=True):
            row[vendor] = ""
            if source[f"has_img_{vendor}"]:
                row[vendor] = str(len(tiles))
                with Image.open(package / "img" / vendor / "64" / source["image"]) as image:
                    tiles.append(reduce_tile(image))
    table = [row for row in table if any(row[vendor] for vendor in packages)]
    return np.stack(tiles), table


def split_codes(codes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Draws the codes to hold out: (unseen, validation), each sorted.

    Codes are ordered by a digest of seed and code, so that the draw depends on no version of any
    random generator and not on the order of the table. The first quarter is unseen, the next
    tenth (of all codes) is for validation.
    """
    shuffled = sorted(
        codes, key=lambda code: hashlib.sha256(f"{SPLIT_SEED}:{code}".encode()).digest()
    )
    unseen = int(len(codes) * UNSEEN_SHARE)
    validation = int(len(codes) * VALIDATION_SHARE)
    return sorted(shuffled[:unseen]), sorted(shuffled[unseen : unseen + validation])


def write(
    folder: Path, tiles: npt.NDArray[np.uint8], table: Sequence[Row], vendors: Sequence[str]
) -> dict[str, str]:
    """Writes atlas, label table, splits and digests; returns the digests."""
    to_atlas(tiles).save(folder / "atlas.png", optimize=True, compress_type=0)
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, *vendors], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    unseen, validation = split_codes([row["unified"] for row in table])
    for name, codes in (("unseen.txt", unseen), ("validation.txt", validation)):
        (folder / name).write_text("\n".join(codes) + "\n", encoding="utf-8", newline="\n")
    digests = {
        "pixels": hashlib.sha256(tiles.tobytes()).hexdigest(),
        "labels": digest_lines((folder / "labels.csv").read_text(encoding="utf-8").splitlines()),
        "unseen": digest_lines(unseen),
        "validation": digest_lines(validation),
    }
    (folder / "digests.json").write_text(
        json.dumps(digests, indent=2) + "\n", "utf-8", newline="\n"
    )
    return digests


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.data.emoji.rebuild",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--google", type=Path, required=True, help="unpacked package of Google")
    parser.add_argument("--twitter", type=Path, required=True, help="unpacked package of Twitter")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write")
    args = parser.parse_args(argv)
    packages = {"google": args.google, "twitter": args.twitter}
    tiles, table = build(packages)
    args.out.mkdir(parents=True, exist_ok=True)
    digests = write(args.out, tiles, table, tuple(packages))
    print(f"{len(tiles)} drawings of {len(table)} emoji written to {args.out}")
    for name, digest in digests.items():
        print(f"  {name:10} {digest}")


if __name__ == "__main__":
    main()
