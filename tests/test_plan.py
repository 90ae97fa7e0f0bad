"""Plans: what a step needs of each device, against hand formulas; topologies, records, the command and its mistakes."""

import collections
import dataclasses
import io
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_network
from resnet50 import BACKBONE, FLOPS, HEAD, STATISTICS
from rich.console import Console
from test_configs import get_config

from jaxcl import config as config_lib
from jaxcl import data, experiment
from jaxcl import mesh as mesh_lib
from jaxcl.losses import nce
from jaxcl.models.conv import conv2d
from jaxcl.models.resnet import DEPTHS
from jaxcl.plan import PlanError, chips, devices, golden, make, page, parse, plan, trace
from jaxcl.plan.__main__ import main
from jaxcl.plan.cost import Collective
from jaxcl.state import TrainState
from jaxcl.views import presets

GIB = 2**30


def tiny(**changes):
    c = config_lib.base("simclr", presets.simclr(8, strength=0.5))
    c.name, c.steps, c.batch_size = "tiny", 40, 64
    c.data.name, c.data.image_size = "noise", 10
    c.model.width, c.model.stem = tiny_network.CONFIG.width, "cifar"
    c.method.projection.layers = (16, 8)
    c.optim.name, c.optim.warmup_epochs = "sgd", 0.0
    c.mesh.compile_cache = ""
    c.update_from_flattened_dict(changes)
    return config_lib.from_dict(c)


@pytest.fixture
def small_network(monkeypatch):
    """A network of a few thousand multiplications in the place of the ResNet of `tiny`."""
    monkeypatch.setattr(experiment.models, "build", tiny_network.build)


# ---------------------------------------------------------------------------------------------------------- topologies


@pytest.mark.parametrize(
    ("text", "megacore", "count", "name", "memory"),
    [
        ("v5e:4x8", False, 32, "v5e", 15.75),
        ("v4:2x2x4", False, 32, "v4", 15.25),
        ("v4:2x2x4", True, 16, "v4 megacore", 30.75),
        ("v5p:2x2x1", False, 4, "v5p", 95.74),
        ("V6e:16x16", False, 256, "v6e", 31.25),
        ("gpu:8xA100-80", False, 8, "a100-80", 0.92 * 80e9 / GIB),
        ("gpu:h100", False, 1, "h100", 0.92 * 80e9 / GIB),
        ("h200", False, 1, "h200", 0.92 * 141e9 / GIB),
        ("gpu:16xV100-32", False, 16, "v100-32", 0.92 * 32e9 / GIB),
    ],
)
def test_topologies(text, megacore, count, name, memory):
    found = parse(text, megacore)
    assert (found.devices, found.chip.name) == (count, name)
    assert found.chip.memory == pytest.approx(memory * GIB, abs=1)
    assert ("half a chip" in found.note) == (text.startswith("v4") and not megacore)
    # How a GPU's program comes to so much memory.
    assert ("XLA_CLIENT_MEM_FRACTION=0.92" in found.note) == (found.chip.platform == "gpu")


@pytest.mark.parametrize(
    ("text", "megacore", "message"),
    [
        ("v9:4x8", False, "unknown topology 'v9:4x8': known are TPU slices of v4, v5e, v5p, v6e .*a100-80.*cpu:N"),
        ("gpu:8xT4", False, "unknown topology 'gpu:8xT4': known are"),
        ("cpu:0", False, "unknown topology 'cpu:0'"),
        ("", False, "unknown topology ''"),
        ("v5e:4x8x2", False, "'v5e:4x8x2': expected v5e: and the chips along each of 2 sides, such as v5e:2x2"),
        ("v4:4x4", False, "along each of 3 sides, such as v4:2x2x2"),
        ("v5e:0x4", False, "expected v5e:"),
        ("v5e:4x8", True, "--megacore is for v4 and v5p, not for 'v5e:4x8'"),
    ],
)  # fmt: skip
def test_topologies_that_cannot_be(text, megacore, message):
    with pytest.raises(PlanError, match=message):
        parse(text, megacore)


@pytest.mark.parametrize(
    ("text", "ladder"),
    [
        ("v5e:4x8", ["v5e:4x4", "v5e:2x4", "v5e:2x2", "v5e:1x2", "v5e:1x1"]),
        ("v4:2x4x4", ["v4:2x2x4", "v4:2x2x2", "v4:2x2x1", "v4:2x1x1", "v4:1x1x1"]),
        ("gpu:4xh100", ["gpu:2xh100", "gpu:1xh100"]),
        ("cpu:6", ["cpu:3"]),
    ],
)
def test_half_a_topology(text, ladder):
    """Slices as Cloud TPU has them; the smallest v4 is one chip, which is two devices."""
    now = parse(text)
    for expected in ladder:
        before, now = now, now.half
        assert now.text == expected
        assert now == parse(expected)
        assert 2 * now.devices == before.devices
    assert now.half is None


def test_a_tpu_multiplies_float32_in_passes():
    chip = chips.TPUS["v5e"]
    flops = {"bf16": 197e12, "f32 highest": 197e12 / 6}
    assert chip.seconds(flops) == pytest.approx(2.0)
    # What has no rate takes none of the time of the others, and is told.
    assert chip.seconds({"f4": 1e30, "bf16": 197e12}) == pytest.approx(1.0)
    assert chip.unrated({"f4": 1.0, "bf16": 1.0}) == ("f4",)
    assert chips.Chip("cpu", "cpu", 1).unrated({"f32": 1.0}) == ()


