"""ImageNet of the challenge of 2012 (Russakovsky et al., 2015): 1,281,167 images of 1,000 classes.

    imagenet/                     data.path
      train/n01440764/n01440764_10026.JPEG, ...
      val/n01440764/ILSVRC2012_val_00000293.JPEG, ...      sorted into folders by class, as is customary

The label is the folder, a WordNet id. data.taxonomy=wordnet.is_a.txt with data.taxonomy_depth=(7,) puts
superclasses above it, the ancestors at that distance from the root on the shortest way (levels "depth7" and
"label"). A class that is less deep, or just so deep, is its own superclass, with no other class in it; `verify`
with these settings says how many superclasses there are. data.classes_file keeps some of the classes:
ImageNet-100 are the 100 of the list `imagenet100.txt` published with "Contrastive Multiview Coding" (Tian et
al., 2020), one id a line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxcl.data.folder import folder_labels, list_images
from jaxcl.data.published.layout import Layout, Listing

SPLITS = ("train", "val")


def read(folder: Path, version: str) -> Listing:
    """All images."""
    del version
    files: list[str] = []
    sizes: list[int] = []
    splits = {}
    for split in SPLITS:
        found = list_images(folder / split)
        splits[split] = np.arange(len(files), len(files) + len(found))
        files += [f"{split}/{name}" for name, _ in found]
        sizes += [size for _, size in found]
    return Listing(folder, files, folder_labels(files, "parent"), splits, sizes=sizes)


LAYOUT = Layout(
    ("label",),
    read,
    lambda version: {
        "train": {"images": 1_281_167, "label": 1_000},
        "val": {"images": 50_000, "label": 1_000},
    },
)
