"""The report of a run: which pictures are made of which data."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcl import metrics
from jaxcl.data import Source, fit
from jaxcl.evaluators import Features, Online, Row
from jaxcl.report.curves import Curves
from jaxcl.report.images import Gallery
from jaxcl.report.maps import Map
from jaxcl.report.page import Report, Section, write_report
from jaxcl.report.sheets import Neighbours, Pairs
from jaxcl.report.tables import Results
from jaxcl.views import ViewProgram

LIMIT = 2000
"""Images in the neighbour sheet and on the map; of more, every n-th is shown."""

PAIRS = 12
"""Images whose views are shown."""


def run_report(
    root: epath.Path,
    name: str,
    config: Mapping[str, Any],
    source: Source,
    views: ViewProgram,
    online: Online,
    variables: Mapping[str, Any],
    rows: Sequence[Row] = (),
    facts: Mapping[str, object] | None = None,
    next_steps: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes `report.html` into the workdir: results, views, neighbours, map and curves.

    Args:
      root: the workdir, with metrics.jsonl.
      name: of the run.
      config: its settings, plain.
      source: the training images.
      views: of the method.
      online: takes features of the split that is shown: test, else validation, else gallery.
      variables: the trained network, {"params", "batch_stats"}.
      rows: the results, if there are any.
      facts: what else the header should say.
      next_steps: (what it does, command line).
    """
    logged = metrics.read_metrics(root)
    split, features, images = shown_images(online, variables)
    shown = online.source(split)
    every = -(-len(features) // LIMIT)
    kept = np.arange(0, len(features), every)
    gallery = Gallery(
        images[kept],
        features.labels[kept],
        tuple(shown.tree.levels),
        tuple(tuple(names) for names in shown.tree.names),
        [shown.name(int(i)) for i in kept],
    )
    trained = {"trained encoder": features.h[kept]}
    raw = {"raw pixels": images[kept].reshape(len(kept), -1).astype(np.float32)}
    sections: list[Section] = [
        Results([row.as_dict() for row in rows], note=how_scored(rows)),
        Pairs(*augmented(source, views, config)),
        Neighbours(gallery, trained | raw, seed=config["seed"]),
        Map(gallery, trained | raw, seed=config["seed"]),
        Curves(logged),
    ]
    report = Report(
        title=name,
        summary=f"{config['method']['name']} with {config['model']['name']}, trained without looking at labels where"
        f" the method uses none. The pictures show the {split!r} split, which the training has not seen."
        if split not in ("train", online.config.gallery)
        else f"{config['method']['name']} with {config['model']['name']}.",
        facts={
            "training data": source.describe(),
            "shown": f"{split}: {shown.describe()}",
            **(facts or {}),
        },
        warnings=metrics.diagnose([row for row in logged if "loss" in row][-50:]),
        sections=sections,
        next_steps=next_steps,
        config=config,
    )
    write_report(root / "report.html", report)


def shown_images(online: Online, variables: Mapping[str, Any]) -> tuple[str, Features, np.ndarray]:
    """(split, its features, its images u8[N,H,W,C]) for the pictures."""
    config = online.config
    split = config.test or config.validation or config.gallery
    features = online.features(variables, split)
    batches = list(online.batches(split))
    images = np.concatenate([b["image"][b["mask"]] for b in batches])
    return split, features, images


def augmented(
    source: Source, views: ViewProgram, config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(originals u8[N,...], views float[N,V,...], names) of some training images.

    The program's own ops are applied, also where training takes its crops on the host.
    """
    seed, side, channels = config["seed"], config["data"]["image_size"], config["data"]["channels"]
    chosen = np.random.default_rng(seed).choice(len(source), min(PAIRS, len(source)), replace=False)
    originals = np.stack([fit(source[int(i)]["image"], side, side, channels) for i in chosen])
    keys = jax.random.split(jax.random.key(seed), len(chosen))
    made = np.asarray(jax.jit(views)(keys, originals).images)
    return originals, made, [source.name(int(i)) for i in chosen]


def how_scored(rows: Sequence[Row]) -> str:
    """What a reader has to know about the numbers."""
    if not rows:
        return ""
    return (
        "kNN: the better of plain and centred cosine, with the number of neighbours chosen on the validation split; linear:"
        " logistic regression on frozen features, its penalty chosen there too. One run; differences of about two points"
        " are noise."
    )
