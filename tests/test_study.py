"""Studies: what is run once and kept, what is refused, and the arithmetic of intervals and contrasts."""

import base64
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import struct
import sys

import jax
import numpy as np
import pytest
import tiny_network
from etils import epath
from PIL import Image
from scipy import stats as scipy_stats
from sklearn.datasets import load_digits

from jaxcl import config as config_lib
from jaxcl import data, lock, models, probe, study, train
from jaxcl.config import ConfigError
from jaxcl.data import pipeline
from jaxcl.report import figures
from jaxcl.study import Cell, Contrast, Heat, Line, Metric, Study, StudyError, Verdict, cells
from jaxcl.study import __main__ as command
from jaxcl.study.results import as_json, budget, collect
from jaxcl.views import build_program, presets

ROOT = pathlib.Path(__file__).parents[1]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.py"))


def base(**changes):
    c = config_lib.base("simclr", presets.simclr(8, strength=0.5, blur=False))
    c.name, c.steps, c.batch_size = "tiny", 4, 16
    c.model.width, c.model.stem = 1 / 32, "cifar"
    c.method.projection.layers = (12, 6)
    c.optim.warmup_epochs = 0.0
    c.evaluation.gallery, c.evaluation.validation, c.evaluation.test = "train", "test", "test"
    c.evaluation.ks, c.evaluation.linear = (1, 7), False
    c.run.log_every, c.run.checkpoint_every = 1, 2
    c.mesh.compile_cache = ""
    c.update_from_flattened_dict(changes)
    return c


def make(cells=("a", "b"), **fields):
    made = [
        c if isinstance(c, Cell) else Cell(c, {"method.temperature": 0.1 * (i + 1)}, {"i": i})
        for i, c in enumerate(cells)
    ]
    fields = {"base": base(), "metrics": [Metric("knn/class")], "seeds": (0, 1), **fields}
    return Study("A study", "What is it?", cells=made, **fields)


# ---------------------------------------------------------------------------------------------
# Arithmetic
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_intervals_are_those_of_student(count):
    x = np.random.default_rng(count).normal(0.6, 0.02, count)
    found = study.estimate(list(x))
    low, high = scipy_stats.t.interval(0.95, count - 1, loc=x.mean(), scale=scipy_stats.sem(x))
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-12)
    np.testing.assert_allclose(found.sd, x.std(ddof=1), rtol=1e-12)


def test_an_interval_by_hand():
    found = study.estimate([1.0, 2.0, 3.0])  # sd 1, t(0.975, 2) = 4.3027
    assert found.mean == 2
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert study.estimate([0.5]) == study.Estimate(1, 0.5)
    with pytest.raises(ValueError, match="finite"):
        study.estimate([0.5, math.nan])
    with pytest.raises(ValueError, match="one or more"):
        study.estimate([])


def test_a_contrast_is_paired():
    """Seeds that differ by much, and cells that differ by little but always: only pairing sees it."""
    lower = {0: 0.50, 1: 0.60, 2: 0.40, 3: 0.55}
    higher = {0: 0.52, 1: 0.63, 2: 0.42, 3: 0.58, 9: 0.0}
    found = study.compare(higher, [lower])
    assert found.differences == pytest.approx({0: 0.02, 1: 0.03, 2: 0.02, 3: 0.03})
    paired = scipy_stats.ttest_rel([higher[s] for s in lower], list(lower.values()))
    low, high = paired.confidence_interval(0.95)
    np.testing.assert_allclose([found.estimate.low, found.estimate.high], [low, high], rtol=1e-9)
    assert found.verdict is Verdict.HOLDS
    assert study.compare(lower, [higher]).verdict is Verdict.OPPOSITE


def test_verdicts():
    assert study.compare({0: 0.6, 1: 0.5}, [{0: 0.5, 1: 0.6}]).verdict is Verdict.WITHIN
    # Above on both seeds, but two seeds know their spread badly.
    assert study.compare({0: 0.6, 1: 0.62}, [{0: 0.59, 1: 0.59}]).verdict is Verdict.WITHIN
    assert study.compare({0: 0.6}, [{0: 0.5}]).verdict is Verdict.ONE_SEED
    assert study.compare({0: 0.6}, [{1: 0.5}]).verdict is Verdict.MISSING
    assert study.compare({0: 0.6}, []).verdict is Verdict.MISSING


def test_what_is_expected_to_be_level_may_be_a_little_below():
    """The same differences about -0.01: nothing or the opposite by themselves, level within 0.03, not within 0.005."""
    lower, higher = {0: 0.5, 1: 0.6, 2: 0.4}, {0: 0.489, 1: 0.591, 2: 0.39}
    assert study.compare(higher, [lower]).verdict is Verdict.OPPOSITE
    assert study.compare(higher, [lower], 0.03).verdict is Verdict.HOLDS
    assert study.compare(higher, [lower], 0.005).verdict is Verdict.OPPOSITE
    assert study.compare(higher, [lower], 0.01).verdict is Verdict.WITHIN


