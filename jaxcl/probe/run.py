"""The probe from beginning to end, and its command."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console

from jaxcl import checkpoint, data, evaluators, models
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.checkpoint import CheckpointError
from jaxcl.config import Config
from jaxcl.evaluators import Layer, Row
from jaxcl.losses import Scoring
from jaxcl.methods.base import scoring
from jaxcl.probe.classifier import score_own
from jaxcl.probe.descent import Descent
from jaxcl.probe.inputs import (
    KEY,
    Splits,
    find_step,
    open_splits,
    open_unseen,
    probed_config,
    restore,
    restore_scoring,
)
from jaxcl.probe.networks import PIXELS, TRAINED, UNTRAINED
from jaxcl.probe.options import Options, ProbeError, parse

PyTree = Any

RESULTS = "probe.json"

CLASSIFY = ("knn", "linear", "sgd", "finetune", "corruption")
"""Evaluations that classify the test images by what is learned from others."""


def probe(options: Options) -> dict[str, Any]:
    """Restores a checkpoint's encoder, scores it, prints the table and appends to probe.json.

    Images that cannot be read are named in probe.json.skipped.txt, if they may be skipped at all, and
    those of further processes in probe.json.skipped-1.txt and so on; the next probe with the same --out
    begins these files anew.

    Returns:
      the record that was written: "step", "encoder", "layer", "data", "splits", "rows", ...

    Raises:
      ProbeError, ConfigError: an option that cannot be, or all that was to be trained diverges; or the results cannot be
        written, and then they are printed.
      CheckpointError: no such checkpoint, another model, or damage.
      ValueError: the data are missing or do not fit.
    """
    started = time.monotonic()
    out = epath.Path(options.out) if options.out else epath.Path(options.workdir) / RESULTS
    read_records(out)  # what is no such file is told now, and not after hours
    directory, step = find_step(options.workdir, options.step)
    manifest = checkpoint.read_manifest(directory, step)
    config = probed_config(manifest.config, options.data, options.settings)
    mesh_lib.initialize(config.mesh)
    mesh = mesh_lib.make_mesh()
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not mesh_lib.is_main())

    splits = open_splits(config, options)
    method = config.build_method()
    layer = Layer.parse(options.layer, tuple(method.heads))
    model = models.build(config.model, method.heads)
    network = layer.of(model)
    height, width, channels = method.views.output_shape(data.image_shape(splits.last, config.data))
    side = options.size or config.evaluation.image_size
    shape = (side or height, side or width, channels)
    # As in training, so that the untrained encoder is the one that the run started from.
    key = jax.random.split(jax.random.key(config.seed), 4)[0]
    shapes = jax.eval_shape(lambda: model.init(key, shape))
    if options.encoder == "key" and not any(p.startswith(f"{KEY}/") for p in manifest.leaves):
        raise ProbeError(f"--encoder=key: {config.method['name']!r} has kept no key encoder")
    trained, manifest = restore(
        directory, manifest.step, network, shapes, mesh_lib.replicated(mesh), options.encoder
    )
    arrays = len(jax.tree.leaves(trained))
    console.print(
        f"{options.workdir}: step {manifest.step:,}, {options.encoder} encoder, layer {layer}: {arrays} "
        f"arrays of {' and '.join(layer.parts)}, verified"
    )
    console.print(
        f"data: {splits.last.describe()}; scored on {splits.names['test']!r}: "
        f"{splits.test.describe()}"
    )

    parts = {"": splits}
    if unseen := open_unseen(config, options, splits):
        parts["unseen/"] = unseen
        console.print(f"unseen classes, {unseen.names['test']!r}: {unseen.test.describe()}")
    variables: dict[str, PyTree | None] = {TRAINED: trained}
    scorings: dict[str, Scoring] = {}
    by_scorer = {"similarity", "retrieval"} & set(options.evaluations)
    if by_scorer and layer.head and layer.number == -1:
        sharding = mesh_lib.replicated(mesh)
        if own := restore_scoring(directory, manifest.step, method, layer.head, sharding):
            scorings[TRAINED] = own
    if options.baselines:
        fresh = jax.jit(
            lambda: network.select(model.init(key, shape)), out_shardings=mesh_lib.replicated(mesh)
        )()
        variables = {PIXELS: None, UNTRAINED: fresh, **variables}
        own_key = jax.random.split(jax.random.key(config.seed), 4)[1]
        if scorings and (own := scoring(method, method.init_params(own_key), layer.head)):
            scorings[UNTRAINED] = own

    number = f"-{mesh_lib.process_index()}" if mesh_lib.process_index() else ""
    skipped = data.Skipped(console.print, out.parent / f"{out.name}.skipped{number}.txt")
    rows: list[Row] = []
    details: dict[str, Any] = {}
    descent = Descent(options, config, splits, network, shape, mesh, {}, console, skipped, scorings)
    for prefix, part in parts.items():
        # What is chosen and what is left out are of all parts.
        levels = classified_levels(config, options, part)
        networks = dataclasses.replace(descent, splits=part, levels=levels)
        found, record = score(networks, variables, key)
        rows += [dataclasses.replace(row, method=prefix + row.method) for row in found]
        details |= {prefix + name: value for name, value in record.items()}
    if "classifier" in options.evaluations:
        rows.append(score_own(descent, directory, manifest.step, model))

    skipped.flush()
    if descent.left_out and not rows:
        raise ProbeError(f"there is no result; {'; '.join(descent.left_out)}")
    record = {
        "workdir": options.workdir,
        "step": manifest.step,
        "encoder": options.encoder,
        "layer": str(layer),
        "data": config_lib.to_dict(config)["data"],
        "content_id": {"test": splits.test.content_id, "train": splits.last.content_id},
        "splits": splits.names,
        "options": dataclasses.asdict(options),
        "rows": [row.as_dict() for row in rows],
        "left_out": descent.left_out,
        "details": details,
        "skipped": mesh_lib.total(skipped.total),
        "devices": mesh_lib.describe(mesh),
        "seconds": round(time.monotonic() - started, 1),
    }
    if unseen:
        record["unseen"] = {"splits": unseen.names, "content_id": unseen.test.content_id}
    if mesh_lib.is_main():
        what = (
            str(layer)
            if options.encoder == "trained"
            else f"{layer} of the {options.encoder} encoder"
        )
        title = f"{config.name}, step {manifest.step:,}, {what}, {splits.names['test']!r}, in %"
        Console().print(evaluators.table(rows, title=title))
        append(out, record)
        console.print(f"written to {out}")
    return record


def classified_levels(config: Config, options: Options, splits: Splits) -> dict[str, int]:
    """name -> column of the levels at which the test images are classified.

    Raises:
      ProbeError: classification is asked for, and there is no class in common.
      ValueError: an unknown level.
    """
    tree = splits.test.tree
    shared = evaluators.shared_levels(tree.levels, splits.last.labels, splits.test.labels)
    levels = shared
    if wanted := options.levels or (() if options.data else config.evaluation.levels):
        levels = {name: tree.level(name) for name in wanted}
    if not splits.classified:
        return {}
    if not set(CLASSIFY) & set(options.evaluations):  # levels may be for the others alone
        return {name: level for name, level in levels.items() if name in shared}
    if not levels:
        raise ProbeError(
            f"the splits {splits.names['last']!r} and {splits.names['test']!r} have no class in "
            f"common at any level of {list(tree.levels)}"
        )
    return levels


def score(
    networks: Descent, variables: Mapping[str, PyTree | None], key: jax.Array
) -> tuple[list[Row], dict[str, Any]]:
    """All the evaluations of a probe on some splits: (rows, details for the record).

    Args:
      networks: the architecture and the splits.
      variables: by name; None are raw pixels.
      key: of the control from scratch.
    """
    evaluations = networks.options.evaluations
    rows: list[Row] = []
    details: dict[str, Any] = {}
    if {"knn", "linear", *evaluators.EXTRA} & set(evaluations):
        for name, values in variables.items():
            rows += networks.on_features(name, values, details)
    for name, values in variables.items():
        if "sgd" in evaluations and values is not None:
            rows += networks.linear_sgd(name, values)
    if "finetune" in evaluations:
        rows += networks.finetune(variables[TRAINED], key)
    return rows, details


def read_records(path: epath.Path) -> list[Any]:
    """The records of a file of results, [] if there is none.

    Raises:
      ProbeError: the file is there and is no list.
    """
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text())
    except ValueError:
        records = None
    if not isinstance(records, list):
        raise ProbeError(f"{path} is not a list of probes: move it away, or give --out")
    return records


def append(path: epath.Path, record: Mapping[str, Any]) -> None:
    """Adds a record to a JSON list; the old file stays whole until the new one is.

    Raises:
      ProbeError: the file is there and is no such list, or it cannot be written; then the record is printed.
    """
    new = path.parent / f"{path.name}.new"
    try:
        text = json.dumps([*read_records(path), record], indent=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)
        new.replace(path)
    except (OSError, ProbeError) as error:
        print(json.dumps(record))
        raise ProbeError(
            f"the results could not be written, and are in the line of JSON printed before this: {error}"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """The command: flags -> `probe`."""
    try:
        probe(parse(sys.argv[1:] if argv is None else argv))
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"jaxcl.probe: {error}")
