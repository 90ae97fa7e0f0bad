"""Runs a study: every cell with every seed, what is finished is kept, then the table, the figure and the page."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import time
import traceback
from collections.abc import Callable, Sequence

from etils import epath

from jaxcl import lock
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.study import cells as cells_lib
from jaxcl.study import results
from jaxcl.study.cells import Stopped
from jaxcl.study.page import figure, write_page
from jaxcl.study.results import Result, title
from jaxcl.study.spec import Cell, Study, StudyError

JSON, TEXT, FIGURE, PAGE = "study.json", "study.md", "study.png", "study.html"
ERROR = "error.txt"
"""In a cell's folder, where its last attempt failed: the traceback."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One cell with one seed.

    Attributes:
      cell: the cell.
      seed: the seed.
      config: its experiment.
      directory: its workdir.
    """

    cell: Cell
    seed: int
    config: Config
    directory: epath.Path

    @property
    def title(self) -> str:
        """How it is called."""
        return title(self.cell.name, self.seed)

    def state(self, study: Study) -> str:
        """Whether it is "finished", "to be measured", "begun" or "new"."""
        record = cells_lib.read(self.directory)
        if record is not None:
            return (
                "finished" if cells_lib.complete(record, study, self.config) else "to be measured"
            )
        return "begun" if (self.directory / cells_lib.SETTINGS).exists() else "new"


def plan(
    study: Study, root: epath.Path, seeds: Sequence[int], pattern: str = "*", steps: int = 0
) -> list[Run]:
    """The runs whose cell matches the pattern, the first seed of every cell first.

    Everything on disk is checked, also what is not among them.

    Raises:
      StudyError: no cell matches; cells want different devices; a cell on disk is of other settings.
      ConfigError: a cell whose settings cannot be.
    """
    runs = [
        Run(cell, seed, study.config(cell, seed, steps), cells_lib.folder(root, cell.name, seed))
        for seed in (*seeds, *(s for s in cells_lib.seeds_on_disk(root) if s not in seeds))
        for cell in study.cells
    ]
    for run in runs:
        if run.config.mesh != runs[0].config.mesh:
            raise StudyError(
                f"cells {runs[0].cell.name!r} and {run.cell.name!r} differ in `mesh`: a process has one set of devices;"
                " make two studies of them"
            )
    others = [
        (run, found) for run in runs if (found := cells_lib.changed(run.directory, run.config))
    ]
    if others:
        lines = "\n".join(f"  {run.title}: " + "; ".join(found) for run, found in others)
        raise StudyError(
            f"{root} has cells of other settings than the study has now:\n{lines}\n"
            "Choose another --workdir, or move these away to run them again:\n"
            + "\n".join(f"  {run.directory}" for run, _ in others)
        )
    chosen = [
        run for run in runs if run.seed in seeds and fnmatch.fnmatchcase(run.cell.name, pattern)
    ]
    if not chosen:
        known = ", ".join(cell.name for cell in study.cells)
        raise StudyError(f"no cell matches {pattern!r}; there are {known}")
    return chosen


def run_study(
    study: Study,
    workdir: str,
    *,
    seeds: Sequence[int] = (),
    pattern: str = "*",
    steps: int = 0,
    command: str = "",
    say: Callable[[str], None] = print,
) -> Result:
    """Runs what is not finished, and writes study.json, study.md, study.png and study.html.

    A cell that fails is named, and the others go on; one that another process is at is left to it.

    Args:
      study: what to run.
      workdir: of the study; runs are in cells/<cell>/seed-<n> below it.
      seeds: to run instead of the study's.
      pattern: only cells whose name matches this glob are run. What is finished of other cells and seeds is in the result too.
      steps: if above 0, cut every run to so many steps, to try the study out.
      command: for the record.
      say: takes a line of text.

    Raises:
      StudyError, ConfigError: before anything is run.
      Stopped: by Ctrl-C; the files are written from what is finished.
    """
    seeds = tuple(seeds) or study.seeds
    root = epath.Path(workdir)
    runs = plan(study, root, seeds, pattern, steps)
    mesh_lib.initialize(runs[0].config.mesh)
    unfinished = [run for run in runs if run.state(study) != "finished"]
    say(
        f"{study.title}: {len(runs)} runs, {len(runs) - len(unfinished)} of them finished; in {root}"
    )

    failed: dict[str, str] = {}
    stopped = False
    began = time.monotonic()
    for number, run in enumerate(unfinished, start=1):
        say(f"[{number}/{len(unfinished)}] {run.title} ... ({run.directory / cells_lib.LOG})")
        started = time.monotonic()
        try:
            with lock.hold(run.directory, say, cells_lib.LOCK):
                (run.directory / ERROR).unlink(missing_ok=True)
                record = cells_lib.run(study, run.cell, run.config, run.directory)
        except (Stopped, KeyboardInterrupt):
            stopped = True
            break
        except lock.InUseError as error:
            say(f"  in use by {error.holder or 'another process'}, and left to it")
            continue
        except Exception as error:
            failed[run.title] = f"{type(error).__name__}: {error}"
            (run.directory / ERROR).write_text(traceback.format_exc())
            say(f"  FAILED: {failed[run.title]}\n  ({run.directory / ERROR})")
            continue
        values = cells_lib.all_values(record, study)
        found = "  ".join(f"{m.heading} {m.show(values.get(m.key))}" for m in study.metrics)
        left = (time.monotonic() - began) / number * (len(unfinished) - number)
        say(f"  {found}  {time.monotonic() - started:.0f} s; about {left / 60:.0f} min left")

    facts = {"command": command, "written": results.now()}
    result = results.collect(study, root, seeds, failed, steps, facts)
    write(result, root)
    if stopped:
        raise Stopped(
            f"stopped; finished cells are in {root}, and the same command goes on from there"
        )
    say(results.table_text(result))
    for primary in (True, False):
        if text := results.contrasts_text(result, primary):
            say(f"{results.HEADINGS[primary]}:\n{text}")
    for warning in result.warnings:
        say(f"note: {warning}")
    say(f"written: {root / PAGE}, {TEXT}, {JSON}, {FIGURE}")
    return result


def write(result: Result, root: epath.Path) -> None:
    """The four files of a result."""
    root.mkdir(parents=True, exist_ok=True)
    (root / JSON).write_text(json.dumps(results.as_json(result), indent=1, allow_nan=False))
    (root / TEXT).write_text(results.as_text(result))
    (root / FIGURE).write_bytes(figure(result))
    write_page(root / PAGE, result)
