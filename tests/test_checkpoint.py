"""Checkpoints: round trips, damage of all kinds, kills, full disks, other models and devices."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcl.checkpoint import (
    ABSENT,
    CheckpointError,
    Checkpoints,
    NonFiniteError,
    OtherModelError,
    WriteError,
    arrays,
    config_diff,
    files,
    leaves,
    manifest,
    read_manifest,
    restore_part,
    steps,
)

CONFIG = {"name": "test", "model": {"width": 1.0, "layers": [1, 2]}, "optim": {"rate": 0.3}}
ROOT = Path(__file__).parents[1]


def make_mesh(count: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def host_state(seed: int) -> dict:
    """A small train state in NumPy, of every kind of leaf; no leaf equals one of another seed."""
    rng = np.random.default_rng(seed)
    f32 = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {
        "step": np.int32(seed),
        "params": {
            "backbone": {"conv": {"kernel": f32(3, 3, 4, 16)}, "norm": {"scale": f32(16)}},
            "head_main": {"kernel": f32(16, 32)},
            "method": {},
        },
        "batch_stats": {"backbone": {"norm": {"mean": f32(16)}}},
        "opt_state": (optax.TraceState({"kernel": f32(16, 32)}), optax.EmptyState()),
        "extra": {
            "queue": f32(64, 8),
            "valid": rng.random(1200) < 0.5,
            "ids": rng.integers(-9, 9, (300,)).astype(np.int32),
            "half": f32(40, 20).astype(jnp.bfloat16),
            "nothing": np.zeros((0, 4), np.float32),
        },
    }


def make_state(seed: int, mesh: jax.sharding.Mesh | None = None) -> dict:
    """`host_state` on devices (the queue and the keys sharded), with typed keys."""
    mesh = mesh or make_mesh(8)
    replicated, sharded = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    state = jax.device_put(host_state(seed), replicated)
    state["extra"]["queue"] = jax.device_put(state["extra"]["queue"], sharded)
    state["key"] = jax.device_put(jax.random.key(seed), replicated)
    state["keys"] = jax.device_put(jax.random.split(jax.random.key(seed, impl="rbg"), 8), sharded)
    return state


def abstract(state: dict) -> dict:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def raw(leaf: jax.Array) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(got: dict, expected: dict, *, shardings: bool = True) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, path
        assert a.shape == b.shape, path
        assert raw(a).tobytes() == raw(b).tobytes(), path
        if shardings:
            assert a.sharding == b.sharding, path
            for shard in a.addressable_shards:
                assert raw(shard.data).tobytes() == raw(b)[shard.index].tobytes(), path


class Lines(list):
    """A log that is looked at afterwards."""

    def __call__(self, line: str) -> None:
        self.append(line)


def open_checkpoints(directory: Path, log: Lines | None = None, **changes) -> Checkpoints:
    settings = {
        "config": CONFIG,
        "content_id": "data-1",
        "log": log if log is not None else Lines(),
    }
    return Checkpoints(directory, **settings | changes)


def saved(directory: Path, *seeds: int, keep: int = 5) -> None:
    with open_checkpoints(directory, keep=keep) as checkpoints:
        for seed in seeds:
            checkpoints.save(seed, make_state(seed))


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def data_files(step: Path) -> list[Path]:
    return sorted(p for p in step.rglob("*") if p.is_file() and p.name != "manifest.json")


# ---------------------------------------------------------------------------------- round trips


def test_round_trip_is_bit_equal_with_shardings_keys_and_empty_nodes(tmp_path):
    state = make_state(3)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        checkpoints.save(3, state)
        restored, step = checkpoints.restore(abstract(state))
    assert step == 3
    assert_same(restored, state)
    assert restored["params"]["method"] == {}
    assert restored["opt_state"][1] == optax.EmptyState()
    draw = lambda s: np.asarray(jax.random.normal(s["keys"][5], (4,)))  # noqa: E731
    assert draw(restored).tobytes() == draw(state).tobytes()


def test_special_bits_survive(tmp_path):
    bits = np.array([0x80000000, 0x00000001, 0x007FFFFF, 0x7F7FFFFF], np.uint32)
    state = {"x": jnp.asarray(bits.view(np.float32)), "scalar": 3, "flag": jnp.array(True)}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        restored, _ = checkpoints.restore(state)
    assert np.asarray(restored["x"]).view(np.uint32).tolist() == bits.tolist()
    assert restored["scalar"].dtype == jnp.int32
    assert int(restored["scalar"]) == 3
    assert restored["flag"].dtype == bool
    assert bool(restored["flag"])


def test_float64_state(tmp_path):
    with jax.enable_x64(True):
        state = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)))}
        assert state["w"].dtype == jnp.float64
        with open_checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state)
            restored, _ = checkpoints.restore(abstract(state))
        assert_same(restored, state)
        wanted = abstract(state)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"cannot restore w: .*jax_enable_x64"),
    ):
        checkpoints.restore(wanted)


@pytest.mark.parametrize("state", [{}, {"a": {}}, {"a": jnp.zeros((0, 3))}])
def test_states_without_elements(tmp_path, state):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored, step = checkpoints.restore(state)
    assert step == 1
    assert_same(restored, state, shardings=False)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_another_number_of_devices(tmp_path, before, after):
    state = make_state(3, make_mesh(before))
    target = abstract(make_state(4, make_mesh(after)))
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        checkpoints.wait()
        digests = {p: leaf.digest for p, leaf in read_manifest(tmp_path).leaves.items()}
        restored, _ = checkpoints.restore(target)
        assert_same(restored, state, shardings=False)
        assert restored["extra"]["queue"].sharding == target["extra"]["queue"].sharding
        checkpoints.save(4, restored)
        checkpoints.wait()
    again = {p: leaf.digest for p, leaf in read_manifest(tmp_path, step=4).leaves.items()}
    assert again == digests


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
    mesh = make_mesh(8)
    state = jax.device_put({"w": jnp.arange(100_000.0)}, NamedSharding(mesh, P()))
    expected = np.asarray(jnp.arange(100_000.0)).copy()
    step = jax.jit(lambda s: {"w": s["w"] * 0 - 1}, donate_argnums=0)
    with open_checkpoints(tmp_path) as checkpoints:
        target = abstract(state)
        checkpoints.save(1, state)
        for _ in range(3):
            state = step(state)
        restored, _ = checkpoints.restore(target)
        assert np.array_equal(np.asarray(restored["w"]), expected)
        # The replicas of what was restored must not share memory that a donation overwrites.
        grown = jax.jit(lambda s: {"w": s["w"] + 1}, donate_argnums=0)(restored)
        for shard in grown["w"].addressable_shards:
            assert np.array_equal(np.asarray(shard.data), expected + 1)


def test_manifest_has_digests_that_numpy_alone_gives(tmp_path):
    state = make_state(3)
    saved(tmp_path, 3)
    body = json.loads((tmp_path / "3" / "manifest.json").read_text())
    kernel = host_state(3)["params"]["backbone"]["conv"]["kernel"]
    entry = body["leaves"]["params/backbone/conv/kernel"]
    assert entry["digest"] == hashlib.blake2b(kernel.tobytes(), digest_size=32).hexdigest()
    assert entry["shape"] == [3, 3, 4, 16]
    assert entry["dtype"] == "float32"
    assert body["leaves"]["keys"]["dtype"] == "key<rbg>"
    assert body["leaves"]["opt_state/0/trace/kernel"]["shape"] == [16, 32]
    assert len(body["leaves"]) == len(jax.tree.leaves(state))
    assert body["config"] == CONFIG
    canonical = json.dumps(CONFIG, sort_keys=True, separators=(",", ":"))
    expected = hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()
    assert body["config_digest"] == expected
    assert (body["step"], body["content_id"], body["jax"]) == (3, "data-1", jax.__version__)


def test_what_is_written_is_an_ordinary_orbax_checkpoint(tmp_path):
    from orbax.checkpoint import v1 as ocp

    saved(tmp_path, 3)
    tree = ocp.load(tmp_path / "3" / "state", checkpointable_name=None)
    expected = host_state(3)["params"]["head_main"]["kernel"]
    assert np.array_equal(tree["params"]["head_main"]["kernel"], expected)


def test_saving_a_step_again(tmp_path):
    saved(tmp_path, 3)
    before = (tmp_path / "3" / "manifest.json").stat().st_mtime_ns
    saved(tmp_path, 3)
    assert (tmp_path / "3" / "manifest.json").stat().st_mtime_ns == before
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(4))
        restored, step = checkpoints.restore(abstract(make_state(4)))
    assert step == 3
    assert_same(restored, make_state(4))
    assert names(tmp_path) == ["3"]


def test_the_newest_and_the_best_are_saved_at_once(tmp_path):
    state = make_state(3)
    with (
        open_checkpoints(tmp_path / "checkpoints") as newest,
        open_checkpoints(tmp_path / "best", keep=1) as best,
    ):
        for step in range(3):
            newest.save(step, state)
            best.save(step, state)
        for checkpoints in (newest, best):
            restored, step = checkpoints.restore(abstract(state))
            assert step == 2
            assert_same(restored, state)


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    state = {"w": jnp.arange(3.0)}
    for directory in ("runs/a", "~/runs/a"):
        with open_checkpoints(directory) as checkpoints:
            checkpoints.save(1, state)
            assert checkpoints.restore(state)[1] == 1
        assert read_manifest(directory).step == 1
    assert names(tmp_path / "runs" / "a") == names(tmp_path / "home" / "runs" / "a") == ["1"]


def test_metrics_are_kept(tmp_path):
    with open_checkpoints(tmp_path / "best", keep=1) as best:
        best.save(3, {"w": jnp.ones(3)}, metrics={"knn": 0.5})
        with pytest.raises(ValueError, match="metrics cannot be written as JSON"):
            best.save(4, {"w": jnp.ones(3)}, metrics={"knn": float("nan")})
    assert read_manifest(tmp_path / "best").metrics == {"knn": 0.5}


def test_paths_that_would_be_stored_in_one_place_are_refused(tmp_path):
    one = jnp.ones(2)
    with open_checkpoints(tmp_path) as checkpoints:
        for state in ({"a/b": one, "a": {"b": one}}, {"a.b": one, "a": {"b": one}}):
            with pytest.raises(ValueError, match=r"stored as 'a[/.]b'"):
                checkpoints.save(1, state)


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        open_checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="config cannot be written as JSON"):
        open_checkpoints(tmp_path, config={"a": object()})
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="step=-1"):
        checkpoints.save(-1, {})


# ---------------------------------------------------------------------------- retention, refusal


def test_retention_keeps_the_newest(tmp_path):
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        for step, expected in ((1, [1]), (2, [1, 2]), (5, [2, 5]), (10, [5, 10])):
            checkpoints.save(step, {"w": jnp.full(3, step)})
            checkpoints.wait()
            assert checkpoints.steps() == expected
            assert names(tmp_path) == sorted(map(str, expected))


def test_retention_never_removes_the_step_just_written(tmp_path):
    with open_checkpoints(tmp_path, keep=1) as best:
        for step in (500, 450):
            best.save(step, {"w": jnp.full(3, step)})
        best.wait()
        assert best.steps() == [450]
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(3)})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 450]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_state_that_is_not_finite_is_refused(tmp_path, value, dtype):
    good = {"a": {"w": jnp.ones((4, 4), dtype)}, "n": jnp.ones(2)}
    bad = {"a": {"w": good["a"]["w"].at[2, 3].set(value)}, "n": jnp.ones(2)}
    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, good)
        with pytest.raises(NonFiniteError, match="step 2 was not saved: a/w has NaN") as caught:
            checkpoints.save(2, bad)
        assert caught.value.leaves == ("a/w",)
        assert names(tmp_path) == ["1"]
        restored, step = checkpoints.restore(good)
    assert step == 1
    assert_same(restored, good, shardings=False)


# ----------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    saved(directory, 1, 2)
    return directory


@pytest.fixture
def pair(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "c")
    return tmp_path / "c"


def assert_falls_back(directory: Path, why: str = "") -> str:
    """Restores; step 2 must have been set aside and step 1 taken. Returns the line that says so."""
    log = Lines()
    with open_checkpoints(directory, log) as checkpoints:
        restored, step = checkpoints.restore(abstract(make_state(1)))
    assert step == 1
    assert_same(restored, make_state(1))
    assert "2.damaged-1" in names(directory)
    assert "2" not in names(directory)
    assert len(log) == 1
    assert log[0].startswith(f"checkpoint {directory}/2 is damaged: ")
    assert log[0].endswith("; renamed to 2.damaged-1")
    assert why in log[0]
    return log[0]


def flip(path: Path, offset: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def test_each_bit_flip_in_array_data_is_detected(pair):
    rng = random.Random(0)
    where = []
    for path, leaf in leaves.by_path(make_state(2)).items():
        content = raw(leaf).tobytes()
        hits = [(f, f.read_bytes().find(content)) for f in data_files(pair / "2")]
        # Up to 1024 bytes lie in index nodes, which have checksums of their own.
        where += [(path, f, at, len(content)) for f, at in hits if at >= 0 and len(content) > 1024]
    assert len(where) == 7
    wanted = abstract(make_state(1, make_mesh(1)))
    for trial in range(60):
        path, file, start, length = where[trial % len(where)]
        offset, bit = start + rng.randrange(length), rng.randrange(8)
        flip(file, offset, bit)
        log = Lines()
        with open_checkpoints(pair, log) as checkpoints:
            _, step = checkpoints.restore(wanted)
        assert step == 1, (path, offset, bit)
        assert f"{path}: not the bits that were saved" in log[0] or "Invalid bool value" in log[0]
        (pair / "2.damaged-1").rename(pair / "2")
        flip(file, offset, bit)
    with open_checkpoints(pair) as checkpoints:  # all flips are undone: it was they
        restored, step = checkpoints.restore(wanted)
    assert step == 2
    assert_same(restored, make_state(2, make_mesh(1)))


def test_bit_flips_anywhere_never_give_other_values(pair):
    rng = random.Random(1)
    everything = [p for p in sorted((pair / "2").rglob("*")) if p.is_file() and p.stat().st_size]
    expected = {step: make_state(step, make_mesh(1)) for step in (1, 2)}
    wanted = abstract(expected[1])
    detected = 0
    for trial in range(40):
        file = everything[trial % len(everything)]
        offset, bit = rng.randrange(file.stat().st_size), rng.randrange(8)
        flip(file, offset, bit)
        with open_checkpoints(pair) as checkpoints:
            restored, step = checkpoints.restore(wanted)
        assert_same(restored, expected[step])
        if step == 1:
            detected += 1
            (pair / "2.damaged-1").rename(pair / "2")
        flip(file, offset, bit)
    assert detected >= 4  # many bytes are times and room to spare, which nothing depends on


def relative_files(step: Path) -> list[str]:
    """Which files a step has, but for hashes in their names."""
    return [str(p.relative_to(step)) for p in sorted(step.rglob("*")) if p.is_file()]


@pytest.mark.parametrize("damage", ["delete", "empty", "half", "last byte", "of another step"])
def test_damaged_files(pair, tmp_path, damage):
    """Each file in turn: what is restored is step 2 with its own bits, or step 1 with its own."""
    expected = {step: make_state(step, make_mesh(1)) for step in (1, 2)}
    wanted = abstract(expected[1])
    fallen_back = []
    other = {p.name: p for p in (pair / "1").rglob("*") if p.is_file()}
    largest = max(other.values(), key=lambda p: p.stat().st_size)
    for name in relative_files(pair / "2"):
        file = pair / "2" / name
        content = file.read_bytes()
        if damage == "delete":
            file.unlink()
        elif damage == "of another step":
            shutil.copy(other.get(file.name, largest), file)
        else:
            size = len(content)
            file.write_bytes(
                content[: {"empty": 0, "half": size // 2, "last byte": size - 1}[damage]]
            )
        log = Lines()
        with open_checkpoints(pair, log) as checkpoints:
            restored, step = checkpoints.restore(wanted)
        assert_same(restored, expected[step])
        if step == 1:
            fallen_back.append(name)
            assert len(log) == 1
            (pair / "2.damaged-1").rename(pair / "2")
        file.write_bytes(content)
    assert "manifest.json" in fallen_back
    assert [name for name in fallen_back if "/d/" in name]  # the arrays' own files


def test_a_lost_manifest_is_damage_not_garbage(pair):
    (pair / "2" / "manifest.json").unlink()
    assert_falls_back(pair, "manifest.json is missing")


def test_manifest_changes_are_found(pair):
    path = pair / "2" / "manifest.json"
    path.write_text(path.read_text().replace('"rate": 0.3', '"rate": 0.4'))
    assert_falls_back(pair, "manifest.json was changed")


def test_a_step_under_another_name(pair):
    shutil.rmtree(pair / "2")
    shutil.copytree(pair / "1", pair / "2")
    assert_falls_back(pair, "manifest.json is that of step 1")


@pytest.mark.parametrize("hostile", ["[" * 200_000, "[]", "null", '{"digest": 1}', "\0", "{}"])
def test_hostile_manifests(pair, hostile):
    (pair / "2" / "manifest.json").write_text(hostile)
    assert_falls_back(pair, "manifest.json")


def test_a_manifest_of_gigantic_arrays_takes_no_memory(pair):
    wanted = {"w": jax.ShapeDtypeStruct((10**9, 10**3), jnp.float32)}
    huge = manifest.Manifest(
        2, {}, "", {"w": manifest.Leaf((10**9, 10**3), "float32", "0" * 64)}, {}
    )
    manifest.write(files.epath.Path(pair / "2"), huge)
    shutil.rmtree(pair / "1")
    with (
        open_checkpoints(pair) as checkpoints,
        pytest.raises(CheckpointError, match=r"bytes, but its arrays 4,000,000,000,000"),
    ):
        checkpoints.restore(wanted)


def test_a_step_that_is_a_file_or_a_link_to_itself(pair):
    shutil.rmtree(pair / "2")
    (pair / "2").write_text("")
    assert_falls_back(pair, "manifest.json cannot be read")
    (pair / "3").symlink_to(pair / "3")
    with open_checkpoints(pair) as checkpoints:
        assert checkpoints.restore(abstract(make_state(1)))[1] == 1


def test_no_good_step_is_an_error_that_lists_each_and_stays_one(pair):
    for step in (1, 2):
        (pair / str(step) / "manifest.json").write_text("")
    wanted = abstract(make_state(1))
    with open_checkpoints(pair) as checkpoints:
        with pytest.raises(CheckpointError, match=r"none of the .* is good") as caught:
            checkpoints.restore(wanted)
        assert "step 2: manifest.json cannot be read" in str(caught.value)
        assert "step 1: manifest.json cannot be read" in str(caught.value)
        # Starting again must not look like a new run.
        with pytest.raises(CheckpointError, match=r"1\.damaged-1: set aside earlier"):
            checkpoints.restore(wanted)


def test_a_later_format_is_not_damage(pair):
    path = pair / "2" / "manifest.json"
    body = json.loads(path.read_text())
    del body["digest"]
    body["format"] = 2
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    body["digest"] = hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()
    path.write_text(json.dumps(body))
    with (
        open_checkpoints(pair) as checkpoints,
        pytest.raises(CheckpointError, match="written in format 2"),
    ):
        checkpoints.restore(abstract(make_state(1)))
    assert names(pair) == ["1", "2"]


# -------------------------------------------------------------------------- interrupted operations


def test_leftovers_of_interrupted_operations_are_removed_and_nothing_else(pair):
    (pair / "3" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (pair / "3.unfinished").write_text("")
    (pair / "4").mkdir()  # written, but the manifest had not been
    (pair / "4" / "file").write_text("x")
    (pair / "4.unfinished").write_text("")
    (pair / "2.unfinished").write_text("")  # declared, but the mark was left
    for kept in ("notes.txt", "x.unfinished", "best.orbax-checkpoint-tmp", "7.damaged-1"):
        (pair / kept).mkdir()
    open_checkpoints(pair).close()
    assert names(pair) == sorted(
        ["1", "2", "notes.txt", "x.unfinished", "best.orbax-checkpoint-tmp", "7.damaged-1"]
    )


def test_an_unfinished_replacement_is_undone(pair):
    (pair / "2").rename(pair / "2.replaced")
    (pair / "2").mkdir()
    (pair / "2.unfinished").write_text("")
    with open_checkpoints(pair) as checkpoints:
        restored, step = checkpoints.restore(abstract(make_state(2)))
    assert step == 2
    assert_same(restored, make_state(2))
    assert names(pair) == ["1", "2"]


def test_a_cut_at_any_operation_leaves_a_good_step(tmp_path, monkeypatch):
    """Each file operation of a rotating save in turn is the last that happens."""
    first, second = {"w": jnp.arange(3.0)}, {"w": jnp.arange(3.0) + 1}
    saved_once = tmp_path / "start"
    with open_checkpoints(saved_once, keep=1) as checkpoints:
        checkpoints.save(1, first)

    class Cut(BaseException):
        pass

    def run(directory: Path, last: int, step: int) -> int:
        """Counts operations; raises at number `last` and at all later ones, as a kill would."""
        count, inside = 0, False

        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal count, inside
                if inside:  # Orbax itself uses the same functions, in its own threads
                    return function(*args, **kwargs)
                count += 1
                if count >= last:
                    if count == last and function.__name__ == "rmtree":  # it is cut half-way
                        shutil.rmtree(args[0] / "state")
                    raise Cut
                inside = True
                try:
                    return function(*args, **kwargs)
                finally:
                    inside = False

            return wrapper

        log = Lines()
        with monkeypatch.context() as patch:
            target = steps.StepDirectory(files.epath.Path(directory), log)
            for owner, name in (
                (type(target.root), "rename"),
                (type(target.root), "unlink"),
                (type(target.root), "rmtree"),
                (type(target.root), "write_text"),
                (arrays, "write"),
                (arrays, "read"),
                (files, "sync_tree"),
                (files, "write_synced"),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            host = {"w": np.asarray(second["w"])}
            leaf = manifest.Leaf((3,), "float32", leaves.digest(host["w"]))
            declared = manifest.Manifest(step, CONFIG, "data-1", {"w": leaf}, {})
            try:
                target.write(declared, host)
                target.retain(step, 1)
            except Cut:
                pass
        return count

    for step in (2, 1):  # the next step, and the same step again
        shutil.copytree(saved_once, tmp_path / f"whole{step}")
        total = run(tmp_path / f"whole{step}", 10**9, step)
        assert total >= 8
        seen = set()
        for last in range(1, total + 1):
            directory = tmp_path / f"cut{step}-{last}"
            shutil.copytree(saved_once, directory)
            run(directory, last, step)
            with open_checkpoints(directory, keep=1) as checkpoints:
                restored, found = checkpoints.restore(first)
                for declared in checkpoints.steps():  # also one that was about to be removed
                    restore_part(directory, {"w": None}, step=declared)
            value = np.asarray(restored["w"]).tolist()
            assert value in ([0, 1, 2], [1, 2, 3])
            assert (value == [1, 2, 3]) == (found == 2) or step == 1
            seen.add(value[0])
            assert all(name in ("1", "2") for name in names(directory)), names(directory)
        assert seen == {0, 1}


FORKS = """
    import os, signal, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    import numpy as np
    from jaxcl.checkpoint import Checkpoints

    def state(step):
        rng = np.random.default_rng(step)
        w, c = rng.standard_normal((64, 33)), rng.random(7)
        return {"step": np.int32(step), "w": w, "b": {"c": c}}

    # Imports are slow and start no device: one process imports, each trial is a fork of it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        if os.fork():
            continue
        directory = line.strip()
        acknowledged = os.open(directory + ".saved", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with Checkpoints(directory, keep=2, config={}, content_id="") as checkpoints:
            first = (checkpoints.steps() or [0])[-1] + 1
            print(os.getpid(), flush=True)
            for step in range(first, first + 1000):
                checkpoints.save(step, state(step))
                checkpoints.wait()
                os.write(acknowledged, b"%d\\n" % step)
        os._exit(0)
"""


def python(code: str, *arguments: str, **settings) -> subprocess.Popen:
    """A Python process that runs some code, with pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        **{"stdin": pipe, "stdout": pipe, "text": True, "cwd": ROOT} | settings,
    )


