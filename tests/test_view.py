"""What is shown of views: the drawn parameters, and how much colour histograms tell."""

import io
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcl import config as config_lib
from jaxcl import view
from jaxcl.report import views as pictures
from jaxcl.views import Crop, Flip, Gray, Jitter, Solarize, View, ViewProgram, presets

ROOT = pathlib.Path(__file__).parents[1]


def program(**second):
    ops = (
        ("crop", Crop(size=8, scale=(0.3, 1.0), attempts=3)),
        ("flip", Flip(prob=1.0)),
        ("jitter", Jitter(strength=0.5)),
        ("gray", Gray(prob=0.5)),
    )
    return ViewProgram(ops, (View(), View(**second)))


def images(count=5, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, 12, 12, channels), np.uint8)


def test_histograms_against_loops():
    x = np.random.default_rng(1).random((3, 4, 5, 2)).astype(np.float32)
    x[0, 0, 0] = (0.0, 1.0)  # both ends are in a bin
    found = view.colour_histograms(x, bins=4)
    expected = np.zeros((3, 2, 4))
    for n, c in np.ndindex(3, 2):
        for pixel in x[n, :, :, c].reshape(-1):
            for k in range(4):
                if k / 4 <= pixel < (k + 1) / 4 or (k == 3 and pixel == 1):
                    expected[n, c, k] += 1 / 20
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_distances_against_loops():
    rng = np.random.default_rng(2)
    first, second = (view.colour_histograms(rng.random((n, 3, 3, 3)), 8) for n in (4, 2))
    found = view.distances(first, second)
    for i, j in np.ndindex(4, 2):
        each = [
            0.5 * sum(abs(first[i, c, k] - second[j, c, k]) for k in range(8)) for c in range(3)
        ]
        assert found[i, j] == pytest.approx(sum(each) / 3)
    assert view.distances(first, first)[0, 0] == 0
    black, white = (view.colour_histograms(np.full((1, 2, 2, 3), v)) for v in (0.0, 1.0))
    assert view.distances(black, white) == pytest.approx(1)


def test_separation_against_loops():
    matrix = np.round(np.random.default_rng(3).random((9, 9)), 1)  # with ties
    np.fill_diagonal(matrix, np.round(np.diag(matrix) / 2, 1))
    found = view.separation(matrix)
    wins, hits = [], []
    for i in range(9):
        for a, b in np.ndindex(9, 9):
            if a != b:
                wins.append((matrix[i, i] < matrix[a, b]) + 0.5 * (matrix[i, i] == matrix[a, b]))
        best = [j for j in range(9) if matrix[i, j] == min(matrix[i])]
        hits.append((i in best) / len(best))
    assert found.auc == pytest.approx(np.mean(wins))
    assert found.top1 == pytest.approx(np.mean(hits))
    assert found.same == pytest.approx(np.mean([matrix[i, i] for i in range(9)]))
    assert found.different == pytest.approx((matrix.sum() - np.trace(matrix)) / 72)
    assert view.separation(np.ones((4, 4))) == view.Separation(1, 1, 0.5, 0.25, 0.25)


def test_without_colour_the_crops_are_the_same():
    ops = (("crop", Crop(size=8, scale=(0.3, 1.0), attempts=3)), ("flip", Flip()), ("gray", Gray()))
    full = ViewProgram((*ops, ("sun", Solarize())), (View(), View({"sun": 0.7}, {"gray": 0})))
    plain = view.without_colour(full)
    keys = jax.random.split(jax.random.key(0), 5)
    a, b = jax.jit(full)(keys, images()), jax.jit(plain)(keys, images())
    np.testing.assert_array_equal(a.drawn["crop"]["box"], b.drawn["crop"]["box"])
    assert not np.asarray(b.drawn["sun"]["on"]).any()
    assert not np.asarray(b.drawn["gray"]["on"]).any()
    crop_and_flip = ViewProgram(ops[:2], (View(), View()))
    expected = jax.jit(crop_and_flip)(keys, images()).images
    np.testing.assert_allclose(b.images, expected, atol=1e-6)
    assert np.abs(np.asarray(a.images) - expected).max() > 0.1
    with pytest.raises(ValueError, match=r"have no colour op \(jitter, gray, solarize\)"):
        view.without_colour(crop_and_flip)


