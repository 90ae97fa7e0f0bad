"""Full train steps, compiled by the real TPU compiler without a TPU, against hand formulas and recorded plans.

`JAXCL_WRITE_GOLDEN=1 pytest -m slow tests/test_plan_tpu.py` records them anew for the installed jax and libtpu. Weak scaling is
recorded and compared by

    python -m jaxcl.plan --config=configs/simclr_tpu.py --config.model.name=resnet18 --topology=v5e:4x8 --weak_scaling \
      --golden=tests/golden/plan.json [--write_golden]
"""

import os
import pathlib

import pytest
from resnet50 import BACKBONE, FLOPS, HEAD, STATISTICS
from test_configs import get_config

from jaxcl import config as config_lib
from jaxcl.plan import golden, make, parse

GOLDEN = pathlib.Path(__file__).parent / "golden" / "plan.json"


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

    if os.environ.get("JAXCL_WRITE_GOLDEN"):
        golden.write(GOLDEN, found)
    record = golden.recorded(GOLDEN, found)
    if record is None:
        pytest.skip(f"no record by {golden.versions(found)}: see the head of this file")
    assert golden.differences(found, record) == []