def wait_until_gone(pid: int) -> None:
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.005)
    raise AssertionError(f"process {pid} does not end")


def kill_trials(directory: Path, trials: int) -> None:
    """A chain of processes that save, each killed at a random time and followed by the next."""
    rng = random.Random(trials)
    wanted = {"step": np.int32(0), "w": np.zeros((64, 33)), "b": {"c": np.zeros(7)}}
    with python(FORKS) as server:
        assert server.stdout.readline() == "ready\n"
        newest, longest = 0, 0.0
        for trial in range(trials):
            print(directory, file=server.stdin, flush=True)
            pid = int(server.stdout.readline())
            if trial == 0:  # how long three saves take on this machine, now
                started = time.monotonic()
                while Path(f"{directory}.saved").read_text().count("\n") < 3:
                    time.sleep(0.01)
                    assert time.monotonic() - started < 120
                longest = time.monotonic() - started
            time.sleep(rng.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
            wait_until_gone(pid)
            acknowledged = [int(x) for x in Path(f"{directory}.saved").read_text().split()]
            with jax.enable_x64(True), open_checkpoints(directory) as checkpoints:
                found = checkpoints.restore(wanted)
            restored, newest = found
            assert newest >= max(acknowledged, default=0), trial
            assert all(name.isdigit() for name in names(directory)), names(directory)
            reference = np.random.default_rng(newest)
            assert int(restored["step"]) == newest
            assert raw(restored["w"]).tobytes() == reference.standard_normal((64, 33)).tobytes()
            assert raw(restored["b"]["c"]).tobytes() == reference.random(7).tobytes()
        assert newest > 3
        server.kill()


def test_kill_while_saving(tmp_path):
    kill_trials(tmp_path / "chain", 6)


@pytest.mark.slow
def test_kill_while_saving_many_times(tmp_path):
    kill_trials(tmp_path / "chain", 50)


# ------------------------------------------------------------------------------- failing storage


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "no space is left: OSError"), (errno.EIO, r"OSError: .*Input/output error")],
)
def test_a_write_that_fails_is_raised_at_the_next_call(tmp_path, monkeypatch, code, words):
    state = make_state(1)
    write = arrays.write

    def failing(directory, named):
        write(directory, named)
        raise OSError(code, os.strerror(code))

    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        for call in (
            lambda: checkpoints.save(3, state),
            checkpoints.wait,
            lambda: checkpoints.restore(abstract(state)),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(arrays, "write", failing)
                checkpoints.save(2, state)
                with pytest.raises(WriteError, match=words) as caught:
                    call()
            error = caught.value
            size = sum(raw(leaf).nbytes for leaf in jax.tree.leaves(state))
            assert (error.directory, error.step, error.needed) == (str(tmp_path), 2, size)
            assert error.free > 0
            assert f"could not save step 2 in {tmp_path}" in str(error)
            assert "step 1 is still there" in str(error)
            assert names(tmp_path) == ["1"]
            checkpoints.wait()  # it is raised once
        checkpoints.save(2, state)
    assert names(tmp_path) == ["1", "2"]


def test_poll_tells_of_a_failure_as_soon_as_it_is_known(tmp_path, monkeypatch):
    blocked = threading.Event()

    def failing(directory, named):
        assert blocked.wait(30)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(arrays, "write", failing)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.ones(2)})
    checkpoints.poll()
    blocked.set()

    def poll_for_long() -> None:
        for _ in range(3000):
            checkpoints.poll()
            time.sleep(0.01)

    with pytest.raises(WriteError, match="there is no older checkpoint"):
        poll_for_long()
    checkpoints.close()
    checkpoints.close()


