"""The logger's file and line, the collapse meters against NumPy, and the words of diagnose."""

import importlib
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import metrics
from jaxcl.evaluators.rank import effective_rank


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


OPEN = []


@pytest.fixture(autouse=True)
def close_loggers():
    yield
    while OPEN:
        OPEN.pop().close()


def make(workdir, clock=None, **kwargs):
    stream = kwargs.pop("stream", io.StringIO())
    defaults = {"batch_size": 32, "tensorboard": False, "stream": stream, "line_seconds": 0.0}
    logger = metrics.Logger(workdir, 100, clock=clock or Clock(), **(defaults | kwargs))
    OPEN.append(logger)
    return logger, stream


def file_rows(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=lambda c: pytest.fail(c)) for line in text.splitlines()]


# -- the file -------------------------------------------------------------------------------


def test_file_is_strict_json_and_is_read_back(tmp_path):
    logger, _ = make(tmp_path / "new" / "run")
    logger.log(1, {"loss": np.float32(0.5), "lr": jnp.float32(0.25), "b": jnp.bfloat16(2.0)})
    logger.log(2, {"loss": math.nan, "lr": math.inf, "x": -math.inf, "n": 3})
    rows = file_rows(tmp_path / "new" / "run")  # before close: lines are not held back
    logger.close()
    assert rows[0]["step"] == 1
    assert rows[0]["loss"] == 0.5
    assert rows[0]["lr"] == 0.25
    assert rows[0]["b"] == 2.0
    assert rows[1]["loss"] is None
    assert rows[1]["n"] == 3.0
    assert rows[1]["nonfinite"] == {"loss": "nan", "lr": "inf", "x": "-inf"}
    back = metrics.read_metrics(tmp_path / "new" / "run")
    assert math.isnan(back[1]["loss"])
    assert back[1]["lr"] == math.inf
    assert back[1]["x"] == -math.inf
    assert "nonfinite" not in back[1]
    steps, losses = metrics.curves(back)["loss"]
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(losses, [0.5, np.nan])


@pytest.mark.parametrize("name", ["step", "time", "nonfinite", "images_per_second"])
def test_reserved_names_are_refused(tmp_path, name):
    logger, _ = make(tmp_path)
    with pytest.raises(ValueError, match=f"'{name}' has the name of a column"):
        logger.log(1, {name: 1.0})


@pytest.mark.parametrize("value", [np.zeros(2), "3", 1j, None])
def test_values_must_be_one_number(tmp_path, value):
    logger, _ = make(tmp_path)
    with pytest.raises(ValueError, match="'loss' must be one number"):
        logger.log(1, {"loss": value})


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in metrics.TIMES} for row in rows]


def run(logger, begin, end):
    for step in range(begin + 1, end + 1):
        logger.log(step, {"loss": 1.0 / step})
        if step % 4 == 0:
            logger.log(step, {"knn": step / 10})


def test_resumed_file_equals_the_uninterrupted_one(tmp_path):
    whole, _ = make(tmp_path / "whole")
    run(whole, 0, 12)
    first, _ = make(tmp_path / "parts")
    run(first, 0, 7)
    path = tmp_path / "parts" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "ti')  # killed while writing; saved at 5
    assert metrics.read_metrics(tmp_path / "parts")[-1]["step"] == 7
    second, stream = make(tmp_path / "parts", resume_step=5)
    assert [row["step"] for row in file_rows(tmp_path / "parts")] == [1, 2, 3, 4, 4, 5]
    run(second, 5, 12)
    assert without_times(file_rows(tmp_path / "parts")) == without_times(
        file_rows(tmp_path / "whole")
    )
    assert "dropped 3 rows after step 5" in stream.getvalue()


