"""The bench: what its figures are made of, and that every table is printed."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxcl.bench import __main__ as command
from jaxcl.bench import cache, loss, memory, timing


def test_a_ratio_is_the_median_over_pairs_with_its_interval():
    rng = np.random.default_rng(0)
    reference = rng.uniform(1, 9, 51)
    factors = 0.5 * np.exp(rng.normal(size=51))
    ratio = timing.ratio_of(factors * reference, reference)
    ordered = np.sort(factors)
    np.testing.assert_allclose(ratio.median, ordered[25])
    # Order statistics 19 and 33 of 51 hold the median in 95 % of samples (binomial, by table).
    np.testing.assert_allclose([ratio.low, ratio.high], [ordered[18], ordered[32]])
    assert str(timing.Ratio(0.5, 0.25, 1)) == "0.50 [0.25, 1.00]"
    assert timing.ratio_of([2.0], [4.0]) == timing.Ratio(0.5, 0.5, 0.5)


def test_every_round_runs_all_from_another_one_on():
    calls = []
    runs = [lambda name=name: calls.append(name) for name in "abc"]
    seconds = timing.interleaved(runs, rounds=4)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert [len(s) for s in seconds] == [4, 4, 4]


def test_every_table_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(loss, "peers", lambda: ("lightly",))
    monkeypatch.setattr(loss, "peer_run", lambda name, z: lambda: None)
    peaks = {"plain": 9.0, "dense": 4.0, "tiled": 2.0, "lightly": math.inf}
    asked = []

    def peak(form, views, options, devices):
        asked.append((form, views, devices))
        return peaks.get(form, 1.5)

    monkeypatch.setattr(loss, "peak_mib", peak)
    monkeypatch.setattr(loss, "temporary_mib", lambda form, views, *rest: views * len(form))
    run = jax.jit(lambda z: (jnp.sum(z), z + 1))
    monkeypatch.setattr(loss, "loss_and_gradient", lambda form, mesh=None: run)
    line = "loss --views=16,32 --memory_views=32,64 --features=4 --rounds=2 --devices=2 --run=32"
    found = loss.bench(command.flags().parse_args(line.split()))
    out = capsys.readouterr().out
    for words in ("temporary memory", "peak memory", "time on one device", "time on 2 devices"):
        assert words in out
    assert "does not fit" in out
    assert "> 4,096" in out
    assert "32 views really run" in out
    # A size that did not fit is not tried again with more.
    assert ("lightly", 16, 1) in asked
    assert ("lightly", 32, 1) not in asked
    assert [form for form, views, devices in asked if (views, devices) == (32, 2)] == [*loss.FORMS]
    assert [entry["views"] for entry in found["memory"]] == [32, 64]
    assert [entry["views"] for entry in found["time"]] == [16, 32]
    assert {"dense", "tiled", "ring"} <= set(found["devices"][0])
    json.dumps(found["memory"] + found["time"] + found["devices"])
    assert "the Pallas kernel has columns on a TPU" in out


def test_what_auto_takes_is_what_a_call_takes():
    """In a process of 8 devices, and with a mesh of them."""
    assert [loss.auto_takes(views, 128) for views in (1024, 2048, 4096)] == [
        "dense",
        "tiled",
        "tiled",
    ]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert [loss.auto_takes(views, 128, mesh) for views in (2048, 8192)] == ["dense", "ring"]


@pytest.mark.optimised
@pytest.mark.slow
def test_the_kernel_is_compiled_and_modelled(capsys):
    pytest.importorskip("libtpu", reason="compiling for TPU needs the libtpu wheel")
    line = "loss --views=3000,4096 --features=128 --topology=v5e:2x2"
    (found,) = loss.kernel_table(command.flags().parse_args(line.split()))
    assert found["views"] == 4096
    # 3 products of 1,024 rows with 4,096, in six passes of bfloat16.
    expected = 1000 * 6 * 1024 * 4096 * 128 / (197e12 / 6)
    np.testing.assert_allclose(found["pallas"]["products ms"], expected, rtol=1e-6)
    # The loops know that rows meet themselves: half of their own block, less than the whole.
    assert 0.8 * expected <= found["xla"]["products ms"] <= expected
    for part in ("xla", "pallas"):
        assert found[part]["memory ms"] > 0
    # The kernel has its tiles on the chip, and needs no temporaries.
    assert found["pallas"]["MiB"] < found["xla"]["MiB"] < 8
    assert "MODELLED" in capsys.readouterr().out


def test_a_peak_is_that_of_a_process_of_its_own():
    """64 MiB that are touched, whatever this process holds; what is more than the limit is told as infinite."""
    here = np.ones(2**24)
    assert 60 <= memory.peak_mib(touched, (64,), 1) <= 80
    assert memory.peak_mib(touched, (4096,), 0.5) == math.inf
    assert here.all()


def touched(mib):
    """A run that fills so much memory."""
    return lambda: np.full(mib * 2**17, 1.0).sum()


@pytest.mark.optimised
@pytest.mark.slow
def test_micro_batches_really_measured(capsys):
    """A small network: less memory, the same gradient."""
    line = "cache --images=18 --micro_batches=2 --width=0.03125 --features=4 --rounds=1"
    found = cache.bench(command.flags().parse_args(line.split()))
    assert "gradient in 2 micro-batches" in capsys.readouterr().out
    for name in ("groups", "global"):
        assert 0 < found[name]["gradient off by"]["float64"] < 1e-12
        assert found[name]["gradient off by"]["float32"] > 0
        for which in ("one shot off", "micro off"):  # of the same batch in float64
            assert 1e-9 < found[name]["gradient off by"][which] < 1e-2
        assert 0 < found[name]["micro-batches MiB"] < found[name]["one shot MiB"]


@pytest.mark.optimised
@pytest.mark.slow
def test_a_peak_of_the_loss_is_that_of_its_matrices():
    options = command.flags().parse_args(["loss", "--features=8", "--peer_gib=1"])
    # Two copies of a matrix of 16 MiB, and at most a few more than that.
    assert 32 <= loss.peak_mib("plain", 2048, options) <= 96
    assert loss.peak_mib("plain", 16384, options) == math.inf
    # On devices: a matrix in parts, and none at all.
    assert loss.peak_mib("dense", 4096, options, 2) > 64 > loss.peak_mib("ring", 4096, options, 2)


def test_a_flag_of_another_bench_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["cache", "--rows=16"])
    assert "unrecognized arguments: --rows=16" in capsys.readouterr().err