def test_the_last_save_is_not_lost_in_silence(tmp_path, monkeypatch):
    def failing(directory, named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrays, "write", failing)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.ones(2)})
    with pytest.raises(WriteError):
        checkpoints.close()
    with pytest.raises(WriteError), open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
    log = Lines()

    def fail_while_saving() -> None:
        with open_checkpoints(tmp_path, log) as checkpoints:
            checkpoints.save(1, {"w": jnp.ones(2)})
            raise KeyError("the first")

    with pytest.raises(KeyError, match="the first"):
        fail_while_saving()
    assert len(log) == 1
    assert "could not save step 1" in log[0]


def test_a_failed_replacement_keeps_the_old_step(tmp_path, monkeypatch):
    def failing(directory, named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saved(tmp_path, 1)
    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(arrays, "write", failing)
            checkpoints.save(1, make_state(2))
            with pytest.raises(WriteError, match="step 1 is still there"):
                checkpoints.wait()
        restored, _ = checkpoints.restore(abstract(make_state(1)))
    assert_same(restored, make_state(1))


def test_what_reads_back_otherwise_is_not_saved(tmp_path, monkeypatch):
    write = arrays.write

    def corrupting(directory, named):
        write(directory, {**named, "w": named["w"] + 1})

    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(20)})
        checkpoints.wait()
        monkeypatch.setattr(arrays, "write", corrupting)
        checkpoints.save(2, {"w": jnp.ones(20)})
        with pytest.raises(WriteError, match="w reads back with other bits"):
            checkpoints.wait()
    assert names(tmp_path) == ["1"]


