"""Factor tasks: what is done to the images, what they are labelled, and what is learned."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.evaluators import (
    Drawn,
    Features,
    Rotation,
    altered,
    check_factors,
    factor_of,
    predict_factor,
    raw_pixels,
    rotation,
)
from jaxcl.views import Jitter, Rotate, View, ViewProgram

SHAPE = (8, 8, 3)


def images(n, seed):
    """Bright at the top, so that every turn can be seen."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(200, 60, 8)[None, :, None, None]
    return np.clip(slope + rng.normal(0, 25, (n, *SHAPE)), 0, 255).astype(np.uint8)


def batches(pixels, first=0):
    for start in range(0, len(pixels), 16):
        part = pixels[start : start + 16]
        missing = 16 - len(part)
        yield {
            "image": np.pad(part, ((0, missing), *[(0, 0)] * 3)),
            "label": np.zeros((16, 2), np.int32),
            "index": np.pad(
                np.arange(first + start, first + start + len(part), dtype=np.int32),
                (0, missing),
                constant_values=-1,
            ),
            "mask": np.arange(16) < len(part),
        }


def taker(sets, seen=None):
    def take(splits, alter):
        if seen is not None:
            seen.append(tuple(splits))
        return [raw_pixels(altered(batches(sets[split]), alter)) for split in splits]

    return take


SETS = {
    "train": images(40, 0),
    "validation": images(20, 1),
    "last": images(60, 2),
    "test": images(36, 3),
}


def test_rotation_turns_every_image_four_times_and_says_which():
    pixels = images(20, 4)
    for turn in range(Rotation().copies):
        made = list(altered(batches(pixels), Rotation().alter(turn)))
        got = np.concatenate([b["image"][b["mask"]] for b in made])
        label = np.concatenate([b["label"][b["mask"]] for b in made])
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, np.rot90(pixels, turn, axes=(1, 2)))
        np.testing.assert_array_equal(label, np.full((20, 1), turn))


def test_rotation_is_predicted_where_it_can_be_seen_and_not_where_not():
    seen = []
    result = predict_factor(Rotation(), taker(SETS, seen), (1e-2, 1.0))
    assert result.accuracy > 0.95
    assert result.chance == 0.25
    assert (result.classes, result.queries, result.trained_on) == (4, 4 * 36, 4 * 60)
    assert seen == [("train", "validation", "last", "test")] * 4
    # An invariant feature: the mean colour.
    take = taker({k: np.broadcast_to(v.mean((1, 2), keepdims=True), v.shape).astype(np.uint8)
                  for k, v in SETS.items()})  # fmt: skip
    blind = predict_factor(Rotation(), take, (1e-2, 1.0))
    assert blind.accuracy == pytest.approx(0.25, abs=0.05)


def drawn_by_hand(task, index, copy):
    """The op's parameters of some images, drawn without the task's own code."""

    def draw(index):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(task.seed), copy), index)
        return {k: v[0] for k, v in task.program.draw(key, task.shape)[task.op].items()}

    return {k: np.asarray(v) for k, v in jax.jit(jax.vmap(draw))(np.asarray(index)).items()}


def test_a_drawn_parameter_is_applied_and_labelled_as_it_was_drawn():
    jitter = Jitter(prob=0.7, hue=0.5, brightness=0.3, contrast=0, saturation=0)
    task = Drawn(
        ViewProgram((("color", jitter),), (View(), View())), "color", "hue", bins=5, shape=SHAPE
    )
    assert (task.name, task.classes) == ("color.hue", 5)
    pixels = images(40, 5)
    made = list(altered(batches(pixels, first=100), task.alter(2)))
    got = np.concatenate([b["image"][b["mask"]] for b in made])
    label = np.concatenate([b["label"][b["mask"]] for b in made])[:, 0]
    edges = np.linspace(-0.5, 0.5, 6)[
        1:-1
    ]  # of the uniform distribution; the task's are a sample's
    drawn = drawn_by_hand(task, 100 + np.arange(40), 2)
    expected = jax.jit(jax.vmap(jitter.apply))(pixels / np.float32(255), drawn)
    np.testing.assert_allclose(got, np.round(255 * np.clip(expected, 0, 1)), atol=1)
    on = drawn["on"]
    assert 18 <= on.sum() <= 36
    assert (label[~on] == -1).all()
    np.testing.assert_array_equal(got[~on], pixels[~on])
    assert (got[on] != pixels[on]).any((1, 2, 3)).all()
    clear = on & (np.abs(edges - drawn["hue"][:, None]).min(1) > 0.03)
    np.testing.assert_array_equal(label[clear], np.searchsorted(edges, drawn["hue"][clear]))
    assert len(set(label[clear])) == 5
    counts = np.bincount(np.concatenate(
        [b["label"][b["mask"]][:, 0] for b in altered(batches(images(600, 6)), task.alter(0))]
    ) + 1)  # fmt: skip
    np.testing.assert_allclose(counts[1:] / counts[1:].sum(), 0.2, atol=0.06)
    again = list(altered(batches(pixels[16:], first=116), task.alter(2)))
    np.testing.assert_array_equal(again[0]["image"], made[1]["image"])  # whatever the batch