# ------------------------------------------------------------------------------------------------------ libtpu, not here


@pytest.fixture
def libtpu(monkeypatch):
    """A libtpu that gives one after another of the answers in the list."""
    from jax.experimental import topologies

    answers, asked = [], []

    def describe(name, platform, **options):
        asked.append((name, platform, options))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dataclasses.make_dataclass("Topology", ["devices"])(answer)

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(devices, "_RETRY_SECONDS", 0.01)
    return answers, asked


LOCKED = RuntimeError(
    "ABORTED: Internal error when accessing libtpu multi-process lockfile. Run ..."
)


def test_a_locked_libtpu_is_waited_for(libtpu):
    answers, asked = libtpu
    answers += [LOCKED, LOCKED, list(range(8))]
    said = []
    assert devices.devices(parse("v5e:2x4"), 60.0, said.append) == list(range(8))
    assert len(asked) == 3
    assert said == ["another process has libtpu; waiting for it, 60 seconds at most"]


def test_waiting_for_libtpu_ends(libtpu):
    libtpu[0].extend([LOCKED] * 1000)
    with pytest.raises(PlanError, match=r"had it for 0 seconds.*--wait=SECONDS.*lockfile"):
        devices.devices(parse("v5e:2x4"), 0.05, lambda line: None)
    assert len(libtpu[1]) < 1000


def test_what_libtpu_is_asked_for(libtpu):
    answers, asked = libtpu
    answers += [list(range(16)), [0], [0, 1, 2]]
    devices.devices(parse("v4:2x2x4", megacore=True), 0.0, print)
    devices.devices(parse("V5e:1x1"), 0.0, print)
    with pytest.raises(PlanError, match="'v5e:2x2' has 3 devices, expected 4"):
        devices.devices(parse("v5e:2x2"), 0.0, print)
    assert asked == [
        ("v4:2x2x4", "tpu", {"chip_config_name": "megacore"}),
        ("v5e:1x1", "tpu", {"chips_per_host_bounds": [1, 1, 1]}),
        ("v5e:2x2", "tpu", {}),
    ]


def test_a_slice_that_libtpu_does_not_know(libtpu):
    libtpu[0].append(RuntimeError("INVALID_ARGUMENT: Topology layout is not divisible\nmore"))
    with pytest.raises(PlanError, match=r"no slice 'v5e:3x8': INVALID_ARGUMENT: .* not divisible$"):
        devices.devices(parse("v5e:3x8"), 0.0, print)


def test_libtpu_is_missing(monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"needs the libtpu wheel .*pip install"):
        devices.devices(parse("v5e:2x2"), 0.0, print)


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.65G of 15.75G hbm. Exceeded", 17.65 * GIB),
        ("the total memory required for HLO temporaries (512.5M) exceeds available HBM (15.75G).", 512.5 * 2**20),
        ("RESOURCE_EXHAUSTED: out of something", 0),
        ("INVALID_ARGUMENT: nonsense", None),
    ],
)  # fmt: skip
def test_a_compiler_that_runs_out_of_memory(text, needed):
    found = devices.out_of_memory(RuntimeError(text))
    assert found == (None if needed is None else int(needed))


# ------------------------------------------------------------------------------------------------------------- memory


def test_kinds_of_memory_by_path():
    """A queue of 16 x 8 float32 and a key encoder show by themselves; sharded arrays count their share."""
    mesh = mesh_lib.make_mesh()
    whole = mesh_lib.replicated(mesh)

    def array(*shape, dtype=jnp.float32, sharding=whole):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    split = mesh_lib.batch_sharding(mesh)
    state = TrainState(
        step=array(dtype=jnp.int32),
        params={"backbone": {"kernel": array(8, 3)}, "head_z": array(5), "method": {}},
        batch_stats={"backbone": array(7, dtype=jnp.bfloat16)},
        opt_state=(optax.EmptyState(), {"trace": array(8 * 11, sharding=split)}),
        extra={"queue": array(16, 8), "key": {"kernel": array(8, 3)}},
        key=jax.eval_shape(jax.random.key, 0).update(sharding=whole),
        rejected=array(dtype=jnp.int32),
    )
    assert plan.bytes_of_state(state) == {
        "counters and key": 4 + 8 + 4,
        "parameters: backbone": 96,
        "parameters: head_z": 20,
        "batch statistics": 14,
        "optimizer state": 44,
        "extra: key": 96,
        "extra: queue": 512,
    }


