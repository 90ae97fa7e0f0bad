"""Says what a copy of a data set has, what is missing, and where it differs from what was published.

    python -m jaxcl.data.verify --data=cub:CUB_200_2011
    python -m jaxcl.data.verify --data=inaturalist:DIR --set dataset=2019
    python -m jaxcl.data.verify --data=folder:DIR --set labels=path --decode

Classes are counted as paths of the label tree. The published numbers are of names: where names stand under several
parents, their number is said as well, and is the one that is compared. It ends with status 1 if something is missing or differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from jaxcl.data.base import BadExample, Source
from jaxcl.data.command import data_config, data_parser
from jaxcl.data.config import DataConfig
from jaxcl.data.files import UNREADABLE, FileSource
from jaxcl.data.published import LAYOUTS
from jaxcl.data.relabel import Relabelled
from jaxcl.data.sources import load
from jaxcl.data.split_file import class_names
from jaxcl.data.subset import Subset

SHOWN = 5
"""Names of missing or bad files that are shown."""


def verify(config: DataConfig, decode: bool = False) -> tuple[list[str], int]:
    """Looks through all splits of a data set, whole: what `holdout` and `split_file` divide is not divided here.

    Args:
      config: the data.
      decode: read and decode every image too.

    Returns:
      lines that say what was found, and in how many points something is missing or differs.

    Raises:
      ValueError: there is no such version of the data set.
    """
    config = dataclasses.replace(config, holdout=0.0, holdout_together="", split_file="")
    published: Mapping[str, Mapping[str, int]] = {}
    splits = sorted(config.splits) or ["train"]
    if config.name in LAYOUTS:
        config = dataclasses.replace(config, splits={})
        counts = LAYOUTS[config.name].counts(config.dataset)
        splits = list(counts)
        if not config.classes_file:
            published = counts
    lines: list[str] = []
    named: set[str] = set()
    problems = 0
    for split in splits:
        try:
            source = load(config, split)
        except ValueError as error:
            lines.append(f"{split}: {error}")
            problems += 1
            continue
        expected = published.get(split, {})
        texts, wrong = [], 0
        for what, number, named_so in [("images", len(source), len(source)), *class_counts(source)]:
            notes = [f"{named_so:,} names"] if named_so != number else []
            if named_so != expected.get(what, named_so):
                notes.append(f"published: {expected[what]:,}")
                wrong += 1
            texts.append(f"{number:,} {what}" + (f" ({'; '.join(notes)})" if notes else ""))
        as_published = "; as published" if expected and not wrong else ""
        lines.append(f"{split}: {', '.join(texts)}{as_published}")
        problems += wrong
        for kind, files in (("missing", missing(source)), ("bad", bad(source) if decode else [])):
            names = [name for name in files if name not in named]  # splits may share files
            named.update(names)
            if names:
                more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
                lines.append(f"  {len(names):,} files are {kind}: {', '.join(names[:SHOWN])}{more}")
                problems += 1
    return lines, problems


def class_counts(source: Source) -> list[tuple[str, int, int]]:
    """(level, its classes, their names) of each level, coarse to fine; a name under two parents is two classes."""
    found = []
    for level in source.tree.levels:
        paths = {path for path in class_names(source, level) if path is not None}
        found.append((level, len(paths), len({path[-1] for path in paths})))
    return found


def missing(source: Source) -> list[str]:
    """The files that are listed and are not there; of sources that have no files, none."""
    sizes = file_sizes(source)
    return (
        [] if sizes is None else [source.name(int(i)) for i in (sizes == UNREADABLE).nonzero()[0]]
    )


def file_sizes(source: Source) -> npt.NDArray[np.int64] | None:
    """The bytes i64[N] of each example's file, `UNREADABLE` for those that are missing; None of a source without files.

    What other sources are made of is looked through: a part of a source, and one with other labels.
    """
    if isinstance(source, Relabelled):
        return file_sizes(source.source)
    if isinstance(source, Subset):
        sizes = file_sizes(source.source)
        return None if sizes is None else sizes[source.rows]
    return np.asarray(source.sizes, np.int64) if isinstance(source, FileSource) else None


def bad(source: Source) -> list[str]:
    """The files that are there and cannot be decoded, with the reason."""
    absent = set(missing(source))
    found = []
    for index in range(len(source)):
        try:
            source[index]
        except BadExample as error:
            if error.name not in absent:
                found.append(str(error))
    return found


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = data_parser("jaxcl.data.verify", "Compares a data set with what was published.")
    parser.add_argument("--decode", action="store_true", help="decode every image too")
    return parser.parse_args(list(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command: prints what was found; status 1 if something is missing or differs."""
    flags = parse(sys.argv[1:] if argv is None else argv)
    try:
        lines, problems = verify(data_config(flags.data, flags.settings), flags.decode)
    except (ValueError, OSError) as error:
        sys.exit(f"jaxcl.data.verify: {error}")
    print("\n".join(lines))
    if problems:
        sys.exit(f"jaxcl.data.verify: {problems} points differ from what was published or expected")
    print("nothing is missing")


if __name__ == "__main__":
    main()
