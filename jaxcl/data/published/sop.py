"""Stanford Online Products (Song et al., 2016): 120,053 images of 22,634 products in 12 categories.

    Stanford_Online_Products/     data.path
      Ebay_train.txt              image_id class_id super_class_id path
      Ebay_test.txt               the same header
      bicycle_final/111085122871_0.JPG, ...

Levels: the category, named by its folder without "_final", and the product, by its class_id. The products
of "train" and "test" differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxcl.data.published.layout import Layout, Listing, fields

HEADER = "image_id class_id super_class_id path"


def read(folder: Path, version: str) -> Listing:
    """All images."""
    del version
    files: list[str] = []
    names: list[tuple[str, ...]] = []
    splits = {}
    for split in ("train", "test"):
        first = len(files)
        for number, (_, product, _, path) in fields(folder / f"Ebay_{split}.txt", 4, HEADER):
            category, slash, _ = path.partition("/")
            if not slash:
                raise ValueError(f"line {number} of Ebay_{split}.txt: {path!r} is in no category")
            files.append(path)
            names.append((category.removesuffix("_final"), product))
        splits[split] = np.arange(first, len(files))
    return Listing(folder, files, names, splits)


LAYOUT = Layout(
    ("category", "product"),
    read,
    lambda version: {
        "train": {"images": 59_551, "category": 12, "product": 11_318},
        "test": {"images": 60_502, "category": 12, "product": 11_316},
    },
    unique=True,
)