@pytest.fixture(scope="module")
def compiled():
    """The tiny experiment, compiled for eight virtual CPU devices."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.models, "build", tiny_network.build)
        found = make(tiny(), parse("cpu:8"), 0.0, said.append)
    assert said == ["compiling the train step for cpu:8 ..."]
    return found


# Numbers of the tiny network on views of 8 x 8: a 3x3 convolution to 8 channels with bias and stride 2, its BatchNorm, a layer
# of 16 features; and of its head: two kernels, a BatchNorm with scale and bias, and a last one with a scale alone.
SMALL_BACKBONE = 9 * 3 * 8 + 8 + 2 * 8 + 4 * 4 * 8 * 16 + 16
SMALL_HEAD = 16 * 16 + 16 * 8 + 2 * 16 + 8
SMALL_STATISTICS = 2 * 8 + 2 * (16 + 8)


def test_a_plan_for_virtual_cpu_devices(compiled):
    backbone, head, statistics = SMALL_BACKBONE, SMALL_HEAD, SMALL_STATISTICS
    memory = compiled.memory
    assert memory["parameters: backbone"] == 4 * backbone
    assert memory["parameters: head_projection"] == 4 * head
    assert memory["batch statistics"] == 4 * statistics
    # Momentum of every parameter, and at most a few counters of schedules.
    assert 0 <= memory["optimizer state"] - 4 * (backbone + head) <= 16
    assert memory["input batch"] == memory["next batch"] == 8 * (10 * 10 * 3 + 0 * 4 + 4)
    assert memory["temporaries"] > 0
    assert compiled.compiled
    assert compiled.fits
    assert compiled.needed == sum(memory.values())
    assert compiled.capacity == parse("cpu:8").chip.memory // 8
    assert compiled.seconds == {}


def test_collectives_of_a_compiled_plan(compiled):
    backbone, head, statistics = SMALL_BACKBONE, SMALL_HEAD, SMALL_STATISTICS
    kinds = collections.defaultdict(list)
    for t in compiled.transfers:
        kinds[t.collective.kind] += [t.collective.bytes] * t.count
        assert t.collective.devices == 8
    assert max(kinds["all-gather"]) == 64 * 2 * 8 * 4  # B * V * D float32
    # Gradients; two sums forward and two backward for each BatchNorm, which may be its parameters' gradients; metrics.
    others = sum(kinds["all-reduce"]) - 4 * (backbone + head)
    assert 4 * statistics <= others <= 2 * 4 * statistics + 256
    largest = max(compiled.transfers, key=lambda t: t.collective.sent).collective
    assert largest.source.startswith("transpose(jvp(")
    assert "other places" in largest.source


def test_products_of_a_compiled_plan_are_those_of_its_trace(compiled, small_network):
    """Two counters that share only the positions of a convolution: text of XLA's program, and traced program."""
    share = make(tiny(batch_size=8), parse("h100"), 0.0, print)
    assert compiled.flops["f32"] == pytest.approx(share.flops["f32"], rel=0.01)


def test_a_batch_that_does_not_divide():
    with pytest.raises(
        ValueError, match="batch_size=60 does not divide over 8 devices: choose 56 or 64"
    ):
        make(tiny(batch_size=60), parse("cpu:8"), 0.0, print)
    with pytest.raises(
        ValueError, match="batch_size=60 does not divide over 8 devices: choose 56 or 64"
    ):
        make(tiny(batch_size=60), parse("gpu:8xh100"), 0.0, print)


def test_more_cpu_devices_than_this_process_has():
    with pytest.raises(PlanError, match="'cpu:64': JAX already runs with 8 CPU device"):
        make(tiny(), parse("cpu:64"), 0.0, print)


def test_the_size_of_the_images_must_be_known():
    config = tiny(**{"data.name": "folder", "data.path": "/nowhere", "data.image_size": 0})
    with pytest.raises(PlanError, match=r"set --config.data.image_size"):
        make(config, parse("cpu:8"), 0.0, print)


def test_a_memory_bank_of_the_images_that_are_assumed(small_network):
    """It has a row, an age and a mark for each image of ImageNet, and the plan says that these are assumed."""
    changes = {"method.mechanism": "memory_bank", "method.bn": "global", "views.views": ({},)}
    c = config_lib.base("moco", presets.simclr(8, strength=0.5))
    c.name, c.steps, c.batch_size = "bank", 40, 64
    c.data.name, c.data.path, c.data.image_size = "folder", "/nowhere", 10
    c.model.width, c.model.stem = tiny_network.CONFIG.width, "cifar"
    c.method.projection.layers, c.optim.name, c.optim.warmup_epochs = (16, 8), "sgd", 0.0
    c.update_from_flattened_dict(changes)
    found = make(config_lib.from_dict(c), parse("gpu:8xh100"), 0.0, print)
    assert found.memory["extra: bank"] == 1_281_167 * (8 * 4 + 4 + 1)
    assert any("1,281,167 images" in note and "memory bank" in note for note in found.notes)


# ------------------------------------------------------------------------------------------------- by formula: ResNet-50


@pytest.fixture(scope="module")
def formula():
    """SimCLR, ResNet-50, batch 4096, on 32 A100."""
    return make(config_lib.from_dict(get_config("simclr_tpu")), parse("gpu:32xa100-80"), 0.0, print)


def test_resnet50_by_formula_against_the_hand(formula):
    assert (
        BACKBONE == 23_508_032
    )  # the classifier of the published network left out: 25,557,032 - 2,049,000
    memory = formula.memory
    assert memory["parameters: backbone"] == 4 * BACKBONE
    assert memory["parameters: head_projection"] == 4 * HEAD
    assert memory["batch statistics"] == 4 * STATISTICS
    assert 0 <= memory["optimizer state"] - 4 * (BACKBONE + HEAD) <= 16
    # 128 images of two crops u8[224,224,3], with coins, boxes, label and index.
    assert memory["input batch"] == 128 * (2 * (224 * 224 * 3 + 1 + 4 * 4) + 4 + 4)
    assert memory["embeddings of all devices"] == 4096 * 2 * 128 * 4
    sizes = {t.collective.source: t.collective.bytes for t in formula.transfers}
    assert sizes == {
        "gradients": 4 * (BACKBONE + HEAD),
        "BatchNorm, forward": 4 * STATISTICS,
        "BatchNorm, backward": 4 * STATISTICS,
        "embeddings": 4 * 4096 * 2 * 128,
    }
    assert not formula.compiled
    assert any("By formula" in note for note in formula.notes)


