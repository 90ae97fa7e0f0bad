"""From a configuration to a sampler."""

from __future__ import annotations

from jaxcl.data.base import Source
from jaxcl.data.config import DataConfig
from jaxcl.data.pairs import load_pairs
from jaxcl.data.paths import by_path
from jaxcl.data.samplers.base import Sampler
from jaxcl.data.samplers.classes import ClassBalanced, MPerClass
from jaxcl.data.samplers.hierarchical import Hierarchical
from jaxcl.data.samplers.pairs import PairSampler
from jaxcl.data.samplers.uniform import Uniform


def make_sampler(config: DataConfig, source: Source, batch_size: int, seed: int = 0) -> Sampler:
    """The sampler of the configuration.

    Args:
      config: sampler, sampler_level and per_class; or the table in pairs["train"], whose rows make
        the batches then.
      source: the data to train on, whose labels say what the classes are: paths of the label tree.
      batch_size: images of the global batch.
      seed: of the order and of all draws.

    Raises:
      ValueError: the batch is larger than the data; there are no labels, no such level or too few
        classes for the sampler; or as `load_pairs` and `PairSampler`.
    """
    if pairs := load_pairs(config, "train", source):
        return PairSampler(pairs, batch_size, seed)
    if config.sampler == "uniform":
        return Uniform(len(source), batch_size, seed)
    labelled = by_path(source)
    tree = labelled.tree
    if not tree.depth:
        raise ValueError(
            f"data.sampler={config.sampler!r} needs labels, and the data have none: say where they are "
            "with data.labels (a folder: parent or path) or data.label_keys (a table, TFDS), or use "
            "data.sampler='uniform'"
        )
    column = _column(tree.levels, config.sampler_level)
    if config.sampler == "hierarchical":
        levels = tree.levels[: column + 1]
        return Hierarchical(labelled.labels[:, : column + 1], batch_size, seed, levels=levels)
    classes, level = labelled.labels[:, column], tree.levels[column]
    if config.sampler == "class_balanced":
        return ClassBalanced(classes, batch_size, seed, what=level)
    return MPerClass(classes, batch_size, config.per_class, seed, what=level)


def _column(levels: tuple[str, ...], level: str) -> int:
    """The column of a level by its name or number; "" is the finest."""
    if level in levels:
        return levels.index(level)
    if level.removeprefix("-").isdecimal() or not level:
        number = int(level or -1)
        if -len(levels) <= number < len(levels):
            return number % len(levels)
    raise ValueError(
        f"data.sampler_level={level!r}: the data have the levels {list(levels)}; give one of these "
        "names, or its number (0 is the coarsest, -1 the finest)"
    )