def test_a_tolerance_is_said(fake_training, tmp_path):
    """The fake cells differ by far more than a hundredth."""
    level = Contrast("b", "a", "knn/class", tolerance=0.01)
    run(make(contrasts=[level, Contrast("a", "b", "knn/class")]), tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "| b not more than 1.0 below a: " in text
    assert "| a above b: " in text
    assert "the threshold is not 0 but what is allowed to be lost" in text
    assert "not more than 1.0 below" in (tmp_path / "study.html").read_text()
    with pytest.raises(StudyError, match=r"contrast of 'b' has tolerance=-1: expected 0 or more"):
        make(contrasts=[dataclasses.replace(level, tolerance=-1.0)])


def test_of_several_the_best_of_each_seed_counts():
    found = study.compare({0: 0.6, 1: 0.6}, [{0: 0.5, 1: 0.7}, {0: 0.55, 1: 0.1}])
    assert found.differences == pytest.approx({0: 0.05, 1: -0.1})


# ---------------------------------------------------------------------------------------------
# Declarations
# ---------------------------------------------------------------------------------------------


def test_a_cell_changes_the_base():
    views = presets.crop_flip(8, views=2)
    cell = Cell(
        "x",
        {"method.temperature": 0.5, "views": views, "method.projection": {"layers": (4,)}},
    )
    made = make([cell])
    config = made.config(cell, seed=7)
    assert (config.seed, config.method["temperature"]) == (7, 0.5)
    assert config.views.order == ("crop", "flip")
    assert config.method["projection"] == {"layers": (4,)}
    assert not config.run.report
    assert not config.evaluation.baselines
    assert made.base.method.temperature == 0.1  # the base is not touched
    assert made.config(cell, seed=7, steps=2).steps == 2


def test_floors_and_split():
    made = make(floors="b", split="validation", base=base(**{"evaluation.validation": "val"}))
    a, b = (made.config(cell, 0) for cell in made.cells)
    assert (a.evaluation.baselines, b.evaluation.baselines) == (False, True)
    assert (a.evaluation.test, a.evaluation.test_gallery) == ("val", "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cells": ["a", "a"]}, "cell 'a' is there twice"),
        ({"cells": []}, "needs one or more cells"),
        ({"seeds": (1, 1)}, "seed 1 is there twice"),
        ({"split": "val"}, "expected one of test, validation"),
        ({"floors": "c"}, "expected the name of a cell"),
        ({"contrasts": [Contrast("a", "c", "x")]}, "names the cell 'c'"),
        ({"contrasts": [Contrast("a", "raw pixels", "x")]}, "names the cell 'raw pixels'"),
        ({"layout": Line("x")}, "cell 'a' has no 'x'"),
        (
            {"layout": Heat("i", "i"), "cells": [Cell("p", {}, {"i": 0}), Cell("q", {}, {"i": 0})]},
            "lie both at",
        ),
        ({"layout": Line("i"), "cells": [Cell("p", {}, {"i": "one"})]}, "is not a number"),
    ],
)
def test_a_study_that_cannot_be_is_refused(fields, message):
    with pytest.raises(StudyError, match=message):
        make(**fields)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-a"])
def test_cell_names_are_folder_names(name):
    with pytest.raises(StudyError, match="expected a name"):
        Cell(name)


def test_a_mistake_in_a_cell_names_the_cell_and_the_nearest_key():
    for settings, message in (
        (
            {"method.temprature": 1.0},
            "cell 'x': method has no key 'temprature'; did you mean 'temperature'",
        ),
        ({"metod.temperature": 1.0}, "cell 'x': metod.temperature: there is no section 'metod'"),
        ({"views.ops.blurr": {}, "views.order": ("blurr",)}, "cell 'x'"),
    ):
        made = make([Cell("x", settings)])
        with pytest.raises(ConfigError, match=re.escape(message)):
            made.config(made.cells[0], 0)


def test_shortened_keeps_the_proportions():
    c = config_lib.load(ROOT / "configs" / "quickstart.py")
    c.steps, c.optim.warmup_steps = 800, 40
    short = study.shortened(c, 80)
    assert (short.steps, short.optim.warmup_steps, short.evaluation.every) == (80, 4, 0)
    assert (c.steps, c.optim.warmup_steps) == (800, 40)
    c.steps, c.epochs = 0, 3.0
    with pytest.raises(StudyError, match=r"3.0 epochs long"):
        study.shortened(c, 80)