def test_a_ring_by_formula(small_network):
    """From 1,024 rows a device on and a large matrix, embeddings travel round a ring: 32 KiB in 2 * 31 hops, none gathered."""
    found = make(tiny(batch_size=512 * 32), parse("gpu:32xh100"), 0.0, print)
    (ring,) = [t for t in found.transfers if t.collective.kind == "collective-permute"]
    assert (ring.count, ring.collective.bytes) == (2 * 31, 1024 * 8 * 4)
    assert {t.collective.kind for t in found.transfers} == {"collective-permute", "all-reduce"}
    assert "embeddings of all devices" not in found.memory


# --------------------------------------------------------------------------------------- by formula: a queue, shuffled keys


@pytest.fixture
def narrow(monkeypatch):
    """Makes a config as it is but for its network, a ResNet of two narrow blocks on 32 pixels."""
    monkeypatch.setitem(DEPTHS, 6, ((1, 0, 0, 1), False))

    def config(name, **changes):
        c = get_config(name)
        c.model.name, c.model.width, c.model.stem = "resnet6", 1 / 32, "cifar"
        c.views.ops.crop.size, c.data.image_size = 32, 40
        c.update_from_flattened_dict(changes)
        return config_lib.from_dict(c)

    return config


def sent(found):
    """{(kind, source): {(bytes, devices): count}}"""
    table = collections.defaultdict(dict)
    for t in found.transfers:
        c = t.collective
        table[c.kind, c.source][c.bytes, c.devices] = t.count
    return dict(table)


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("moco_v1", 8),
        ("moco_v2", 32),
        pytest.param("moco_v1", 32, marks=pytest.mark.slow),
        pytest.param("moco_v2", 8, marks=pytest.mark.slow),
    ],
)
def test_moco_by_formula(name, devices, narrow):
    """The paper's eight GPUs, whose groups of 32 rows lie on one device, and 32, four of which have a group together."""
    found = make(narrow(name), parse(f"gpu:{devices}xa100-80"), 0.0, print)
    batch, keys, width = 256, 65536, 128
    rows = batch // devices
    memory = found.memory
    # Keys, one label, age and validity of each slot, and the pointer.
    assert memory["extra: queue"] == keys * (4 * width + 4 + 4 + 1) + 4
    trained = memory["parameters: backbone"] + memory["parameters: head_projection"]
    assert memory["extra: key_params"] == trained
    assert memory["extra: key_stats"] == memory["batch statistics"]
    # The queue takes the keys of all devices, with their labels; queries and their matrix stay at home.
    assert memory["embeddings of all devices"] == batch * (4 * width + 4)
    assert memory["activations, gradients (estimate)"] >= 4 * rows * keys
    statistics = memory["batch statistics"]
    table = sent(found)
    assert table.pop(("all-reduce", "gradients")) == {(trained, devices): 1}
    assert table.pop(("all-gather", "embeddings")) == {(batch * (4 * width + 4), devices): 1}
    # The keys' images to their shuffled places, the keys back: each way takes two all-to-alls.
    assert table.pop(("all-to-all", "shuffling BN")) == {
        (rows * 32 * 32 * 3 * 4, devices): 2,
        (rows * width * 4, devices): 2,
    }
    # Of the queries' pass and of the keys'.
    running = table.pop(("all-reduce", "BatchNorm, running statistics"))
    assert running == {(statistics, devices): 2}
    if devices > 8:
        assert table.pop(("all-reduce", "BatchNorm, forward")) == {(statistics, devices // 8): 2}
        assert table.pop(("all-reduce", "BatchNorm, backward")) == {(statistics, devices // 8): 1}
    assert not table


@pytest.mark.parametrize(
    ("name", "embeddings", "exchanges"),
    [
        # The batch's keys are candidates, and enter the queue with their label.
        ("supcon_moco", 256 * (128 * 4 + 4), 2),
        # Queries of both views look at the keys of the other.
        ("moco_v3_r50_tpu", 4096 * 2 * 256 * 4, 0),
        # Three keys of an image in three heads, of each of which one key enters a queue.
        ("looc_imagenet100", 256 * (3 * 128 * 4 + 4), 3 * 2),
    ],
)
@pytest.mark.slow
def test_what_other_methods_with_keys_send(name, embeddings, exchanges, narrow):
    found = make(narrow(name), parse("gpu:8xa100-80"), 0.0, print)
    table = sent(found)
    assert table["all-gather", "embeddings"] == {(embeddings, 8): 1}
    images = found.batch_size // 8 * 32 * 32 * 3 * 4
    assert table.get(("all-to-all", "shuffling BN"), {}).get((images, 8), 0) == exchanges


@pytest.mark.slow
def test_a_matrix_that_is_dense_on_a_gpu_and_not_on_the_cpu_that_traces_it(narrow):
    """Of 64 queries and 65,536 keys, twice 16 MiB: two copies would be too much for a CPU."""
    plans = [
        make(narrow("moco_v2", **{"method.queue_size": k}), parse("gpu:4xa100-80"), 0.0, print)
        for k in (64, 65536)
    ]
    few, many = (p.memory["activations, gradients (estimate)"] for p in plans)
    assert many - few >= 0.9 * 2 * 4 * 64 * 65536


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 16])
def test_micro_batches_send_by_formula_what_the_compiler_sends(groups, narrow):
    """Gradients after each of four, and for statistics of the whole batch those of all sweeps."""
    changes = {
        "batch_size": 32,
        "micro_batch": 8,
        "model.bn_groups": groups,
        "model.dtype": "float32",
    }
    config = narrow("simclr_tpu", **changes)

    def reduced(topology):
        found = make(config, parse(topology), 0.0, print)
        every = [t for t in found.transfers if t.collective.kind == "all-reduce"]
        return sum(t.count * t.collective.bytes for t in every), sent(found)

    compiled, _ = reduced("cpu:4")
    formula, table = reduced("gpu:4xh100")
    assert formula == pytest.approx(compiled, rel=0.03)
    (((size, devices), count),) = table["all-reduce", "gradients of micro-batches"].items()
    assert (devices, count) == (4, 4)
    assert size > 4 * 1000
    assert (("all-reduce", "BatchNorm, backward, of micro-batches") in table) == (groups == 1)


@pytest.mark.slow
def test_groups_that_do_not_fit_the_devices(narrow):
    """12 groups on 8 devices: the rows' means travel, of each layer [N, C] twice."""
    config = narrow("moco_v2", batch_size=192, **{"model.bn_groups": 12})
    found = make(config, parse("gpu:8xa100-80"), 0.0, print)
    rows = 192 * found.memory["batch statistics"]
    table = sent(found)
    assert table["all-gather", "BatchNorm, forward"] == {(rows, 8): 2}
    assert table["all-gather", "BatchNorm, backward"] == {(rows, 8): 1}


@pytest.mark.slow
def test_moco_that_the_compiler_refuses(monkeypatch, narrow):
    def gives_up(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 9.5G of 3G hbm.")

    monkeypatch.setattr(jax.stages.Lowered, "compile", gives_up)
    found = make(narrow("moco_v2"), parse("cpu:8"), 0.0, print)
    assert found.notes[0].startswith("The compiler refuses the program")
    assert ("all-to-all", "shuffling BN") in sent(found)


def test_products_of_resnet50_against_the_hand(formula):
    """Forward, and backward twice that but for the first convolution, whose input needs no gradient."""
    forward, first = FLOPS
    assert forward == pytest.approx(
        2 * 4.09e9, rel=0.05
    )  # published, products with zeros of the padding counted
    assert formula.flops["bf16"] == pytest.approx(256 * (3 * forward - first), rel=1e-3)
    seconds = formula.seconds
    assert seconds["products"] >= formula.flops["bf16"] / 312e12
    assert seconds["step"] == max(seconds[part] for part in ("products", "memory", "links"))
    # The compiler for v5e arrives at 320 MB for each image of a device.
    assert formula.moved / 256 == pytest.approx(4.0e8, rel=0.25)


def test_activations_of_resnet50_are_what_one_knows_of_it(formula):
    """About 11.1 million outputs of convolutions an image; in bfloat16, each before and after its BatchNorm and ReLU."""
    kept = formula.memory["activations, gradients (estimate)"]
    assert 0.9 <= kept / (256 * 11.1e6 * 2 * 2) <= 1.5


def test_activations_of_a_chain():
    """x -> tanh(x w) three times: the backward pass needs each product's input, and computes tanh' of its output again."""

    def loss(w, x):
        for _ in range(3):
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    rows, width = 100, 10
    traced = jax.make_jaxpr(jax.grad(loss))(jnp.ones((width, width)), jnp.ones((rows, width)))
    found = trace.estimate(traced)
    array = rows * width * 4
    assert 3 * array <= found.kept <= 6 * array
    # Forward x is read, x w written, and of it tanh made, which is 4 arrays; backward the gradient of x w is made of that of
    # tanh, and read for both gradients, of which that of x is written, and x is read: 7.
    assert 3 * 8 * array <= found.moved <= 3 * 11 * array
    # Three products forward, three and two (x needs no gradient) backward.
    assert found.flops == {"f32": (3 + 3 + 2) * 2 * rows * width * width}


def test_traffic_with_memory():
    """A product, an element-wise function that a second product reads, the two sums of a BatchNorm, a loop, a row of a table."""
    n = 4 * 64 * 64

    def moved(f, *shapes):
        return trace.moved(jax.make_jaxpr(f)(*(jnp.ones(s) for s in shapes)).jaxpr)

    square, row = (64, 64), (64,)
    assert moved(lambda x, y: x @ y, square, square) == 3 * n
    # x @ y is written and read, its tanh too.
    assert moved(lambda x, y: jnp.tanh(x @ y) @ y, square, square) == (3 + 2 + 3) * n
    # Both sums read x once; each is one number for a column.
    sums = moved(lambda x: (x.sum(0), (x * x).sum(0)), square)
    assert sums == n + 2 * 4 * 64

    def scan(x, y):
        return jax.lax.scan(lambda x, _: (x @ y, None), x, None, length=5)[0]

    assert moved(scan, square, square) == 5 * 3 * n
    assert moved(lambda x, i: x[i.astype(int)], (4096, 64), row) <= 2 * n + 20 * 4 * 64


def test_products_of_traced_loops():
    def f(x):
        x = jax.lax.fori_loop(0, 5, lambda i, x: x @ x, x)
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x @ x, x)

    found = trace.estimate(jax.make_jaxpr(f)(jnp.ones((4, 4))))
    assert found.flops.total() == (5 + 2) * 2 * 4**3
    assert list(found.unknown) == ["a loop of unknown length, counted once"]


def test_of_branches_for_platforms_one_is_counted():
    """The gradient of a convolution has another branch on CPU; that of an input that needs none is no work on either."""

    def loss(kernel, images):
        return (conv2d(jnp.tanh(conv2d(images, kernel)), kernel) ** 2).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 3, 4, 4)), jnp.ones((2, 6, 6, 4)))
    one = 2 * 2 * 16**2 * 4 * 4  # of 6 x 6 places and 3 x 3 taps, 16 a side are inside
    array = 2 * 6 * 6 * 4 * 4
    # Kept at most: the hidden layer before and after tanh, the result, a gradient; on CPU a transposed array too.
    for platform, arrays in (("cuda", 4), ("tpu", 4), ("cpu", 5)):
        found = trace.estimate(traced, platform)
        assert found.flops == {"f32": 5 * one}  # two forward; backward one and two
        assert found.kept == arrays * array


