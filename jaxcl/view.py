"""Shows the views of a config: `python -m jaxcl.view --config=configs/quickstart.py [--out=views.png] [--histograms]`.

A contact sheet: each image beside its views, and under each view the parameters that were drawn for it. With `--histograms`
instead the evidence of SimCLR's Figure 6: how well colour histograms alone tell crops of one image from crops of others, with
and without the colour ops of the config. Two crops of an image share their colours; where nothing distorts these, a network
can find the partner by its histogram and need not look at anything else. `--config.views.ops.jitter.strength=1.0` and the
like try other settings.
"""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from jaxcl import command, data
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.report.views import Histograms, Sheet, histograms_png, sheet_png
from jaxcl.views import OPS, Gray, Jitter, Solarize, View, ViewProgram

COLOUR_OPS = (Jitter, Gray, Solarize)
"""The ops that distort colours."""

BINS = 32
"""Of each channel's histogram."""

COUNTED = 512
"""Images whose histograms are compared, at most."""


def choose_images(
    config: Config, split: str, count: int, seed: int
) -> tuple[np.ndarray, list[str]]:
    """`count` images of a split at random: (u8[N,H,W,C] of the config's image size, names)."""
    source = data.load(config.data, split)
    height, width, channels = data.image_shape(source, config.data)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(source), min(count, len(source)), replace=False).tolist()
    images = [data.fit(source[i]["image"], height, width, channels) for i in chosen]
    return np.stack(images), [source.name(i) for i in chosen]


# ---------------------------------------------------------------------------------------------
# The contact sheet
# ---------------------------------------------------------------------------------------------


def sheet(program: ViewProgram, images: np.ndarray, names: list[str], seed: int) -> Sheet:
    """Images, their views, and what was drawn for each view."""
    keys = jax.random.split(jax.random.key(seed), len(images))
    made = jax.tree.map(np.asarray, jax.jit(program)(keys, images))
    texts = [
        [drawn_text(program, made.drawn, i, v) for v in range(len(program.views))]
        for i in range(len(images))
    ]
    return Sheet(images, made.images, names, texts)


def drawn_text(program: ViewProgram, drawn: Mapping[str, Any], image: int, view: int) -> str:
    """The parameters of one view, an op a line; ops whose coin was off are left out.

    "*" after a name: shared with an earlier view.
    """
    lines = []
    for name, _ in program.ops:
        params = {k: v[image, view] for k, v in drawn[name].items()}
        if not params.pop("on"):
            continue
        shared = "*" if name in program.views[view].share else ""
        if "order" in params:  # of jitter's steps: brightness, contrast, saturation, hue
            text = f"order {' '.join('bcsh'[i] for i in params.pop('order'))}, "
        else:
            text = ""
        text += ", ".join(f"{k} {number_text(v)}" for k, v in params.items())
        lines += textwrap.wrap(f"{name}{shared}: {text}" if text else f"{name}{shared}", 30)
    return "\n".join(lines) or "nothing"


def number_text(value: np.ndarray) -> str:
    """A number with two decimals, an integer, or several of them."""
    value = np.asarray(value)
    if value.ndim:
        return " ".join(number_text(x) for x in value)
    return f"{float(value):.2f}" if np.issubdtype(value.dtype, np.floating) else str(int(value))


# ---------------------------------------------------------------------------------------------
# Colour histograms
# ---------------------------------------------------------------------------------------------


def without_colour(program: ViewProgram) -> ViewProgram:
    """The program with its colour ops switched off; every other op draws what it drew.

    Raises:
      ValueError: it has no colour op.
    """
    names = [name for name, op in program.ops if isinstance(op, COLOUR_OPS)]
    if not names:
        kinds = ", ".join(kind for kind, op in OPS.items() if issubclass(op, COLOUR_OPS))
        raise ValueError(f"the views have no colour op ({kinds}): there is nothing to compare")
    off = dict.fromkeys(names, 0.0)
    views = tuple(
        View(
            {**view.prob, **off},
            {k: v for k, v in view.share.items() if k not in off},
            {k: v for k, v in view.differ.items() if k not in off},
        )
        for view in program.views
    )
    return dataclasses.replace(program, views=views)