def test_a_quota_of_the_system_and_what_is_printed(tmp_path):
    """A true failure in the storage's own threads: files may not grow over a limit."""
    code = """
        import resource, sys
        import jax
        jax.config.update("jax_platforms", "cpu")
        import jax.numpy as jnp
        from jaxcl.checkpoint import Checkpoints, WriteError, restore_part

        small, large = ({k: jnp.arange(n, dtype=jnp.float32) for k in "vw"} for n in (100, 250_000))
        with Checkpoints(sys.argv[1], keep=1, config={}, content_id="") as checkpoints:
            checkpoints.save(1, small)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            for _ in range(2):
                checkpoints.save(2, large)
                try:
                    checkpoints.wait()
                except WriteError as error:
                    print(error)
            assert checkpoints.restore(small)[1] == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            checkpoints.save(2, large)
        assert restore_part(sys.argv[1], {"w": None})[1].step == 2
        print("end")
    """
    with python(code, str(tmp_path), stderr=subprocess.PIPE) as child:
        output, errors = child.communicate(timeout=120)
    lines = output.splitlines()
    assert child.returncode == 0, errors
    assert len(lines) == 3
    for line in lines[:2]:
        assert line.startswith(f"could not save step 2 in {tmp_path}: no space is left: ")
        assert "(needed 2 MB, free " in line
        assert line.endswith("what was written of it is removed; step 1 is still there")
    assert names(tmp_path) == ["2"]
    assert errors == ""


