"""The settings of a data set."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxcl.data.idx import CLASS_NAMES

PUBLISHED = ("cars", "cub", "flowers", "imagenet", "inaturalist", "inshop", "modelnet40", "sop")
KINDS = ("emoji", "folder", "table", "idx", "tfds", "records", "arrays", "noise", *PUBLISHED)
FOLDER_LABELS = ("none", "parent", "path")
MOST_PIXELS = 178_956_970
SAMPLERS = ("uniform", "m_per_class", "class_balanced", "hierarchical")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they become batches.

    Attributes:
      name: kind of source: "emoji" (built in), "folder" (image files), "table" (a CSV file that
        lists image files), "idx" (the four files of MNIST and Fashion-MNIST), "tfds" (a prepared
        TensorFlow data set), "records" (ArrayRecord files), "arrays" (one .npz file, see
        `jaxcl.data.npz`), "noise" (4096 random images of
        `image_size` in memory, for measuring); or a data set in the layout in which it was published:
        "cars", "cub", "flowers", "imagenet", "inaturalist", "inshop", "modelnet40" or "sop", see
        `jaxcl.data.published`.
      path: folder or file of the data; for "tfds" its data_dir ("" is the default of TFDS).
      dataset: for "tfds" the name of the data set, with "/config:version" if wanted; for "idx"
        whose class names to use ("fashion_mnist", or "" for numbers); for some published layouts which
        version it is.
      splits: what a split name means to the source, where the name is not meant itself. For
        "folder" and "records" a folder below `path`; for "table" and "idx" a file name (or its
        beginning) below `path`; for "tfds" any split expression, "train[:90%]"; for "arrays" another beginning of the
        names of its arrays; for "emoji" another of
        its splits, a share of the codes of one, "train[:10%]", or one vendor's drawings,
        "train/google". For a folder or a table without splits leave it empty: "train" is then all of
        it. For a published layout another of its splits, as in {"train": "train_classes", "test":
        "test_classes"}.
      holdout: share of the examples of "train", chosen by a digest of their names, that become
        "val" instead; "seen" is then both. 0 leaves the splits as the source has them.
      holdout_together: a label level whose classes are held out as a whole, such as that of the objects
        of which there are several images; "" holds out each image by itself.
      split_file: a file that divides the classes into seen and unseen ones, made by
        `python -m jaxcl.data.splits`; the splits are then its own. "" for none.
      pairs: split name -> CSV file of pairs or triples of the images of that split, to learn
        similarity from or to score it on; see `jaxcl.data.pairs`. The batches of the training are made
        of the rows of the file for "train".
      labels: for "folder": "none", "parent" (the name of the folder that holds the image) or
        "path" (every folder between `path` and the image is a level, coarse to fine).
      image_key: for "table" the column with the file name ("" means "path"); for "tfds" the image
        feature ("" means "image").
      label_keys: columns (table) or features (tfds) with the labels, what the levels are called
        (arrays), or some of the levels of a published layout, coarse to fine; () means no labels for a
        table, the feature "label" if there is one for tfds, and all levels of a layout. Labels that have
        nothing to do with one another (style, colour) stand here too, for a method that reads them so
        (`method.overlap` of "supcon").
      classes_file: a list of classes, one a line, of the finest level: only their images are taken, and
        only these classes are counted. "" for all.
      taxonomy: a file that says what is above each name of the only label level (`jaxcl.data.taxonomy`):
        labels are then the paths to them. "" for none.
      taxonomy_depth: for a list of is-a lines, such as WordNet's, at which distances from the root
        ancestors are taken, as in (4,) for one more level.
      unique_names: declare that each label has one parent only; checked.
      sampler: which images make a batch: "uniform", each once an epoch; "m_per_class", `per_class`
        images of each of some classes; "class_balanced", every class equally often; "hierarchical",
        groups of an anchor and a relative of every degree. See `jaxcl.data.samplers`.
      sampler_level: label level of the classes of "m_per_class" and "class_balanced", or the finest
        one of "hierarchical": its name or number (0 is the coarsest); "" is the finest.
      per_class: images of a class, for "m_per_class".
      image_size: height and width in pixels of the images of a batch. Others are resized so that
        the shorter side fits, and cropped at the centre. 0 keeps the size of images in memory.
        Evaluation takes larger images of files where its centre crop needs them.
      channels: 3 (colour) or 1 (grey).
      crop: where training crops are made: "device", from images of `image_size`, or "host", from
        the full images.
      on_bad: an image that cannot be read stops the run ("error") or is replaced by the next that
        can, counted and named ("skip").
      max_pixels: images with more pixels are bad, checked before they are decoded; at most 178,956,970, Pillow's own limit.
      workers: processes that decode; 0 for threads in this one.
      threads: threads that decode (in each process).
      prefetch: batches that are made ahead.
    """

    name: str = "emoji"
    path: str = ""
    dataset: str = ""
    splits: dict[str, str] = dataclasses.field(default_factory=dict)
    holdout: float = 0.0
    holdout_together: str = ""
    split_file: str = ""
    pairs: dict[str, str] = dataclasses.field(default_factory=dict)
    labels: str = "parent"
    image_key: str = ""
    label_keys: tuple[str, ...] = ()
    classes_file: str = ""
    taxonomy: str = ""
    taxonomy_depth: tuple[int, ...] = ()
    unique_names: bool = False
    sampler: str = "uniform"
    sampler_level: str = ""
    per_class: int = 4
    image_size: int = 32
    channels: int = 3
    crop: str = "device"
    on_bad: str = "error"
    max_pixels: int = 50_000_000
    workers: int = 0
    threads: int = 4
    prefetch: int = 4

    def __post_init__(self) -> None:
        for field, allowed in (
            ("name", KINDS),
            ("labels", FOLDER_LABELS),
            ("sampler", SAMPLERS),
            ("crop", ("device", "host")),
            ("on_bad", ("error", "skip")),
            ("channels", (1, 3)),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"data.{field}={value!r}: expected one of {list(allowed)}")
        for field, least in (
            ("per_class", 1),
            ("image_size", 0),
            ("max_pixels", 1),
            ("workers", 0),
            ("threads", 1),
            ("prefetch", 1),
        ):
            value = getattr(self, field)
            if value < least:
                raise ValueError(f"data.{field}={value}: expected {least} or more")
        if self.max_pixels > MOST_PIXELS:
            raise ValueError(
                f"data.max_pixels={self.max_pixels}: expected at most {MOST_PIXELS}, above which Pillow opens no image"
            )
        if self.sampler == "uniform" and self.sampler_level:
            raise ValueError(
                f"data.sampler_level={self.sampler_level!r}: the sampler 'uniform' knows no classes; "
                f"set data.sampler to one of {list(SAMPLERS[1:])}"
            )
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout={self.holdout}: expected a share in [0, 1)")
        if self.holdout_together and not self.holdout:
            raise ValueError(
                f"data.holdout_together={self.holdout_together!r}: nothing is held out; set data.holdout"
            )
        if self.holdout and self.name == "emoji":
            raise ValueError(f"data.holdout={self.holdout}: the emoji set has a fixed split 'val'")
        if self.holdout and self.split_file:
            raise ValueError(
                f"data.holdout={self.holdout} and data.split_file={self.split_file!r}: the file has a "
                "split 'val' of its own; set holdout to 0"
            )
        if self.pairs.get("train") and self.sampler != "uniform":
            raise ValueError(
                f"data.pairs names a table for 'train', and data.sampler={self.sampler!r}: the rows of a "
                "table make the batches themselves; set sampler to 'uniform'"
            )
        if self.name == "noise" and not self.image_size:
            raise ValueError("data.image_size=0: expected the size of the noise, 1 or more")
        if self.taxonomy_depth and not self.taxonomy:
            raise ValueError(
                f"data.taxonomy_depth={self.taxonomy_depth} without a file: set data.taxonomy"
            )
        if (
            self.name in ("folder", "table", "idx", "records", "arrays", *PUBLISHED)
            and not self.path
        ):
            raise ValueError(f"data.path is empty: name the place of the data of {self.name!r}")
        if self.name == "idx" and self.dataset not in ("", *CLASS_NAMES):
            raise ValueError(
                f"data.dataset={self.dataset!r}: the classes are known by name for "
                f"{list(CLASS_NAMES)}; leave it empty for classes by number"
            )
        if self.name == "tfds" and not self.dataset:
            raise ValueError("data.dataset is empty: name the TensorFlow data set")


def parse_source(text: str) -> dict[str, Any]:
    """ "folder:/path" or "tfds:cifar10@/dir" -> fields of DataConfig."""
    kind, _, rest = text.partition(":")
    if kind == "tfds":
        name, _, directory = rest.partition("@")
        return {"name": kind, "dataset": name, "path": directory}
    if kind == "fashion_mnist":
        return {"name": "idx", "dataset": kind, "path": rest}
    return {"name": kind, "path": rest}
