"""Whole runs: what they leave, and that an interrupted run becomes the run that was not interrupted."""

import functools
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from etils import epath
from PIL import Image
from sklearn.datasets import load_digits

from jaxcl import checkpoint, data, evaluators, lock, metrics, probe, train
from jaxcl import config as config_lib
from jaxcl.data import pipeline
from jaxcl.probe.run import classified_levels
from jaxcl.views import presets

STEPS = 6


def tiny(cache, **changes):
    c = config_lib.base("simclr", presets.simclr(8, strength=0.5))
    c.name, c.steps, c.batch_size = "tiny", STEPS, 16
    c.model.width, c.model.stem = 0.0625, "cifar"
    c.method.projection.layers = (16, 8)
    c.optim.warmup_epochs = 0.01
    c.run.log_every, c.run.checkpoint_every = 1, 2
    c.mesh.compile_cache = str(cache)
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The workdir of a run without interruption."""
    root = tmp_path_factory.mktemp("whole")
    result = train.train(config_lib.from_dict(tiny(cache)), str(root))
    assert result["complete"]
    assert result["step"] == STEPS
    return root


@pytest.fixture
def digits(tmp_path):
    """A folder of 16 images, as many as a batch has, one of which cannot be read."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for number, image in enumerate(load_digits().images[:15]):
        Image.fromarray((16 * image).clip(0, 255).astype("uint8")).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def leaves(root, step=STEPS):
    return checkpoint.read_manifest(root, step).leaves


def rows(root):
    return [
        {k: v for k, v in row.items() if k not in metrics.TIMES}
        for row in metrics.read_metrics(root)
    ]


def test_a_run_leaves_a_workdir(whole):
    stored = json.loads((whole / "config.json").read_text())
    assert config_lib.from_dict(stored).steps == STEPS
    assert [row["step"] for row in rows(whole)] == list(range(1, STEPS + 1))
    assert sorted(int(p.name) for p in (whole / "checkpoints").iterdir()) == [4, 6]