def test_time_goes_on_after_a_resume(tmp_path):
    clock = Clock()
    first, _ = make(tmp_path, clock)
    clock.now += 7.0
    first.log(1, {"loss": 1.0})
    clock.now = 0.0
    second, _ = make(tmp_path, clock, resume_step=1)
    clock.now += 2.0
    second.log(2, {"loss": 1.0})
    assert [row["time"] for row in file_rows(tmp_path)] == [7.0, 9.0]


def test_a_fresh_run_begins_an_empty_file(tmp_path):
    make(tmp_path)[0].log(3, {"loss": 1.0})
    make(tmp_path)
    assert file_rows(tmp_path) == []


def test_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[3]\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2: not a row"):
        metrics.read_metrics(tmp_path)
    assert metrics.read_metrics(tmp_path / "nowhere") == []


def test_full_disk_names_the_file(tmp_path):
    logger, _ = make(tmp_path)
    logger._rows._file.close()
    with open("/dev/full", "wb", buffering=0) as full:
        logger._rows._file = full
        with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
            logger.log(1, {"loss": 1.0})


def test_other_processes_write_nothing(tmp_path):
    logger, stream = make(tmp_path / "run", enabled=False)
    with logger, logger.pause("evaluating"):
        logger.log(1, {"loss": 1.0})
        logger.start(1)
        logger.say("hello")
        logger.advise(0.0)
    assert not (tmp_path / "run").exists()
    assert stream.getvalue() == ""


# -- the line -------------------------------------------------------------------------------


def test_speed_and_time_left_leave_pauses_out(tmp_path):
    clock = Clock()
    logger, _ = make(tmp_path, clock, steps_per_epoch=10)
    with logger.pause("compiling", once=True):
        clock.now += 50.0
    for step in (10, 20):
        clock.now += 5.0
        logger.log(step, {"loss": 2.0})
    assert logger.images_per_second() == pytest.approx(20 * 32 / 10.0)
    assert logger.seconds_left() == pytest.approx(40.0)  # 80 steps of 0.5 s
    with logger.pause("evaluating"):
        clock.now += 6.0
    assert logger.images_per_second() == pytest.approx(64.0)
    assert logger.seconds_left() == pytest.approx(40.0 + 80 * 6.0 / 20)
    assert logger.line() == "step  20/100  epoch 2.0  loss 2  64 images/s  ETA 1:04"
    rows = file_rows(tmp_path)
    assert [row["images_per_second"] for row in rows] == [64.0, 64.0]
    assert [row["time"] for row in rows] == [55.0, 60.0]


def test_start_forgets_what_was_before(tmp_path):
    clock = Clock()
    logger, _ = make(tmp_path, clock)
    clock.now += 90.0
    logger.start(1)
    clock.now += 1.0
    logger.log(2, {"loss": 1.0})
    assert logger.images_per_second() == pytest.approx(32.0)


def test_speed_follows_the_recent_steps(tmp_path):
    clock = Clock()
    logger, _ = make(tmp_path, clock)
    for step in range(1, 41):
        clock.now += 10.0 if step <= 20 else 1.0
        logger.log(step, {"loss": 1.0})
    assert logger.images_per_second() == pytest.approx(32.0)


def test_plain_lines_are_not_more_frequent_than_asked(tmp_path):
    clock = Clock()
    logger, stream = make(tmp_path, clock, line_seconds=10.0)
    for step in range(1, 101):
        clock.now += 1.0
        logger.log(step, {"loss": 1.0})
    lines = stream.getvalue().splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [*range(1, 100, 10), 100]
    logger.log(100, {"knn/category": 0.625})  # an evaluation is always said
    assert stream.getvalue().splitlines()[-1] == "step 100  knn/category 0.625"
    assert "\x1b" not in stream.getvalue()


