"""The report of a run: which pictures are made of which data."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcl import metrics
from jaxcl.data import Source, fit, subset
from jaxcl.data.base import BadExample
from jaxcl.evaluators import Online, Row, higher_is_better
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
    networks: Mapping[str, Any],
    rows: Sequence[Row] = (),
    facts: Mapping[str, object] | None = None,
    next_steps: Sequence[tuple[str, str]] = (),
    trivial_loss: float | None = None,
    write: bool = True,
    advice: str = "",
) -> None:
    """Writes `report.html` into the workdir: results, views, neighbours, map and curves.

    Args:
      root: the workdir, with metrics.jsonl.
      name: of the run.
      config: its settings, plain.
      source: the training images.
      views: of the method.
      online: takes features of the split that is shown: test, else validation, else gallery.
      networks: name -> {"params", "batch_stats"}, or None for raw pixels; the trained one first.
      rows: the results, if there are any.
      facts: what else the header should say.
      next_steps: (what it does, command line).
      trivial_loss: the loss of embeddings that tell nothing, if the method knows it.
      advice: what to do about such embeddings, in the method's own words; "" for the usual ones.
      write: False for all processes but one: features are taken by all of them together.
    """
    split = online.config.test or online.config.validation or online.config.gallery
    whole = online.source(split)
    shown = subset(whole, np.arange(0, len(whole), -(-len(whole) // LIMIT)))
    features = {label: online.features(variables, shown).h for label, variables in networks.items()}
    if not write:
        return
    logged = metrics.read_metrics(root)
    batches = list(online.batches(shown, whole=True))
    images, labels, index = (
        np.concatenate([b[column][b["mask"]] for b in batches])
        for column in ("image", "label", "index")
    )
    gallery = Gallery(
        images,
        labels,
        tuple(shown.tree.levels),
        tuple(tuple(names) for names in shown.tree.names),
        [shown.name(int(i)) for i in index],
    )
    sections: list[Section] = [
        Results(
            [row.as_dict() for row in rows if higher_is_better(row.method)], note=how_scored(rows)
        ),
        Pairs(*augmented(source, views, config)),
        Neighbours(gallery, features, count=7, seed=config["seed"]),
        Map(gallery, features, seed=config["seed"]),
        Curves(logged, trivial_loss),
    ]
    report = Report(
        title=name,
        summary=f"{config['method']['name']} with {config['model']['name']}. The pictures are of the"
        f" split {split!r}" + (", which the training has not seen." if split != "train" else "."),
        facts={
            "training data": source.describe(),
            "shown": f"{split}: {whole.describe()}",
            **(facts or {}),
        },
        warnings=metrics.diagnose(
            [row for row in logged if "loss" in row][-50:], trivial_loss=trivial_loss, advice=advice
        ),
        sections=sections,
        next_steps=next_steps,
        config=config,
    )
    write_report(root / "report.html", report)


def augmented(
    source: Source, views: ViewProgram, config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(originals u8[N,...], views float[N,V,...], names) of some training images.

    The program's own ops are applied, also where training takes its crops on the host. Images that cannot be read are passed
    over, as in training (which has named them), or have stopped the run long ago.
    """
    seed, side, channels = config["seed"], config["data"]["image_size"], config["data"]["channels"]
    chosen: dict[int, np.ndarray] = {}
    for i in np.random.default_rng(seed).permutation(len(source)).tolist():
        with contextlib.suppress(BadExample):
            chosen[i] = fit(source[i]["image"], side, side, channels)
        if len(chosen) == PAIRS:
            break
    originals = np.stack(list(chosen.values()))
    keys = jax.random.split(jax.random.key(seed), len(chosen))
    made = np.asarray(jax.jit(views)(keys, originals).images)
    return originals, made, [source.name(i) for i in chosen]


def how_scored(rows: Sequence[Row]) -> str:
    """What a reader has to know about the numbers."""
    if not rows:
        return ""
    return (
        "kNN: the better of plain and centred cosine, with the number of neighbours chosen on the validation split; linear:"
        " logistic regression on frozen features, its penalty chosen there too. One run; differences of about two points"
        " are noise."
    )
