"""Oxford Flowers-102 (Nilsback and Zisserman, 2008): 8,189 images of 102 kinds of flowers.

    102flowers/                   data.path
      imagelabels.mat             `labels`: 1 to 102 for each image
      setid.mat                   `trnid`, `valid`, `tstid`: numbers of images, from 1
      jpg/image_00001.jpg, ...

Splits: "train" (10 images of each kind), "val" (10) and "test", as in the file, and "trainval", both of the
first. The kinds have no names in these files; they are called by their numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxcl.data.published.layout import Layout, Listing, matlab

SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


def read(folder: Path, version: str) -> Listing:
    """All images."""
    del version
    (labels,) = matlab(folder / "imagelabels.mat", "labels")
    parts = matlab(folder / "setid.mat", *SPLITS.values())
    labels = np.atleast_1d(labels).astype(np.int64)
    splits = {}
    for split, numbers in zip(SPLITS, parts, strict=True):
        rows = np.atleast_1d(numbers).astype(np.int64) - 1
        if rows.min() < 0 or rows.max() >= len(labels):
            raise ValueError(
                f"{SPLITS[split]} of {str(folder / 'setid.mat')!r} has the images {rows.min() + 1} to "
                f"{rows.max() + 1}, and imagelabels.mat labels 1 to {len(labels)}"
            )
        splits[split] = rows
    splits["trainval"] = np.sort(np.concatenate([splits["train"], splits["val"]]))
    files = [f"jpg/image_{number:05}.jpg" for number in range(1, len(labels) + 1)]
    return Listing(folder, files, [(f"{label:03}",) for label in labels], splits)


LAYOUT = Layout(
    ("flower",),
    read,
    lambda version: {
        "train": {"images": 1_020, "flower": 102},
        "val": {"images": 1_020, "flower": 102},
        "trainval": {"images": 2_040, "flower": 102},
        "test": {"images": 6_149, "flower": 102},
    },
)
