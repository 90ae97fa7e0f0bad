"""Which layer is probed, and which parameters it needs."""

import jax
import numpy as np
import pytest
from tiny_network import build

from jaxcl.evaluators import Layer
from jaxcl.models import HeadSpec

SHAPE = (8, 8, 1)


@pytest.mark.parametrize(
    ("text", "heads", "expected"),
    [
        ("h", ("a", "b"), Layer()),
        ("z", ("a",), Layer("a", -1)),
        ("z:b", ("a", "b"), Layer("b", -1)),
        ("head:2", ("a",), Layer("a", 2)),
        ("head:b:1", ("a", "b"), Layer("b", 1)),
        ("heads", ("a", "b"), Layer(together=("a", "b"))),
        ("heads:hidden", ("a", "b"), Layer("", -2, ("a", "b"))),
    ],
)
def test_parse_and_its_inverse(text, heads, expected):
    layer = Layer.parse(text, heads)
    assert layer == expected
    assert Layer.parse(str(layer), heads) == layer


@pytest.mark.parametrize(
    "text", ["", "H", "h:1", "head", "head:0", "head:-1", "head:a", "z:1:2", "heads:1", "heads:a"]
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="layer="):
        Layer.parse(text, ("a",))


def test_parse_wants_the_head_named():
    with pytest.raises(ValueError, match=r"name one of the heads \['a', 'b'\]"):
        Layer.parse("z", ("a", "b"))
    with pytest.raises(ValueError, match="name one of the heads"):
        Layer.parse("head:c:1", ("a", "b"))


def test_outputs_are_those_of_the_whole_network_and_need_their_parts_only():
    model = build()
    variables = model.init(jax.random.key(0), SHAPE)
    images = jax.random.uniform(jax.random.key(1), (3, *SHAPE))
    apply = jax.jit(lambda v: model.apply(v["params"], v["batch_stats"], images, False))
    (h, heads), _ = apply(variables)
    expected = {
        "h": h,
        "z": heads["projection"][1],
        "head:1": heads["projection"][0],
        "head:2": heads["projection"][1],
    }
    assert heads["projection"][0].shape == (3, 12)
    for text, value in expected.items():
        network = Layer.parse(text, ("projection",)).of(model)
        part = network.select(variables)
        assert ("head_projection" in part["params"]) == (text != "h")
        np.testing.assert_allclose(jax.jit(network.encode)(part, images), value, rtol=1e-5)
        assert network.width(part, SHAPE) == value.shape[1]


def test_all_heads_side_by_side():
    """Outputs of length 1, hidden layers as they are, in the order of the heads; each needs all the heads."""
    model = build(heads={"a": HeadSpec(layers=(12, 6)), "b": HeadSpec(layers=(5, 4))})
    variables = model.init(jax.random.key(0), SHAPE)
    images = jax.random.uniform(jax.random.key(1), (3, *SHAPE))
    (_, heads), _ = model.apply(variables["params"], variables["batch_stats"], images, False)
    found = {}
    for text, width in (("heads", 6 + 4), ("heads:hidden", 12 + 5)):
        network = Layer.parse(text, ("a", "b")).of(model)
        assert network.layer.parts == ("backbone", "head_a", "head_b")
        part = network.select(variables)
        assert set(part["params"]) == {"backbone", "head_a", "head_b"}
        assert network.width(part, SHAPE) == width
        found[text] = np.asarray(jax.jit(network.encode)(part, images))
    hidden = np.concatenate([heads["a"][0], heads["b"][0]], 1)
    np.testing.assert_allclose(found["heads:hidden"], hidden, rtol=1e-5, atol=1e-6)
    assert hidden.min() == 0  # after ReLU
    units = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (heads["a"][1], heads["b"][1])]
    np.testing.assert_allclose(found["heads"], np.concatenate(units, 1), rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="has 2 layers, there is no layer 3"):
        Layer.parse("head:3", ("projection",)).of(build())
    linear = build(heads={"projection": HeadSpec(layers=(6,))})
    with pytest.raises(ValueError, match="head 'projection' has no hidden layer"):
        Layer.parse("heads:hidden", ("projection",)).of(linear)
    with pytest.raises(ValueError, match="layer='heads'"):
        Layer.parse("heads", ())