def test_terminal_has_one_living_line(tmp_path):
    clock = Clock()
    logger, stream = make(tmp_path, clock, stream=Terminal(), shown=("loss",))
    clock.now += 1.0
    logger.log(50, {"loss": 1.25})
    with logger.pause("evaluating [bold]"):
        assert "evaluating [bold] ..." in stream.getvalue()
    logger.say("kept [red]line")
    logger.close()
    logger.close()
    text = stream.getvalue()
    assert "loss 1.25" in text
    assert "1,600 images/s" in text
    assert "kept [red]line" in text
    assert "\x1b[2K" in text  # the line is erased and drawn again
    assert text.count("\n") < 6


def test_advice_is_said_once_until_it_goes_away(tmp_path):
    logger, stream = make(tmp_path, shown=("loss",), line_seconds=math.inf)
    for step in range(1, 31):
        logger.log(step, {"loss": 2.0, "embedding_std": 0.5 if step < 9 or 19 < step < 24 else 0.0})
        logger.advise(grace_steps=5)
    said = [line.split(":")[:2] for line in stream.getvalue().splitlines() if "warn" in line]
    assert said == [["warning, step 13", " collapsed"], ["warning, step 28", " collapsed"]]


def test_best_value_is_remembered_over_a_resume(tmp_path):
    logger, _ = make(tmp_path)
    assert logger.best("knn") == -math.inf
    for step, value in enumerate([0.2, 0.6, math.nan, 0.7], start=1):
        logger.log(step, {"knn": value})
    assert logger.best("knn") == 0.7
    assert make(tmp_path, resume_step=3)[0].best("knn") == 0.6


def test_say_prints_a_line(capsys):
    metrics.say("hello")
    assert capsys.readouterr().out == "hello\n"


def test_durations():
    assert metrics.duration(61.4) == "1:01"
    assert metrics.duration(3723) == "1:02:03"
    assert metrics.duration(math.nan) == "?"


# -- TensorBoard ------------------------------------------------------------------------------


