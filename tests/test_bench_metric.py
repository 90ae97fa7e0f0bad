"""The bench of metric learning: every line is printed, with and without the peer."""

import json
import math

import pytest

from jaxcl import bench_metric


def test_every_line_is_printed(capsys, monkeypatch, tmp_path):
    asked = []

    def peak(side, name, rows, options):
        asked.append((side, rows))
        return math.inf if side != "jaxcl" and rows > 16 else 2.5

    monkeypatch.setattr(bench_metric, "has_peer", lambda: True)
    monkeypatch.setattr(bench_metric, "peak_mib", peak)
    monkeypatch.setattr(bench_metric, "peer_run", lambda *a: lambda: None)
    path = tmp_path / "out.json"
    flags = ["--losses=NCA", "--rows=16,32,64", "--features=4", "--rounds=2", f"--json={path}"]
    bench_metric.main(flags)
    out = capsys.readouterr().out
    assert out.count("NCA") == 3
    assert out.count("> 4,096") == 2
    # A size that did not fit is not tried again with more.
    assert asked.count((bench_metric.PEER, 64)) == 0
    table = json.loads(path.read_text())["table"]
    assert [line["rows"] for line in table] == [16, 32, 64]
    assert table[0]["jaxcl ms"] > 0
    assert table[0]["ratio"]
    assert not table[1]["ratio"]


def test_without_the_peer_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(bench_metric, "has_peer", lambda: False)
    monkeypatch.setattr(bench_metric, "peak_mib", lambda *a: 1.0)
    bench_metric.main(["--losses=contrastive", "--rows=16", "--features=4", "--rounds=1"])
    assert "not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--losses=NCE: expected some of contrastive"):
        bench_metric.main(["--losses=NCE"])