# ------------------------------------------------------------------------------------ the same program as in training


@pytest.mark.parametrize("crop", ["device", "host"])
def test_the_planned_batch_is_that_of_the_data(crop):
    config = tiny(**{"data.crop": crop, "data.image_size": 16, "data.workers": 0})
    known = plan.facts(config)
    mesh = mesh_lib.make_mesh()
    source = data.load(config.data, "train")
    assert known.examples == len(source)
    sampler = data.Uniform(len(source), config.batch_size, 0)
    method = config.build_method()
    batch = next(iter(data.train_batches(source, sampler, config.data, views=method.views)))
    real = mesh_lib.to_global(mesh, data.arrays(batch))
    planned = experiment.batch_shapes(config, mesh, method, known.shape, known.tree.depth)
    assert set(planned) == set(real)
    for name, array in real.items():
        assert (planned[name].shape, planned[name].dtype) == (array.shape, array.dtype), name
        assert planned[name].sharding.is_equivalent_to(array.sharding, array.ndim), name


def test_the_loss_sees_the_devices_of_the_program(monkeypatch, small_network):
    """Their number and their kind, which need not be those of this process."""
    seen = []
    real = nce.choose
    monkeypatch.setattr(nce, "choose", lambda *a: seen.append(a) or real(*a))
    mesh = mesh_lib.make_mesh(jax.devices()[:4])
    built, batch = plan.build(tiny(), mesh, plan.facts(tiny()))
    built.step.trace(built.state, batch)
    assert set(seen) == {(128, 128, 4, 4, "cpu")}