def test_a_crash_loses_nothing(whole, cache, tmp_path, monkeypatch):
    real = pipeline.train_batches

    def breaks(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 3:
                raise OSError("the disk of the images is gone")
            yield batch

    config = config_lib.from_dict(tiny(cache))
    with monkeypatch.context() as patch:
        patch.setattr(data, "train_batches", breaks)
        with pytest.raises(OSError, match="is gone"):
            train.train(config, str(tmp_path))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    train.train(config, str(tmp_path))
    assert leaves(tmp_path) == leaves(whole)
    assert rows(tmp_path) == rows(whole)


def test_input_that_fails_while_the_run_stops_loses_nothing(
    whole, cache, tmp_path, monkeypatch, capsys
):
    real = pipeline.train_batches

    def breaks(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
                raise RuntimeError("a worker has died")
            yield batch

    config = config_lib.from_dict(tiny(cache))
    with monkeypatch.context() as patch:
        patch.setattr(data, "train_batches", breaks)
        result = train.train(config, str(tmp_path))
    assert (result["step"], result["complete"]) == (3, False)
    assert checkpoint.read_manifest(tmp_path).step == 3  # and not 2, the last one that was due
    said = capsys.readouterr().out
    assert "no more input (RuntimeError: a worker has died): the run saves and stops now" in said
    assert "The same command goes on from there" in said
    train.train(config, str(tmp_path))
    assert leaves(tmp_path) == leaves(whole)
    assert rows(tmp_path) == rows(whole)


def test_a_complete_run_is_not_trained_again(whole, cache, capsys, monkeypatch):
    monkeypatch.setattr(train, "remarks", lambda method: ("it is small",))
    before = leaves(whole)
    (whole / "results.json").write_text("a table that is not asked for now")
    config = config_lib.from_dict(tiny(cache))
    result = train.train(config, str(whole))
    assert result["complete"]
    said = capsys.readouterr().out
    assert f"(config.json has all):\n{config_lib.describe(config)}\n" in said
    assert "\n  model: width=0.0625, stem='cifar'\n" in said
    assert "\nnote: it is small\n" in said
    assert leaves(whole) == before
    assert (whole / "results.json").read_text() == "a table that is not asked for now"


def test_the_workdir_of_another_experiment_is_refused(whole, cache):
    other = config_lib.from_dict(tiny(cache, **{"method.temperature": 0.5, "run.log_every": 3}))
    with pytest.raises(train.RunError, match=r"method.temperature: 0.1 there, 0.5 now") as error:
        train.train(other, str(whole))
    assert "log_every" not in str(error.value)


def test_a_setting_that_came_later_has_to_be_at_its_default(cache):
    """A run of an older version does not have it, and goes on."""

    class Stored:
        def differences(self):
            return [checkpoint.Difference("optim.nesterov", checkpoint.ABSENT, "now")]

    train.refuse_other_run(Stored(), "there", config_lib.from_dict(tiny(cache)))
    other = config_lib.from_dict(tiny(cache, **{"optim.nesterov": True}))
    with pytest.raises(train.RunError, match=r"optim\.nesterov"):
        train.refuse_other_run(Stored(), "there", other)


def test_what_a_method_came_to_be_told_later_is_no_other_experiment():
    """The number of images, say, of a method whose stored runs did not know it; another number is one."""
    path = pathlib.Path(__file__).parents[1] / "configs" / "looc_emoji.py"
    config = config_lib.from_dict(config_lib.load(path)).for_run(2000, 3)

    def go_on(stored):
        class Stored:
            def differences(self):
                return [checkpoint.Difference("method.examples", stored, 2000)]

        train.refuse_other_run(Stored(), "there", config)

    go_on(checkpoint.ABSENT)
    with pytest.raises(train.RunError, match=r"method\.examples: 1999 there, 2000 now"):
        go_on(1999)


def test_a_workdir_in_use_is_refused_before_anything_is_written(whole, cache):
    def state():
        return {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.name != lock.NAME}

    before = state()
    with lock.hold(whole, print):
        with pytest.raises(lock.InUseError, match=f"process {os.getpid()} on "):
            train.train(config_lib.from_dict(tiny(cache)), str(whole))
        assert state() == before
    assert (whole / lock.NAME).read_text() == ""


def test_training_that_is_not_finite_stops_with_advice(cache, tmp_path):
    changes = {"optim.base_lr": 1e30, "optim.name": "sgd", "run.max_rejected": 2, "steps": 40}
    with pytest.raises(train.RunError, match=r"were not finite.*Lower optim.base_lr"):
        train.train(config_lib.from_dict(tiny(cache, **changes)), str(tmp_path))


def command(cache, root):
    overrides = [
        "steps=6",
        "batch_size=16",
        "model.width=0.0625",
        "method.projection.layers=(16,8)",
        "optim.warmup_steps=1",
        "evaluation.every=0",
        "evaluation.test=",
        "evaluation.gallery=",
        "run.log_every=1",
        "run.checkpoint_every=2",
        "run.report=False",
        "views.ops.crop.size=8",
        f"mesh.compile_cache={cache}",
        "mesh.cpu_devices=2",
    ]
    flags = [f"--config.{o}" for o in overrides]
    return [
        sys.executable,
        "-m",
        "jaxcl.main",
        "--config=configs/quickstart.py",
        f"--workdir={root}",
        *flags,
    ]


def start(cache, root):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command(cache, root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for(path, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def commanded(cache, tmp_path_factory):
    """The workdir of the command's run without interruption."""
    root = tmp_path_factory.mktemp("commanded")
    process = start(cache, root)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert "next:" in output
    return root


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="kill", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, id="ctrl-c"),
    ],
)
def test_a_signal_loses_nothing(number, commanded, cache, tmp_path):
    process = start(cache, tmp_path)
    wait_for(tmp_path / "checkpoints" / "2" / "manifest.json", process)
    process.send_signal(number)
    output = process.communicate(timeout=600)[0]
    if number == signal.SIGINT and "next:" not in output:
        assert process.returncode == 0, output
        assert "The same command goes on from there" in output
    again = start(cache, tmp_path)
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output
    assert leaves(tmp_path) == leaves(commanded)
    assert rows(tmp_path) == rows(commanded)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.batch_size=999999", "batch"),
        ("--profile=5,2", "run: profile=(5, 2): expected (first step, last step)"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(flag, message, cache, tmp_path):
    done = subprocess.run(
        [*command(cache, tmp_path), flag], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("span", "steps", "traced"),
    [
        ((2, 4), range(2, 7), [2, 3, 4]),
        ((1, 4), range(3, 7), [3, 4]),  # continued within the span
        ((5, 9), range(2, 7), [5, 6]),  # the run ends within it
        ((1, 2), range(3, 7), []),
        ((), range(2, 7), []),
    ],
)
def test_a_trace_begins_and_ends_whatever_the_span(monkeypatch, tmp_path, span, steps, traced):
    seen, running = [], []

    def start(folder):
        assert not running
        running.append(folder)

    monkeypatch.setattr(train.jax.profiler, "start_trace", start)
    monkeypatch.setattr(train.jax.profiler, "stop_trace", lambda: running.remove(running[0]))

    def step(number):
        seen.extend([number] if running else [])
        return number

    with train.Profile(span, tmp_path) as profile:
        for number in steps:
            assert profile(number, step, number) == number
    assert seen == traced
    assert not running


COUNTED = """
import sys, jax
from absl import app
from jaxcl import command, main
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
sys.argv = ["main", *sys.argv[1:]]
try:
    app.run(main.main, flags_parser=command.parse_or_exit)
finally:
    print("hits", hits.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.mark.slow
def test_the_second_process_finds_its_programs_and_leaves_a_trace(tmp_path):
    """The persistent compile cache, and a trace of the real profiler."""
    hits = []
    for run in ("first", "second"):
        flags = [
            "--config=configs/fake_benchmark.py:16",
            f"--workdir={tmp_path / run}",
            *("--config.steps=3", "--config.batch_size=8", "--config.model.width=0.125"),
            f"--config.mesh.compile_cache={tmp_path / 'programs'}",
            "--profile=2,2",
        ]
        done = subprocess.run(
            [sys.executable, "-c", COUNTED, *flags],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=pathlib.Path(__file__).parents[1],
        )
        assert done.returncode == 0, done.stdout + done.stderr
        hits.append(int(done.stdout.split("hits")[-1]))
        traces = list((tmp_path / run / "profile").rglob("*.xplane.pb"))
        assert len(traces) == 1
        assert traces[0].stat().st_size > 10_000
    assert hits[0] < hits[1]


def test_skipped_images_are_counted_over_interruptions():
    assert train.skipped_in_all(0, {}) == {}
    assert train.skipped_in_all(2, {}) == {"images_skipped": 2.0}
    assert train.skipped_in_all(1, {"images_skipped": 2.0}) == {"images_skipped": 3.0}


def test_a_run_stopped_by_a_bad_image_goes_on_without_it(cache, tmp_path, digits):
    """Advice that can be followed, and the count of the whole run."""
    settings = {"data.name": "folder", "data.path": str(digits), "data.image_size": 8}
    config = config_lib.from_dict(tiny(cache, **settings))
    with pytest.raises(data.BadExample, match=r"bad.png.*data.on_bad=skip"):
        train.train(config, str(tmp_path))
    skip = config_lib.from_dict(tiny(cache, **settings, **{"data.on_bad": "skip"}))
    train.train(skip, str(tmp_path))
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "skipped-1.txt").write_text("of a run of two processes that was begun here before\n")
    train.train(skip, str(whole))
    assert not (whole / "skipped-1.txt").exists()
    assert rows(tmp_path)[-1] == rows(whole)[-1]
    assert rows(whole)[-1]["images_skipped"] == STEPS
    assert leaves(tmp_path) == leaves(whole)
    (line,) = (whole / "skipped.txt").read_text().splitlines()  # in every epoch, but named once
    assert "bad.png" in line
    assert (tmp_path / "skipped.txt").read_text() == line + "\n"


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_the_table_is_of_the_settings_of_now(
    cache, tmp_path, capsys, monkeypatch
):
    evaluated = {
        "evaluation.every": 2,
        "evaluation.gallery": "train",
        "evaluation.validation": "val",
        "evaluation.levels": ("category",),
        "evaluation.ks": (1,),
        "evaluation.image_size": 8,
    }
    config = config_lib.from_dict(tiny(cache, **evaluated))
    train.train(config, str(tmp_path))
    scores = {row["step"]: row["knn"] for row in rows(tmp_path) if "knn" in row}
    assert sorted(scores) == [2, 4, 6]
    (best,) = (int(p.name) for p in (tmp_path / "best").iterdir())
    assert scores[best] == max(scores.values())
    assert best == min(step for step, score in scores.items() if score == scores[best])
    manifest = checkpoint.read_manifest(tmp_path / "best")
    assert manifest.metrics == {"knn": scores[best]}

    # Asked again, the complete run scores what it has not scored with these settings.
    results = tmp_path / "results.json"
    assert json.loads(results.read_text())["rows"] == []
    settings = {**evaluated, "evaluation.ks": (7,), "evaluation.test": "test", "run.report": False}
    settings |= {"evaluation.linear": False, "evaluation.baselines": False}
    again = config_lib.from_dict(tiny(cache, **settings))
    capsys.readouterr()
    scored = train.train(again, str(tmp_path))["rows"]
    said = capsys.readouterr().out
    assert "other settings or data (content.test, " in said
    assert ", evaluation.baselines, evaluation.ks, evaluation.linear, " in said
    stored = json.loads(results.read_text())
    assert set(stored["content"]) == {"train", "val", "test"}
    assert [(row["method"], row["settings"]["k"]) for row in scored] == [("knn", 7)]
    assert json.loads(results.read_text())["rows"] == scored
    monkeypatch.setattr(evaluators.Online, "table_rows", None)
    assert train.train(again, str(tmp_path))["rows"] == scored
    assert f"its results are from {results}" in capsys.readouterr().out


def test_results_are_used_again_if_they_are_of_the_same_settings(tmp_path):
    path, said = tmp_path / "results.json", []
    settings = {"evaluation": {"ks": (1, 7), "test": "test"}, "content": {"test": "one"}}

    def kept(now=settings):
        return train.kept_rows(path, now, said.append)

    assert kept() is None
    assert not said
    rows = [evaluators.Row("trained encoder", "knn", "category", 0.5, 10, {"k": 7})]
    train.write_rows(path, 6, settings, rows)
    assert kept() == rows
    assert said.pop() == f"this run is complete; its results are from {path}"
    assert kept({**settings, "evaluation": {"ks": (1, 7), "test": "val"}}) is None
    assert "of other settings or data (evaluation.test)" in said.pop()
    assert kept({**settings, "content": {"test": "one", "pairs/test": "two"}}) is None
    assert "of other settings or data (content.pairs/test)" in said.pop()
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "content"}))
    assert kept() is None
    assert "(content.test)" in said.pop()
    bad = [[], {k: v for k, v in whole.items() if k != "rows"}]
    bad += [{**whole, "rows": rows} for rows in (None, 3, [3], [{}], [{"accuracy": 1}])]
    for text in ("{", *map(json.dumps, bad)):
        path.write_text(text)
        assert kept() is None
        assert "cannot be read as results" in said.pop()
    path.write_bytes(b"\xff\xfe")
    assert kept() is None
    assert "cannot be read as results" in said.pop()


WHAT_NEXT = {
    "labels": {
        "evaluation.gallery": "train",
        "evaluation.validation": "val",
        "evaluation.test": "test",
        "evaluation.test_gallery": "seen",
    },
    "labels, no test split": {"evaluation.gallery": "train", "evaluation.validation": "val"},
    "unseen classes": {
        "data.name": "folder",
        "data.path": "classes",
        "data.splits": {"train": "seen", "other": "unseen"},
        "evaluation.gallery": "train",
        "evaluation.validation": "train",
        "evaluation.test": "other",
        "evaluation.extra": ("retrieval", "factor"),
        "evaluation.factors": ("flip.on",),
    },
    "no labels": {
        "data.name": "folder",
        "data.path": "digits",
        "data.labels": "none",
        "data.holdout": 0.3,
        "evaluation.gallery": "train",
        "evaluation.validation": "val",
    },
    "nothing evaluated": {"data.name": "noise", "run.report": False},
}


@pytest.mark.parametrize("case", WHAT_NEXT)
def test_what_is_said_to_be_next_can_be_run(case, cache, digits, tmp_path, monkeypatch):
    """Every command is parsed by its own program, and finds its splits and classes."""
    for name in ("seen/a", "seen/b", "unseen/c", "unseen/d"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        shutil.copy(digits / "0.png", tmp_path / "classes" / name)
    monkeypatch.chdir(tmp_path)
    config = config_lib.from_dict(tiny(cache, **WHAT_NEXT[case]))
    load = functools.partial(data.load, config.data) if config.evaluation.gallery else None
    root = epath.Path(tmp_path / "a run")
    found = dict(train.what_next(root, config, load))
    assert ("look" in found) == (load is not None)
    assert ("your own images" in found) == (config.data.name != "folder")
    with_labels = case.startswith("labels")
    assert ("fine-tune with 10 % of the labels" in found) == with_labels
    probes = [shlex.split(c)[3:] for c in found.values() if c.startswith("python -m jaxcl.probe ")]
    assert len(probes) == 1 + with_labels
    for arguments in probes:
        options = probe.parse([a.replace("folder:DIR", "emoji") for a in arguments])
        assert options.workdir == str(root)
        if case in ("no labels", "nothing evaluated"):
            assert (options.data, options.settings) == ("emoji", ("data.holdout=0.25",))
            continue
        splits = probe.open_splits(config, options)
        assert bool(classified_levels(config, options, splits)) == with_labels
        assert with_labels or options.evaluations == ("retrieval", "factor")


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("looc_emoji.py", True),
        ("looc_emoji.py:moco,rotate", False),  # one head
        ("moco_emoji.py:v3", False),  # its second one is on top of the first
    ],
)
def test_all_heads_are_offered_where_there_are_several_side_by_side(name, offered):
    configs = pathlib.Path(__file__).parents[1] / "configs"
    config = config_lib.from_dict(config_lib.load(configs / name))
    load = functools.partial(data.load, config.data)
    found = dict(train.what_next(epath.Path("run"), config, load))
    command = found.get("probe all heads side by side", "")
    assert bool(command) == offered
    if offered:
        options = probe.parse(shlex.split(command)[3:])
        heads = tuple(config.build_method().heads)
        assert evaluators.Layer.parse(options.layer, heads) == evaluators.Layer("", -2, heads)
        assert options.evaluations == ("knn", "linear", *config.evaluation.extra)


def test_files_of_processes_that_are_no_more_are_removed(tmp_path):
    for name in ("skipped.txt", "skipped-1.txt", "skipped-2.txt", "skipped-mine.txt"):
        (tmp_path / name).write_text("")
    train.forget_skipped(epath.Path(tmp_path), 2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["skipped-1.txt", "skipped-mine.txt", "skipped.txt"]
