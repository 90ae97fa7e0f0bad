"""A study as data: cells, what is read off them, and what is expected of them, named beforehand."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.config import Config, ConfigError

FLOORS = ("raw pixels", "untrained encoder")
"""What stands beside the cells when a study names its `floors`."""

SPLITS = ("test", "validation")


class StudyError(ValueError):
    """A study that cannot be run as it stands; the text says why and what to do."""


class Measure(Protocol):
    """Something else that is measured on a finished cell; a frozen dataclass, whose repr identifies it.

    A picture, which it leaves in the workdir as a PNG file, stands in the study's page, that of each cell's first seed.

    Attributes:
      name: its values become "<name>/<key>" of the cell; those that it calls "<floor>/<key>", of one of `FLOORS`, become
        "<name>/<key>" of that floor.
    """

    @property
    def name(self) -> str:
        """Prefix of its values."""

    def __call__(self, workdir: str, config: Config) -> Mapping[str, float]:
        """The values of the run that is complete in `workdir`."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting of what is studied.

    Attributes:
      name: letters, digits and "._+=-", as it is also the name of a folder.
      settings: dotted config key -> value, on top of the study's base. A value that is a mapping replaces a whole section
        ("views", "method", "method.projection", ...).
      at: coordinate -> where the cell lies on it, for layouts and tables: {"temperature": 0.1}.
    """

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]*", self.name):
            raise StudyError(f"cell {self.name!r}: expected a name of letters, digits and ._+=-")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column.

    Attributes:
      key: which value of a cell: "<method>/<level>" of the run's results ("knn/category", "linear/subcategory"), "log/<name>"
        for what the training logged last ("log/loss"), "<measure>/..." of the study's measures, or one of its `differences`.
      label: heading; "" for the key.
      percent: shown as 100 times the value, with a decimal; else with four digits.
    """

    key: str
    label: str = ""
    percent: bool = True

    @property
    def heading(self) -> str:
        """The label, or the key."""
        return self.label or self.key

    @property
    def unit(self) -> str:
        """What stands beside the heading."""
        return "%" if self.percent else ""

    def show(self, value: float | None, signed: bool = False) -> str:
        """A value as text; None is a dash."""
        if value is None:
            return "–"
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f}" if self.percent else f"{value:{sign}.4g}"


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A direction, stated before the study is run.

    Attributes:
      higher: the cell that is expected above.
      lower: the cell that is expected below, or several, of which each seed's best counts. Both may be one of `FLOORS`.
      metric: key of the value.
      lower_metric: key of the lower cell's value; "" for the same.
      paper: where the direction comes from, with the figures there and how they were got.
      tolerance: by how much `higher` may be below and the contrast still hold, for what is expected to be level; 0: it has to be
        above.
      primary: whether it is a hypothesis that the study is for. These are shown first and apart, so that none of many
        contrasts can be picked out for having come true.
    """

    higher: str
    lower: str | tuple[str, ...]
    metric: str
    lower_metric: str = ""
    paper: str = ""
    primary: bool = False
    tolerance: float = 0.0

    @property
    def lowers(self) -> tuple[str, ...]:
        """The lower cells."""
        return (self.lower,) if isinstance(self.lower, str) else tuple(self.lower)


@dataclasses.dataclass(frozen=True)
class Table:
    """Every cell a row."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Values over a numeric coordinate.

    Attributes:
      x: the coordinate.
      series: a coordinate each of whose values gets a line of its own; "" for one line.
      log: logarithmic axis.
    """

    x: str
    series: str = ""
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Heat:
    """A map with a field for each cell.

    Attributes:
      rows: the coordinate of the rows.
      columns: the coordinate of the columns.
      mirror: a cell also stands at the place with row and column exchanged.
      average: a further column has the mean of each row.
    """

    rows: str
    columns: str
    mirror: bool = False
    average: bool = False


Layout = Table | Line | Heat


@dataclasses.dataclass(frozen=True)
class Study:
    """Cells x seeds -> one table, one figure, and a verdict on each contrast.

    Attributes:
      title: plain text, as are all texts here.
      question: what is asked.
      base: the experiment that the cells vary.
      cells: the variations.
      metrics: the columns; the first one is the figure's where it can show one only.
      contrasts: what is expected, before anything was run.
      layout: of the figure.
      seeds: each cell is run with each.
      split: "test": the splits are the base's. "validation": the base's validation split is scored, with the gallery alone
        behind it, and the test split is not opened; for choosing settings.
      measures: what else is measured on each finished cell.
      differences: name -> two keys of values: a further value, the first less the second.
      floors: the cell beside whose results raw pixels and the untrained encoder are scored too, by the measures that score
        them as well; "" for none.
      seconds: what a cell may take on the machine that the study was made for; a longer one is named. 0 for no limit.
      paper: what the paper did and found.
      differs: what is not as in the paper.
    """

    title: str
    question: str
    base: ConfigDict
    cells: Sequence[Cell]
    metrics: Sequence[Metric]
    contrasts: Sequence[Contrast] = ()
    layout: Layout = dataclasses.field(default_factory=Table)
    seeds: tuple[int, ...] = (0, 1, 2)
    split: str = "test"
    measures: Sequence[Measure] = ()
    differences: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    floors: str = ""
    seconds: float = 0.0
    paper: str = ""
    differs: str = ""

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        if not names or not self.metrics or not self.seeds:
            raise StudyError("a study needs one or more cells, metrics and seeds")
        names_of: tuple[tuple[str, list[Any]], ...] = (
            ("cell", names),
            ("metric", [metric.key for metric in self.metrics]),
            ("measure", [measure.name for measure in self.measures]),
            ("seed", list(self.seeds)),
        )
        for what, given in names_of:
            if twice := [x for x in given if given.count(x) > 1]:
                raise StudyError(f"{what} {twice[0]!r} is there twice: give it another name")
        if self.split not in SPLITS:
            raise StudyError(f"split={self.split!r}: expected one of {', '.join(SPLITS)}")
        if self.floors and self.floors not in names:
            raise StudyError(f"floors={self.floors!r}: expected the name of a cell, or ''")
        known = {*names, *(FLOORS if self.floors else ())}
        for contrast in self.contrasts:
            if unknown := {contrast.higher, *contrast.lowers} - known:
                raise StudyError(
                    f"a contrast names the cell {min(unknown)!r}, which the study does not have"
                )
            if contrast.tolerance < 0:
                raise StudyError(
                    f"a contrast of {contrast.higher!r} has tolerance={contrast.tolerance:g}: expected 0 or more"
                )
        self._check_layout()

    def _check_layout(self) -> None:
        layout = self.layout
        if isinstance(layout, Table):
            return
        axes = (
            (layout.x, layout.series) if isinstance(layout, Line) else (layout.rows, layout.columns)
        )
        places: dict[tuple[Any, ...], str] = {}
        for cell in self.cells:
            for axis in axes:
                if axis and axis not in cell.at:
                    raise StudyError(
                        f"cell {cell.name!r} has no {axis!r} in `at`, which the layout needs"
                    )
            if isinstance(layout, Line) and not isinstance(cell.at[layout.x], int | float):
                raise StudyError(
                    f"cell {cell.name!r}: {layout.x}={cell.at[layout.x]!r} is not a number"
                )
            place = tuple(cell.at[axis] for axis in axes if axis)
            if place in places:
                raise StudyError(f"cells {places[place]!r} and {cell.name!r} lie both at {place}")
            places[place] = cell.name

    def cell(self, name: str) -> Cell:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)

    def config(self, cell: Cell, seed: int, steps: int = 0) -> Config:
        """The experiment of a cell with a seed.

        Args:
          cell: one of the cells.
          seed: of parameters, order and views.
          steps: if above 0, the length of the training instead of its own, to try a study out.

        Raises:
          ConfigError: names the cell and the key.
        """
        plain = copy.deepcopy(self.base.to_dict())
        try:
            change(plain, cell.settings)
            change(
                plain,
                {
                    "name": f"{cell.name}, seed {seed}",
                    "seed": seed,
                    "run.report": False,
                    "run.keep": 1,
                    "run.keep_best": False,
                    "evaluation.baselines": cell.name == self.floors,
                },
            )
            if self.split == "validation":
                splits = plain["evaluation"]
                change(
                    plain, {"evaluation.test": splits["validation"], "evaluation.test_gallery": ""}
                )
            if steps:
                change(plain, {"steps": steps, "epochs": 0.0, "optim.warmup_epochs": 0.0})
                change(plain, {"optim.warmup_steps": 0})
            return config_lib.from_dict(plain)
        except ValueError as error:
            raise ConfigError(f"cell {cell.name!r}: {error}") from error


def change(plain: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Sets dotted keys of a nested dict; a mapping as value replaces a whole section.

    Raises:
      ConfigError: there is no section of that name. (Names within a section are checked when the config is built.)
    """
    for key, value in settings.items():
        *path, last = key.split(".")
        section: Any = plain
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise ConfigError(f"{key}: there is no section {'.'.join(path)!r}")
        section[last] = copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value


