"""Images and labels: sources, label trees, samplers, and the way to batches."""

from jaxcl.data.arrays import ArraySource
from jaxcl.data.base import BadExample, Example, Source
from jaxcl.data.config import DataConfig, parse_source
from jaxcl.data.decode import decode, fit
from jaxcl.data.emoji import EmojiSource
from jaxcl.data.folder import FolderSource
from jaxcl.data.host_crop import HostCrop
from jaxcl.data.idx import load_idx
from jaxcl.data.labels import LabelTree
from jaxcl.data.pairs import PairTable, load_pairs, read_pairs
from jaxcl.data.paths import by_path, path_numbers
from jaxcl.data.pipeline import (
    Batch,
    arrays,
    eval_batches,
    image_shape,
    train_batches,
)
from jaxcl.data.records import RecordsSource, write_records
from jaxcl.data.samplers import (
    ClassBalanced,
    ColumnSampler,
    Hierarchical,
    MPerClass,
    PairSampler,
    Sampler,
    Uniform,
    make_sampler,
)
from jaxcl.data.skipped import Skipped
from jaxcl.data.sources import level_names, load
from jaxcl.data.split_file import SplitFile
from jaxcl.data.subset import Subset, class_balanced_subset, subset
from jaxcl.data.table import TableSource
from jaxcl.data.tfds import TfdsSource

__all__ = [
    "ArraySource",
    "BadExample",
    "Batch",
    "ClassBalanced",
    "ColumnSampler",
    "DataConfig",
    "EmojiSource",
    "Example",
    "FolderSource",
    "Hierarchical",
    "HostCrop",
    "LabelTree",
    "MPerClass",
    "PairSampler",
    "PairTable",
    "RecordsSource",
    "Sampler",
    "Skipped",
    "Source",
    "SplitFile",
    "Subset",
    "TableSource",
    "TfdsSource",
    "Uniform",
    "arrays",
    "by_path",
    "class_balanced_subset",
    "decode",
    "eval_batches",
    "fit",
    "image_shape",
    "level_names",
    "load",
    "load_idx",
    "load_pairs",
    "make_sampler",
    "parse_source",
    "path_numbers",
    "read_pairs",
    "subset",
    "train_batches",
    "write_records",
]
