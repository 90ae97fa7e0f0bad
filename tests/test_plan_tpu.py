"""Full train steps, compiled by the real TPU compiler without a TPU, against hand formulas and recorded plans.

`JAXCL_WRITE_GOLDEN=1 pytest -m slow tests/test_plan_tpu.py` records them anew for the installed jax and libtpu. Weak scaling is
recorded and compared by (a small network of it is in a test)

    python -m jaxcl.plan --config=configs/simclr_tpu.py --config.model.name=resnet18 --topology=v5e:4x8 --weak_scaling \
      --golden=tests/golden/plan.json [--write_golden]
"""

import collections
import os
import pathlib

import pytest
from resnet50 import BACKBONE, FLOPS, HEAD, STATISTICS
from test_configs import get_config

from jaxcl import config as config_lib
from jaxcl.models.resnet import DEPTHS
from jaxcl.plan import golden, make, parse, weak_scaling

GOLDEN = pathlib.Path(__file__).parent / "golden" / "plan.json"


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize(("topology", "chips"), [("v5e:4x8", 32), ("v4:2x2x4", 16)])
def test_simclr_resnet50_on_32_devices(topology, chips):
    pytest.importorskip("libtpu", reason="compiling for TPU needs the libtpu wheel")
    config = config_lib.from_dict(get_config("simclr_tpu"))
    found = make(config, parse(topology), 1200.0, print)
    assert found.compiled, found.notes
    assert found.topology.devices == 32  # half chips on v4
    assert any("half a chip" in note for note in found.notes) == (chips == 16)
    assert found.fits

    memory = found.memory
    assert memory["parameters: backbone"] == 4 * BACKBONE
    assert memory["parameters: head_projection"] == 4 * HEAD
    assert memory["batch statistics"] == 4 * STATISTICS
    assert 0 <= memory["optimizer state"] - 4 * (BACKBONE + HEAD) <= 16
    assert memory["input batch"] == 128 * (2 * (224 * 224 * 3 + 1 + 4 * 4) + 4 + 4)

    gathers = [t.collective.bytes for t in found.transfers if t.collective.kind == "all-gather"]
    assert max(gathers) == 4096 * 2 * 128 * 4  # the embeddings, in float32, and nothing larger
    reduced = sum(
        t.count * t.collective.bytes for t in found.transfers if t.collective.kind == "all-reduce"
    )
    # Gradients in float32 or, where XLA reduces before it converts, in the bfloat16 of the products; sums of BatchNorm.
    assert 2 * (BACKBONE + HEAD) <= reduced <= 4 * (BACKBONE + HEAD) + 4 * 4 * STATISTICS
    forward, first = FLOPS
    assert found.flops["bf16"] == pytest.approx(256 * (3 * forward - first), rel=0.05)

    assert_as_recorded(found)


@pytest.mark.optimised
@pytest.mark.slow
def test_weak_scaling_of_a_small_network():
    """What a chip does for its own images does not depend on the number of chips; what it does with the others' embeddings grows."""
    pytest.importorskip("libtpu", reason="compiling for TPU needs the libtpu wheel")
    config = get_config("simclr_cifar10")
    config.model.width, config.batch_size, config.mesh.loss_impl = 0.25, 128, "dense"
    ladder = weak_scaling(config_lib.from_dict(config), parse("v5e:1x2"), 1200.0, print)
    assert [plan.topology.devices for plan in ladder] == [1, 2]
    assert [plan.batch_size for plan in ladder] == [64, 128]
    one = ladder[0]
    for plan in ladder:
        assert plan.fits
        for kind in ("parameters: backbone", "optimizer state", "input batch", "batch statistics"):
            assert plan.memory[kind] == one.memory[kind]
        assert sum(plan.flops.values()) == pytest.approx(sum(one.flops.values()), rel=0.02)
        gathered = [t.collective.bytes for t in plan.transfers if t.collective.kind == "all-gather"]
        embeddings = plan.batch_size * 2 * config.method.projection.layers[-1] * 4
        assert max(gathered, default=0) == (embeddings if plan is not one else 0)
        assert_as_recorded(plan)


@pytest.mark.optimised
@pytest.mark.slow
def test_moco_with_shuffled_keys_on_four_chips(monkeypatch):
    """A group of BatchNorm on each chip: the keys' images go to their shuffled places and the keys back, and the queue stays."""
    pytest.importorskip("libtpu", reason="compiling for TPU needs the libtpu wheel")
    monkeypatch.setitem(DEPTHS, 6, ((1, 0, 0, 1), False))
    config = get_config("moco_cifar10")
    config.model.name, config.model.width, config.batch_size = "resnet6", 0.25, 64
    config.model.bn_groups = 4
    assert (config.method.bn, config.method.mechanism) == ("shuffle", "queue")
    found = make(config_lib.from_dict(config), parse("v5e:2x2"), 1200.0, print)
    assert found.compiled, found.notes
    assert found.fits
    slots, width, rows = config.method.queue_size, config.method.projection.layers[-1], 64 // 4
    # Keys, one label, age and validity of each slot, and the pointer; on every chip.
    assert found.memory["extra: queue"] == slots * (4 * width + 4 + 4 + 1) + 4
    trained = found.memory["parameters: backbone"] + found.memory["parameters: head_projection"]
    assert found.memory["extra: key_params"] == trained

    exchanged = collections.Counter()
    for sent in found.transfers:
        if sent.collective.kind == "all-to-all":
            exchanged[sent.collective.bytes] += sent.count
    # Each way takes two: to a chip and to a place on it.
    assert exchanged == {rows * 32 * 32 * 3 * 4: 2, rows * width * 4: 2}
    kinds = {sent.collective.kind for sent in found.transfers}
    assert kinds == {"all-to-all", "all-gather", "all-reduce"}
    gathers = [t.collective.bytes for t in found.transfers if t.collective.kind == "all-gather"]
    assert max(gathers) == 64 * width * 4  # the batch's keys
    arrays = [array for sent in found.transfers for array in sent.collective.arrays]
    assert not [array for array in arrays if str(slots) in array]


def assert_as_recorded(plan):
    if os.environ.get("JAXCL_WRITE_GOLDEN"):
        golden.write(GOLDEN, plan)
    record = golden.recorded(GOLDEN, plan)
    assert record is not None, f"no record by {golden.versions(plan)}: see the head of this file"
    assert golden.differences(plan, record) == []
