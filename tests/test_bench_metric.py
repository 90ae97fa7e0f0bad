"""The bench of metric learning: every line is printed, with and without the peer."""

import json
import math

import pytest

from jaxcl.bench import __main__ as command
from jaxcl.bench import metric


def test_every_line_is_printed(capsys, monkeypatch, tmp_path):
    asked = []

    def peak(side, name, rows, options):
        asked.append((side, rows))
        return math.inf if side != "jaxcl" and rows > 16 else 2.5

    monkeypatch.setattr(metric, "has_peer", lambda: True)
    monkeypatch.setattr(metric, "peak_mib", peak)
    monkeypatch.setattr(metric, "peer_run", lambda *a: lambda: None)
    path = tmp_path / "out.json"
    flags = ["--losses=NCA", "--rows=16,32,64", "--features=4", "--rounds=2", f"--json={path}"]
    command.main(["metric", *flags])
    out = capsys.readouterr().out
    assert out.count("NCA") == 3
    assert out.count("> 4,096") == 2
    # A size that did not fit is not tried again with more.
    assert asked.count((metric.PEER, 64)) == 0
    table = json.loads(path.read_text())["table"]
    assert [line["rows"] for line in table] == [16, 32, 64]
    assert table[0]["jaxcl ms"] > 0
    assert table[0]["ratio"]
    assert not table[1]["ratio"]


def test_without_the_peer_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(metric, "has_peer", lambda: False)
    monkeypatch.setattr(metric, "peak_mib", lambda *a: 1.0)
    command.main(["metric", "--losses=contrastive", "--rows=16", "--features=4", "--rounds=1"])
    assert "not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--losses=NCE: expected some of contrastive"):
        command.main(["metric", "--losses=NCE"])


def test_every_family_runs():
    """Loss and gradients of a few rows; of what has proxies, theirs too."""
    for name in metric.OURS:
        loss, gradients = metric.our_run(name, 8, 4)()
        assert loss > 0, name
        assert [g.shape for g in gradients] == [(8, 4), (2, 4)][: len(gradients)]
        assert len(gradients) == 1 + (name in metric.WITH_PROXIES)


def test_really_measured(capsys):
    """In a process of its own, without anything replaced; the batch is small, and so is what it takes."""
    line = "metric --losses=contrastive --rows=512 --features=8 --rounds=1 --gib=2"
    found = metric.table(command.flags().parse_args(line.split()))
    (line,) = found
    # Some matrices of 512 x 512 floats, of 1 MiB.
    assert 1 <= line["jaxcl MiB"] <= 64
    assert line["jaxcl ms"] > 0
    assert "contrastive" in capsys.readouterr().out
