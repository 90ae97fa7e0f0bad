"""From the records of the cells to one result: study.json, and the same as text."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxcl import config as config_lib
from jaxcl.config import Config
from jaxcl.study import cells as cells_lib
from jaxcl.study.spec import FLOORS, Contrast, Metric, Study
from jaxcl.study.stats import Comparison, Estimate, Verdict, compare, estimate

PerSeed = dict[int, float]

HEADINGS = {True: "Hypotheses, named beforehand", False: "Contrasts"}
"""Of the contrasts that are `primary`, and of the others."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell in the result.

    Attributes:
      name: of the cell, or of a floor.
      settings: what it changes in the base.
      at: its coordinates.
      values: key -> seed -> value.
      seconds: seed -> wall time of training, evaluation and measures, of runs that were not interrupted.
      images: images that a run was trained on, counted with repetition; None for a floor.
      steps: updates of a run; None for a floor.
      resumed: seeds whose run was interrupted: what they took in all is not known.
      pictures: name -> the PNG file that a measure has made of the first seed that has one.
    """

    name: str
    settings: Mapping[str, Any]
    at: Mapping[str, Any]
    values: dict[str, PerSeed]
    seconds: PerSeed = dataclasses.field(default_factory=dict)
    images: int | None = None
    steps: int | None = None
    resumed: tuple[int, ...] = ()
    pictures: Mapping[str, epath.Path] = dataclasses.field(default_factory=dict)

    def estimate(self, key: str) -> Estimate | None:
        """Mean over the seeds that have the value."""
        found = self.values.get(key)
        return estimate(list(found.values())) if found else None


@dataclasses.dataclass(frozen=True)
class Result:
    """All that is known of a study.

    Attributes:
      study: what was asked.
      rows: cells in their order, then the floors; cells without a single finished run too.
      comparisons: one for each contrast.
      failed: "cell, seed n" -> the error.
      unfinished: "cell, seed n" of what was not run, or not to its end.
      steps: above 0: every run was cut to so many steps, to try the study out.
      facts: time, machine, versions, command, ...
      root: the study's folder.
    """

    study: Study
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    failed: Mapping[str, str]
    unfinished: tuple[str, ...]
    steps: int
    facts: Mapping[str, Any]
    root: epath.Path

    def row(self, name: str) -> Row:
        """The row of a cell or a floor."""
        return next(row for row in self.rows if row.name == name)

    @property
    def seeds(self) -> list[int]:
        """The seeds with at least one value."""
        return sorted({s for row in self.rows for per in row.values.values() for s in per})

    def contrasts(self, primary: bool) -> list[tuple[Contrast, Comparison]]:
        """The contrasts that the study is for, or the others, and what came of each."""
        both = zip(self.study.contrasts, self.comparisons, strict=True)
        return [(contrast, found) for contrast, found in both if contrast.primary == primary]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before any number."""
        found = []
        if self.steps:
            found.append(
                f"Every run was cut to {self.steps} steps, to try the study out: the numbers mean nothing."
            )
        if self.study.split == "validation":
            found.append(
                "Scored on the validation split, on which k, centring and the penalty are chosen too: good for choosing settings,"
                " too high as a result."
            )
        found += [f"Failed: {name}: {error.splitlines()[0]}" for name, error in self.failed.items()]
        if self.unfinished:
            some = ", ".join(self.unfinished[:8]) + (", ..." if len(self.unfinished) > 8 else "")
            found.append(f"Not finished ({len(self.unfinished)}): {some}")
        if len(self.seeds) == 1:
            found.append("One seed: no spread is known, so nothing can hold beyond it.")
        limit = self.study.seconds
        if slow := [
            f"{row.name}, seed {seed}: {seconds:.0f} s"
            for row in self.rows
            for seed, seconds in row.seconds.items()
            if limit and seconds > limit
        ]:
            some = "; ".join(slow[:8]) + ("; ..." if len(slow) > 8 else "")
            found.append(f"Longer than the {limit:g} s that a cell may take ({len(slow)}): {some}")
        return found


