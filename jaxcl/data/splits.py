"""Divides a data set into seen and unseen classes: writes the file for `data.split_file`.

    python -m jaxcl.data.splits --data=folder:DIR --set labels=path --by=level0 --unseen=0.25 --out=split.json
    python -m jaxcl.main --config=CONFIG --config.data.split_file=split.json ...

The splits are then train, val, seen, test, unseen_train, unseen_test; see `split_file`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcl.data.base import Source
from jaxcl.data.command import data_config, data_parser
from jaxcl.data.sources import load
from jaxcl.data.split_file import SplitFile, class_names, make


def report(file: SplitFile, sources: dict[str, Source]) -> list[str]:
    """Lines that say what the splits have, and what is in none of them.

    Raises:
      ValueError: a split has no image.
    """
    lines = [
        f"by {file.by}: {len(file.seen)} seen and {len(file.unseen)} unseen classes"
        + (f"; the classes of {file.together} stay together" if file.together else "")
    ]
    for name, part in file.parts.items():
        made = file.load(sources.__getitem__, name)
        levels = ", ".join(
            f"{level} {len({c for c in class_names(made, level) if c is not None}):,}"
            for level in made.tree.levels
        )
        lines.append(f"  {name:<12} {len(made):>9,} images of {part.split}; classes: {levels}")
    for split, source in sources.items():
        missing = int(np.sum([c is None for c in class_names(source, file.by)]))
        if missing:
            lines.append(f"  {missing:,} images of {split} have no {file.by}: in none of them")
    return lines


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = data_parser("jaxcl.data.splits", "Divides a data set into seen and unseen classes.")
    parser.add_argument("--by", required=True, help="label level whose classes are divided")
    parser.add_argument("--unseen", type=float, default=0.25, help="share of unseen classes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="train", help="split of the data that is divided")
    parser.add_argument("--test_split", default="", help="split of the data that is tested, if any")
    parser.add_argument("--val", type=float, default=0.1, help="share of seen images")
    parser.add_argument("--test", type=float, default=0.2, help="share of seen images")
    parser.add_argument(
        "--unseen_test", type=float, default=0.5, help="share of the images of unseen classes"
    )
    parser.add_argument(
        "--together", default="", help="a finer level whose classes are not divided"
    )
    parser.add_argument("--out", required=True, help="the file to write")
    return parser.parse_args(list(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command: divides, writes the file and says what is in it."""
    flags = parse(sys.argv[1:] if argv is None else argv)
    try:
        config = data_config(flags.data, flags.settings)
        names = [name for name in (flags.split, flags.test_split) if name]
        sources = {name: load(config, name) for name in names}
        file = make(
            sources[flags.split],
            flags.by,
            flags.unseen,
            flags.seed,
            split=flags.split,
            val=flags.val,
            test=flags.test,
            unseen_test=flags.unseen_test,
            test_split=flags.test_split,
            together=flags.together,
        )
        lines = report(file, sources)
        out = Path(flags.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(file.to_json(), encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"jaxcl.data.splits: {error}")
    print("\n".join(lines))
    print(f"written to {out}: set data.split_file={out}")


if __name__ == "__main__":
    main()
