"""The numbers that the study of LooC makes itself, on planted features whose answers are known."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
import pytest

from jaxcl import config as config_lib
from jaxcl import data, probe, study
from jaxcl.data import DataConfig
from jaxcl.evaluators import Features
from jaxcl.methods import LooC, MoCo

PATH = pathlib.Path(__file__).parents[1] / "configs" / "studies" / "looc.py"


@pytest.fixture(scope="module")
def looc():
    spec = importlib.util.spec_from_file_location("looc_study", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source():
    return data.load(DataConfig(name="emoji"), "test")


def noise(n, width, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def one_hot(numbers):
    return np.eye(numbers.max() + 1, dtype=np.float32)[numbers]


def is_flag(source):
    return np.array(
        [source.tree.describe(row).split("/")[1] == "country-flag" for row in source.labels]
    )


def test_flags_are_found_by_their_code_and_by_nothing_else(looc, source):
    flag = is_flag(source)
    codes = source.labels[:, 2]
    assert (flag.sum(), len(np.unique(codes[flag]))) == (136, 68)
    assert looc.flags(one_hot(codes), source) == 1
    # Chance is one of 68, whatever is known of drawings that are no flags.
    assert (
        looc.flags(
            np.where(flag[:, None], noise(len(flag), 40), 9 * one_hot(codes)[:, :40]), source
        )
        < 0.06
    )
    # Vendors apart and codes alike: the same vendor's drawings are nearer, and are not asked.
    apart = np.concatenate([one_hot(codes), 3 * one_hot(source.vendor)], 1)
    assert looc.flags(apart, source) == 1
    # Half of the flags known: those, and one of the others by chance.
    half = flag & (codes % 2 == 0)
    known = np.where(half[:, None], one_hot(codes), noise(len(flag), codes.max() + 1) / 9)
    assert looc.flags(known, source) == pytest.approx(half.sum() / flag.sum(), abs=0.06)


def test_turns(looc):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    turned, image, turn = looc.turns(images)
    for row in range(20):
        np.testing.assert_array_equal(turned[row], np.rot90(images[image[row]], turn[row]))
    assert sorted(zip(image, turn, strict=True)) == [(i, t) for i in range(5) for t in range(4)]


def test_neighbours_of_turned_images(looc, source):
    """Features of the image, of the turn, of both, and of nothing."""
    count = 60
    image, turn = np.tile(np.arange(count), 4), np.repeat(np.arange(4), count)
    spaces = {
        "image": one_hot(image) + 0.01 * noise(4 * count, count, 1),
        "turn": one_hot(turn) + 0.01 * noise(4 * count, 4, 2),
        "both": np.concatenate([3 * one_hot(image), one_hot(turn)], 1),
        "nothing": noise(4 * count, 30, 3),
    }
    found = looc.values({}, spaces, source, image, turn)
    assert found["same_image/image"] == 1
    assert found["same_turn/image"] == pytest.approx(0.25, abs=0.06)
    assert found["same_turn/turn"] == 1
    assert found["same_image/turn"] == 0  # its other turns are the farthest
    assert (found["same_image/both"], found["same_turn/both"]) == (1, 1)
    assert found["same_image/nothing"] == pytest.approx(1 / 80, abs=0.02)
    assert found["same_turn/nothing"] == pytest.approx(0.25, abs=0.04)


def config_of(looc, name, **changes):
    made = looc.get_study()
    return dataclasses.replace(made.config(made.cell(name), 0), **changes)


def test_what_the_spaces_are_called(looc):
    spaces = looc.spaces_of(config_of(looc, "looc_all"))
    assert spaces == {
        "h": "h",
        "heads:hidden": "heads",
        "z:projection_0": "invariant",
        "z:projection_1": "jitter+gray",
        "z:projection_2": "rotate",
        "z:projection_3": "texture",
    }
    assert looc.spaces_of(config_of(looc, "moco_all")) == {
        "h": "h",
        "heads:hidden": "heads",
        "z:projection": "z",
    }


def test_the_measure_asks_each_space_and_in_the_cell_of_floors_what_lies_below(
    looc, source, monkeypatch, tmp_path
):
    """A network whose spaces know the image, its turn, the code, or nothing."""
    small, image, turn = looc.turns(source.images[::40])
    by_pixels = {picture.tobytes(): n for n, picture in enumerate(small)}
    opened = []

    class Planted:
        def __init__(self, planted):
            self.planted = planted

        def features(self, batches):
            images = np.concatenate([batch["image"] for batch in batches])
            plain = len(images) == len(source)
            rows = [0] * len(images) if plain else [by_pixels[x.tobytes()] for x in images]
            every = {
                "nothing": noise(len(images), 20),
                "code": one_hot(source.labels[:, 2]) if plain else noise(len(images), 20),
                "image": noise(len(images), 20) if plain else one_hot(image[rows]),
                "turn": noise(len(images), 20) if plain else one_hot(turn[rows]),
            }
            labels = np.zeros((len(images), 0), np.int32)
            return {k: Features(every[v], labels) for k, v in self.planted.items()}

    def open_(workdir, more=(), trained=True):
        opened.append((workdir, tuple(more), trained))
        names = {
            "h": "image" if trained else "nothing",
            "heads:hidden": "code",
            "z:projection_0": "nothing",
            "z:projection_1": "turn",
        }
        return Planted(names if trained else {"h": "nothing", "z:other": "turn"})

    monkeypatch.setattr(probe.Spaces, "open", open_)
    config = config_of(looc, "looc_rotation")
    measure = looc.EachSpace(every=40)
    found = measure(str(tmp_path), config)
    assert opened == [(str(tmp_path), ("heads:hidden",), True)]
    kinds = ("flags", "same_image", "same_turn")
    spaces = ("h", "heads", "invariant", "rotate")
    assert set(found) == {f"{kind}/{space}" for kind in kinds for space in spaces}
    assert found["flags/heads"] == 1
    assert found["flags/h"] < 0.06
    assert (found["same_image/h"], found["same_turn/rotate"]) == (1, 1)
    assert found["same_turn/invariant"] < 0.4
    assert (tmp_path / "spaces.png").stat().st_size > 10_000

    floors = dataclasses.replace(config.evaluation, baselines=True)
    more = measure(str(tmp_path), dataclasses.replace(config, evaluation=floors))
    assert opened[-1] == (str(tmp_path), (), False)
    assert {k: more[k] for k in found} == found
    assert set(more) - set(found) == {
        f"{floor}/{kind}/h" for floor in study.FLOORS for kind in kinds
    }
    # An image and its turn have other pixels, and the two drawings of a flag much the same.
    assert more["raw pixels/flags/h"] > 0.3
    assert more["untrained encoder/flags/h"] < 0.06


def assert_twins(own, twin):
    """LooC and MoCo, as plain configs, differ in nothing but the method, whose common settings are the same, and its views."""
    ours, theirs = dict(own["method"]), dict(twin["method"])
    assert (ours.pop("name"), theirs.pop("name")) == ("looc", "moco")
    fields = [{f.name for f in dataclasses.fields(cls)} for cls in (LooC, MoCo)]
    common = set.intersection(*fields) - set(config_lib.GIVEN)
    # K, m, tau, the keys' BatchNorm, what is in an empty slot, and the head.
    assert common == {
        *("queue_size", "momentum", "momentum_schedule", "temperature", "bn", "fill", "projection"),
    }
    assert {k: ours[k] for k in common} == {k: theirs[k] for k in common}
    # Else MoCo's would be another one, of other negatives or with a predictor.
    assert (theirs["mechanism"], theirs["symmetric"], theirs["prediction"]["layers"]) == (
        "queue",
        False,
        (),
    )
    others = own.keys() - {"name", "method", "views"}
    assert {k: own[k] for k in others} == {k: twin[k] for k in others}
    assert own["views"]["order"] == twin["views"]["order"]
    assert own["views"]["ops"] == twin["views"]["ops"]


@pytest.mark.parametrize(
    ("own", "twin"),
    [
        ("looc_emoji:color,rotate", "looc_emoji:moco,color,rotate"),
        ("looc_emoji:texture,rotate", "looc_emoji:moco,texture,rotate"),
        ("looc_imagenet100:color", "looc_imagenet100:moco"),
        ("looc_imagenet100:color,rotation", "looc_imagenet100:moco,rotation"),
        ("looc_imagenet100:rotation,always", "looc_imagenet100:moco,rotation,always"),
        ("looc_imagenet100:rotation,texture", "looc_imagenet100:moco,rotation,texture"),
        ("looc_pp_imagenet100:rotation", "looc_imagenet100:moco,rotation"),
    ],
)
def test_a_config_and_its_twin_differ_in_the_method_alone(own, twin):
    assert_twins(
        *(
            config_lib.to_dict(config_lib.from_dict(config_lib.load(PATH.parents[1] / path)))
            for path in (text.replace(":", ".py:", 1) for text in (own, twin))
        )
    )


def test_the_papers_figures_stand_beside_cells_with_its_augmentations(looc):
    """Colour and rotation are all that the paper's tables have; and the hypotheses are the two of the docstring."""
    made = looc.get_study()
    for contrast in made.contrasts:
        if "from memory" in contrast.paper:
            assert not {"all", "texture"} & {
                name.split("_")[-1] for name in (contrast.higher, *contrast.lowers)
            }
    assert [(c.higher, c.lower, c.metric) for c in made.contrasts if c.primary] == [
        ("moco", "moco_rotation", looc.ANGLE),
        ("looc_rotation", "moco_rotation", looc.ANGLE),
    ]
    # Each LooC has its MoCo.
    for cell in made.cells:
        if cell.name.startswith("looc"):
            own, twin = (
                config_lib.to_dict(made.config(made.cell(name), 0))
                for name in (cell.name, cell.name.replace("looc", "moco"))
            )
            assert_twins(own, twin)