def colour_histograms(images: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Histograms f64[N, C, bins] of float images [N,h,w,C] in [0,1], each channel's sums to 1."""
    count, _, _, channels = images.shape
    index = np.minimum((np.clip(images, 0, 1) * bins).astype(np.int64), bins - 1)
    found = np.zeros((count, channels, bins))
    for i in range(count):
        for c in range(channels):
            found[i, c] = np.bincount(index[i, :, :, c].reshape(-1), minlength=bins)
    return found / found.sum(-1, keepdims=True)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Total variation distance f64[N, M] of histograms [N,C,bins] and [M,C,bins], mean over the channels; 0 to 1."""
    first, second = first.reshape(len(first), -1), second.reshape(len(second), -1)
    channels = first[0].sum()
    return np.stack([np.abs(row - second).sum(1) for row in first]) / (2 * channels)


@dataclasses.dataclass(frozen=True)
class Separation:
    """How well a distance tells partners from others.

    Attributes:
      same: mean distance of two views of one image.
      different: mean distance of views of different images.
      auc: share of (pair of one image, pair of two) in which the former is nearer; ties count half. 0.5 tells nothing.
      top1: share of images whose partner is the nearest of all; ties count as shares.
      chance: of top1, one of the number of images.
    """

    same: float
    different: float
    auc: float
    top1: float
    chance: float


def separation(matrix: np.ndarray) -> Separation:
    """Of distances f[N, N] between first and second views; partners are on the diagonal."""
    same = np.diag(matrix)
    others = np.sort(matrix[~np.eye(len(matrix), dtype=bool)])
    below = np.searchsorted(others, same, "left")
    ties = np.searchsorted(others, same, "right") - below
    auc = 1 - float((below + ties / 2).mean()) / len(others)
    nearest = matrix.min(1)
    top1 = np.where(same == nearest, 1 / (matrix == nearest[:, None]).sum(1), 0.0)
    return Separation(
        float(same.mean()), float(others.mean()), auc, float(top1.mean()), 1 / len(matrix)
    )


def colour_evidence(program: ViewProgram, images: np.ndarray, seed: int) -> Histograms:
    """Histograms and distances of the first two views, without and with colour ops, at the same crops.

    Raises:
      ValueError: the program has one view or no colour op; fewer than three images.
    """
    if len(program.views) < 2 or len(images) < 3:
        raise ValueError(
            f"histograms need two views and three images, got {len(program.views)} and {len(images)}"
        )
    keys = jax.random.split(jax.random.key(seed), len(images))
    made = {}
    for name, used in (
        ("without colour distortion", without_colour(program)),
        ("with colour distortion", program),
    ):
        views = np.asarray(jax.jit(used)(keys, images).images[:, :2], np.float32)
        found = [colour_histograms(views[:, v]) for v in range(2)]
        matrix = distances(*found)
        made[name] = (views, np.stack(found, 1), matrix, dataclasses.asdict(separation(matrix)))
    return Histograms(
        views={name: m[0] for name, m in made.items()},
        histograms={name: m[1] for name, m in made.items()},
        distances={name: m[2] for name, m in made.items()},
        numbers={name: m[3] for name, m in made.items()},
    )


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------

_flags = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, a Python file with get_config().",
    lock_config=True,
    flag_values=_flags,
)
OUT = flags.DEFINE_string("out", "", "Where the picture goes.", flag_values=_flags)
HISTOGRAMS = flags.DEFINE_bool(
    "histograms", False, "Colour histograms instead of the contact sheet.", flag_values=_flags
)
IMAGES = flags.DEFINE_integer("images", 8, "Images on the contact sheet.", flag_values=_flags)
SPLIT = flags.DEFINE_string("split", "train", "Split of the data.", flag_values=_flags)
SEED = flags.DEFINE_integer(
    "seed", 0, "Of the choice of images and of the views.", flag_values=_flags
)


def show(
    config: Config, out: str, histograms: bool, count: int, split: str, seed: int
) -> dict[str, Any]:
    """Writes the picture (and, for histograms, the numbers beside it as JSON) and says where.

    Raises:
      ValueError: a setting that cannot be.
    """
    mesh_lib.initialize(config.mesh)
    program = config.build_method().views
    images, names = choose_images(config, split, COUNTED if histograms else count, seed)
    path = Path(out or ("histograms.png" if histograms else "views.png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not histograms:
        path.write_bytes(sheet_png(sheet(program, images, names, seed), config.name))
        print(f"{len(images)} images with {len(program.views)} views each: {path}")
        return {}
    found = colour_evidence(program, images, seed)
    path.write_bytes(histograms_png(found, f"{config.name}: colour histograms of crops"))
    numbers = {
        "config": config.name,
        "split": split,
        "images": len(images),
        "bins": BINS,
        "seed": seed,
        **found.numbers,
    }
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1))
    print(
        f"{len(images)} images; distance: total variation of {BINS}-bin histograms, mean over channels"
    )
    for name, n in found.numbers.items():
        print(
            f"{name}: two crops of an image {n['same']:.3f}, of different images {n['different']:.3f}; partner nearer than a"
            f" stranger {100 * n['auc']:.1f} %, nearest of all {100 * n['top1']:.1f} % (by chance {100 * n['chance']:.1f} %)"
        )
    print(f"{path}, {path.with_suffix('.json')}")
    return numbers


def main(argv: list[str]) -> None:
    """Flags, then `show`."""
    logging.set_verbosity(logging.WARNING)
    if {"-h", "--help"} & {*argv}:
        print(__doc__, _flags.get_help(), sep="\n")
        return
    try:
        command.parse(argv, _flags)
        if _flags["config"].value is None:
            raise ValueError("--config is needed: the experiment whose views are shown")
        config = config_lib.from_dict(CONFIG.value)
        show(config, OUT.value, HISTOGRAMS.value, IMAGES.value, SPLIT.value, SEED.value)
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(f"jaxcl.view: {error}")


if __name__ == "__main__":
    main(sys.argv)
