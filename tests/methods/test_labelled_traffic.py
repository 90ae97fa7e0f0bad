"""In the compiled step of methods that learn from labels no image travels, but to a shuffled place."""

import jax
import jax.numpy as jnp
import pytest
from collectives import sent, strangers
from moco_network import LEVELS, SIZE, Run, batches, moco

from jaxcl.methods import SupCon, SupConMoCo, Supervised
from jaxcl.methods.labels import LabelLevels
from jaxcl.models import HeadSpec

ROWS, DEVICES, VIEWS, WIDTH = 16, 8, 2, 2
IMAGE = SIZE * SIZE * 3
LABELS = LabelLevels(("coarse", "fine"), (3, 3))
NARROW = {
    "features": 16,
    "labels": LABELS,
    "projection": HeadSpec(layers=(12, WIDTH), batch_norm=False, bias=True, init_std=None),
}
# As many groups as devices; and a queue that must not be sent.
QUEUE = {"bn_groups": DEVICES, "levels": LEVELS, "queue_size": 5000, "temperature": 0.2}


def compiled(method):
    """(the text of the step on eight devices, its parameters)"""
    run = Run.of(method, DEVICES)
    batch = jax.eval_shape(lambda: {k: jnp.asarray(v) for k, v in next(batches(1, ROWS)).items()})
    text = run.step.lower(run.state, batch).compile().as_text()
    return text, jax.tree.leaves(run.state.params)


METHODS = {
    "supcon": lambda views: SupCon(views, **NARROW),
    "supcon_moco": lambda views: SupConMoCo(views, **NARROW, **QUEUE),
    "supervised": lambda views: Supervised(views, LABELS),
}


@pytest.mark.parametrize("name", METHODS)
def test_only_embeddings_labels_gradients_and_sums_travel(name):
    """An image has more numbers than all embeddings, or all labels, together: not even one can be among what is sent."""
    method = METHODS[name](moco().views)
    text, params = compiled(method)
    embeddings = ROWS * VIEWS * WIDTH
    assert ROWS * LEVELS <= embeddings < IMAGE
    by_kind = {kind: [] for kind in ("all-gather", "all-to-all")}
    for array in sent(text):
        by_kind.setdefault(array.kind, []).append(array.size)
    assert not [a for a in strangers(text, params, embeddings) if a.kind != "all-to-all"]
    gathered, exchanged = (
        max(by_kind["all-gather"], default=0),
        max(by_kind["all-to-all"], default=0),
    )
    assert (gathered >= ROWS * WIDTH) == (name != "supervised"), "the loss is of the global batch"
    # A device's own images, as a whole or in 8 parts; of embeddings XLA may turn the order.
    own = ROWS // DEVICES * (IMAGE + -IMAGE % DEVICES)
    if name == "supcon_moco":
        assert exchanged in (own, own // DEVICES)
    else:
        assert exchanged < own // DEVICES