# --------------------------------------------------------------------- other models, other configs


def test_a_checkpoint_of_another_model_is_refused_with_its_leaves(pair):
    wanted = abstract(make_state(1))
    backbone = wanted["params"]["backbone"]
    backbone["conv_1"] = {"kernel": backbone.pop("conv")["kernel"]}
    wanted["params"]["head_main"]["kernel"] = jax.ShapeDtypeStruct((16, 8), jnp.bfloat16)
    wanted["keys"] = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    with (
        open_checkpoints(pair) as checkpoints,
        pytest.raises(OtherModelError) as caught,
    ):
        checkpoints.restore(wanted)
    error = caught.value
    assert error.missing == ("params/backbone/conv_1/kernel",)
    assert error.unexpected == ("params/backbone/conv/kernel",)
    assert error.mismatched == ("keys", "params/head_main/kernel")
    assert str(error) == textwrap.dedent(f"""\
        {pair}/2 is of another model than the one that is to be restored:
          not in the checkpoint: 1
            params/backbone/conv_1/kernel  (nearest: params/backbone/conv/kernel)
          only in the checkpoint: 1
            params/backbone/conv/kernel
          of another shape or dtype: 2
            keys  (key<rbg>[8] in the checkpoint, key<threefry2x32>[8] here)
            params/head_main/kernel  (float32[16,32] in the checkpoint, bfloat16[16,8] here)
        Use the config that the checkpoint was made with, or another directory.""")
    assert names(pair) == ["1", "2"]


