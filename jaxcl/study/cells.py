"""One cell with one seed: run through `train.train`, measured, and kept as a record beside its checkpoint."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax
from etils import epath

import jaxcl
from jaxcl import checkpoint, metrics, train
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.study.spec import FLOORS, Cell, Measure, Study

RECORD = "cell.json"
LOG = "log.txt"
LOCK = "cell.lock"
"""Held while a cell is trained and measured, as the run's own lock is only by its training."""
SETTINGS = "settings.json"
"""The cell's settings as the study gives them; the run itself may complete them in its config.json."""
TRAINED = "trained encoder"

Record = dict[str, Any]
"""What is kept of a finished cell: "values" {key: number}, "floors", "measures", "seconds", ..."""


class Stopped(Exception):
    """The cell was asked to stop (Ctrl-C); it has saved and goes on when it is run again."""


def folder(root: epath.Path, cell: str, seed: int) -> epath.Path:
    """Where a cell with a seed is kept."""
    return root / "cells" / cell / f"seed-{seed}"


def seeds_on_disk(root: epath.Path) -> list[int]:
    """The seeds of which some cell has a folder."""
    names = {path.name.removeprefix("seed-") for path in root.glob("cells/*/seed-*")}
    return sorted(int(name) for name in names if name.isdecimal())


def read(directory: epath.Path) -> Record | None:
    """The record of a finished cell; None where it is not finished."""
    path = directory / RECORD
    return json.loads(path.read_text()) if path.exists() else None


