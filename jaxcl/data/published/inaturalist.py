"""iNaturalist (Van Horn et al., 2018), the competitions of 2017, 2018 and 2019: photographs of species.

    inaturalist/                  data.path
      train2017.json              {"images": [{"id", "file_name", ...}, ...],
      val2017.json                 "annotations": [{"image_id", "category_id", ...}, ...],
                                   "categories": [{"id", "name", "supercategory", ...}, ...]}
      train_val_images/Plantae/Abies amabilis/....jpg, ...       the paths of "file_name"

data.dataset is the year, 2017 if it is empty. Levels: the supercategory ("Plantae", "Aves", ...) and the
species. 2017: 5,089 species in 13 supercategories, 579,184 images for training and 95,986 for validation.
2019 has 1,010 species and 268,243 images in all; it is what the paper on LooC calls iNat-1k. Its species had
numbers for names at first; its published list of categories may take the place of the one in the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.data.published.layout import Layout, Listing

COUNTS: dict[str, dict[str, dict[str, int]]] = {
    "2017": {
        "train": {"images": 579_184, "supercategory": 13, "species": 5_089},
        "val": {"images": 95_986, "supercategory": 13, "species": 5_089},
    },
    "2018": {"train": {"images": 437_513, "species": 8_142}, "val": {"images": 24_426}},
    "2019": {"train": {"images": 265_213, "species": 1_010}, "val": {"images": 3_030}},
}


def read(folder: Path, version: str) -> Listing:
    """All images."""
    year = version or "2017"
    files: list[str] = []
    names: list[tuple[str, ...]] = []
    splits = {}
    listed: dict[Any, tuple[str, ...]] | None = None
    for split in ("train", "val"):
        path = folder / f"{split}{year}.json"
        images, annotations, categories = _read(path)
        if listed is not None and categories != listed:
            raise ValueError(
                f"the categories of {path.name} in {str(folder)!r} are not those of train"
            )
        listed = categories
        if odd := set(images) ^ set(annotations):
            raise ValueError(
                f"{str(path)!r}: {len(odd)} images have no annotation, or annotations no image, such as "
                f"{min(odd)}"
            )
        if unknown := set(annotations.values()) - set(categories):
            raise ValueError(f"{str(path)!r} has no category {min(unknown)}, which an image is of")
        splits[split] = np.arange(len(files), len(files) + len(images))
        files += images.values()
        names += [categories[annotations[i]] for i in images]
    return Listing(folder, files, names, splits, list((listed or {}).values()))


def _read(path: Path) -> tuple[dict[Any, str], dict[Any, Any], dict[Any, tuple[str, ...]]]:
    """Files and categories by image, and label names by category."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: image["file_name"] for image in plain["images"]}
        annotations = {a["image_id"]: a["category_id"] for a in plain["annotations"]}
        categories: dict[Any, tuple[str, ...]] = {
            c["id"]: (c["supercategory"], c["name"]) for c in plain["categories"]
        }
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the list {str(path)!r} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no such list: {error} is missing") from error
    return images, annotations, categories


def counts(version: str) -> Mapping[str, Mapping[str, int]]:
    """The published numbers."""
    return COUNTS[version or "2017"]


LAYOUT = Layout(("supercategory", "species"), read, counts, versions=("", *COUNTS))
