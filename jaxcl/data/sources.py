"""From a configuration to a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcl.data import (
    emoji,
    folder,
    idx,
    noise,
    npz,
    records,
    relabel,
    split_file,
    table,
    taxonomy,
)
from jaxcl.data.base import Source
from jaxcl.data.config import DataConfig
from jaxcl.data.labels import LabelTree
from jaxcl.data.published import LAYOUTS
from jaxcl.data.subset import held_out, subset
from jaxcl.data.tfds import TfdsSource


def load(config: DataConfig, split: str) -> Source:
    """Opens a split of the configured data; label ids mean the same in all splits.

    Args:
      config: the data settings.
      split: "train", "val", "test", or what else the source, or its split file, has.

    Raises:
      ValueError: the data are missing or malformed, or have no such split.
    """
    if config.split_file:
        file = split_file.read(config.split_file)
        return file.load(lambda name: _open(config, name), split)
    if not config.holdout or split not in ("train", "val", "seen"):
        return _open(config, split)
    whole = _open(config, "train")
    if split == "seen":
        return whole
    names = [whole.name(i) for i in range(len(whole))]
    if config.holdout_together:
        groups = split_file.class_names(whole, config.holdout_together)
        names = ["/".join(g) if g else name for g, name in zip(groups, names, strict=True)]
    held = held_out(names, config.holdout)
    rows = np.flatnonzero(held if split == "val" else ~held)
    if not len(rows):
        together = f", the classes of {config.holdout_together} together,"
        raise ValueError(
            f"data.holdout={config.holdout} of {len(whole)} examples{together if config.holdout_together else ''}"
            f" leaves none for {split!r}"
        )
    return subset(whole, rows)


def level_names(config: DataConfig) -> tuple[str, ...]:
    """The label levels that the settings tell of, without opening the data; ("label",) if they tell of none.

    Raises:
      ValueError: a taxonomy that cannot be read.
    """
    levels = tuple(config.label_keys) or ("label",)
    if config.name in LAYOUTS and not config.label_keys:
        levels = LAYOUTS[config.name].levels
    if config.taxonomy_depth:
        return (*taxonomy.depth_names(config.taxonomy_depth), levels[-1])
    return taxonomy.read(config.taxonomy).levels(levels[-1]) if config.taxonomy else levels


def _open(config: DataConfig, split: str) -> Source:
    """A split as the source has it, with the classes and the labels that are asked for."""
    source = _OPEN[config.name](config, split)
    if config.classes_file:
        source = relabel.only_classes(source, relabel.read_classes(config.classes_file))
    if config.taxonomy:
        ancestors = taxonomy.read(config.taxonomy, config.taxonomy_depth)
        source = relabel.with_taxonomy(source, ancestors, config.unique_names)
    return source


def _emoji(config: DataConfig, split: str) -> Source:
    return emoji.load(config.splits.get(split, split))


def _folder(config: DataConfig, split: str) -> Source:
    root = _place(config, split)
    tree = None
    if config.splits:
        # A class may lack images in one split: the ids come from all of them.
        every = [
            folder.folder_labels(
                [name for name, _ in folder.list_images(_place(config, other))], config.labels
            )
            for other in sorted(config.splits)
        ]
        tree = folder.folder_tree(every, config.labels, config.unique_names)
    return folder.FolderSource(
        root,
        config.labels,
        tree=tree,
        unique=config.unique_names,
        channels=config.channels,
        max_pixels=config.max_pixels,
    )


def _table(config: DataConfig, split: str) -> Source:
    image_key = config.image_key or "path"
    tree = None
    if config.splits:
        names = [
            row
            for other in sorted(config.splits)
            for row in table.read_table(_place(config, other), image_key, config.label_keys)[1]
        ]
        tree = LabelTree.of_names(config.label_keys, names, config.unique_names)
    return table.TableSource(
        _place(config, split),
        image_key,
        config.label_keys,
        tree=tree,
        unique=config.unique_names,
        channels=config.channels,
        max_pixels=config.max_pixels,
    )


def _idx(config: DataConfig, split: str) -> Source:
    prefix = config.splits.get(split) or idx.PREFIXES.get(split)
    if prefix is None:
        known = sorted({*config.splits, *idx.PREFIXES})
        raise ValueError(f"the data have no split {split!r}: IDX files have {known}")
    return idx.load_idx(config.path, prefix, idx.CLASS_NAMES.get(config.dataset, ()))


def _tfds(config: DataConfig, split: str) -> Source:
    return TfdsSource(
        config.dataset,
        config.splits.get(split, split),
        config.path,
        image_key=config.image_key or "image",
        label_keys=config.label_keys or None,
        unique=config.unique_names,
        channels=config.channels,
        max_pixels=config.max_pixels,
    )


def _records(config: DataConfig, split: str) -> Source:
    place = _place(config, split)
    for other in sorted(config.splits):
        if records.read_tree(_place(config, other)) != records.read_tree(place):
            raise ValueError(
                f"the records of the splits {split!r} and {other!r} have different label trees; "
                f"write them with one tree, so that their ids mean the same"
            )
    return records.RecordsSource(
        place,
        unique=config.unique_names,
        channels=config.channels,
        max_pixels=config.max_pixels,
    )


def _arrays(config: DataConfig, split: str) -> Source:
    name = config.splits.get(split, split)
    return npz.load_npz(config.path, name, config.label_keys, config.unique_names)


def _published(config: DataConfig, split: str) -> Source:
    return LAYOUTS[config.name].open(
        Path(config.path),
        config.dataset,
        config.splits.get(split, split),
        levels=config.label_keys,
        unique=config.unique_names,
        channels=config.channels,
        max_pixels=config.max_pixels,
    )


def _noise(config: DataConfig, split: str) -> Source:
    return noise.load_noise(split, config.image_size, config.channels)


def _place(config: DataConfig, split: str) -> Path:
    """Where the files of a split are."""
    if split in config.splits:
        return Path(config.path) / config.splits[split]
    if not config.splits and split == "train":
        return Path(config.path)
    raise ValueError(
        f"the data have no split {split!r}: {str(config.path)!r} has "
        f"{sorted(config.splits) or ['train']}. Name its folder or file in data.splits, or set "
        f"data.holdout for a split 'val'"
    )


_OPEN: dict[str, Callable[[DataConfig, str], Source]] = {
    "emoji": _emoji,
    "folder": _folder,
    "table": _table,
    "idx": _idx,
    "arrays": _arrays,
    "tfds": _tfds,
    "records": _records,
    "noise": _noise,
    **dict.fromkeys(LAYOUTS, _published),
}