def changed(directory: epath.Path, config: Config) -> list[str]:
    """In which settings a cell on disk is not the one that the study has now: "key: there, now".

    Where the cell is not finished, the settings of its evaluation may still change; whether the floors are scored too may always.
    A setting that it does not have, as it came later, has to be at its default.
    """
    try:
        stored = json.loads((directory / SETTINGS).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not begun, or killed while it was written
        return []
    finished = (directory / RECORD).exists()
    before, now = config_lib.flatten(stored), config_lib.flatten(as_json(config))
    later = now.keys() - before.keys() - config_lib.not_default(config).keys()
    return [
        f"{key}: {before.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} now"
        for key in sorted((before.keys() | now.keys()) - later - {"evaluation.baselines"})
        if before.get(key, "absent") != now.get(key, "absent")
        and not (config_lib.may_change(key) and not (finished and key.startswith("evaluation.")))
    ]


def as_json(config: Config) -> dict[str, Any]:
    """The settings as JSON gives them back: tuples are lists."""
    return json.loads(json.dumps(config_lib.to_dict(config)))


def missing(record: Record | None, measures: Sequence[Measure]) -> list[Measure]:
    """The measures that a record lacks; all of them where there is none."""
    return [m for m in measures if record is None or repr(m) not in record["measures"]]


def lacks_floors(record: Record, config: Config) -> bool:
    """Whether a finished cell was not yet the study's cell of `floors`, and is now."""
    return config.evaluation.baselines and bool(config.evaluation.test) and not record["floors"]


def complete(record: Record | None, study: Study, config: Config) -> bool:
    """Whether a record has all that the study asks of the cell."""
    return (
        record is not None
        and not missing(record, study.measures)
        and not lacks_floors(record, config)
    )


def run(study: Study, cell: Cell, config: Config, directory: epath.Path) -> Record:
    """Trains (or goes on with) a cell, measures it, and writes its record.

    What the training prints goes to the cell's log.txt.

    Raises:
      Stopped: by a signal; what was done is saved.
      Exception: whatever a run can raise.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record = read(directory)
    try:
        with logged(directory):
            if record is None:
                record = _train(cell, config, directory)
            elif lacks_floors(record, config):
                # The training is complete: the table is all that is made anew.
                record["floors"] = floors(train.train(config, str(directory))["rows"])
                _write(directory, record)
            for measure in missing(record, study.measures):
                began = time.monotonic()
                values = measure(str(directory), config)
                record["measures"][repr(measure)] = {
                    "values": {f"{measure.name}/{k}": finite(v) for k, v in values.items()},
                    "seconds": round(time.monotonic() - began, 1),
                }
                _write(directory, record)
    finally:
        # Programs and arrays of one cell must not fill the memory of the next.
        gc.collect()
        jax.clear_caches()
    return record


def _train(cell: Cell, config: Config, directory: epath.Path) -> Record:
    began, worked = time.monotonic(), time.process_time()
    resumed = (directory / "checkpoints").exists()
    (directory / SETTINGS).write_text(json.dumps(as_json(config), indent=1))
    result = train.train(config, str(directory))
    if not result["complete"]:
        raise Stopped
    record = {
        "cell": cell.name,
        "seed": config.seed,
        "values": values(result["rows"], TRAINED) | logs(directory),
        "floors": floors(result["rows"]),
        "rows": result["rows"],
        "measures": {},
        "steps": result["step"],
        "images": result["step"] * config.batch_size,
        "resumed": resumed,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),
        "content_id": checkpoint.read_manifest(directory / "checkpoints").content_id,
        "devices": mesh_lib.describe(mesh_lib.make_mesh()),
        "peak_mib": peak_mib(),
        **versions(),
    }
    _write(directory, record)
    return record


def values(rows: Sequence[Mapping[str, Any]], features: str) -> dict[str, float | None]:
    """{"<method>/<level>": accuracy} of the rows about `features`."""
    return {
        f"{row['method']}/{row['level']}": finite(row["accuracy"])
        for row in rows
        if row["features"] == features
    }


def floors(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """{floor: its `values`}, of those that have rows."""
    return {floor: found for floor in FLOORS if (found := values(rows, floor))}


def logs(directory: epath.Path) -> dict[str, float | None]:
    """{"log/<name>": the value that was logged last}, the clock left out."""
    last: dict[str, float] = {}
    for row in metrics.read_metrics(directory):
        last |= row
    return {f"log/{k}": finite(v) for k, v in last.items() if k not in ("step", *metrics.TIMES)}


def all_values(record: Record, study: Study, floor: str = "") -> dict[str, float | None]:
    """The values of a record, or of a floor that was scored beside it, with the measures and differences that the study has now."""
    found = dict(record["floors"].get(floor, {}) if floor else record["values"])
    for measure in study.measures:
        values = record["measures"].get(repr(measure), {"values": {}})["values"]
        for name, value in values.items():
            key = name.removeprefix(f"{measure.name}/")
            about = next((f for f in FLOORS if key.startswith(f"{f}/")), "")
            if about == floor:
                found[f"{measure.name}/{key.removeprefix(f'{floor}/')}"] = value
    for name, keys in study.differences.items():
        first, second = (found.get(key) for key in keys)
        found[name] = None if first is None or second is None else first - second
    return found


def finite(value: float) -> float | None:
    """A number that JSON has, or None."""
    return float(value) if math.isfinite(value) else None


def versions() -> dict[str, Any]:
    """What a number must be read with."""
    return {
        "versions": {
            "jaxcl": jaxcl.__version__,
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("jax", "jaxlib", "flax", "numpy")
            },
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def peak_mib() -> float:
    """The largest resident size that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)


@contextlib.contextmanager
def logged(directory: epath.Path) -> Iterator[None]:
    """Within, what is printed is added to the cell's log; in a bucket, at the end."""
    with contextlib.ExitStack() as stack:
        stream: TextIO
        if "://" in str(directory):
            import io

            stream = io.StringIO()
            stack.callback(lambda: (directory / LOG).write_text(stream.getvalue()))  # type: ignore[attr-defined]
        else:
            stream = stack.enter_context(open(directory / LOG, "a", buffering=1))
        stack.enter_context(contextlib.redirect_stdout(stream))
        yield


def _write(directory: epath.Path, record: Record) -> None:
    """Writes the record; the old one stays whole until the new one is."""
    new = directory / f"{RECORD}.new"
    new.write_text(json.dumps(record, indent=1, allow_nan=False))
    new.replace(directory / RECORD)