def shortened(config: ConfigDict, steps: int) -> ConfigDict:
    """A copy that trains for `steps`, its warm-up shortened alike, and that is evaluated at its end only.

    Raises:
      StudyError: the length of `config` is not given in steps.
    """
    if not config.steps:
        raise StudyError(
            f"{config.name} is {config.epochs} epochs long: set its steps, and epochs to 0, first"
        )
    short = ConfigDict(copy.deepcopy(config.to_dict()))
    factor = steps / config.steps
    short.steps = steps
    short.optim.warmup_epochs = config.optim.warmup_epochs * factor
    if config.optim.warmup_steps is not None:
        short.optim.warmup_steps = round(config.optim.warmup_steps * factor)
    short.evaluation.every = 0
    return short


def load_study(path: str | os.PathLike[str]) -> Study:
    """The study of a study file; "file.py:argument" gives `get_study` its argument.

    Raises:
      ConfigError: no such file, or it has no get_study.
      StudyError: what that returns is no study.
    """
    made = config_lib.call(path, "get_study")
    if not isinstance(made, Study):
        raise StudyError(f"{path}: get_study returned a {type(made).__name__}, expected a Study")
    return made


def accuracies(*levels: str, methods: Sequence[str] = ("linear", "knn")) -> list[Metric]:
    """The columns of a run's results: each way of scoring at each label level."""
    names = {"linear": "linear", "knn": "kNN"}
    return [
        Metric(f"{method}/{level}", f"{names.get(method, method)}, {level}")
        for level in levels
        for method in methods
    ]