def test_a_file_that_is_no_study(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        study.load_study(tmp_path / "no.py")
    (tmp_path / "no.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"has no get_study\(\)"):
        study.load_study(tmp_path / "no.py")
    (tmp_path / "no.py").write_text("def get_study(arg): return arg\n")
    with pytest.raises(StudyError, match="returned a str"):
        study.load_study(f"{tmp_path / 'no.py'}:x")


# ---------------------------------------------------------------------------------------------
# The files that are there
# ---------------------------------------------------------------------------------------------


def test_there_are_studies():
    assert len(STUDIES) >= 6


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_builds_all_its_cells(path, tmp_path):
    made = study.load_study(path)
    configs = [made.config(cell, seed) for cell in made.cells for seed in made.seeds]
    assert len({json.dumps(config_lib.to_dict(c), sort_keys=True) for c in configs}) == len(configs)
    assert len({c.mesh for c in configs}) == 1
    scored = {m.key for m in made.metrics}
    for contrast in made.contrasts:
        assert {contrast.metric, contrast.lower_metric or contrast.metric} <= scored
    tried = [made.config(cell, 0, steps=3) for cell in made.cells]
    assert {c.total_steps(1000) for c in tried} == {3}
    # What is kept beside the page says nothing of the machine's folders.
    kept = collect(made, epath.Path(tmp_path), made.seeds, {}, 0, {})
    text = json.dumps(as_json(kept))
    assert '"/' not in text
    assert str(tmp_path) not in text


def test_augmentations_change_one_branch_only():
    made = study.load_study(ROOT / "configs" / "studies" / "simclr_augmentations.py")
    assert len(made.cells) == 28
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    program = build_program(made.config(made.cell("crop+color"), 0).views)
    views = jax.jit(program)(keys, images)
    frame = program.ops[0][1]
    for i in range(4):
        box = {k: v[i, 1] for k, v in views.drawn["frame"].items()}
        np.testing.assert_array_equal(box["box"], views.drawn["frame"]["box"][i, 0])
        np.testing.assert_allclose(views.images[i, 1], frame.apply(images[i], box), atol=1e-5)
        assert np.abs(views.images[i, 0] - views.images[i, 1]).max() > 0.05


# ---------------------------------------------------------------------------------------------
# Running, with a training that takes no time
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def fake(fake_training, monkeypatch):
    """No training, and no pictures."""
    module = sys.modules["jaxcl.study.run"]
    monkeypatch.setattr(module, "figure", lambda result: b"")
    monkeypatch.setattr(
        module, "write_page", lambda path, result: path.write_text("".join(result.warnings))
    )
    return fake_training


@pytest.fixture
def fake_training(monkeypatch):
    """`train.train` replaced: accuracy = temperature + seed / 100; what `behave` raises or returns comes first."""

    class Fake:
        def __init__(self):
            self.calls = []
            self.behave = lambda config: None

        def __call__(self, config, workdir):
            self.calls.append((config.method["temperature"], config.seed))
            folder = pathlib.Path(workdir)
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
            (folder / "metrics.jsonl").write_text('{"step": 4, "time": 1.0, "loss": 2.5}\n')
            print(f"training with seed {config.seed}")
            early = self.behave(config)
            if early is not None:
                return early
            rows = [row("trained encoder", config.method["temperature"] + config.seed / 100)]
            if config.evaluation.baselines:
                rows += [row("raw pixels", 0.3), row("untrained encoder", 0.2 + config.seed / 100)]
            return {"complete": True, "step": config.steps, "rows": rows, "metrics": {}}

    def row(features, accuracy):
        return {"features": features, "method": "knn", "level": "class", "accuracy": accuracy}

    made = Fake()
    monkeypatch.setattr(train, "train", made)
    manifest = dataclasses.make_dataclass("Manifest", ["content_id"])("the data")
    monkeypatch.setattr(cells.checkpoint, "read_manifest", lambda directory: manifest)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    return made


def run(made, root, **options):
    lines = []
    result = study.run_study(made, str(root), say=lines.append, **options)
    return result, "\n".join(lines)


def test_a_study_runs_and_leaves_its_files(fake_training, tmp_path):
    expected = "The paper: 76.5 <b>against</b> 69.3 | and more"
    made = make(
        contrasts=[
            Contrast("b", "a", "knn/class", paper=expected),
            Contrast("a", "raw pixels", "knn/class"),
        ],
        layout=Line("i"),
        metrics=[Metric("knn/class", "kNN"), Metric("log/loss", percent=False)],
        floors="a",
        seconds=100,
    )
    result, text = run(made, tmp_path, command="python -m jaxcl.study")
    # The first seed of every cell comes first.
    assert fake_training.calls == [(0.1, 0), (0.2, 0), (0.1, 1), (0.2, 1)]
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored["cells"]["b"]["values"]["knn/class"] == pytest.approx({"0": 0.2, "1": 0.21})
    assert stored["cells"]["b"]["estimates"]["knn/class"]["mean"] == pytest.approx(0.205)
    assert stored["cells"]["a"]["values"]["log/loss"] == {"0": 2.5, "1": 2.5}
    untrained = stored["cells"]["untrained encoder"]["values"]["knn/class"]
    assert untrained == pytest.approx({"0": 0.2, "1": 0.21})
    assert stored["contrasts"][0]["verdict"] == Verdict.HOLDS
    assert stored["contrasts"][1]["verdict"] == Verdict.OPPOSITE
    assert stored["contrasts"][0]["differences"] == pytest.approx({"0": 0.1, "1": 0.1})
    assert stored["jax"] == jax.__version__
    assert stored["command"] == "python -m jaxcl.study"
    assert stored["warnings"] == []
    markdown = (tmp_path / "study.md").read_text()
    assert "| b | 20.5 ± " in markdown
    assert "(20.0, 21.0)" in markdown
    assert "holds beyond the seeds' spread" in markdown
    assert "against</b> 69.3 \\| and more" in markdown
    page = (tmp_path / "study.html").read_text()
    assert "&lt;b&gt;against&lt;/b&gt;" in page
    assert not re.search(r"(src|href)=.?https?:", page)
    picture = Image.open(io.BytesIO((tmp_path / "study.png").read_bytes()))
    assert min(picture.size) > 300
    assert (tmp_path / "cells" / "a" / "seed-1" / "log.txt").read_text() == "training with seed 1\n"
    assert "training with" not in text
    assert result.rows[0].images == 4 * 16


def test_hypotheses_stand_first_and_apart(fake_training, tmp_path):
    beside = Contrast("b", "a", "knn/class", paper="beside it")
    primary = Contrast("a", "b", "knn/class", paper="what it is for", primary=True)
    run(make(contrasts=[beside, primary]), tmp_path)
    markdown = (tmp_path / "study.md").read_text()
    page = (tmp_path / "study.html").read_text().split("<h2>", 1)[1]
    for text, heads in (
        (markdown, ("## Hypotheses, named beforehand", "## Values", "## Contrasts")),
        (page, ("Hypotheses, named beforehand</h2>", "<h2>Contrasts</h2>", "<h2>Values</h2>")),
    ):
        places = [text.index(head) for head in heads]
        assert places == sorted(places)
        first, last = text.index("what it is for"), text.index("beside it")
        assert places[0] < first < places[1]
        assert text.index(heads[1 + (text is markdown)].replace("<h2>", "")) < last
        assert text.count("what it is for") == text.count("beside it") == 1
    stored = json.loads((tmp_path / "study.json").read_text())["contrasts"]
    assert [c["primary"] for c in stored] == [False, True]
    assert [c["verdict"] for c in stored] == [Verdict.HOLDS, Verdict.OPPOSITE]
    run(make(contrasts=[beside]), tmp_path)
    assert "Hypotheses" not in (tmp_path / "study.md").read_text()
    assert "Hypotheses" not in (tmp_path / "study.html").read_text()


def test_what_is_finished_is_not_run_again(fake, tmp_path):
    made = make()
    run(made, tmp_path, pattern="a")
    assert fake.calls == [(0.1, 0), (0.1, 1)]
    result, text = run(made, tmp_path, seeds=(0, 1, 2))
    assert fake.calls[2:] == [(0.2, 0), (0.2, 1), (0.1, 2), (0.2, 2)]
    assert "6 runs, 2 of them finished" in text
    assert result.row("a").values["knn/class"] == pytest.approx({0: 0.1, 1: 0.11, 2: 0.12})
    result, _ = run(made, tmp_path, seeds=(2,))
    assert len(fake.calls) == 6
    assert result.row("b").values["knn/class"] == pytest.approx({0: 0.2, 1: 0.21, 2: 0.22})
    assert result.unfinished == ()


def test_only_chosen_cells_are_run_and_the_others_are_named(fake, tmp_path):
    result, text = run(make(["ab", "ac", "b"]), tmp_path, pattern="a*", seeds=(0,))
    assert fake.calls == [(0.1, 0), (0.2, 0)]
    assert result.unfinished == ("b, seed 0",)
    assert "Not finished (1): b, seed 0" in text
    assert "One seed" in text
    with pytest.raises(StudyError, match="no cell matches 'x'; there are ab, ac, b"):
        run(make(["ab", "ac", "b"]), tmp_path, pattern="x")


def test_a_cell_that_fails_is_named_and_the_others_go_on(fake, tmp_path):
    def behave(config):
        if config.method["temperature"] == 0.1 and config.seed == 0:
            raise MemoryError("no more <memory>\nat all")

    fake.behave = behave
    made = make(contrasts=[Contrast("b", "a", "knn/class")])
    result, text = run(made, tmp_path)
    assert len(fake.calls) == 4
    assert result.failed == {"a, seed 0": "MemoryError: no more <memory>\nat all"}
    assert result.unfinished == ()
    assert "FAILED: MemoryError" in text
    assert "MemoryError" in (tmp_path / "cells" / "a" / "seed-0" / "error.txt").read_text()
    assert result.comparisons[0].differences == pytest.approx({1: 0.1})
    assert json.loads((tmp_path / "study.json").read_text())["failed"] == result.failed
    # Run again, only the failed one is tried, and its old error is gone.
    fake.behave = lambda config: None
    result, _ = run(made, tmp_path)
    assert len(fake.calls) == 5
    assert not result.failed
    assert not (tmp_path / "cells" / "a" / "seed-0" / "error.txt").exists()


def test_a_cell_that_another_process_is_at_is_left_to_it(fake, tmp_path):
    folder = tmp_path / "cells" / "a" / "seed-0"
    with lock.hold(folder, print, cells.LOCK):
        for name in ("error.txt", "log.txt", "settings.json"):
            (folder / name).write_text("of the other")
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        result, text = run(make(), tmp_path, seeds=(0,))
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert fake.calls == [(0.2, 0)]
    assert not result.failed
    assert result.unfinished == ("a, seed 0",)
    assert f"in use by process {os.getpid()} on " in text
    fake.behave = lambda config: (_ for _ in ()).throw(lock.InUseError("jaxcl.main is", ""))
    result, text = run(make(["a"]), tmp_path, seeds=(0,))
    assert not result.failed
    assert "in use by another process" in text


@pytest.mark.parametrize("how", ["stopped", "interrupted"])
def test_a_stopped_study_goes_on(how, fake, tmp_path):
    def behave(config):
        if config.seed == 1 and len(fake.calls) == 3:
            if how == "interrupted":
                raise KeyboardInterrupt
            return {"complete": False, "step": 2, "rows": [], "metrics": {}}

    fake.behave = behave
    made = make()
    with pytest.raises(cells.Stopped, match="goes on from there"):
        run(made, tmp_path)
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored["unfinished"] == ["a, seed 1", "b, seed 1"]
    result, _ = run(made, tmp_path)
    assert fake.calls[3:] == [(0.1, 1), (0.2, 1)]
    row = result.row("a")
    assert row.resumed == (1,)
    assert all(set(per) == {0, 1} for per in row.values.values())
    assert set(row.seconds) == {0}, "what a resumed run took in all is not known"
    assert "; 1 interrupted and resumed, their time not counted" in budget(result)


def test_a_changed_cell_is_refused_and_its_keys_are_named(fake, tmp_path):
    run(make(), tmp_path, seeds=(0,))
    other = make(base=base(**{"optim.base_lr": 0.5, "run.log_every": 2, "data.workers": 0}))
    with pytest.raises(StudyError) as error:
        run(other, tmp_path, seeds=(0, 1))
    text = str(error.value)
    assert "a, seed 0: optim.base_lr: 0.3 there, 0.5 now" in text
    assert str(tmp_path / "cells" / "b" / "seed-0") in text
    assert "log_every" not in text
    assert len(fake.calls) == 2  # nothing was run
    with pytest.raises(StudyError, match="a, seed 0: optim"):
        run(other, tmp_path, seeds=(1,), pattern="b")
    # What was measured with other settings of the evaluation is another value.
    with pytest.raises(StudyError, match=r"evaluation\.temperature"):
        run(make(base=base(**{"evaluation.temperature": 0.2})), tmp_path, seeds=(0,))


def test_a_setting_that_came_later_is_no_change_at_its_default(fake, tmp_path):
    """A cell of an older version lacks it; with another value it is another cell."""
    run(make(["a"]), tmp_path, seeds=(0,))
    path = tmp_path / "cells" / "a" / "seed-0" / "settings.json"
    stored = json.loads(path.read_text())
    del stored["optim"]["nesterov"], stored["method"]["projection"]["init_std"]
    path.write_text(json.dumps(stored))
    run(make(["a"]), tmp_path, seeds=(0,))
    assert len(fake.calls) == 1
    with pytest.raises(StudyError, match=r"optim\.nesterov: 'absent' there, True now"):
        run(make(["a"], base=base(**{"optim.nesterov": True})), tmp_path, seeds=(0,))


def test_floors_of_a_finished_cell_are_scored_afterwards(fake, tmp_path):
    run(make(), tmp_path, seeds=(0, 1))
    before = json.loads((tmp_path / "cells" / "a" / "seed-0" / "cell.json").read_text())
    result, text = run(make(floors="a"), tmp_path, seeds=(0, 1))
    assert "4 runs, 2 of them finished" in text
    assert fake.calls[4:] == [(0.1, 0), (0.1, 1)]
    assert result.row("untrained encoder").values["knn/class"] == pytest.approx({0: 0.2, 1: 0.21})
    after = json.loads((tmp_path / "cells" / "a" / "seed-0" / "cell.json").read_text())
    assert after == before | {"floors": after["floors"]}
    run(make(floors="a"), tmp_path, seeds=(0, 1))
    run(make(), tmp_path, seeds=(0, 1))
    assert len(fake.calls) == 6


def test_a_new_cell_and_a_new_seed_are_no_change(fake, tmp_path):
    run(make(["a"]), tmp_path, seeds=(0,))
    run(make(["a", "b"]), tmp_path, seeds=(0, 3))
    assert fake.calls == [(0.1, 0), (0.2, 0), (0.1, 3), (0.2, 3)]


def test_cells_of_different_devices_are_refused(fake, tmp_path):
    made = make([Cell("a"), Cell("b", {"mesh.x64": True})])
    with pytest.raises(StudyError, match="differ in `mesh`"):
        run(made, tmp_path)


TAKEN = []


@dataclasses.dataclass(frozen=True)
class Counts:
    """A measure that counts how often it is taken."""

    factor: float = 1.0
    name: str = "counts"

    def __call__(self, workdir, config):
        TAKEN.append(workdir)
        if self.factor < 0:
            raise RuntimeError("cannot be measured")
        return {"seed": self.factor * config.seed, "strange": math.nan}


def test_measures_are_taken_once_and_added_to_finished_cells(fake, tmp_path):
    TAKEN.clear()
    run(make(["a"]), tmp_path)
    made = make(["a"], measures=[Counts()], metrics=[Metric("counts/seed", percent=False)])
    result, _ = run(made, tmp_path)
    assert len(fake.calls) == 2
    assert len(TAKEN) == 2
    assert result.row("a").values["counts/seed"] == {0: 0.0, 1: 1.0}
    assert "counts/strange" not in result.row("a").values
    run(made, tmp_path)
    assert len(TAKEN) == 2
    changed = dataclasses.replace(made, measures=[Counts(2.0)])
    result, _ = run(changed, tmp_path)
    assert result.row("a").values["counts/seed"] == {0: 0.0, 1: 2.0}
    result, _ = run(dataclasses.replace(made, measures=[Counts(-1.0)]), tmp_path)
    assert result.failed["a, seed 0"] == "RuntimeError: cannot be measured"


@dataclasses.dataclass(frozen=True)
class Draws:
    """A measure that leaves a picture of a colour of its own for each run."""

    name: str = "drawn"

    def __call__(self, workdir, config):
        colour = (round(100 * config.method["temperature"]), config.seed, 7)
        Image.new("RGB", (2, 1), colour).save(pathlib.Path(workdir) / "drawn.png")
        return {}


def test_pictures_of_cells_stand_in_the_page_and_are_linked(fake_training, tmp_path):
    """Of each cell that of its first seed."""
    run(make(measures=[Draws()], seeds=(1, 2)), tmp_path)
    text = (tmp_path / "study.md").read_text()
    links = re.findall(r"^\* (\w+): \[drawn\]\((.*)\)$", text, re.MULTILINE)
    assert links == [(c, f"cells/{c}/seed-1/drawn.png") for c in ("a", "b")]
    assert all((tmp_path / path).exists() for _, path in links)
    page = (tmp_path / "study.html").read_text()
    found = re.findall(r'<img alt="(.*?)" src="data:image/png;base64,(.*?)">', page)
    colours = {label: Image.open(io.BytesIO(base64.b64decode(x))) for label, x in found}
    assert {label: x.getpixel((0, 0)) for label, x in colours.items()} == {
        "a: drawn": (10, 1, 7),
        "b: drawn": (20, 1, 7),
    }
    run(make(), tmp_path / "without")
    assert "## Pictures" not in (tmp_path / "without" / "study.md").read_text()
    assert ">Pictures<" not in (tmp_path / "without" / "study.html").read_text()


def test_the_difference_of_two_values_is_a_value(fake, tmp_path):
    differences = {"gap": ("counts/seed", "knn/class"), "none": ("knn/class", "counts/strange")}
    fields = {"measures": [Counts(2.0)], "metrics": [Metric("gap")], "differences": differences}
    made = make(**fields, contrasts=[Contrast("a", "b", "gap")])
    result, _ = run(made, tmp_path)
    assert result.row("b").values["gap"] == pytest.approx({0: 0 - 0.2, 1: 2 - 0.21})
    assert "none" not in result.row("b").values
    assert result.comparisons[0].differences == pytest.approx({0: 0.1, 1: 0.1})
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored["differences"]["gap"] == ["counts/seed", "knn/class"]


def test_of_many_metrics_the_figure_has_those_that_contrasts_ask_for(fake, tmp_path):
    names = [f"gap {number}" for number in range(13)]
    fields = {
        "measures": [Counts(2.0)],
        "metrics": [Metric(name, percent=False) for name in names],
        "differences": dict.fromkeys(names, ("counts/seed", "knn/class")),
    }

    def titles(**more):
        result, _ = run(make(**fields | more), tmp_path)
        return [panel.title for panel in study.page.panels(result)]

    asked = [Contrast("a", "b", name) for name in ("gap 12", "gap 3")]
    assert titles(contrasts=asked) == ["gap 3", "gap 12"]
    assert titles(contrasts=[]) == names[: study.page.MOST]
    assert titles(contrasts=asked, metrics=fields["metrics"][1:]) == names[1:]


def test_a_probe_of_a_cell(monkeypatch):
    """What is asked arrives at the probe, and only the trained encoder's values are kept; other methods are not probed."""
    asked = []

    def probed(options):
        asked.append(options)
        row = {"method": "knn", "level": "class", "features": probe.TRAINED, "accuracy": 0.5}
        return {"rows": [row, {**row, "features": probe.UNTRAINED, "accuracy": 0.1}]}

    monkeypatch.setattr(probe, "probe", probed)
    config = config_lib.from_dict({**base().to_dict(), "seed": 7})
    measure = study.Probe("z", "z", ("retrieval",), levels=("class",), test="train", only="simclr")
    assert measure("somewhere", config) == {"knn/class": 0.5}
    assert (asked[0].layer, asked[0].evaluations, asked[0].seed) == ("z", ("retrieval",), 7)
    assert (asked[0].levels, asked[0].test) == (("class",), "train")
    assert dataclasses.replace(measure, only="looc")("somewhere", config) == {}
    assert len(asked) == 1
    assert not asked[0].baselines


def test_the_memory_of_a_step_grows_with_the_batch(monkeypatch):
    """Temporaries are activations: of four times the images nearly four times as much; of one seed only."""
    monkeypatch.setattr(models, "build", tiny_network.build)
    noise = {"data.name": "noise", "data.image_size": 8, "method.projection.layers": (12, 6)}
    measure = study.StepMemory()
    small, large = (
        measure("", config_lib.from_dict(base(**noise, batch_size=batch)))["temporaries"]
        for batch in (64, 256)
    )
    assert 3 * small < large < 17 * small
    assert measure("", config_lib.from_dict(base(**noise, seed=1))) == {}


def test_a_probe_scores_the_floors_beside_their_cell(fake, tmp_path, monkeypatch):
    """They stand in the rows of the floors, differences too; what was measured without them keeps."""

    def probed(options):
        shares = {probe.TRAINED: 0.5, probe.PIXELS: 0.2, probe.UNTRAINED: 0.1}
        shown = shares if options.baselines else {probe.TRAINED: 0.5}
        row = {"method": "knn", "level": "class"}
        return {"rows": [{**row, "features": k, "accuracy": v} for k, v in shown.items()]}

    monkeypatch.setattr(probe, "probe", probed)
    made = make(
        measures=[study.Probe("z", "z", floors=True), study.Probe("y", "z")],
        metrics=[Metric("z/knn/class"), Metric("gap")],
        differences={"gap": ("z/knn/class", "y/knn/class")},
        contrasts=[Contrast("b", ("raw pixels", "untrained encoder"), "z/knn/class")],
        floors="b",
    )
    result, _ = run(made, tmp_path)
    assert result.row("a").values["z/knn/class"] == {0: 0.5, 1: 0.5}
    assert result.row("raw pixels").values["z/knn/class"] == {0: 0.2, 1: 0.2}
    assert result.row("untrained encoder").values["z/knn/class"] == {0: 0.1, 1: 0.1}
    assert not any("pixels" in key for key in result.row("b").values)
    assert "gap" not in result.row("raw pixels").values  # y has no floors
    assert result.row("b").values["gap"] == {0: 0.0, 1: 0.0}
    assert result.comparisons[0].differences == pytest.approx({0: 0.3, 1: 0.3})
    assert repr(study.Probe("z", "z", floors=True)) == repr(study.Probe("z", "z"))


def test_long_cells_are_named(fake, tmp_path):
    made = make(["a"], seconds=1000)
    run(made, tmp_path)
    path = tmp_path / "cells" / "a" / "seed-1" / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1234.5}))
    result, text = run(made, tmp_path)
    warning = "Longer than the 1000 s that a cell may take (1): a, seed 1: 1234 s"
    assert result.warnings == [warning]
    assert warning in text