def test_colours_tell_partners_unless_they_are_distorted():
    """Images of one colour each: their crops have the same histogram until the jitter comes."""
    flat = np.repeat(np.random.default_rng(4).integers(0, 256, (24, 1, 1, 3), np.uint8), 12, 1)
    flat = np.repeat(flat, 12, 2)
    found = view.colour_evidence(program(), flat, seed=0)
    plain, distorted = (found.numbers[name] for name in found.numbers)
    assert plain["same"] == 0
    assert plain["top1"] > 0.9
    assert distorted["top1"] < 0.5
    assert distorted["same"] > 0.3
    picture = Image.open(io.BytesIO(pictures.histograms_png(found, "a $title_")))
    assert min(picture.size) > 400
    with pytest.raises(ValueError, match="two views and three images"):
        view.colour_evidence(program(), flat[:2], seed=0)


def test_the_sheet_tells_what_was_drawn():
    used = program(share={"jitter": 0}, prob={"flip": 0.0})
    sheet = view.sheet(used, images(2), ["one", "<two>"], seed=3)
    drawn = jax.jit(used)(jax.random.split(jax.random.key(3), 2), images(2)).drawn
    for i in range(2):
        first, second = (t.replace("\n", " ") for t in sheet.texts[i])
        box = " ".join(str(x) for x in np.asarray(drawn["crop"]["box"][i, 0]))
        assert f"crop: box {box}" in first
        assert f"hue {float(drawn['jitter']['hue'][i, 0]):.2f}" in first
        letters = " ".join("bcsh"[k] for k in np.asarray(drawn["jitter"]["order"][i, 0]))
        assert f"order {letters}" in first
        assert ("gray" in first) == bool(drawn["gray"]["on"][i, 0])
        assert "flip" in first
        assert "flip" not in second
        assert "jitter*: " in second
    for shown in (
        sheet,
        view.sheet(ViewProgram((), (View(),)), images(1, channels=1), ["gray"], 0),
    ):
        assert Image.open(io.BytesIO(pictures.sheet_png(shown, "title"))).format == "PNG"
    assert shown.texts == [["nothing"]]


def is_png(path):
    return Image.open(io.BytesIO(path.read_bytes())).format == "PNG"


def config(**changes):
    c = config_lib.base("simclr", presets.simclr(8, blur=False))
    c.name, c.steps = "tiny", 1
    c.data.name, c.data.image_size = "noise", 12
    c.views.order, c.views.ops.crop.attempts = ("crop", "gray"), 3
    c.update_from_flattened_dict(changes)
    return c


def test_pictures_and_numbers_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(view, "COUNTED", 6)
    built = config_lib.from_dict(config())
    view.show(built, str(tmp_path / "a" / "sheet.png"), False, 2, "train", 0)
    assert is_png(tmp_path / "a" / "sheet.png")
    found = view.show(built, str(tmp_path / "h.png"), True, 2, "train", 0)
    stored = json.loads((tmp_path / "h.json").read_text())
    assert stored == found
    assert stored["images"] == 6
    assert set(stored["with colour distortion"]) == {"same", "different", "auc", "top1", "chance"}
    assert "partner nearer than a stranger" in capsys.readouterr().out


@pytest.mark.filterwarnings(
    "ignore:the load_module:DeprecationWarning"
)  # ml_collections, when it reads the file
def test_the_command(tmp_path, monkeypatch, capsys):
    out = tmp_path / "sheet.png"
    path = tmp_path / "some.py"
    path.write_text("import test_view\ndef get_config():\n    return test_view.config()\n")
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    argv = [
        "view",
        f"--config={path}",
        f"--out={out}",
        "--images=1",
        "--config.views.ops.gray.prob=1.0",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    view.main(argv)
    assert "1 images with 2 views each" in capsys.readouterr().out
    assert is_png(out)
    argv = [
        "view",
        f"--config={path}",
        f"--out={out}",
        "--histograms",
        "--config.data.name=emoji",
        "--split=nothing",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match=r"jaxcl.view: .*nothing"):
        view.main(argv)


def test_help(capsys):
    view.main(["view", "--help"])
    text = capsys.readouterr().out
    assert "--[no]histograms" in text
    assert "Figure 6" in text