def collect(
    study: Study,
    root: epath.Path,
    seeds: Sequence[int],
    failed: Mapping[str, str],
    steps: int,
    facts: Mapping[str, Any],
) -> Result:
    """Reads what is finished in a study's folder; `seeds` are those that should be."""
    rows: list[Row] = []
    unfinished: list[str] = []
    versions: dict[str, set[str]] = {}
    floors: dict[str, dict[str, PerSeed]] = {name: {} for name in FLOORS}
    for cell in study.cells:
        values: dict[str, PerSeed] = {}
        seconds: PerSeed = {}
        pictures: dict[str, epath.Path] = {}
        resumed, last = [], None
        for seed in sorted({*seeds, *cells_lib.seeds_on_disk(root)}):
            directory = cells_lib.folder(root, cell.name, seed)
            record = cells_lib.read(directory)
            name = title(cell.name, seed)
            lacking = record is None or cells_lib.missing(record, study.measures)
            if lacking and seed in seeds and name not in failed:
                unfinished.append(name)
            if record is None:
                continue
            last = record
            pictures = {path.stem: path for path in sorted(directory.glob("*.png"))} | pictures
            merge(values, seed, cells_lib.all_values(record, study))
            for floor in FLOORS:
                merge(floors[floor], seed, cells_lib.all_values(record, study, floor))
            measured = (record["measures"].get(repr(m), {"seconds": 0.0}) for m in study.measures)
            if record["resumed"]:
                resumed.append(seed)
            else:
                seconds[seed] = record["seconds"] + sum(m["seconds"] for m in measured)
            same = {k: record[k] for k in ("devices", "machine")} | record["versions"]
            for key, value in same.items():
                versions.setdefault(key, set()).add(value)
        rows.append(
            Row(
                cell.name,
                dict(cell.settings),
                dict(cell.at),
                values,
                seconds,
                last["images"] if last else None,
                last["steps"] if last else None,
                tuple(resumed),
                pictures,
            )
        )
    rows += [Row(name, {}, {}, found) for name, found in floors.items() if found]
    table = {row.name: row for row in rows}
    comparisons = tuple(
        compare(
            table[c.higher].values.get(c.metric, {}) if c.higher in table else {},
            [
                table[name].values.get(c.lower_metric or c.metric, {}) if name in table else {}
                for name in c.lowers
            ],
            c.tolerance,
        )
        for c in study.contrasts
    )
    seen = {name: " and ".join(sorted(found)) for name, found in versions.items()}
    return Result(
        study,
        tuple(rows),
        comparisons,
        dict(failed),
        tuple(unfinished),
        steps,
        {**facts, **seen},
        root,
    )


def title(cell: str, seed: int) -> str:
    """How a run is called."""
    return f"{cell}, seed {seed}"


def merge(values: dict[str, PerSeed], seed: int, found: Mapping[str, float | None]) -> None:
    """Adds the values of one seed that are numbers."""
    for key, value in found.items():
        if value is not None:
            values.setdefault(key, {})[seed] = value


# ---------------------------------------------------------------------------------------------
# study.json
# ---------------------------------------------------------------------------------------------


def as_json(result: Result) -> dict[str, Any]:
    """Everything, in plain values."""
    study = result.study
    return {
        "title": study.title,
        "question": study.question,
        "paper": study.paper,
        "differs": study.differs,
        "split": study.split,
        **result.facts,
        "seeds": result.seeds,
        "warnings": result.warnings,
        "metrics": [dataclasses.asdict(m) for m in study.metrics],
        "differences": dict(study.differences),
        "cells": {
            row.name: {
                "settings": row.settings,
                "at": row.at,
                "steps": row.steps,
                "images": row.images,
                "seconds": row.seconds,
                "resumed": row.resumed,
                "values": row.values,
                "estimates": {
                    key: dataclasses.asdict(estimate(list(per.values())))
                    for key, per in row.values.items()
                },
            }
            for row in result.rows
        },
        "contrasts": [
            {
                **dataclasses.asdict(contrast),
                "verdict": comparison.verdict,
                "differences": comparison.differences,
                "estimate": comparison.estimate and dataclasses.asdict(comparison.estimate),
            }
            for contrast, comparison in zip(study.contrasts, result.comparisons, strict=True)
        ],
        "failed": result.failed,
        "unfinished": result.unfinished,
        "base": _plain_base(study),
    }


