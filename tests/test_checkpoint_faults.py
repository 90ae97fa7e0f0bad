"""A storage that does not answer is asked again, and is not taken for damage."""

import errno
import os
from pathlib import Path

import bucket
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jaxcl.checkpoint import (
    CheckpointError,
    Checkpoints,
    UnreachableError,
    WriteError,
    arrays,
    faults,
    may_pass,
    read_manifest,
    restore_part,
)
from jaxcl.checkpoint.steps import StepDirectory
from jaxcl.train import best_so_far


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(faults, "PAUSES", (0.01, 0.01))
    quick = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    monkeypatch.setattr(arrays, "REQUESTS", quick)


def state(step):
    return {"w": jnp.arange(5000.0) + step, "step": jnp.asarray(step)}


def opened(directory, log=print):
    return Checkpoints(directory, keep=5, config={}, content_id="data", log=log)


def two_steps(directory):
    with opened(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
    return directory


@pytest.fixture
def pair(tmp_path):
    return two_steps(tmp_path)


def restored(directory, log=print):
    """The step that is restored, whose values are checked."""
    with opened(directory, log) as checkpoints:
        found, step = checkpoints.restore(state(0))
    np.testing.assert_array_equal(found["w"], state(step)["w"])
    return step


def os_error(code):
    return OSError(code, os.strerror(code))


PASSING = {
    "EIO": os_error(errno.EIO),
    "ESTALE": os_error(errno.ESTALE),
    "timeout": TimeoutError("timed out"),
    "reset": ConnectionResetError(errno.ECONNRESET, "reset by peer"),
    "tensorstore": ValueError("UNAVAILABLE: GET https://storage: HTTP response code: 503"),
    "deadline": RuntimeError("DEADLINE_EXCEEDED: no answer"),
    "tensorstore's EIO": ValueError("UNKNOWN: Failed to read: Input/output [os_error_code='5']"),
}
LASTING = {
    "no file": FileNotFoundError(errno.ENOENT, "none"),
    "rights": PermissionError(errno.EACCES, "denied"),
    "full": os_error(errno.ENOSPC),
    "tensorstore, full": ValueError("RESOURCE_EXHAUSTED: write: No space left on device"),
    "wrong contents": ValueError("DATA_LOSS: CRC-32C checksum verification failed"),
    "link to itself": ValueError("UNKNOWN: Failed to open [os_error_code='40']"),
    "memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    "the terminal": BrokenPipeError(errno.EPIPE, "pipe"),
    "bug": KeyError("INTERNAL: "),
}


@pytest.mark.parametrize("name", [*PASSING, *LASTING])
def test_what_may_pass(name):
    error = (PASSING | LASTING)[name]
    assert may_pass(error) is (name in PASSING)
    over = WriteError("could not save", "here", 1)
    over.__cause__ = error
    assert may_pass(over) is (name in PASSING)


class Failing:
    """A function that raises an error at its first `times` calls."""

    def __init__(self, function, error, times):
        self.function, self.error, self.left = function, error, times

    def __call__(self, *args, **kwargs):
        if self.left:
            self.left -= 1
            raise self.error
        return self.function(*args, **kwargs)


PLACES = {
    # listing the steps; a manifest; the index of the arrays; the arrays; the size of the files
    "steps": (type(arrays.epath.Path("/")), "iterdir"),
    "manifest": (type(arrays.epath.Path("/")), "read_text"),
    "index": (arrays, "_open"),
    "size": (arrays.files, "size"),
}


def broken(monkeypatch, place, error, times):
    owner, name = PLACES[place]
    failing = Failing(getattr(owner, name), error, times)
    # A plain function, as methods have to be bound.
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: failing(*args, **kwargs))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_costs_no_step(pair, monkeypatch, caplog, place, kind):
    broken(monkeypatch, place, PASSING[kind], 2)
    assert restored(pair) == 2
    assert caplog.text.count("cannot be read: ") == 2
    assert {"1", "2"} <= set(os.listdir(pair))


@pytest.mark.parametrize("place", PLACES)
def test_a_storage_that_never_answers_ends_the_run_with_all_its_steps(pair, monkeypatch, place):
    log = []
    with opened(pair, log.append) as checkpoints, monkeypatch.context() as patch:
        broken(patch, place, os_error(errno.EIO), -1)
        with pytest.raises(UnreachableError, match=r"in 3 attempts: OSError.* not answer") as end:
            checkpoints.restore(state(0))
        with pytest.raises(UnreachableError):
            restore_part(pair, {"w": None})
    assert may_pass(end.value)
    assert log == []
    assert sorted(os.listdir(pair)) == ["1", "2"]
    assert restored(pair) == 2


def test_a_true_fault_of_a_file(pair):
    """Linux answers a read of another program's memory at 0 with EIO."""
    path = pair / "2" / "manifest.json"
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(UnreachableError, match=r"2/manifest\.json cannot be read.*Errno 5"):
        read_manifest(pair)
    with opened(pair) as checkpoints:
        with pytest.raises(UnreachableError):
            checkpoints.restore(state(0))
        with pytest.raises(UnreachableError):
            checkpoints.differences()  # which would otherwise be those of the step before
    path.unlink()
    path.write_bytes(content)
    assert restored(pair) == 2