def test_few_values_are_classes_coins_and_orders_too():
    turn = Drawn(ViewProgram((("rotate", Rotate()),), (View(),)), "rotate", "angle", shape=SHAPE)
    assert turn.classes == 4
    made = next(altered(batches(images(16, 7)), turn.alter(0)))
    angles = drawn_by_hand(turn, np.arange(16), 0)["angle"]
    np.testing.assert_array_equal(made["label"][:, 0], angles // 90)
    assert factor_of("jitter.order", SHAPE).classes == 24
    coin = factor_of("flip.on", SHAPE)
    assert coin.classes == 2
    pixels = images(16, 8)
    made = next(altered(batches(pixels), coin.alter(0)))
    on = made["label"][:, 0] == 1
    assert 2 < on.sum() < 14
    np.testing.assert_array_equal(made["image"][on], pixels[on][:, :, ::-1])
    np.testing.assert_array_equal(made["image"][~on], pixels[~on])


def test_brightness_is_predicted_from_pixels_each_copy_having_its_own():
    task = factor_of("jitter.brightness", SHAPE)
    result = predict_factor(task, taker(SETS), (1e-2, 1.0))
    assert result.accuracy > result.chance + 0.2
    assert result.queries == 4 * 36  # always applied
    pixels = np.tile(images(1, 9), (16, 1, 1, 1))
    copies = [next(altered(batches(pixels), task.alter(copy)))["image"] for copy in range(2)]
    assert len({image.tobytes() for made in copies for image in made}) == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jiter.hue", "no op 'jiter'; did you mean 'jitter'"),
        ("jitter.huue", "draws no 'huue'; did you mean 'hue'"),
        ("jitter", "expected OP.PARAMETER, as in jitter.hue"),
        ("jitter.", "expected OP.PARAMETER"),
        ("texture.gains[0,]", "expected OP.PARAMETER"),
        ("crop.box", "only single numbers .* as in crop.box\\[0\\]"),
        ("texture.gains", "only single numbers .* as in texture.gains\\[0,0\\]"),
        ("texture.gains[1]", "has the shape \\[3, 3\\]; expected 2 number"),
        ("texture.gains[0,3]", "has the shape \\[3, 3\\]; expected 2 number"),
        ("jitter.hue[0]", "has the shape \\[\\]; expected 0 number"),
        ("run:rotat.angle", "the run's views have no op 'rotat'; did you mean 'rotate'"),
    ],
)
def test_factors_are_checked(text, message):
    program = ViewProgram((("rotate", Rotate()),), (View(),))
    with pytest.raises(ValueError, match=message):
        factor_of(text, SHAPE, program=program)
    if text.startswith("run:"):
        with pytest.raises(ValueError, match="the run's views have no op 'rotat'; known: "):
            factor_of(text, SHAPE)
    elif "expected OP" in message:
        with pytest.raises(ValueError, match=message):
            check_factors((text,))


def test_a_component_of_an_array_is_cut_into_classes():
    """The gain of one band, and a side of a crop's box: what was drawn for it, and nothing else, is the class."""
    for text, op, field, place in (
        ("texture.gains[1,2]", "texture", "gains", (1, 2)),
        ("crop.box[3]", "crop", "box", (3,)),
    ):
        task = factor_of(text, (40, 40, 3), seed=3)
        assert (task.name, task.classes) == (text, 4)
        pixels = np.random.default_rng(0).integers(0, 256, (300, 40, 40, 3), np.uint8)
        label = np.concatenate(
            [b["label"][b["mask"]][:, 0] for b in altered(batches(pixels), task.alter(1))]
        )
        drawn = drawn_by_hand(task, np.arange(300), 1)[field][(slice(None), *place)]
        for low, high in itertools.pairwise(range(4)):
            assert drawn[label == low].max() <= drawn[label == high].min(), text
        assert np.bincount(label, minlength=4).min() > 40
        assert dict(task.program.ops)[op].prob == 1