def test_all_runs_together_are_told_in_hours(fake, tmp_path):
    made = make(["a", "b"])
    run(made, tmp_path)
    for path in tmp_path.glob("cells/*/*/cell.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1260.0}))
    run(made, tmp_path)
    assert "4 runs of 1260 to 1260 s, 1.40 hours together" in (tmp_path / "study.md").read_text()


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    path = tmp_path / "some.py"
    path.write_text(
        "import test_study\ndef get_study():\n    return test_study.make(seconds=450)\n"
    )
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    monkeypatch.chdir(tmp_path)
    return path


def test_the_command(fake, study_file, tmp_path, capsys):
    assert command.main([f"--config={study_file}", "--seeds=0", "--steps=2"]) == 0
    folder = tmp_path / "runs" / "studies" / "some-2-steps"
    stored = json.loads((folder / "study.json").read_text())
    assert stored["cells"]["a"]["steps"] == 2
    assert "the numbers mean nothing" in stored["warnings"][0]
    assert "--seeds=0" in stored["command"]
    capsys.readouterr()
    assert command.main([f"--config={study_file}", "--steps=2", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[:-1]] == ["finished", "finished", "new", "new"]
    assert lines[-1] == "4 runs; 0.5 hours if each takes its 450 s"
    assert "method.temperature=0.1" in lines[0]
    assert len(fake.calls) == 2


def test_the_command_says_what_is_wrong(fake, study_file, tmp_path, capsys):
    def behave(config):
        if config.seed == 1:
            raise OSError("a disk is full")

    fake.behave = behave
    assert command.main([f"--config={study_file}", f"--workdir={tmp_path / 'w'}"]) == 1
    assert "note: Failed: a, seed 1: OSError: a disk is full" in capsys.readouterr().out
    assert command.main(["--config=nothing.py"]) == 1
    assert "jaxcl.study: nothing.py: there is no such file" in capsys.readouterr().err
    fake.behave = lambda config: {"complete": False, "step": 1, "rows": [], "metrics": {}}
    assert command.main([f"--config={study_file}", f"--workdir={tmp_path / 'v'}"]) == 130
    assert "goes on from there" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


def test_a_heat_map_stands_on_both_sides(fake, tmp_path):
    names = ["x", "y"]
    made = make(
        [
            Cell(f"{a}{b}", {"method.temperature": t}, {"first": a, "second": b})
            for a, b, t in (("x", "x", 0.1), ("x", "y", 0.2), ("y", "y", 0.4))
        ],
        layout=Heat("first", "second", mirror=True, average=True),
        seeds=(0,),
    )
    result, _ = run(made, tmp_path, pattern="x*")
    panel = study.page.panel(result, made.metrics[0])
    assert list(panel.rows) == list(panel.columns) == names
    np.testing.assert_allclose(panel.means, [[10, 20], [20, np.nan]])
    text = figures.svg(panel, "p0")
    assert "15.0" in text  # the mean of the first row
    assert text.startswith("<svg")
    assert "http" not in text


@pytest.mark.parametrize(
    "panel",
    [
        figures.Lines("a", "x", {"": [figures.Mark(1.0, 2.0)]}),
        figures.Lines(
            "a",
            "x",
            {"p": [figures.Mark(x, x, (x - 1, x + 1), (x, x)) for x in (0.1, 1)], "_q": []},
            {"f": 1.0},
            True,
        ),
        figures.Dots("a", [figures.Mark("$n_", 1.0, (0.0, 2.0), (0.5, 1.5))], {"floor": 0.2}),
        figures.HeatMap("a", ["r"], ["c", "d"], np.array([[np.nan, 1.0]])),
        figures.HeatMap("a", ["r"], ["c"], np.array([[np.nan]]), average=True),
    ],
    ids=["one", "lines", "dots", "map", "empty map"],
)
def test_panels_are_drawn_in_the_colours_of_the_page(panel):
    text = figures.svg(panel, "p7")
    assert 'id="p7-' in text
    assert not {*figures.LINES, figures.INK, figures.GRID} & set(re.findall(r"#[0-9a-f]{6}", text))
    picture = Image.open(io.BytesIO(figures.png([panel, panel, panel], "title")))
    assert picture.format == "PNG"


# ---------------------------------------------------------------------------------------------
# A real training
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits as IDX files."""
    directory = tmp_path_factory.mktemp("digits")
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    for prefix, rows in (("train", slice(0, 64)), ("t10k", slice(64, 112))):
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, len(images[rows]), 8, 8)
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(header + images[rows].tobytes())
        header = struct.pack(">BBBBI", 0, 0, 8, 1, len(y[rows]))
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(
            header + y[rows].astype(np.uint8).tobytes()
        )
    return directory


def test_a_real_study_continues_an_interrupted_cell(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build", tiny_network.build)
    monkeypatch.setattr("jaxcl.report.geometry.TSNE_LIMIT", 0)  # a map by PCA, which takes no time
    c = base(
        **{
            "data.name": "idx",
            "data.path": str(digits),
            "data.splits": {"train": "train", "val": "t10k", "test": "t10k"},
            "data.image_size": 8,
            "data.channels": 1,
            "evaluation.validation": "val",
            "evaluation.ks": (1, 5, 7, 10, 20),  # with all that the probe adds
            "mesh.compile_cache": str(tmp_path / "xla"),
        }
    )
    made = make(
        [Cell("none", {"method.projection.layers": ()})],
        base=c,
        seeds=(0,),
        floors="none",
        measures=[
            study.Probe("z", layer="z", evaluations=("knn",)),
            study.Probe(
                "seen", evaluations=("retrieval",), train="val", gallery="val", test="train"
            ),
            study.LevelMap(),
            study.LevelMap("none", seeds=(1,)),
        ],
        metrics=[Metric("knn/label"), Metric("z/knn/label"), Metric("log/loss", percent=False)],
    )
    whole, _ = run(made, tmp_path / "whole")
    assert not whole.failed
    assert not whole.unfinished
    row = whole.row("none")
    # Without a head z is h.
    assert row.values["z/knn/label"] == row.values["knn/label"]
    assert set(whole.row("untrained encoder").values) == {"knn/label"}
    folder = tmp_path / "whole" / "cells" / "none" / "seed-0"
    (record,) = json.loads((folder / "probe-seen.json").read_text())
    splits = record["splits"]
    assert (splits["last"], splits["gallery"], splits["test"]) == ("val", "val", "train")
    (found,) = (r for r in record["rows"] if r["method"] == "retrieval/recall@1")
    assert (found["queries"], found["settings"]["gallery"]) == (64, 48)
    assert row.values["seen/retrieval/recall@1/label"] == {0: found["accuracy"]}
    with Image.open(folder / "map.png") as picture:
        assert picture.width > 300
    assert not (folder / "none.png").exists()

    real = pipeline.train_batches

    def breaks(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 3:
                raise OSError("the disk of the images is gone")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data, "train_batches", breaks)
        broken, text = run(made, tmp_path / "broken")
    assert "FAILED: OSError: the disk of the images is gone" in text
    assert broken.failed
    again, _ = run(made, tmp_path / "broken")
    assert again.row("none").resumed == (0,)
    assert again.row("none").values == whole.row("none").values
