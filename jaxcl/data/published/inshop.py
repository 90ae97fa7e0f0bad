"""DeepFashion In-Shop Clothes Retrieval (Liu et al., 2016): 52,712 images of 7,982 products.

    In-shop Clothes Retrieval Benchmark/        data.path
      Eval/list_eval_partition.txt              the number of images; then
                                                image_name item_id evaluation_status
      Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg, ...       (or img/... beside Eval)

Levels, as in the code of Zhang et al. (CVPR 2022): category, product and variation, which stand in the
path img/GENDER/CATEGORY/id_XXXXXXXX/NN_V_pose.jpg: CATEGORY (17, those of men and women of one name being
one), the item id, and NN, one colour of the product. V and pose say how it was photographed.

An item may stand in the folders of several categories. In the tree it is one product in each of them, as in that
code (whose list of such items takes none out), also where products are held out or kept together. The published
numbers and the benchmark's retrieval are of items, whatever their category: data.label_keys=("product",) has the
items alone. `verify` counts both.

Splits: "train", "query" and "gallery" as in the file, "test", the last two together, and "all". The products
of "train" and "test" differ.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxcl.data.published.layout import Layout, Listing, checked, fields, rows_where

LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
HEADER = "image_name item_id evaluation_status"
STATUS = ("train", "query", "gallery")

_PATH = re.compile(r"img/[^/]+/([^/]+)/(id_\d+)/(\d+)_[^/]+")


def read(folder: Path, version: str) -> Listing:
    """All images."""
    del version
    path = next((folder / name for name in LISTS if (folder / name).exists()), folder / LISTS[0])
    files, names, status = [], [], []
    for number, (file, item, kind) in fields(path, 3, HEADER, skip=1):
        found = _PATH.fullmatch(file)
        if found is None or found[2] != item:
            raise ValueError(
                f"line {number} of {str(path)!r}: expected img/GENDER/CATEGORY/{item}/NN_V_pose.jpg, got "
                f"{file!r}"
            )
        files.append(file)
        names.append((found[1], item, found[3]))
        status.append(checked(kind, STATUS, f"evaluation_status in line {number} of {str(path)!r}"))
    splits = {split: rows_where([kind == split for kind in status]) for split in STATUS}
    splits["test"] = rows_where([kind != "train" for kind in status])
    splits["all"] = rows_where([True] * len(status))
    inside = folder / "Img"
    return Listing(inside if (inside / "img").is_dir() else folder, files, names, splits)


LAYOUT = Layout(
    ("category", "product", "variation"),
    read,
    lambda version: {
        "train": {"images": 25_882, "product": 3_997},
        "query": {"images": 14_218, "product": 3_985},
        "gallery": {"images": 12_612, "product": 3_985},
        "test": {"images": 26_830, "product": 3_985},
        "all": {"images": 52_712, "category": 17, "product": 7_982},
    },
)