def _plain_base(study: Study) -> dict[str, Any]:
    return config_lib.to_dict(config_lib.from_dict(study.base))


# ---------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------


def spread(metric: Metric, found: Estimate | None) -> str:
    """ "61.5 ± 2.1": the mean and half of its 95 % interval."""
    if found is None:
        return "–"
    if found.high is None:
        return metric.show(found.mean)
    return f"{metric.show(found.mean)} ± {metric.show(found.high - found.mean)}"


def difference_words(metric: Metric, comparison: Comparison) -> str:
    """ "+3.1 (seeds +2.9, +3.3), 95 % +0.6 to +5.6"."""
    found = comparison.estimate
    if found is None:
        return "–"
    seeds = ", ".join(metric.show(d, signed=True) for d in comparison.differences.values())
    text = f"{metric.show(found.mean, signed=True)} (seeds {seeds})"
    if found.low is not None:
        text += f", 95 % {metric.show(found.low, signed=True)} to {metric.show(found.high, signed=True)}"
    return text


def contrast_words(study: Study, contrast: Contrast) -> str:
    """ "b above the best of c, d: kNN category"; with a tolerance "b not more than 2.0 below ..."."""
    lower = (
        contrast.lowers[0]
        if len(contrast.lowers) == 1
        else f"the best of {', '.join(contrast.lowers)}"
    )
    metric = metric_of(study, contrast.metric)
    label = metric.heading
    if contrast.lower_metric and contrast.lower_metric != contrast.metric:
        label = f"{label} over {metric_of(study, contrast.lower_metric).heading}"
    where = (
        f"not more than {metric.show(contrast.tolerance)} below" if contrast.tolerance else "above"
    )
    return f"{contrast.higher} {where} {lower}: {label}"


def metric_of(study: Study, key: str) -> Metric:
    """The study's column of a key, or a plain one."""
    return next((m for m in study.metrics if m.key == key), Metric(key))


def reading(result: Result) -> str:
    """How the numbers are to be read."""
    text = "± is half of the 95 % interval of the mean over the seeds (Student's t)."
    if result.study.contrasts:
        text += (
            " A contrast holds beyond the seeds' spread if the 95 % interval of the mean of its paired differences (same seed:"
            " same order of images, and the same first parameters where the shapes agree) lies above 0; where the truth is no"
            " difference, that happens one time in forty. The test images are the same throughout: what other images would"
            " change is in no interval."
        )
    if any(contrast.tolerance for contrast in result.study.contrasts):
        text += " Of what is expected to be level, the threshold is not 0 but what is allowed to be lost."
    return text


def budget(result: Result) -> str:
    """What each run was given, the same for all, or from .. to; and what all of them took."""
    rows = [row for row in result.rows if row.images is not None and row.steps is not None]
    if not rows:
        return "nothing was run"

    def span(numbers: list[int]) -> str:
        low, high = min(numbers), max(numbers)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    steps = span([row.steps for row in rows if row.steps is not None])
    images = span([row.images for row in rows if row.images is not None])
    parts = [f"{steps} steps, {images} images a run"]
    if seconds := [s for row in rows for s in row.seconds.values()]:
        parts.append(
            f"{len(seconds)} runs of {min(seconds):.0f} to {max(seconds):.0f} s, {sum(seconds) / 3600:.2f} hours together"
        )
    if resumed := sum(len(row.resumed) for row in rows):
        parts.append(f"{resumed} interrupted and resumed, their time not counted")
    return "; ".join(parts)