class Writer:
    def __init__(self, folder, **kwargs):
        self.folder, self.kwargs, self.points, self.closed = folder, kwargs, [], False

    def add_scalar(self, tag, value, step):
        self.points.append((tag, value, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.mark.parametrize("package", ["tensorboardX", "tensorboard.summary", None])
def test_tensorboard_where_installed(tmp_path, monkeypatch, package):
    writers = []

    def construct(folder, **kwargs):
        writers.append(Writer(folder, **kwargs))
        return writers[-1]

    def fake_import(name):
        if name != package:
            raise ImportError(name)
        attribute = "SummaryWriter" if name == "tensorboardX" else "Writer"
        return type("Module", (), {attribute: staticmethod(construct)})

    monkeypatch.setattr(importlib, "import_module", fake_import)
    logger, stream = make(tmp_path, resume_step=5, tensorboard=True)
    logger.log(6, {"loss": 1.5})
    logger.close()
    if package is None:
        assert not writers
        assert "no TensorBoard files are written" in stream.getvalue()
        return
    (writer,) = writers
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.kwargs == ({"purge_step": 6} if package == "tensorboardX" else {})
    assert writer.points == [("loss", 1.5, 6)]
    assert writer.closed


# -- meters against loops -----------------------------------------------------------------------


def oracle(z):
    """All meters of z[B, V, D] with loops over pairs, in float64."""
    z = np.asarray(z, np.float64)
    norm = np.linalg.norm(z, axis=-1, keepdims=True)
    z = np.where(norm > 0, z / np.where(norm > 0, norm, 1), 0)
    b, v, d = z.shape
    positive, negative, distance, gauss = [], [], [], []
    for i in range(b):
        for j in range(b):
            for p in range(v):
                for q in range(v):
                    if i == j and p != q:
                        positive.append(z[i, p] @ z[j, q])
                        distance.append(np.sum((z[i, p] - z[j, q]) ** 2))
                    if i != j:
                        negative.append(z[i, p] @ z[j, q])
            if i != j:
                gauss.append(np.exp(-2 * np.sum((z[i, 0] - z[j, 0]) ** 2)))
    flat = z.reshape(-1, d)
    std = [np.sqrt(np.mean((c - c.mean()) ** 2)) for c in flat.T]
    return {
        "embedding_std": np.mean(std) * np.sqrt(d),
        "positive_cosine": np.mean(positive),
        "alignment": np.mean(distance),
        "negative_cosine": np.mean(negative),
        "uniformity": np.log(np.mean(gauss)),
    }


@pytest.mark.parametrize("shape", [(7, 2, 5), (4, 3, 6), (2, 2, 1)])
@pytest.mark.parametrize("kind", ["random", "near", "zero row"])
def test_meters_match_loops(shape, kind):
    rng = np.random.default_rng(0)
    z = rng.normal(size=shape).astype(np.float32)
    if kind == "near":
        z = 1 + 0.01 * z
    if kind == "zero row":
        z[0, 0] = 0
    got = jax.jit(metrics.collapse_meters)(z)
    want = oracle(z)
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


def test_meters_of_one_image_or_one_view():
    z = jnp.ones((3, 1, 4))
    assert set(metrics.collapse_meters(z)) == {"embedding_std", "negative_cosine", "uniformity"}
    assert set(metrics.collapse_meters(z[:1])) == {"embedding_std"}


def test_meters_keep_their_precision():
    z = jnp.ones((3, 2, 4), jnp.bfloat16)
    assert {v.dtype for v in metrics.collapse_meters(z).values()} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        z = jax.random.normal(jax.random.key(0), (6, 2, 4), jnp.float64)
        got, want = metrics.collapse_meters(z), oracle(z)
        assert {v.dtype for v in got.values()} == {jnp.dtype("float64")}
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)


def test_meters_send_no_gradient_and_survive_zero_rows():
    def loss(z):
        return sum(metrics.collapse_meters(z).values())

    z = jnp.zeros((3, 2, 4)).at[0, 0, 0].set(1.0)
    np.testing.assert_array_equal(jax.grad(loss)(z), 0.0)
    gradient = jax.grad(lambda z: metrics.positive_cosine(z) + metrics.alignment(z))(z)
    assert bool(jnp.isfinite(gradient).all())


def test_meters_of_spread_and_collapsed_embeddings():
    z = jax.random.normal(jax.random.key(0), (256, 2, 64))
    spread = metrics.collapse_meters(z)
    assert spread["embedding_std"] == pytest.approx(1.0, abs=0.02)
    assert spread["negative_cosine"] == pytest.approx(0.0, abs=0.01)
    assert spread["uniformity"] == pytest.approx(-3.94, abs=0.1)  # -4 + 8/D, to second order
    flat = metrics.collapse_meters(jnp.ones((8, 2, 64)))
    assert flat["embedding_std"] == pytest.approx(0.0, abs=1e-3)
    assert flat["negative_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert flat["uniformity"] == pytest.approx(0.0, abs=1e-5)


def test_uniformity_is_bounded_by_its_limit():
    z = jax.random.normal(jax.random.key(0), (9, 2, 4))
    want = oracle(z[:5])["uniformity"]
    np.testing.assert_allclose(metrics.uniformity(z, limit=5), want, rtol=1e-5)


def test_effective_rank():
    assert effective_rank(np.eye(6)) == pytest.approx(6.0, rel=1e-4)
    assert effective_rank(np.ones((10, 4))) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(np.zeros((10, 4))) == 0.0
    assert np.isnan(effective_rank(np.full((3, 3), np.inf)))
    two = np.zeros((2, 5))
    two[0, 0], two[1, 1] = 3.0, 1.0
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(two) == pytest.approx(np.exp(entropy), rel=1e-5)
    rng = np.random.default_rng(0)
    low = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 50))
    assert 2.0 < effective_rank(low) <= 3.01


# -- words --------------------------------------------------------------------------------------

TRIVIAL = math.log(2 * 512 - 1)