@pytest.mark.parametrize(
    ("impl", "kernel", "expected"),
    [("auto", "auto", "dense"), ("ring", "auto", "ring"), ("auto", "pallas", "tiled")],
)
def test_the_loss_takes_the_form_that_the_configuration_says(impl, kernel, expected, small_network):
    config = tiny(**{"mesh.loss_impl": impl, "mesh.loss_kernel": kernel})
    built, batch = plan.build(config, mesh_lib.make_mesh(jax.devices()[:4]), plan.facts(config))
    with nce.watched() as matrices:
        program = built.step.trace(built.state, batch).jaxpr
    assert {matrix.form for matrix in matrices} == {expected}
    assert ("pallas_call" in str(program)) == (kernel == "pallas")


def lowered_for_cuda(config):
    mesh = mesh_lib.make_mesh()
    built, batch = plan.build(config, mesh, plan.facts(config))
    return built.step.trace(built.state, batch).lower(lowering_platforms=("cuda",)).as_text()


def test_a_small_step_lowers_for_cuda(small_network):
    text = lowered_for_cuda(tiny())
    assert "stablehlo.convolution" in text
    assert "mhlo.num_partitions = 8" in text


@pytest.mark.slow
def test_the_step_of_resnet50_lowers_for_cuda():
    """The whole of it, as `configs/simclr_tpu.py` has it: tracing only."""
    text = lowered_for_cuda(config_lib.from_dict(get_config("simclr_tpu")))
    assert "mhlo.num_partitions = 8" in text
    lines = [line for line in text.splitlines() if "xbf16>" in line]
    # Each forward, and two for it backward, but for the first, whose images need no gradient; 36 are of one pixel.
    assert sum("stablehlo.convolution" in line for line in lines) == 3 * (53 - 36) - 1
    assert sum("stablehlo.dot_general" in line for line in lines) >= 3 * 36


# -------------------------------------------------------------------------------------------------- page, JSON, records

# Of ml_collections, which reads the file of a config in a way that Python 3.12 and later do not want.
OLD_LOADER = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")


def run(capsys, *arguments):
    main(["--config=configs/quickstart.py", *arguments])
    return capsys.readouterr()


SMALL = (
    "--config.batch_size=32",
    f"--config.model.width={tiny_network.CONFIG.width}",
    "--config.method.projection.layers=(16,8)",
    "--config.views.ops.crop.size=8",
)


