"""View programs: reproducible draws, sharing, batches, host crops, devices, named mistakes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import views

# A query, a key with nothing shared, and two keys that share the rotation or the colour.
FAMILIES = {2: ("rotate",), 3: ("jitter", "gray")}
ALL = views.ViewsConfig(
    order=tuple(views.OPS),
    ops={
        "crop": {"size": 12},
        "flip": {},
        "rotate": {},
        "jitter": {"prob": 0.8},
        "gray": {"prob": 0.2},
        "solarize": {"prob": 0.2},
        "blur": {"prob": 0.5, "fraction": 0.3},
        "sobel": {"prob": 0.1},
        "cutout": {"prob": 0.5},
        "noise": {"prob": 0.5},
        "texture": {"prob": 0.5},
    },
    views=(
        {},
        {"prob": {"blur": 0.1}},
        {"share": {"rotate": 0}},
        {"share": {"jitter": 0, "gray": 0}},
    ),
)
SHAPE = (16, 16, 3)


def batch(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8))


def keys(count=8, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def program():
    return views.build_program(ALL)


@pytest.fixture(scope="module")
def run(program):
    """The program, and its drawn parameters applied again, compiled once for this file."""

    def both(keys, images):
        made = program(keys, images)
        return made, jax.vmap(program.apply)(images, made.drawn)

    return jax.jit(both)


@pytest.fixture(scope="module")
def many(program):
    """The draws of 8000 images."""
    draw = jax.jit(jax.vmap(lambda key: program.draw(key, SHAPE)))
    return jax.tree.map(np.asarray, draw(keys(8000, seed=7)))


def test_the_result_is_batch_major_and_in_range(program, run):
    made, _ = run(keys(), batch())
    assert made.images.shape == (8, 4, 12, 12, 3)
    assert made.images.dtype == jnp.float32
    assert program.output_shape(SHAPE) == (12, 12, 3)
    assert float(made.images.min()) >= 0
    assert float(made.images.max()) <= 1
    assert set(made.drawn) == set(views.OPS)
    for params in made.drawn.values():
        assert params["on"].shape == (8, 4)
        assert params["on"].dtype == bool
        for values in params.values():
            assert values.shape[:2] == (8, 4)


def test_the_same_key_reproduces_bit_for_bit_and_another_does_not(run):
    first, again, other = (run(keys(seed=seed), batch())[0] for seed in (0, 0, 1))
    equal_trees(first, again)
    assert (np.asarray(first.images) != np.asarray(other.images)).any(axis=(2, 3, 4)).all()


def test_drawn_parameters_reproduce_the_views_bit_for_bit(run):
    made, again = run(keys(), batch())
    np.testing.assert_array_equal(made.images, again)


def test_views_and_images_differ_in_every_parameter(run):
    made, _ = run(keys(), jnp.broadcast_to(batch(1), (8, *SHAPE)))
    assert len(np.unique(np.asarray(made.images).reshape(32, -1), axis=0)) == 32
    own = {name: {k: np.asarray(v)[:, :2] for k, v in p.items()} for name, p in made.drawn.items()}
    for name, params in own.items():
        for field, values in params.items():
            if field in ("contrast", "saturation", "brightness", "hue", "sigma", "std", "seed"):
                assert len(np.unique(values)) == 16, (name, field)
    assert len(np.unique(own["crop"]["box"].reshape(16, 4), axis=0)) > 12


def small_program(*names, count=2):
    return views.build_program(
        views.ViewsConfig(names, {name: ALL.ops[name] for name in names}, ({},) * count)
    )


def test_un_jitted_equals_jitted():
    program = small_program("flip", "gray")
    plain, jitted = program(keys(), batch()), jax.jit(program)(keys(), batch())
    equal_trees(plain.drawn, jitted.drawn)
    np.testing.assert_allclose(plain.images, jitted.images, atol=1e-6)


@pytest.mark.parametrize("name", list(views.OPS))
def test_each_op_alone_un_jitted_equals_itself_jitted(program, name):
    op = dict(program.ops)[name]
    image = np.random.default_rng(3).random(SHAPE).astype(np.float32)
    params = op.sample(jax.random.key(5), image.shape)
    params["on"] = jnp.asarray(True)
    plain = op.apply(image, params)
    np.testing.assert_allclose(jax.jit(op.apply)(image, params), plain, atol=1e-6)
    assert plain.dtype == jnp.float32
    assert plain.shape == op.output_shape(image.shape)
    assert not np.array_equal(plain, image)


def test_types_of_images(program):
    def out(dtype):
        images = jax.ShapeDtypeStruct((8, *SHAPE), dtype)
        return jax.eval_shape(program, jax.eval_shape(keys), images).images.dtype

    assert out(jnp.uint8) == out(jnp.bfloat16) == out(jnp.float32) == jnp.float32
    with jax.enable_x64(True):
        assert out(jnp.uint8) == out(jnp.float64) == jnp.float64
        assert out(jnp.float32) == jnp.float32
    with pytest.raises(TypeError, match="images are int32: expected uint8, or floats"):
        out(jnp.int32)


def test_float64_draws_and_makes_the_same(run):
    program = small_program("crop", "jitter", "cutout")
    made, _ = run(keys(), batch())
    drawn = {name: {k: v[:, :2] for k, v in made.drawn[name].items()} for name, _ in program.ops}
    single = jax.jit(jax.vmap(program.apply))(batch(), drawn)
    with jax.enable_x64(True):
        double = jax.jit(program)(keys(), batch())
    for name, params in drawn.items():
        for field, values in params.items():
            np.testing.assert_allclose(values, double.drawn[name][field], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(single, double.images, atol=2e-5)


def test_gray_images_go_through_every_op(program):
    images = jax.ShapeDtypeStruct((8, 16, 16, 1), jnp.uint8)
    shapes = jax.eval_shape(program, jax.eval_shape(keys), images)
    assert shapes.images.shape == (8, 4, 12, 12, 1)


def test_probabilities_of_a_view(many):
    rates = {name: params["on"].mean(axis=0) for name, params in many.items()}
    np.testing.assert_allclose(rates["jitter"], 0.8, atol=0.02)
    np.testing.assert_allclose(rates["blur"], [0.5, 0.1, 0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(rates["flip"], 0.5, atol=0.02)
    np.testing.assert_array_equal(rates["crop"], 1)
    names = ("flip", "jitter", "gray", "blur", "cutout", "noise")
    coins = np.concatenate([many[name]["on"][:, :2] for name in names], axis=1)
    assert np.abs(np.corrcoef(coins.T) - np.eye(12)).max() < 0.06  # of other ops and views


def test_shared_ops_repeat_everything_and_the_others_are_fresh(many):
    def equal_to_the_query(name, field, view):
        values = many[name][field]
        return (values[:, view] == values[:, 0]).reshape(8000, -1).all(axis=1).mean()

    chance = {"order": 1 / 24, "angle": 1 / 4}  # of the same draw by accident
    chance |= {("on", name): 0.5 for name in ("flip", "cutout", "noise")}
    chance |= {("on", name): 0.68 for name in ("jitter", "gray", "solarize")}
    for name, params in many.items():
        for field in params:
            for view in (1, 2, 3):
                same = equal_to_the_query(name, field, view)
                if name in FAMILIES.get(view, ()):
                    assert same == 1, (name, field, view)
                elif field != "on" and field != "box":
                    expected = chance.get(field, 0)
                    assert abs(same - expected) < 0.02, (name, field, view)
                elif (field, name) in chance:
                    assert abs(same - chance[field, name]) < 0.03, (name, field, view)
    assert equal_to_the_query("crop", "box", 2) < 0.1


def test_what_an_op_draws_does_not_depend_on_other_ops_or_views(many):
    fewer = small_program("blur", "jitter", count=1)
    drawn = jax.jit(fewer.draw, static_argnums=1)(keys(8000, seed=7)[5], SHAPE)
    for name in ("jitter", "blur"):
        equal_trees(drawn[name], {field: v[5, :1] for field, v in many[name].items()})


def test_the_order_of_application_is_the_order_of_the_config():
    ops = {"solarize": {}, "gray": {}}
    image = np.random.default_rng(4).random((1, 6, 6, 3)).astype(np.float32)
    made = {}
    for order in (("solarize", "gray"), ("gray", "solarize")):
        program = views.build_program(views.ViewsConfig(order, ops, ({},)))
        made[order] = np.asarray(jax.jit(program)(keys(1), image).images[0, 0])

    def solarize(x):
        return np.where(x < 0.5, x, 1 - x)

    def gray(x):
        return np.repeat((x @ np.array([0.2989, 0.587, 0.114]))[..., None], 3, -1)

    np.testing.assert_allclose(made["solarize", "gray"], gray(solarize(image[0])), atol=1e-6)
    np.testing.assert_allclose(made["gray", "solarize"], solarize(gray(image[0])), atol=1e-6)


def test_two_instances_of_one_op_draw_apart():
    spec = views.ViewsConfig(
        ("small", "large"),
        {"small": {"op": "cutout", "side": (0.1, 0.1)}, "large": {"op": "cutout"}},
        ({},),
    )
    program = views.build_program(spec)
    drawn = jax.jit(program.draw, static_argnums=1)(jax.random.key(0), (100, 100, 3))
    assert drawn["small"]["box"][0, 2] == 10
    assert drawn["large"]["box"][0, 2] == 50
    assert (drawn["small"]["box"][0, :2] + 5 != drawn["large"]["box"][0, :2] + 25).any()


def test_sharing_everything_gives_equal_views_and_chains_lead_to_the_first():
    spec = views.ViewsConfig(
        ("crop", "cutout"),
        {"crop": {"size": 8}, "cutout": {}},
        ({}, {"share": {"crop": 0, "cutout": 0}}, {"share": {"crop": 1}}),
    )
    made = jax.jit(views.build_program(spec))(keys(), batch())
    boxes = {name: np.asarray(made.drawn[name]["box"]) for name in ("crop", "cutout")}
    np.testing.assert_array_equal(made.images[:, 0], made.images[:, 1])
    np.testing.assert_array_equal(boxes["crop"][:, 0], boxes["crop"][:, 2])
    assert (boxes["cutout"][:, 0] != boxes["cutout"][:, 2]).any()


def test_a_rotation_before_the_crop():
    ops = {"rotate": {"angles": (90.0,)}, "crop": {"size": 10}}
    program = views.build_program(views.ViewsConfig(("rotate", "crop"), ops, ({},)))
    images = batch(2)
    made = jax.jit(program)(keys(2), images)
    turned = np.rot90(np.asarray(images), axes=(1, 2))
    params = jax.tree.map(lambda x: x[:, 0], made.drawn["crop"])
    expected = jax.jit(jax.vmap(program.ops[1][1].apply))(turned, params)
    np.testing.assert_allclose(made.images[:, 0], expected, atol=1e-6)
    with pytest.raises(ValueError, match="needs a square image, got height 8 and width 16"):
        jax.eval_shape(program, keys(2), images[:, :8])


def test_a_program_without_ops_copies_the_images():
    program = views.build_program(views.ViewsConfig((), {}, ({}, {})))
    made = program(keys(2), batch(2))
    assert made.drawn == {}
    for view in range(2):
        np.testing.assert_allclose(made.images[:, view], np.asarray(batch(2)) / 255, atol=1e-7)


def test_crops_made_on_the_host_equal_those_made_here():
    program = small_program("crop", "gray")
    whole = jax.jit(program)(keys(), batch())
    crop = program.ops[0][1]
    crops = jax.jit(jax.vmap(jax.vmap(crop.apply, (None, 0))))(batch(), whole.drawn["crop"])
    made = jax.jit(program)(keys(), crops, whole.drawn["crop"])
    equal_trees(made.drawn, whole.drawn)
    np.testing.assert_allclose(made.images, whole.images, atol=2e-6)
    bytes_ = jnp.round(255 * crops).astype(jnp.uint8)
    rounded = jax.eval_shape(program, keys(), bytes_, whole.drawn["crop"])
    assert rounded.images.dtype == jnp.float32
    assert list(rounded.drawn) == list(whole.drawn)


def test_a_program_of_a_crop_alone_takes_host_crops():
    program = views.build_program(views.ViewsConfig(("crop",), {"crop": {"size": 4}}, ({}, {})))
    crops = np.full((3, 2, 4, 4, 3), 51, np.uint8)
    record = {"on": np.ones((3, 2), bool), "box": np.zeros((3, 2, 4), np.int32)}
    made = program(keys(3), crops, record)
    np.testing.assert_allclose(made.images, 0.2, atol=1e-7)
    assert made.drawn["crop"]["box"].shape == (3, 2, 4)


def test_images_of_the_wrong_shape_are_refused():
    program = small_program("crop", "flip")
    record = {"on": np.ones((8, 2), bool), "box": np.zeros((8, 2, 4), np.int32)}
    with pytest.raises(ValueError, match=r"\(16, 16, 3\): expected \[B,H,W,C\], or \[B,V,h,w,C\]"):
        program(keys(), batch()[0])
    message = r"expected the host's crops of each view, \[2,12,12,C\]"
    with pytest.raises(ValueError, match=message):
        program(keys(), batch(), record)
    with pytest.raises(ValueError, match=message):
        program(keys(), np.zeros((8, 3, 12, 12, 3), np.uint8), record)
    flip_first = small_program("flip", "crop")
    with pytest.raises(ValueError, match=r"begins with a crop, got ops \['flip', 'crop'\]"):
        flip_first(keys(), np.zeros((8, 2, 12, 12, 3), np.uint8), record)


def test_views_do_not_communicate_between_devices(program, run):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    # The compiler places the result; asked to, it could only hide a gather by a slice.
    compiled = jax.jit(program, in_shardings=sharding).lower(keys(), batch()).compile()
    text = compiled.as_text()
    assert "num_partitions=8" in text
    assert re.findall(r"all-[a-z]+|collective-[a-z]+|reduce-scatter", text) == []
    assert compiled.output_shardings.images.shard_shape((8, 4, 12, 12, 3)) == (1, 4, 12, 12, 3)
    made = compiled(*jax.device_put((keys(), batch()), sharding))
    alone, _ = run(keys(), batch())
    np.testing.assert_allclose(made.images, alone.images, atol=1e-5)


def spec(**changes):
    fields = {
        "order": ("crop", "jitter"),
        "ops": {"crop": {"size": 8}, "jitter": {}},
        "views": ({},),
    }
    return views.ViewsConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"order": ("crop", "jiter")},
            "order: there is no op 'jiter'; did you mean 'jitter'?",
        ),
        ({"order": ("crop", "crop")}, "expected each op once"),
        (
            {"order": ("colour_jiter",), "ops": {"colour_jiter": {"op": "jiter"}}},
            "ops['colour_jiter']: there is no op type 'jiter'; did you mean 'jitter'?",
        ),
        (
            {"ops": {"crop": {"size": 8}, "jitter": {"strenght": 1.0}}},
            "ops['jitter']: Jitter has no field 'strenght'; did you mean 'strength'?",
        ),
        (
            {"ops": {"crop": {"size": 8}, "jitter": {"prob": 2.0}}},
            "ops['jitter']: Jitter.prob = 2.0: expected a number in [0, 1]",
        ),
        (
            {"views": ({"probs": {}},)},
            "views[0]: a view has no field 'probs'; did you mean 'prob'?",
        ),
        (
            {"views": ({"prob": {"jiter": 1.0}},)},
            "views[0].prob: there is no op 'jiter'; did you mean 'jitter'?",
        ),
        (
            {"views": ({"prob": {"jitter": 1.2}},)},
            "views[0].prob['jitter'] = 1.2: expected a number in [0, 1]",
        ),
        (
            {"views": ({}, {"share": {"blur": 0}})},
            "views[1].share: there is no op 'blur'; known: crop, jitter",
        ),
        (
            {"views": ({}, {"share": {"jitter": 1}})},
            "views[1].share['jitter'] = 1: expected the index of an earlier view, 0 to 0",
        ),
        (
            {"views": ({"share": {"jitter": 0}},)},
            "expected the index of an earlier view, and the first has none",
        ),
        (
            {"views": ({}, {"share": {"jitter": 0}, "prob": {"jitter": 0.5}})},
            "views[1] has 'jitter' in prob and in share",
        ),
        ({"views": ()}, "views is empty: expected at least one view"),
    ],
)
def test_mistakes_in_a_config_are_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        views.build_program(spec(**changes))


def test_an_op_that_the_order_leaves_out_is_not_applied():
    assert [name for name, _ in views.build_program(spec(order=("crop",))).ops] == ["crop"]


def test_programs_are_hashable_values():
    one, two = views.build_program(ALL), views.build_program(ALL)
    assert one == two
    assert hash(one) == hash(two)
    assert one != views.build_program(spec())