def test_a_disk_that_does_not_answer_is_no_empty_one(pair, monkeypatch):
    """`os.path.exists` says no to every error: the run would begin anew, and sweep away what it takes for a part."""
    (pair / "2.unfinished").write_text("")
    stat = os.stat

    def failing(path, *args, **kwargs):
        if isinstance(path, os.PathLike | str) and Path(path).is_relative_to(pair):
            raise os_error(errno.ESTALE)
        return stat(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        with pytest.raises(UnreachableError):
            opened(pair)
        with pytest.raises(UnreachableError):
            read_manifest(pair)
    assert restored(pair) == 2


def away(monkeypatch, directory, times):
    """The file system does not answer what is asked of this directory and what is in it."""
    stat, left = os.stat, {"left": times}

    def failing(path, *args, **kwargs):
        mine = isinstance(path, os.PathLike | str) and Path(path).is_relative_to(directory)
        if mine and left["left"]:
            left["left"] -= 1
            raise os_error(errno.EIO)
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", failing)


def test_a_step_is_not_written_over_where_a_fault_hides_it(pair, monkeypatch):
    """It is moved away first, whether the first answer is a fault or not."""
    moved = []
    rename = epath.Path("/").__class__.rename
    monkeypatch.setattr(
        type(epath.Path("/")),
        "rename",
        lambda old, new: (moved.append(old.name), rename(old, new))[1],
    )
    with opened(pair) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(StepDirectory, "holds", lambda *_: False)
        away(patch, pair / "2", 1)
        checkpoints.save(2, state(2))
        checkpoints.wait()
    assert moved[0] == "2"
    assert restored(pair) == 2
    assert sorted(os.listdir(pair)) == ["1", "2"]


def test_a_save_that_fails_is_told_as_such_while_the_storage_is_away(pair, monkeypatch):
    with opened(pair) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(arrays, "write", Failing(None, os_error(errno.EIO), -1))
        patch.setattr(StepDirectory, "sweep", Failing(None, UnreachableError("away"), -1))
        checkpoints.save(3, state(3))
        with pytest.raises(
            WriteError, match=r"could not save step 3 .*could not be removed \(.*away\)"
        ) as end:
            checkpoints.wait()
        assert may_pass(end.value)
    assert restored(pair) == 2


def test_a_step_that_is_saved_is_not_called_lost_as_older_ones_cannot_be_listed(pair, monkeypatch):
    lines = []
    with opened(pair, lines.append) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(StepDirectory, "complete", Failing(None, UnreachableError("away"), -1))
        checkpoints.save(3, state(3))
        checkpoints.wait()
    assert any("older checkpoints" in line and "away" in line for line in lines)
    assert restored(pair) == 3


def test_the_other_processes_are_met_whatever_becomes_of_the_first(pair, monkeypatch):
    met = []
    monkeypatch.setattr(Checkpoints, "_meet", lambda self, name: met.append(name))
    monkeypatch.setattr(StepDirectory, "sweep", Failing(None, UnreachableError("away"), -1))
    with pytest.raises(UnreachableError):
        opened(pair)
    assert len(met) == 1


def test_a_best_step_that_may_not_be_read_is_not_replaced(pair, monkeypatch):
    with opened(pair) as best, monkeypatch.context() as patch:
        broken(patch, "manifest", PermissionError(errno.EACCES, "Permission denied"), -1)
        with pytest.raises(CheckpointError, match="denied"):
            best_so_far(best, print)
    (pair / "2" / "manifest.json").write_text("{")
    with opened(pair) as best:
        assert best_so_far(best, print) == -np.inf


@pytest.mark.parametrize("place", PLACES)
def test_what_may_not_be_read_is_no_damage(pair, monkeypatch, place):
    with opened(pair) as checkpoints, monkeypatch.context() as patch:
        broken(patch, place, PermissionError(errno.EACCES, "Permission denied"), -1)
        with pytest.raises((CheckpointError, PermissionError), match="denied") as end:
            checkpoints.restore(state(0))
    assert not may_pass(end.value)
    assert sorted(os.listdir(pair)) == ["1", "2"]


@pytest.mark.parametrize("damage", ["short", "flipped", "a link to itself", "gone"])
def test_damage_is_still_damage(pair, monkeypatch, damage):
    """Also where no size tells of it beforehand, as in a bucket."""
    monkeypatch.setattr(arrays.files, "size", lambda path: None)
    path = max((p for p in (pair / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "short":
        path.write_bytes(content[: len(content) // 2])
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if damage == "a link to itself":
        path.symlink_to(path)
    log = []
    assert restored(pair, log.append) == 1
    assert len(log) == 1
    assert log[0].endswith("renamed to 2.damaged-1")


@pytest.fixture
def faulty():
    """How many requests for the contents of arrays the bucket is yet to answer with 503; -1 for all."""
    return {"left": 0}


@pytest.fixture
def remote(monkeypatch, faulty):
    real = bucket.handler

    def handler(objects):
        class Faulty(real(objects)):
            def do_GET(self):
                if faulty["left"] and "/2/state/" in bucket.unquote(self.path):
                    faulty["left"] -= 1
                    return self.answer(503)
                return super().do_GET()

        return Faulty

    monkeypatch.setattr(bucket, "handler", handler)
    with bucket.served(monkeypatch):
        yield two_steps("gs://bucket/run/checkpoints")


def test_a_bucket_that_fails_once(remote, faulty, caplog):
    faulty["left"] = 2  # tensorstore itself asks twice
    assert restored(remote) == 2
    assert faulty["left"] == 0
    assert "Tried again in 0.01 s" in caplog.text


def test_a_bucket_that_always_fails(remote, faulty):
    faulty["left"] = -1
    with opened(remote) as checkpoints:
        with pytest.raises(UnreachableError, match="ValueError"):
            checkpoints.restore(state(0))
        assert checkpoints.steps() == [1, 2]
    faulty["left"] = 0
    assert restored(remote) == 2
