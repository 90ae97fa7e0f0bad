"""The bench: what its figures are made of, and that every table is printed."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import bench


def test_a_ratio_is_the_median_over_pairs_with_its_interval():
    rng = np.random.default_rng(0)
    reference = rng.uniform(1, 9, 51)
    factors = 0.5 * np.exp(rng.normal(size=51))
    ratio = bench.ratio_of(factors * reference, reference)
    ordered = np.sort(factors)
    np.testing.assert_allclose(ratio.median, ordered[25])
    # Order statistics 19 and 33 of 51 hold the median in 95 % of samples (binomial, by table).
    np.testing.assert_allclose([ratio.low, ratio.high], [ordered[18], ordered[32]])
    assert str(bench.Ratio(0.5, 0.25, 1)) == "0.50 [0.25, 1.00]"
    assert bench.ratio_of([2.0], [4.0]) == bench.Ratio(0.5, 0.5, 0.5)


def test_every_round_runs_all_from_another_one_on():
    calls = []
    runs = [lambda name=name: calls.append(name) for name in "abc"]
    seconds = bench.interleaved(runs, rounds=4)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert [len(s) for s in seconds] == [4, 4, 4]


def test_every_table_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(bench, "peers", lambda: ("lightly",))
    monkeypatch.setattr(bench, "peer_run", lambda name, z: lambda: None)
    peaks = {"plain": 9.0, "dense": 4.0, "tiled": 2.0, "lightly": math.inf}
    asked = []

    def peak(form, views, options):
        asked.append((form, views))
        return peaks[form]

    monkeypatch.setattr(bench, "peak_mib", peak)
    monkeypatch.setattr(bench, "temporary_mib", lambda form, views, *rest: views * len(form))
    run = jax.jit(lambda z: (jnp.sum(z), z + 1))
    monkeypatch.setattr(bench, "loss_and_gradient", lambda form, mesh=None: run)
    line = "loss --views=16,32 --memory_views=32,64 --features=4 --rounds=2 --devices=2 --run=32"
    found = bench.bench_loss(bench.flags().parse_args(line.split()))
    out = capsys.readouterr().out
    for words in ("temporary memory", "peak memory", "time on one device", "time on 2 devices"):
        assert words in out
    assert "does not fit" in out
    assert "> 4,096" in out
    assert "32 views really run" in out
    # A size that did not fit is not tried again with more.
    assert asked.count(("lightly", 32)) == 0
    assert [entry["views"] for entry in found["memory"]] == [32, 64]
    assert [entry["views"] for entry in found["time"]] == [16, 32]
    assert {"dense", "tiled", "ring"} <= set(found["devices"][0])
    json.dumps(found["memory"] + found["time"] + found["devices"])


@pytest.mark.slow
def test_a_peak_is_that_of_a_process_of_its_own():
    options = bench.flags().parse_args(["loss", "--features=8", "--peer_gib=1"])
    # Two copies of a matrix of 16 MiB, and at most a few more than that.
    assert 32 <= bench.peak_mib("plain", 2048, options) <= 96
    assert bench.peak_mib("plain", 16384, options) == math.inf
