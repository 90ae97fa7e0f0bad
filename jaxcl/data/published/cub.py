"""CUB-200-2011, birds (Wah et al., 2011): 11,788 images of 200 species.

    CUB_200_2011/                 data.path
      images.txt                  <image_id> <image_name>
      image_class_labels.txt      <image_id> <class_id>
      train_test_split.txt        <image_id> <is_training_image>
      classes.txt                 <class_id> <class_name>
      images/001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg, ...

Splits: "train" and "test" as in the file; and the halves by species that metric learning uses,
"train_classes" (1 to 100) and "test_classes" (101 to 200). The numbers of images of the halves are those
that papers on metric learning state.
"""

from __future__ import annotations

from pathlib import Path

from jaxcl.data.published.layout import Layout, Listing, checked, rows_where, table

HALF = 100


def read(folder: Path, version: str) -> Listing:
    """All images."""
    del version
    images = table(folder / "images.txt")
    classes = table(folder / "image_class_labels.txt")
    training = table(folder / "train_test_split.txt")
    names = table(folder / "classes.txt")
    for name, other in (("image_class_labels.txt", classes), ("train_test_split.txt", training)):
        if odd := set(images) ^ set(other):
            raise ValueError(
                f"images.txt and {name} in {str(folder)!r} differ: {len(odd)} images are in one of them "
                f"only, such as {min(odd)}"
            )
    if unknown := {c for (c,) in classes.values()} - set(names):
        raise ValueError(f"classes.txt in {str(folder)!r} does not name the class {min(unknown)}")
    numbers = [int(classes[i][0]) for i in images]
    first = rows_where([number <= HALF for number in numbers])
    second = rows_where([number > HALF for number in numbers])
    file = "a flag of train_test_split.txt"
    train = [checked(training[i][0], ("0", "1"), file) == "1" for i in images]
    return Listing(
        folder / "images",
        [name for (name,) in images.values()],
        [(names[classes[i][0]][0],) for i in images],
        {
            "train": rows_where(train),
            "test": rows_where([not flag for flag in train]),
            "train_classes": first,
            "test_classes": second,
        },
        [(name,) for (name,) in names.values()],
    )


LAYOUT = Layout(
    ("species",),
    read,
    lambda version: {
        "train": {"images": 5_994, "species": 200},
        "test": {"images": 5_794, "species": 200},
        "train_classes": {"images": 5_864, "species": 100},
        "test_classes": {"images": 5_924, "species": 100},
    },
)
