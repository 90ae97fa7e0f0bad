"""A plan: what the train step of a configuration needs of each device, before there is one."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxcl import data, experiment
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.data import LabelTree
from jaxcl.losses import nce
from jaxcl.models import gradient_cache
from jaxcl.plan import devices as devices_lib
from jaxcl.plan import hlo, trace
from jaxcl.plan.chips import PlanError, Topology
from jaxcl.plan.cost import Collective, Cost, cost
from jaxcl.plan.traffic import dense_bytes, traffic

EXAMPLES = 1_281_167
CLASSES = 1000
BUILT_IN = ("emoji", "noise")

# Kind of memory by the path of an array in the train state; the first that matches decides, "*" is the next part of the path.
KINDS = (
    ("params/", "parameters: *"),
    ("opt_state/", "optimizer state"),
    ("batch_stats/", "batch statistics"),
    ("extra/", "extra: *"),
    ("", "counters and key"),
)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A collective and how often a step does it."""

    collective: Collective
    count: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a train step needs of one device, and of the links to the others.

    Attributes:
      name: of the configuration.
      network: its backbone and, unless 1, its width.
      topology: where it is planned for.
      batch_size: images of the global batch.
      compiled: whether XLA compiled the step; otherwise the figures that say so are from formulas.
      versions: of jax and libtpu.
      memory: kind -> bytes on each device.
      transfers: the collectives of a step.
      flops: operations of products on each device, by type of arithmetic.
      moved: bytes between each device and its memory; 0 if not known.
      notes: what has to be known about these figures.
    """

    name: str
    network: str
    topology: Topology
    batch_size: int
    compiled: bool
    versions: Mapping[str, str]
    memory: Mapping[str, int]
    transfers: tuple[Transfer, ...]
    flops: Mapping[str, float]
    moved: float
    notes: tuple[str, ...]

    @property
    def needed(self) -> int:
        """Bytes on each device."""
        return sum(self.memory.values())

    @property
    def capacity(self) -> int:
        """Bytes that a program may use of each device; virtual CPU devices share the machine's."""
        share = self.topology.devices if self.topology.chip.platform == "cpu" else 1
        return self.topology.chip.memory // share

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.needed <= self.capacity

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step."""
        return sum(t.count * t.collective.sent for t in self.transfers)

    @property
    def kinds(self) -> dict[str, tuple[int, int, float]]:
        """Kind of collective -> how many a step has, bytes of their arrays, bytes that each device sends for them."""
        found: dict[str, tuple[int, int, float]] = {}
        for t in self.transfers:
            count, size, sent = found.get(t.collective.kind, (0, 0, 0.0))
            found[t.collective.kind] = (
                count + t.count,
                size + t.count * t.collective.bytes,
                sent + t.count * t.collective.sent,
            )
        return found

    @property
    def seconds(self) -> dict[str, float]:
        """The least time of a step, modelled: what each part takes at its peak rate, and the longest of them.

        {} where no peak rates are known.
        """
        chip = self.topology.chip
        if not chip.flops:
            return {}
        parts = {
            "products": chip.seconds(self.flops),
            "memory": self.moved / chip.bandwidth,
            "links": self.sent / chip.link,
        }
        return parts | {"step": max(parts.values())}

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; bytes and operations are of one device."""
        return {
            "config": self.name,
            "network": self.network,
            "topology": self.topology.text,
            "chip": self.topology.chip.name,
            "devices": self.topology.devices,
            "batch_size": self.batch_size,
            "compiled": self.compiled,
            "versions": dict(self.versions),
            "memory": dict(self.memory),
            "needed_bytes": self.needed,
            "capacity_bytes": self.capacity,
            "fits": self.fits,
            "spare_bytes": self.capacity - self.needed,
            "collectives": [
                {"count": t.count, **dataclasses.asdict(t.collective), "sent": t.collective.sent}
                for t in self.transfers
            ],
            "flops": dict(self.flops),
            "moved_bytes": self.moved,
            "sent_bytes": self.sent,
            "modelled_seconds": self.seconds,
            "notes": list(self.notes),
        }


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a step has to know of the data.

    Attributes:
      examples: images of the training data, which set the length of the schedule and the rows of a memory bank.
      shape: (H, W, C) of the images that views are made of.
      tree: the levels and classes of the labels.
      note: what was assumed, "" for nothing.
    """

    examples: int
    shape: tuple[int, int, int]
    tree: LabelTree
    note: str = ""


def facts(config: Config) -> Facts:
    """Reads the built-in data sets; of all others nothing is opened, and what only they know is assumed.

    Raises:
      PlanError: the size of the images is not in the configuration.
    """
    c = config.data
    if c.name in BUILT_IN:
        source = data.load(c, "train")
        return Facts(
            len(source), data.image_shape(source, c), experiment.labelled(config, source).tree
        )
    if not c.image_size:
        raise PlanError(
            "data.image_size=0 takes the size of the images from the data, which a plan does not open: set"
            " --config.data.image_size"
        )
    levels = data.level_names(c)
    tree = LabelTree(levels, tuple(tuple(map(str, range(CLASSES))) for _ in levels))
    examples = max(EXAMPLES, config.batch_size)
    note = (
        f"The data are not opened: {examples:,} images and {CLASSES:,} classes a level are assumed (they set the length of the"
        " schedule, the width of a classifier's head, and the rows of a memory bank, and so its bytes)."
    )
    return Facts(examples, (c.image_size, c.image_size, c.channels), tree, note)


def make(
    config: Config,
    topology: Topology,
    wait: float,
    say: Callable[[str], None],
    whole: Config | None = None,
) -> Plan:
    """Plans the train step of a configuration on a topology; for TPU and CPU by compiling it.

    Args:
      config: the experiment.
      topology: where.
      wait: seconds to wait for another process that has libtpu.
      say: gets lines about the progress.
      whole: the experiment of which this one is a `share`, if it is one.

    Raises:
      PlanError: the topology cannot be compiled for.
      ValueError: a setting that does not fit the devices.
    """
    known = facts(whole or config)
    if topology.chip.platform == "gpu":
        return by_formula(config, topology, known, whole)
    mesh = mesh_lib.make_mesh(devices_lib.devices(topology, wait, say))
    built, batch = build(config, mesh, known, whole)
    say(f"compiling the train step for {topology.text} ...")
    lowered = built.step.lower(built.state, batch)
    notes = [topology.note, known.note]
    state_bytes = bytes_of_state(built.state)
    batch_bytes = bytes_of(batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = devices_lib.out_of_memory(error)
        if needed is None:
            raise
        return refused(
            by_formula(config, topology, known, whole),
            state_bytes,
            batch_bytes,
            needed,
            str(error),
        )
    counted = cost(hlo.parse(compiled.as_text()))
    notes += [f"Not counted: {what} ({n} times)." for what, n in counted.unknown.items()]
    notes += without_rate(topology, counted.flops)
    return Plan(
        name=config.name,
        network=network(config),
        topology=topology,
        batch_size=config.batch_size,
        compiled=True,
        versions=devices_lib.versions(),
        memory=compiled_memory(state_bytes, batch_bytes, compiled.memory_analysis()),
        transfers=transfers(counted),
        flops=dict(counted.flops),
        moved=counted.moved,
        notes=tuple(filter(None, notes)),
    )


def share(config: Config, parts: int) -> Config:
    """One of so many parts of the batch, of its micro-batches, and of BatchNorm's groups; at least one group."""
    return dataclasses.replace(
        config,
        batch_size=config.batch_size // parts,
        micro_batch=config.micro_batch // parts,
        model=dataclasses.replace(config.model, bn_groups=max(1, config.model.bn_groups // parts)),
    )


def build(
    config: Config, mesh: jax.sharding.Mesh, known: Facts, whole: Config | None = None
) -> tuple[experiment.Experiment, dict[str, jax.ShapeDtypeStruct]]:
    """The experiment and the shapes of its batches.

    A `share` has the method and the schedule of the whole: by itself it may have a single group of BatchNorm, which a method
    that shuffles keys over groups refuses.
    """
    whole = (whole or config).for_labels(known.tree).for_run(known.examples, known.tree.depth)
    config = dataclasses.replace(config, method=whole.method)
    steps = whole.total_steps(known.examples)
    steps_per_epoch = max(1, known.examples // whole.batch_size)
    method = whole.build_method()
    built = experiment.build(config, mesh, known.shape, steps, steps_per_epoch, method)
    batch = experiment.batch_shapes(config, mesh, built.method, known.shape, known.tree.depth)
    return built, batch


def by_formula(
    config: Config, topology: Topology, known: Facts, whole: Config | None = None
) -> Plan:
    """A plan without a compiler for the devices.

    State and batch are exact. Products and activations are counted in the traced program of one device's share of the
    batch, activations by a model of what is kept (`trace`). Collectives are those of data parallelism (`traffic`).
    """
    count = topology.devices
    mesh_lib.check_batch_size(count, config.batch_size)
    pieces = gradient_cache.count_pieces(
        config.batch_size, config.micro_batch, config.model.groups_in_backbone, count
    )
    mesh = mesh_lib.make_mesh(jax.devices("cpu")[:1])
    built, batch = build(share(config, count), mesh, known, whole or config)
    with nce.watched() as matrices:
        traced = built.step.trace(built.state, batch).jaxpr
    platform = topology.chip.platform
    estimate = trace.estimate(traced, "cuda" if platform == "gpu" else platform)
    with nce.using(config.mesh.loss_impl, config.mesh.loss_kernel):
        sent = traffic(built, batch, topology, config.model.bn_groups, pieces)
    # The share has its own columns only, and takes the form of loss that suits one device.
    others = max(0, sent.matrices - dense_bytes(matrices))
    memory = {
        **bytes_of_state(built.state),
        "input batch": bytes_of(batch),
        "next batch": bytes_of(batch),
        "activations, gradients (estimate)": estimate.kept + others,
        "embeddings of all devices": sent.gathered,
    }
    notes = [
        topology.note,
        known.note,
        "By formula, not compiled: activations and traffic with memory by a model of XLA's fusion, collectives as data parallelism"
        " needs them.",
        *(f"Not counted: {what} ({n} times)." for what, n in estimate.unknown.items()),
        *without_rate(topology, estimate.flops),
    ]
    return Plan(
        name=config.name,
        network=network(config),
        topology=topology,
        batch_size=config.batch_size,
        compiled=False,
        versions=devices_lib.versions(),
        memory={k: v for k, v in memory.items() if v},
        transfers=tuple(Transfer(c, n) for c, n in sent.collectives.items()),
        flops=dict(estimate.flops),
        moved=float(estimate.moved),
        notes=tuple(filter(None, notes)),
    )


def without_rate(topology: Topology, flops: Mapping[str, float]) -> list[str]:
    """A note on products that take no part in the least time of a step, as nobody says how fast the chip makes them."""
    return [
        f"No rate is known of products in {kind} on {topology.chip.name}: the least time of a step is without them."
        for kind in topology.chip.unrated(flops)
    ]


def bytes_of_state(state: Any) -> dict[str, int]:
    """Kind -> bytes of the train state on each device."""
    found: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        prefix, kind = next((p, k) for p, k in KINDS if name.startswith(p))
        part = name.removeprefix(prefix).split("/")[0]
        found[kind.replace("*", part)] += _bytes(leaf)
    return dict(found)


def bytes_of(tree: Any) -> int:
    """Bytes of arrays on each device."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize


def compiled_memory(state: Mapping[str, int], batch: int, analysis: Any) -> dict[str, int]:
    """Kind -> bytes on each device of a compiled step.

    Args:
      state: kind -> bytes of the train state, which the step takes and gives back in the same place.
      batch: bytes of a batch. The loop sends the next one while a step runs.
      analysis: `compiled.memory_analysis()`.
    """
    padding = analysis.argument_size_in_bytes - sum(state.values()) - batch
    kinds = {
        **state,
        "input batch": batch,
        "next batch": batch,
        "padding of layouts": max(0, padding),
        "temporaries": analysis.temp_size_in_bytes,
        "outputs of their own": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    return {kind: int(size) for kind, size in kinds.items() if size > 0}


def refused(
    estimated: Plan, state: Mapping[str, int], batch: int, needed: int, reason: str
) -> Plan:
    """The plan of a step that the compiler refused for lack of memory.

    Args:
      estimated: the plan by formula, for all but the memory.
      state: kind -> bytes of the train state.
      batch: bytes of a batch.
      needed: bytes that the compiler had counted when it gave up; 0 if it does not say.
      reason: what it says.
    """
    known = sum(state.values()) + batch
    rest = max(needed, estimated.capacity + 1) - known
    memory = {**state, "input batch": batch, "everything else, at least": rest}
    first_line = reason.partition("\n")[0]
    notes = (f"The compiler refuses the program: {first_line}", *estimated.notes)
    return dataclasses.replace(estimated, memory=memory, notes=notes)


def network(config: Config) -> str:
    """What a plan calls the network of a configuration, such as "resnet50" or "resnet50 x2"."""
    model = config.model
    return model.name if model.width == 1 else f"{model.name} x{model.width:g}"


def transfers(counted: Cost) -> tuple[Transfer, ...]:
    """The collectives of a program, the largest first."""
    found = [Transfer(c, n) for c, n in counted.collectives.items()]
    return tuple(sorted(found, key=lambda t: -t.count * t.collective.sent))


def weak_scaling(
    config: Config, topology: Topology, wait: float, say: Callable[[str], None]
) -> list[Plan]:
    """Plans of the same share of the batch on 1, 2, 4, ... chips, the whole topology last.

    Args:
      config: the experiment on the whole topology; with half the chips it has half the batch, of the same micro-batches and
        groups of BatchNorm on each.
      topology: the largest.
      wait: as in `make`.
      say: as in `make`.

    Raises:
      ValueError: the batch, its micro-batches or BatchNorm's groups do not divide; says what to choose.
    """
    mesh_lib.check_batch_size(topology.devices, config.batch_size)
    config.check_micro_batch(topology.devices)
    ladder = [topology]
    while (smaller := ladder[-1].half) is not None:
        ladder.append(smaller)
    groups, parts = config.model.bn_groups, topology.devices // ladder[-1].devices
    # One group is the whole batch, however large.
    if groups > 1 and groups % parts:
        raise ValueError(
            f"model.bn_groups={groups}: {ladder[-1].text} has {ladder[-1].devices} of {topology.devices} devices and would have"
            f" no whole group; choose bn_groups a multiple of {parts}, or 1, or a topology of"
            f" {math.gcd(groups, parts) * ladder[-1].devices} devices or fewer"
        )
    if topology.chip.platform == "cpu":
        # JAX makes as many as it is first asked for, and none later.
        devices_lib.devices(topology, wait, say)
    return [
        make(share(config, topology.devices // t.devices), t, wait, say, config)
        for t in reversed(ladder)
    ]
