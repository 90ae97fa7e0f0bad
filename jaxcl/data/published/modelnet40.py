"""Rendered views of ModelNet40 (Wu et al., 2015), as the authors of MVCNN (Su et al., 2015) published them.

    modelnet40v1/                               data.path
      airplane/train/airplane_0001_001.jpg, ...
      airplane/test/airplane_0627_001.jpg, ...

Levels: the category, which is a folder, and the model, which is what precedes the number of the view at the
end of a file's name: "_001", or ".obj.shaded_v001" in the later renderings. Splits: the folders "train" and
"test", which have different models of the same categories.

The first renderings have 12 views of 80 models of each category for training and 20 for testing, where
there are so many: 3,183 and 800 models, which are 38,196 and 9,600 images. Set data.dataset="all" for
renderings of all 9,843 and 2,468 models, of 12 views too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jaxcl.data.folder import list_images
from jaxcl.data.published.layout import Layout, Listing, rows_where

SPLITS = ("train", "test")
VIEWS = 12
MODELS = {"": (3_183, 800), "all": (9_843, 2_468)}

_FILE = re.compile(r"([^/]+)/(train|test)/(.+?)(?:\.obj)?(?:[._]shaded)?_v?(\d+)\.[^./]+")


def read(folder: Path, version: str) -> Listing:
    """All images."""
    del version
    names, parts = [], []
    listing = list_images(folder)
    for file, _ in listing:
        found = _FILE.fullmatch(file)
        if found is None:
            raise ValueError(
                f"{file!r} in {str(folder)!r}: expected CATEGORY/train or test/MODEL_VIEW.png, as in "
                "airplane/train/airplane_0001_001.png"
            )
        names.append((found[1], found[3]))
        parts.append(found[2])
    files, sizes = zip(*listing, strict=True)
    splits = {split: rows_where([part == split for part in parts]) for split in SPLITS}
    return Listing(folder, files, names, splits, sizes=sizes)


def counts(version: str) -> Mapping[str, Mapping[str, int]]:
    """The published numbers."""
    return {
        split: {"images": VIEWS * models, "category": 40, "model": models}
        for split, models in zip(SPLITS, MODELS[version], strict=True)
    }


LAYOUT = Layout(("category", "model"), read, counts, versions=tuple(MODELS))