def test_long_lists_of_leaves_are_cut(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {f"w{i}": jnp.ones(1) for i in range(40)})
        with pytest.raises(OtherModelError, match="and 28 more") as caught:
            checkpoints.restore({})
    assert len(caught.value.unexpected) == 40


def test_config_diff():
    old = {"a": {"b": (1, 2), "c": 1}, "d": {}, "e": True, "f": None, "g": "x"}
    new = {"a": {"b": [1, 2], "c": 2}, "d": {"k": 0}, "e": 1, "f": None, "h": "x"}
    assert config_diff(old, new) == [
        ("a.c", 1, 2),
        ("d", {}, ABSENT),
        ("d.k", ABSENT, 0),
        ("e", True, 1),
        ("g", "x", ABSENT),
        ("h", ABSENT, "x"),
    ]
    assert config_diff(old, old) == []
    assert config_diff({"rate": 1}, {"rate": 1.0}) == []
    assert str(ABSENT) == "absent"


def test_differences_to_the_running_config(pair):
    changed = {**CONFIG, "optim": {"rate": 0.5}}
    with open_checkpoints(pair, config=changed, content_id="data-2") as checkpoints:
        assert checkpoints.differences() == [
            ("optim.rate", 0.3, 0.5),
            ("content_id", "data-1", "data-2"),
        ]
    with open_checkpoints(pair) as checkpoints:
        assert checkpoints.differences() == []
        assert checkpoints.differences(changed) == [("optim.rate", 0.3, 0.5)]
        (pair / "2" / "manifest.json").write_text("")
        assert checkpoints.differences(changed) == [("optim.rate", 0.3, 0.5)]
    with open_checkpoints(pair / "none") as checkpoints:
        assert checkpoints.differences() == []