@OLD_LOADER
def test_the_command(capsys, tmp_path, small_network, monkeypatch):
    path, record = tmp_path / "plan.json", tmp_path / "golden.json"
    flags = (*SMALL, "--topology=gpu:4xl4", f"--json={path}", f"--golden={record}")
    out = run(capsys, *flags, "--write_golden").out
    assert "32 images on 4 devices, 8 on each (by formula; jax" in out
    assert "fits: " in out
    assert "92% of a GPU's memory if it is started by launch/slurm.py or with XLA_CLIENT_MEM" in out
    assert "MODELLED" in out
    found = json.loads(path.read_text())
    assert found["fits"] is True
    assert found["needed_bytes"] == sum(found["memory"].values())
    assert found["spare_bytes"] == 22_080_000_000 - found["needed_bytes"]
    assert {c["kind"] for c in found["collectives"]} == {"all-reduce", "all-gather"}
    assert found["modelled_seconds"]["memory"] > 0
    # The record holds; a number further from it than 5 % does not, nor does a plan without one.
    config = pathlib.Path("configs/quickstart.py").absolute()
    monkeypatch.chdir(tmp_path)
    main([f"--config={config}", *SMALL, "--topology=gpu:4xl4", f"--golden={record}"])
    # Unless told otherwise, everything is written here, and a line says so.
    assert "plan-quickstart-gpu-4xl4.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "plan-quickstart-gpu-4xl4.json").read_text()) == found
    (tmp_path / "plan-quickstart-gpu-4xl4.json").unlink()
    records = json.loads(record.read_text())
    (by_name,) = records.values()
    (numbers,) = by_name.values()
    numbers["sent bytes"] *= 1.06
    record.write_text(json.dumps(records))
    with pytest.raises(SystemExit) as stop:
        main([f"--config={config}", *SMALL, "--topology=gpu:4xl4", f"--golden={record}", "--json="])
    assert stop.value.code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "golden.json"}
    assert "sent bytes" in capsys.readouterr().err


@OLD_LOADER
def test_weak_scaling(capsys, tmp_path, small_network):
    path = tmp_path / "plans.json"
    out = run(capsys, *SMALL, "--topology=gpu:4xh100", "--weak-scaling", f"--json={path}").out
    assert "weak scaling" in out
    *table, note = out.splitlines()
    assert "XLA_CLIENT_MEM_FRACTION" in note
    assert max(map(len, table)) <= 80
    plans = json.loads(path.read_text())
    assert [(p["devices"], p["batch_size"]) for p in plans] == [(1, 8), (2, 16), (4, 32)]
    assert not plans[0]["collectives"]
    assert len({p["memory"]["input batch"] for p in plans}) == 1


def ladder(monkeypatch, config, topology):
    """Of each plan of a weak scaling: devices, batch, micro-batch, groups; nothing is planned."""
    monkeypatch.setattr(plan, "make", lambda *given: given)
    return [
        (on.devices, part.batch_size, part.micro_batch, part.model.bn_groups)
        for part, on, *_ in plan.weak_scaling(config, parse(topology), 0.0, print)
    ]


def test_weak_scaling_keeps_micro_batches_and_groups(monkeypatch):
    """Each device has the same micro-batches, and groups of as many rows; one group is always the whole batch."""
    c = get_config("simclr_tpu")
    c.micro_batch = 1024
    found = ladder(monkeypatch, config_lib.from_dict(c), "gpu:32xa100-80")
    assert found == [(n, 128 * n, 32 * n, 1) for n in (1, 2, 4, 8, 16, 32)]
    moco = config_lib.from_dict(get_config("moco_v2"))
    assert ladder(monkeypatch, moco, "gpu:8xa100-80") == [(n, 32 * n, 0, n) for n in (1, 2, 4, 8)]
    assert ladder(monkeypatch, moco, "v4:1x1x1") == [(2, 256, 0, 8)]


@pytest.mark.parametrize(
    ("changes", "topology", "message"),
    [
        ({"batch_size": 100}, "gpu:32xh100", "batch_size=100 does not divide over 32 devices"),
        ({"micro_batch": 16}, "gpu:32xh100", r"micro_batch=16: .* over 32 devices; choose 32"),
        (
            {"model.bn_groups": 8},
            "gpu:32xh100",
            r"model.bn_groups=8: gpu:1xh100 has 1 of 32 devices .* a multiple of 32, or 1, or a topology of 8 devices or fewer",
        ),
        # Half chips come in pairs: the smallest slice has two devices.
        ({"model.bn_groups": 8}, "v4:2x2x4", r"v4:1x1x1 has 2 of 32 .* a multiple of 16, .* of 16 dev"),
    ],
)  # fmt: skip
def test_weak_scaling_that_does_not_divide(changes, topology, message):
    with pytest.raises(ValueError, match=message):
        plan.weak_scaling(tiny(**changes), parse(topology), 0.0, print)


def test_weak_scaling_makes_the_most_cpu_devices_first(monkeypatch):
    """JAX makes them once in a process."""
    asked = []
    monkeypatch.setattr(devices, "devices", lambda topology, *_: asked.append(topology.text))
    monkeypatch.setattr(plan, "make", lambda part, topology, *_: asked.append(topology.text))
    plan.weak_scaling(tiny(), parse("cpu:4"), 0.0, print)
    assert asked == ["cpu:4", "cpu:1", "cpu:2", "cpu:4"]


