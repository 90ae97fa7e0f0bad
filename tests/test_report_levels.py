"""The picture of an embedding, coloured once for each label level."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from jaxcl import report

LABELS = np.array([[0, 0], [0, 1], [0, 1], [1, 0], [1, 2], [2, 2], [-1, 2], [1, -1]], np.int32)
NAMES = (("a", "b", "$c_"), ("x", "y", "z"))


def hues(colours):
    return np.array([colorsys.rgb_to_hls(*colour)[0] for colour in colours])


def test_relatives_have_like_colours():
    coarse, fine = report.tree_colours(LABELS[:, :1]), report.tree_colours(LABELS)
    assert coarse.shape == fine.shape == (8, 3)
    # Three classes share the circle; a class's hue lies in the middle of its third.
    np.testing.assert_allclose(hues(coarse)[[0, 3, 5]], [1 / 6, 1 / 2, 5 / 6], atol=1e-6)
    np.testing.assert_array_equal(coarse[[1, 2]], coarse[[0, 0]])
    # Two children halve their parent's third, one has all of it.
    np.testing.assert_allclose(
        hues(fine)[[0, 1, 3, 4, 5]], [1 / 12, 3 / 12, 5 / 12, 7 / 12, 10 / 12], atol=1e-6
    )
    np.testing.assert_array_equal(fine[1], fine[2])
    # The same name under two parents is two classes.
    assert np.abs(fine[4] - fine[5]).max() > 0.1
    # Without a label at a level: grey.
    assert len(set(coarse[6].tolist())) == 1
    np.testing.assert_array_equal(fine[6], fine[7])
    np.testing.assert_array_equal(fine[6], coarse[6])
    assert len(set(coarse[7].tolist())) > 1


@pytest.mark.parametrize("shown", [(), ("fine",)])
def test_the_picture_has_a_panel_for_each_level(shown):
    x = np.random.default_rng(0).normal(size=(8, 5))
    sheet = report.LevelSheet(x, LABELS, ("coarse", "fine"), NAMES, shown)
    picture = Image.open(io.BytesIO(report.levels_png(sheet, "some\x1b cell")))
    assert picture.format == "PNG"
    assert picture.width == pytest.approx(4.4 * 150 * (len(shown) or 2), abs=2)
    found = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    wanted = set()
    for depth in (1, 2) if not shown else (2,):
        colours = np.rint(255 * report.tree_colours(LABELS[:, :depth])).astype(int)
        wanted |= set(map(tuple, colours.tolist()))
    assert wanted <= found
    if shown:
        assert tuple(np.rint(255 * report.tree_colours(LABELS[:1, :1])[0]).astype(int)) not in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros((7, 2))}, r"must be \[8, F\]"),
        ({"features": np.full((8, 2), np.nan)}, "not finite"),
        ({"labels": LABELS[:, :1]}, r"expected labels \[8, L\]"),
        ({"labels": LABELS[:, :0], "levels": ()}, "L >= 1 levels"),
        ({"shown": ("kind",)}, "no level 'kind'; there are"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    fields = {
        "features": np.zeros((8, 2)),
        "labels": LABELS,
        "levels": ("coarse", "fine"),
        "names": NAMES,
    }
    with pytest.raises(ValueError, match=message):
        report.LevelSheet(**{**fields, **changes})
