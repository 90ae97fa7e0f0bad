"""Cars-196 (Krause et al., 2013): 16,185 images of 196 models of cars.

    stanford_cars/                data.path
      cars_annos.mat              `annotations` with the fields relative_im_path, bbox_x1, bbox_y1, bbox_x2,
                                  bbox_y2, class, test; and `class_names`
      car_ims/000001.jpg, ...

Splits: "train" and "test" as in the file; and the halves by model that metric learning uses,
"train_classes" (1 to 98) and "test_classes" (99 to 196).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxcl.data.published.layout import Layout, Listing, matlab, rows_where

HALF = 98
LIST = "cars_annos.mat"


def read(folder: Path, version: str) -> Listing:
    """All images."""
    del version
    rows, names = matlab(folder / LIST, "annotations", "class_names")
    rows, names = np.atleast_1d(rows), [str(name) for name in np.atleast_1d(names)]
    needed = {"relative_im_path", "class", "test"}
    if lacking := needed - set(rows.dtype.names or ()):
        raise ValueError(f"the annotations of {str(folder / LIST)!r} have no {sorted(lacking)}")
    numbers = rows["class"].astype(np.int64)
    if numbers.min() < 1 or numbers.max() > len(names):
        raise ValueError(
            f"{str(folder / LIST)!r} has classes {numbers.min()} to {numbers.max()}, and {len(names)} names"
        )
    test = rows["test"].astype(bool)
    return Listing(
        folder,
        [str(name) for name in rows["relative_im_path"]],
        [(names[number - 1],) for number in numbers],
        {
            "train": rows_where(~test),
            "test": rows_where(test),
            "train_classes": rows_where(numbers <= HALF),
            "test_classes": rows_where(numbers > HALF),
        },
        [(name,) for name in names],
    )


LAYOUT = Layout(
    ("model",),
    read,
    lambda version: {
        "train": {"images": 8_144, "model": 196},
        "test": {"images": 8_041, "model": 196},
        "train_classes": {"images": 8_054, "model": 98},
        "test_classes": {"images": 8_131, "model": 98},
    },
)