# ------------------------------------------------------------------------------------------ parts


PARTS = ("params/backbone", "batch_stats/backbone")


def test_restore_part(pair):
    state = make_state(2)
    part = {
        "params/backbone": abstract(state["params"]["backbone"]),
        "batch_stats/backbone": abstract(state["batch_stats"]["backbone"]),
    }
    for directory in (pair, pair.parent / "workdir"):
        if directory != pair:
            (directory / "checkpoints").parent.mkdir()
            shutil.copytree(pair, directory / "checkpoints")
        restored, found = restore_part(directory, part)
        assert_same(restored["params/backbone"], state["params"]["backbone"])
        assert_same(restored["batch_stats/backbone"], state["batch_stats"]["backbone"])
        assert found.step == 2
        assert found.config == CONFIG
    restored, found = restore_part(pair, part, step=1)
    assert_same(restored["params/backbone"], make_state(1)["params"]["backbone"])
    assert found.step == 1


def test_restore_part_as_it_is_stored(pair):
    state = make_state(2)
    restored, _ = restore_part(pair, {"params": None, "keys": None, "opt_state/0": None})
    assert_same(
        restored["params"],
        {k: v for k, v in state["params"].items() if v},
        shardings=False,
    )
    assert_same({"k": restored["keys"]}, {"k": state["keys"]}, shardings=False)
    assert_same(restored["opt_state/0"], {"trace": state["opt_state"][0].trace}, shardings=False)
    everything, found = restore_part(pair, {"": None})
    assert len(jax.tree.leaves(everything[""])) == len(found.leaves) == len(jax.tree.leaves(state))
    one, _ = restore_part(pair, {"step": jax.ShapeDtypeStruct((), jnp.int32)})
    assert int(one["step"]) == 2


def test_restore_part_reads_no_other_arrays(tmp_path):
    rng = np.random.default_rng(0)
    state = {"small": jnp.arange(50.0), "large": jnp.asarray(rng.random(500_000))}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    if not Path("/proc/self/io").exists():
        pytest.skip("no /proc: the bytes that a process reads are not counted here")
    before = bytes_read()
    restored, _ = restore_part(tmp_path, {"small": None})
    assert bytes_read() - before < 100_000
    assert np.array_equal(np.asarray(restored["small"]), np.arange(50.0))
    before = bytes_read()
    restore_part(tmp_path, {"large": None})
    assert bytes_read() - before > 2_000_000  # or else it would not be counted


