"""Which images of a run its report reads."""

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh
from tiny_network import build

from jaxcl import data
from jaxcl.data import DataConfig, LabelTree
from jaxcl.data.base import BadExample, Described
from jaxcl.evaluators import EvalConfig, Online
from jaxcl.report import run
from jaxcl.views import Flip, View, ViewProgram

SETTINGS = DataConfig(image_size=8, channels=1, threads=1)


class Files(Described):
    """45 grey images, each of its number, that remembers which of them have been read."""

    content_id = "45 numbers"
    tree = LabelTree(("parity",), (("even", "odd"),))
    labels = np.arange(45, dtype=np.int32)[:, None] % 2

    def __init__(self):
        self.read = []

    def __len__(self):
        return 45

    def __getitem__(self, index):
        self.read.append(index)
        return {"image": np.full((8, 8, 1), index, np.uint8), "label": self.labels[index]}

    def name(self, index):
        return f"number {index}"


def test_pictures_of_views_pass_over_images_that_cannot_be_read():
    class Damaged(Files):
        def __getitem__(self, index):
            if index % 4:
                raise BadExample(self.name(index), "not an image")
            return super().__getitem__(index)

    config = {"seed": 0, "data": {"image_size": 8, "channels": 1}}
    views = ViewProgram((("flip", Flip()),), (View(), View()))
    originals, made, names = run.augmented(Damaged(), views, config)
    # 0, 4, ..., 44 are the twelve that can be read.
    assert sorted(names) == sorted(f"number {i}" for i in range(0, 45, 4))
    assert sorted(originals[:, 0, 0, 0]) == list(range(0, 45, 4))
    assert made.shape[:2] == (12, 2)


@pytest.mark.parametrize("write", [True, False])
def test_a_report_reads_no_more_images_than_it_shows(write, monkeypatch, tmp_path):
    """On each process those of which it takes features; on the one that writes, also those that are shown."""
    shown, trained_on, written = Files(), Files(), []
    monkeypatch.setattr(data, "load", lambda config, split: shown)
    monkeypatch.setattr(run, "LIMIT", 10)
    monkeypatch.setattr(run, "write_report", lambda path, report: written.append(report))
    config = EvalConfig(gallery="train", validation="val", test="test", batch_size=4, ks=(1,))
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    online = Online(config, SETTINGS, build(), mesh)
    run.run_report(
        epath.Path(tmp_path),
        "numbers",
        {
            "seed": 0,
            "method": {"name": "simclr"},
            "model": {"name": "tiny"},
            "data": {"image_size": 8, "channels": 1},
        },
        trained_on,
        ViewProgram((("flip", Flip()),), (View(), View())),
        online,
        {"raw pixels": None, "the same": None},
        write=write,
    )
    kept = list(range(0, 45, 5))
    assert sorted(shown.read) == sorted(kept * (3 if write else 2))
    assert len(trained_on.read) == (run.PAIRS if write else 0)
    if not write:
        assert not written
        return
    _, _, neighbours, plane, _ = written[0].sections
    for section in (neighbours, plane):
        assert list(section.gallery.captions) == [f"number {i}" for i in kept]
        np.testing.assert_array_equal(section.gallery.images[:, 0, 0, 0], kept)
        np.testing.assert_array_equal(section.gallery.labels[:, 0], np.array(kept) % 2)
        for h in section.features.values():
            np.testing.assert_allclose(h[:, 0] * 255, kept, atol=1e-4)
    assert written[0].facts["shown"].startswith("test: 45 images")
