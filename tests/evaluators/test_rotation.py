"""Factor tasks: what is done to the images, what they are labelled, and what is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.evaluators import Drawn, Rotation, altered, factor_of, predict_factor, raw_pixels
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
        ("jitter", "draws no ''"),
        ("crop.box", "of their own shape"),
        ("cutout.box", "only single numbers"),
    ],
)
def test_factors_are_checked(text, message):
    with pytest.raises(ValueError, match=message):
        factor_of(text, SHAPE)


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