def row(step, **values):
    healthy = {
        "loss": max(2.0, TRIVIAL * 0.99 - step / 100),
        "grad_norm": 1.0,
        "embedding_std": 0.9,
        "positive_cosine": 0.8,
        "negative_cosine": 0.02,
        "alignment": 0.4,
        "effective_rank": 60.0,
    }
    return {"step": step, "time": float(step)} | healthy | values


def words(last, steps=range(10, 400, 10), **kwargs):
    history = [row(s, **(last(s) if callable(last) else last)) for s in steps]
    return metrics.diagnose(history, trivial_loss=TRIVIAL, **kwargs)


@pytest.mark.parametrize(
    ("values", "kind", "advice"),
    [
        ({"embedding_std": 0.02, "loss": TRIVIAL}, "collapsed", "lower the learning rate"),
        ({"loss": TRIVIAL}, "not separating", "both views come from the same image"),
        ({"loss": 2.5 * TRIVIAL}, "diverging", "warm-up"),
        ({"positive_cosine": 0.31, "negative_cosine": 0.3}, "views do not match", "together"),
        ({"alignment": 1e-6}, "views are the same", "augmentations are on"),
        ({"effective_rank": 1.4}, "few directions", "1.4"),
        ({"grad_norm": 0.0}, "no gradient", "stop_gradient"),
    ],
)
def test_a_planted_fault_gets_its_words(values, kind, advice):
    (message,) = words(values)
    assert message.startswith(kind + ": ")
    assert advice in message
    # Not in the first steps, and not from one bad row.
    assert words(values, steps=range(10, 110, 10)) == []
    assert words(lambda step: values if step == 390 else {}) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_said_at_once(bad):
    (message,) = words({"loss": bad, "grad_norm": math.nan}, steps=[1])
    assert message.startswith("not finite: grad_norm, loss at step 1: ")
    assert words(lambda step: {"loss": bad} if step == 100 else {}) == []  # it went away


def test_healthy_runs_get_no_words():
    assert words({}) == []
    assert metrics.diagnose([]) == []
    assert metrics.diagnose([{"step": 900, "knn": 0.1}]) == []
    # A start near collapse that recovers, and a loss that falls slowly from its trivial value.
    assert words(lambda s: {"embedding_std": 0.02 + s / 3000}, steps=range(10, 260, 10)) == []
    assert (
        words(lambda s: {"embedding_std": 0.01 * 1.2 ** (s / 10)}, steps=range(10, 150, 10)) == []
    )
    assert words({"loss": 0.97 * TRIVIAL}) == []


def test_rows_without_a_value_are_passed_over():
    history = [row(s, embedding_std=0.01) for s in range(110, 200, 10)]
    mixed = [r for pair in zip(history, [{"step": 1, "knn": 0.5}] * 9, strict=True) for r in pair]
    (message,) = metrics.diagnose(mixed)
    assert message.startswith("collapsed: ")


def test_words_of_a_real_collapse_and_of_a_real_spread():
    def history(z):
        meters = {k: float(v) for k, v in metrics.collapse_meters(z).items()}
        meters["effective_rank"] = effective_rank(np.asarray(z).reshape(-1, z.shape[-1]))
        return [{"step": s, "loss": 1.0} | meters for s in range(200, 206)]

    rng = np.random.default_rng(0)
    base = rng.normal(size=(512, 1, 32))
    noise = rng.normal(size=(512, 2, 32))
    assert metrics.diagnose(history(base + 0.3 * noise)) == []
    kinds = {
        "collapsed": 1.0 + 1e-3 * noise,
        "views are the same": jnp.repeat(base, 2, axis=1),
        "views do not match": noise,
        "few directions": (base + 0.3 * noise) * (jnp.arange(32) < 2),
    }
    for kind, z in kinds.items():
        found = metrics.diagnose(history(z))
        assert any(message.startswith(kind + ": ") for message in found), (kind, found)
