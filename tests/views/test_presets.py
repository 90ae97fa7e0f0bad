"""The published programs build, and say what the publications say."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxcl import views
from jaxcl.views import presets

MAKERS = [
    presets.simclr,
    presets.simclr_v1,
    presets.simclr_cifar,
    presets.moco_v1,
    presets.moco_v2,
    presets.moco_v3,
    presets.moco_cifar,
    presets.supcon,
    presets.hierarchical,
    presets.looc,
    presets.crop_flip,
]


def ops(preset):
    return dict(views.build_program(views.ViewsConfig(**preset)).ops)


@pytest.mark.parametrize("make", MAKERS)
def test_presets_are_plain_data_that_build_and_trace(make):
    preset = make(size=20)

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(v) for key, v in value.items())
        if isinstance(value, tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, bool | int | float | str)

    assert plain(preset)
    program = views.build_program(views.ViewsConfig(**preset))
    shapes = jax.eval_shape(
        program,
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4)),
        jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
    )
    assert shapes.images.shape == (4, len(program.views), 20, 20, 3)


def test_simclr():
    preset = presets.simclr(224)
    assert preset["order"] == ("crop", "flip", "jitter", "gray", "blur")
    made = ops(preset)
    crop, jitter, blur = made["crop"], made["jitter"], made["blur"]
    assert (crop.scale, crop.min_covered, crop.attempts) == ((0.08, 1.0), 0.1, 100)
    assert crop.ratio == (3 / 4, 4 / 3)
    assert (made["flip"].prob, jitter.prob, made["gray"].prob, blur.prob) == (0.5, 0.8, 0.2, 0.5)
    amounts = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    assert amounts == (0.8, 0.8, 0.8, 0.2)
    assert jitter.strength == 1.0
    assert (jitter.brightness_mode, jitter.saturation_mode) == ("multiply", "hsv")
    assert (blur.sigma, blur.radius(224), blur.padding) == ((0.1, 2.0), 11, "zero")
    assert ops(presets.simclr_v1())["jitter"].brightness_mode == "add"
    cifar = presets.simclr_cifar()
    assert cifar["order"] == ("crop", "flip", "jitter", "gray")
    assert ops(cifar)["jitter"].strength == 0.5


def test_moco():
    assert presets.moco_v1()["order"] == ("crop", "gray", "jitter", "flip")
    one, two = ops(presets.moco_v1()), ops(presets.moco_v2())
    assert one["jitter"].prob == 1.0
    assert (one["jitter"].hue, two["jitter"].hue, two["jitter"].prob) == (0.4, 0.1, 0.8)
    assert one["crop"].scale == two["crop"].scale == (0.2, 1.0)
    assert presets.moco_v2()["order"] == ("crop", "jitter", "gray", "blur", "flip")
    program = views.build_program(views.ViewsConfig(**presets.moco_v3()))
    rates = [
        [view.prob.get(name, op.prob) for name, op in program.ops if name in ("blur", "solarize")]
        for view in program.views
    ]
    assert rates == [[1.0, 0.0], [0.1, 0.2]]


def test_looc_shares_one_family_with_the_query_in_each_key():
    program = views.build_program(views.ViewsConfig(**presets.looc()))
    assert [dict(view.share) for view in program.views] == [
        {},
        {},
        {"rotate": 0},
        {"jitter": 0, "gray": 0},
    ]
    assert program.ops[0][0] == "rotate"
    only_color = presets.looc(shared=("color",))
    assert len(only_color["views"]) == 3
    assert "rotate" not in only_color["ops"]
    for shared, message in (
        (("colour",), "no factor 'colour'; did you mean 'color'?"),
        (("zzz",), "no factor 'zzz'; expected some of crop, "),
        (("blur", "blur"), "'blur' is there twice"),
        (("color", "gray"), "'color' and 'gray' have 'gray' in common"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            presets.looc(shared=shared)


def test_every_field_of_every_op_has_a_default():
    for op in views.OPS.values():
        assert dataclasses.asdict(op())