def test_restore_part_refuses_missing_and_unused_leaves(pair):
    backbone = abstract(make_state(2)["params"]["backbone"])
    with pytest.raises(OtherModelError, match="not in the checkpoint") as caught:
        restore_part(pair, {"params/backbone": {**backbone, "extra": backbone["norm"]["scale"]}})
    assert caught.value.missing == ("params/backbone/extra",)
    with pytest.raises(OtherModelError, match="only in the checkpoint") as caught:
        restore_part(pair, {"params/backbone": {"norm": backbone["norm"]}})
    assert caught.value.unexpected == ("params/backbone/conv/kernel",)
    with pytest.raises(OtherModelError, match=r"under 'params/backbon' \(nearest: params/backb"):
        restore_part(pair, {"params/backbon": None})
    with pytest.raises(OtherModelError, match="nothing under 'step/x'"):
        restore_part(pair, {"step/x": None})


def test_restore_part_verifies_what_it_reads(pair):
    kernel = host_state(2)["params"]["backbone"]["conv"]["kernel"].tobytes()
    queue = host_state(2)["extra"]["queue"].tobytes()
    for content, part in ((kernel, "params/backbone"), (queue, "extra/queue")):
        ((file, at),) = [
            (f, at) for f in data_files(pair / "2") if (at := f.read_bytes().find(content)) >= 0
        ]
        flip(file, at + 5, 3)
        with pytest.raises(CheckpointError, match=rf"damaged: {part}.*not the bits"):
            restore_part(pair, {part: None})
        restore_part(pair, {"params/head_main": None})
        flip(file, at + 5, 3)
    assert names(pair) == ["1", "2"]


def test_read_manifest_and_its_errors(pair, tmp_path):
    assert read_manifest(pair).step == 2
    assert read_manifest(pair, step=1).step == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 in .*, but of 1, 2"):
        read_manifest(pair, step=7)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/empty, nor in .*/checkpoints"):
        read_manifest(tmp_path / "empty")
    (pair / "2" / "manifest.json").write_text("?")
    with pytest.raises(CheckpointError, match=r"/2 is damaged: manifest\.json cannot be read"):
        read_manifest(pair)


# ------------------------------------------------------------------------------ several processes

PROCESS = """
    import errno, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    directory, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from jaxcl import mesh
    from jaxcl.checkpoint import CheckpointError, Checkpoints, WriteError, arrays

    devices = mesh.make_mesh()
    replicated, sharded = NamedSharding(devices, P()), NamedSharding(devices, P("data"))
    place = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i])

    def state(step):
        x = np.arange(40, dtype=np.float32).reshape(8, 5) + step
        keys = jax.jit(lambda: jax.random.split(jax.random.key(step), 8), out_shardings=sharded)
        return {"r": place(x, replicated), "s": place(x * 2, sharded), "keys": keys()}

    log = []
    settings = dict(keep=2, config={}, content_id="", log=log.append, timeout=120)
    best = Checkpoints(directory + "2", **settings)
    with Checkpoints(directory, **settings) as checkpoints, best:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        if index == 0:
            def full(*_):
                raise OSError(errno.ENOSPC, "No space left on device")
            write, arrays.write = arrays.write, full
        checkpoints.save(4, state(4))
        try:
            checkpoints.wait()
            raise SystemExit("the failure is not known to this process")
        except WriteError as error:
            assert ("no space is left" in str(error)) == (index == 0), error
        if index == 0:
            arrays.write = write
            with open(directory + "/3/manifest.json", "w") as file:
                file.write("damaged")
        restored, step = checkpoints.restore(state(0))
        assert step == 2
        assert len(log) == (index == 0), log
        for name, leaf in restored.items():
            expected = state(2)[name]
            assert leaf.sharding == expected.sharding
            for a, b in zip(leaf.addressable_shards, expected.addressable_shards, strict=True):
                a, b = (jax.random.key_data(x.data) if name == "keys" else x.data for x in (a, b))
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        checkpoints.save(5, restored)
    # One process that does not come is an error with a time limit.
    if index == 0:
        try:
            Checkpoints(directory, **{**settings, "timeout": 1})
            raise SystemExit("no time limit")
        except CheckpointError as error:
            assert "not every process came" in str(error), error
    print("done")
"""


def test_two_processes(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    directory = str(tmp_path / "c")
    processes = [python(PROCESS, directory, port, str(i), stderr=subprocess.PIPE) for i in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=180)
        assert output.endswith("done\n"), errors[-3000:]
        assert process.returncode == 0, errors[-3000:]
    x = np.arange(40, dtype=np.float32).reshape(8, 5) + 2
    keys = jax.random.split(jax.random.key(2), 8)
    with open_checkpoints(tmp_path / "c") as checkpoints:
        restored, step = checkpoints.restore(
            {"r": jnp.asarray(x), "s": jnp.asarray(x), "keys": keys}
        )
    assert step == 5
    assert np.array_equal(np.asarray(restored["r"]), x)
    assert np.array_equal(np.asarray(restored["s"]), 2 * x)
    assert np.array_equal(raw(restored["keys"]), raw(keys))