def test_the_runs_own_op_is_asked_with_its_settings():
    own = ViewProgram(
        (("turn", Rotate(angles=(90.0, 270.0), prob=0.3)), ("jitter", Jitter(hue=0.01))),
        (View(), View(share={"turn": 0})),
    )
    task = factor_of("run:turn.angle", SHAPE, program=own)
    assert (task.classes, dict(task.program.ops)["turn"].angles) == (2, (90.0, 270.0))
    made = next(altered(batches(images(16, 7)), task.alter(0)))
    assert set(made["label"][:, 0]) == {0, 1}  # every image is asked about
    coin = factor_of("run:turn.on", SHAPE, program=own)
    labels = [b["label"][b["mask"]][:, 0] for b in altered(batches(images(400, 8)), coin.alter(0))]
    assert np.concatenate(labels).mean() == pytest.approx(0.3, abs=0.08)
    hue = factor_of("run:jitter.hue", SHAPE, program=own)
    assert np.abs(hue._edges).max() < 0.01
    assert np.abs(factor_of("jitter.hue", SHAPE, program=own)._edges).max() > 0.05


def test_of_large_splits_a_sample_is_learned_from_and_the_rest_is_counted():
    """The same images in all copies, by the seed; the test images are all scored."""
    seen = []

    def taking(splits, alter):
        found = [raw_pixels(altered(batches(SETS[split]), alter)) for split in splits]
        seen.append([len(features) for features in found])
        return found

    whole = predict_factor(Rotation(), taking, (1e-2,))
    assert (whole.trained_on, whole.left_out, whole.queries) == (240, 0, 144)
    some = predict_factor(Rotation(), taking, (1e-2,), most=48, seed=1)
    assert (some.trained_on, some.left_out, some.queries) == (48, 48, 144)
    assert seen == [[40, 20, 60, 36]] * 8
    again = predict_factor(Rotation(), taking, (1e-2,), most=48, seed=1)
    assert again == some
    # With a feature that is the image's number, what is learned from can be read off.
    kept = []

    def numbered(splits, alter):
        return [
            Features(
                np.arange(len(SETS[s]), dtype=np.float32)[:, None],
                np.full((len(SETS[s]), 1), alter, np.int32),
            )
            for s in splits
        ]

    class Turn:
        name, classes, copies = "turn", 4, 4

        def alter(self, copy):
            return copy

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        real = rotation.linear_probe

        def probe(train, validation, test, *rest, **settings):
            kept.append(
                [(f.h[:, 0].astype(int), f.labels[:, 0]) for f in (train, settings["refit"], test)]
            )
            return real(train, validation, test, *rest, **settings)

        patch.setattr(rotation, "linear_probe", probe)
        predict_factor(Turn(), numbered, (1e-2,), most=48)
    for (rows, turns), count in zip(kept[0], (12, 12, 36), strict=True):
        for turn in range(4):
            np.testing.assert_array_equal(rows[turns == turn], rows[turns == 0])
        assert len(set(rows)) == count


def test_a_program_that_never_draws_it_and_one_value():
    program = functools.partial(ViewProgram, views=(View(),))
    never = program((("rotate", Rotate(prob=0.0)),))
    with pytest.raises(ValueError, match="never applied"):
        Drawn(never, "rotate", "angle", shape=SHAPE)
    one = program((("rotate", Rotate(angles=(180.0,))),))
    with pytest.raises(ValueError, match="only one value"):
        Drawn(one, "rotate", "angle", shape=SHAPE)
    with pytest.raises(ValueError, match="bins=1"):
        Drawn(program((("rotate", Rotate()),)), "rotate", "angle", bins=1, shape=SHAPE)


def test_altered_keeps_floats_and_labels():
    batch = {"image": np.full((2, 4, 4, 1), 0.5, np.float32), "label": np.ones((2, 1), np.int32)}
    batch["index"] = np.arange(2)
    (made,) = altered([batch], lambda x, index: (x + jnp.asarray(index)[:, None, None, None], None))
    np.testing.assert_allclose(made["image"][1], 1.5)
    assert made["label"] is batch["label"]