@pytest.mark.parametrize("name", ["moco_v2", pytest.param("supcon_moco", marks=pytest.mark.slow)])
def test_weak_scaling_of_shuffled_keys(name, narrow):
    """A device by itself has one group, which MoCo would refuse of a whole experiment: it is a part of the larger one."""
    config = narrow(name, batch_size=16, **{"model.bn_groups": 2, "method.queue_size": 64})
    one, two = plan.weak_scaling(config, parse("gpu:2xh100"), 0.0, print)
    assert (one.batch_size, two.batch_size) == (8, 16)
    assert not one.transfers
    assert ("all-to-all", "shuffling BN") in sent(two)
    assert one.flops == pytest.approx(two.flops, rel=0.01)


@OLD_LOADER
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v7:2x2"], "unknown topology 'v7:2x2': known are"),
        (["--topology=gpu:3xh100"], "batch_size=128 does not divide over 3 devices"),
        (["--topology=h100", "--config.batch_sise=3"], "batch_sise"),
        (["--topology=h100", "here"], r"unexpected arguments \['here'\]"),
        (["--topology=h100", "--write_golden"], "--write_golden needs --golden=FILE"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match=message) as stop:
        run(capsys, *arguments)
    assert "(--traceback shows where)" in str(stop.value)


def test_differences_from_a_record(compiled):
    numbers = golden.numbers(compiled)
    assert golden.differences(compiled, numbers) == []
    assert golden.differences(compiled, {k: v * 1.04 for k, v in numbers.items()}) == []
    key = "memory/temporaries"
    (line,) = golden.differences(compiled, numbers | {key: numbers[key] * 2})
    assert line.startswith(f"{key}: ")
    assert line.endswith("(-50.0%)")
    (line,) = golden.differences(compiled, {k: v for k, v in numbers.items() if k != key})
    assert line.endswith("(new)")
    (line,) = golden.differences(compiled, numbers | {"reduce-scatter/count": 1.0})
    assert line == "reduce-scatter/count: 1 recorded, 0 now (-100.0%)"


def test_a_program_that_the_compiler_refuses(monkeypatch, small_network):
    """Its own count of what was needed stands, and it does not fit whatever the formula says."""
    says = ["RESOURCE_EXHAUSTED: Used 9.5G of 3G hbm.\nand more", "INTERNAL: something else"]

    def gives_up(self):
        raise jax.errors.JaxRuntimeError(says.pop(0))

    monkeypatch.setattr(jax.stages.Lowered, "compile", gives_up)
    monkeypatch.setattr(chips, "_host_memory", lambda: 24 * GIB)
    found = make(tiny(), parse("cpu:8"), 0.0, print)
    assert not found.compiled
    assert not found.fits
    assert (found.needed, found.capacity) == (int(9.5 * GIB), 3 * GIB)
    assert (
        found.notes[0]
        == "The compiler refuses the program: RESOURCE_EXHAUSTED: Used 9.5G of 3G hbm."
    )

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        make(tiny(), parse("cpu:8"), 0.0, print)


def test_the_page_has_all_collectives_by_kind(formula):
    """Whatever the number of places that are listed: kind, count, bytes, bytes sent."""

    def transfer(count, kind, size, source):
        return plan.Transfer(Collective(kind, (), size, 4, source), count)

    found = dataclasses.replace(
        formula,
        transfers=(
            transfer(2, "all-gather", 2**20, "a"),
            transfer(1, "all-gather", 2**10, "b"),
            transfer(5, "all-reduce", 2**10, "c"),
            transfer(3, "all-reduce", 100, "d"),
        ),
    )
    assert found.kinds == {
        "all-gather": (3, 2**21 + 2**10, 0.75 * (2**21 + 2**10)),
        "all-reduce": (8, 5420, 1.5 * 5420),
    }
    assert sum(sent for _, _, sent in found.kinds.values()) == found.sent
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(page.page(found, rows=1))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    table = lines[lines.index("collectives of a step, by kind") + 2 :][:3]
    assert table == [
        "all-gather 3 2,098,176 2.0 MiB 1.5 MiB",
        "all-reduce 8 5,420 5.3 KiB 7.9 KiB",
        "together 11 2,103,596 2.0 MiB 1.5 MiB",
    ]
    assert "others 9 100 B .. 1.0 KiB 8.7 KiB 3 more places" in lines


def test_what_jax_leaves_to_others_is_no_room(formula):
    """Of 16 GB, 14.72 may be used."""
    small = parse("v100-16")
    for needed, fits in ((14_720_000_000, True), (14_720_000_001, False)):
        found = dataclasses.replace(formula, topology=small, memory={"all": needed})
        assert found.fits is fits


def test_what_does_not_fit_says_by_how_much(formula):
    memory = {**formula.memory, "activations, gradients (estimate)": 16_000_000_000}
    small = dataclasses.replace(formula, topology=parse("gpu:32xv100-16"), memory=memory)
    assert not small.fits
    assert page.verdict(small).startswith("does not fit: ")
    assert page.verdict(small).endswith(" too much")
    over = small.needed - 14_720_000_000
    assert page.size(over) in page.verdict(small)
    assert math.isclose(small.to_dict()["spare_bytes"], -over)
    assert np.isfinite(small.seconds["step"])