def as_text(result: Result) -> str:
    """study.md: question, hypotheses, table, other contrasts, how it was run."""
    study = result.study
    parts = [f"# {study.title}", study.question]
    parts += [f"**{warning}**" for warning in result.warnings]
    first, others = (contrasts_text(result, primary) for primary in (True, False))
    parts += [f"## {HEADINGS[True]}", first] if first else []
    parts += ["## Values", table_text(result)]
    if drawn := pictures_text(result):
        parts += ["## Pictures", drawn]
    parts += [f"## {HEADINGS[False]}", others] if others else []
    parts += [reading(result)]
    parts += [f"**The paper.** {study.paper}"] if study.paper else []
    parts += [f"**What differs here.** {study.differs}"] if study.differs else []
    facts = "\n".join(f"| {key} | {cell_text(value)} |" for key, value in facts_of(result).items())
    parts += ["## How it was run", f"| | |\n|---|---|\n{facts}"]
    return "\n\n".join(parts) + "\n"


def facts_of(result: Result) -> dict[str, Any]:
    """Name -> value: what a number must be read with."""
    c: Config = config_lib.from_dict(result.study.base)
    return {
        "base": f"{c.method['name']}, {c.model.name} of width {c.model.width:g}, {c.data.name}, batch {c.batch_size}",
        "scored on": c.evaluation.test if result.study.split == "test" else c.evaluation.validation,
        "budget": budget(result),
        "seeds": ", ".join(map(str, result.seeds)) or "none",
        **result.facts,
    }


def table_text(result: Result) -> str:
    """A row for each cell: mean, interval, and each seed's value."""
    metrics = result.study.metrics
    heads = ["cell", *(f"{m.heading}{' %' if m.percent else ''}" for m in metrics), "s"]
    lines = [heads, ["---"] + ["---:"] * (len(metrics) + 1)]
    for row in result.rows:
        cells = [row.name]
        for metric in metrics:
            per = row.values.get(metric.key, {})
            each = ", ".join(metric.show(per.get(seed)) for seed in result.seeds)
            text = spread(metric, row.estimate(metric.key))
            cells.append(f"{text} ({each})" if len(per) > 1 else text)
        seconds = list(row.seconds.values())
        cells.append(f"{sum(seconds) / len(seconds):.0f}" if seconds else "–")
        lines.append(cells)
    return "\n".join("| " + " | ".join(map(cell_text, line)) + " |" for line in lines)


def pictures_text(result: Result) -> str:
    """A line for each cell with pictures, which it links; "" without any."""
    lines = []
    for row in result.rows:
        links = ", ".join(
            f"[{name}]({path.relative_to(result.root).as_posix()})"
            for name, path in row.pictures.items()
        )
        lines += [f"* {row.name}: {links}"] if links else []
    return "\n".join(lines)


def contrasts_text(result: Result, primary: bool) -> str:
    """A row for each of the contrasts with its verdict, and the paper's figures beside it; "" where there are none."""
    study = result.study
    lines = [["expected", "difference", "verdict", "the paper"], ["---"] * 4]
    for contrast, comparison in result.contrasts(primary):
        lines.append(
            [
                contrast_words(study, contrast),
                difference_words(metric_of(study, contrast.metric), comparison),
                verdict_words(comparison, contrast.tolerance),
                contrast.paper,
            ]
        )
    if len(lines) == 2:
        return ""
    return "\n".join("| " + " | ".join(map(cell_text, line)) + " |" for line in lines)


def verdict_words(comparison: Comparison, tolerance: float = 0.0) -> str:
    """The verdict; within the spread also on which side of the threshold the mean lies."""
    if comparison.estimate is None or comparison.verdict in (Verdict.HOLDS, Verdict.OPPOSITE):
        return str(comparison.verdict)
    side = "as expected" if comparison.estimate.mean > -tolerance else "not as expected"
    return f"{comparison.verdict}, the mean {side}"


def cell_text(value: Any) -> str:
    """Text that stays within its field of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def now() -> str:
    """The time as it stands in results."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
