"""Studies: cells x seeds -> one table with intervals, a figure, and a verdict on each contrast.

A study file has a `get_study()`:

    from jaxcl import config, study

    def get_study():
        base = study.shortened(config.load("configs/quickstart.py"), steps=60)
        cells = [study.Cell(f"t-{t}", {"method.temperature": t}, {"temperature": t}) for t in (0.1, 1.0)]
        return study.Study(
            title="Temperature",
            question="Which temperature is best?",
            base=base,
            cells=cells,
            metrics=study.accuracies("category"),
            contrasts=[study.Contrast("t-0.1", "t-1.0", "linear/category", paper="64.4 against 58.0")],
            layout=study.Line("temperature", log=True),
        )

and `python -m jaxcl.study --config=FILE` runs every cell with every seed through `train.train`, each in a workdir of its own.
Run again, it goes on where it was. It writes study.json, study.md, study.png and study.html.
"""

from jaxcl.study.measures import Kept, LevelMap, Probe, StepMemory
from jaxcl.study.results import Result
from jaxcl.study.run import plan, run_study
from jaxcl.study.spec import (
    FLOORS,
    Cell,
    Contrast,
    Heat,
    Line,
    Measure,
    Metric,
    Study,
    StudyError,
    Table,
    accuracies,
    load_study,
    shortened,
)
from jaxcl.study.stats import Comparison, Estimate, Verdict, compare, estimate

__all__ = [
    "FLOORS",
    "Cell",
    "Comparison",
    "Contrast",
    "Estimate",
    "Heat",
    "Kept",
    "LevelMap",
    "Line",
    "Measure",
    "Metric",
    "Probe",
    "Result",
    "StepMemory",
    "Study",
    "StudyError",
    "Table",
    "Verdict",
    "accuracies",
    "compare",
    "estimate",
    "load_study",
    "plan",
    "run_study",
    "shortened",
]
