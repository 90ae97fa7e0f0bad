"""What a compiled program does on one device: products, traffic with its memory, collectives; loops by their trips.

XLA's own analysis counts the body of a loop once, so this is counted here. A loop's trips are those that XLA noted, or
else its condition is followed on the scalar integers of its state, as they are in nested loops whose length depends on the
outer one's counter.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxcl.plan.hlo import Computation, Instruction, Program, Shape

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
MAX_TRIPS = 1_000_000
"""A loop that is followed further than this counts as one of unknown length."""

# They take no time of their own: names for parts of other values, or the loops and calls that are gone into.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"),
    *("while", "conditional", "call", "add-dependency", "partition-id", "replica-id"),
    *("copy-done", "slice-done", "async-done", "async-update"),
)
_READS_A_PART = ("slice", "dynamic-slice", "gather")
# Calls of the compiler's own that make no products.
_NO_PRODUCTS = (
    *("AsyncCollectiveStart", "AsyncCollectiveDone", "ConcatBitcast", "AllocateBuffer"),
    *("GatherScatterIndicesBitpacked", "AssumeGatherIndicesInBound", "TopK", "Sharding"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: "all-reduce", "all-gather", ...
      arrays: what a device gives, for a gather what it gets, as text: "f32[8192,128]".
      bytes: their size.
      devices: how many take part.
      source: where the arrays come from in the traced program, numbers as "*".
    """

    kind: str
    arrays: tuple[str, ...]
    bytes: int
    devices: int
    source: str

    @property
    def sent(self) -> float:
        """Bytes that a device has to send at least: over a ring, an all-reduce passes everything twice."""
        others = (self.devices - 1) / max(self.devices, 1)
        match self.kind:
            case "all-reduce":
                return 2 * others * self.bytes
            case "collective-permute" | "collective-broadcast":
                return float(self.bytes)
            case _:
                return others * self.bytes


@dataclasses.dataclass
class Cost:
    """Sums over a program or a part of it, on one device.

    Attributes:
      flops: floating-point operations of matrix products and convolutions by type of arithmetic: "bf16", "f32",
        "f32 high", "f32 highest"; an addition and a multiplication are two, zeros of padding and dilation none.
      moved: bytes read from and written to main memory, but by collectives.
      collectives: how often each is done.
      unknown: what could not be counted, in words, and how often it was met.
    """

    flops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    moved: float = 0.0
    collectives: collections.Counter[Collective] = dataclasses.field(
        default_factory=collections.Counter
    )
    unknown: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def total_flops(self) -> float:
        """All products."""
        return float(sum(self.flops.values()))

    @property
    def sent(self) -> float:
        """Bytes that the device sends in collectives."""
        return sum(c.sent * n for c, n in self.collectives.items())

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds `other`, done so many times."""
        self.moved += times * other.moved
        for mine, theirs in (
            (self.flops, other.flops),
            (self.collectives, other.collectives),
            (self.unknown, other.unknown),
        ):
            for key, value in theirs.items():
                mine[key] += times * value  # type: ignore[index]


def cost(program: Program) -> Cost:
    """The cost of running a compiled program once, on one device."""
    return _Counter(program).body(program.entry, None)


# A value that the counting follows: a scalar integer, a tuple of values, or None for everything else.
Value = int | tuple[Any, ...] | None


class _Counter:
    """Goes through a program; costs that depend on no counter are kept."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.kept: dict[str, Cost] = {}

    def body(self, name: str, arguments: tuple[Value, ...] | None) -> Cost:
        """The cost of a computation that is run as it stands: the entry, a loop's body, a branch."""
        if name in self.kept:
            return self.kept[name]
        computation = self.program.computations[name]
        values = _Scalars(self.program, computation, arguments or ())
        total = Cost()
        for instruction in computation.instructions.values():
            total.add(self.instruction(computation, instruction, values))
        if not self.follows_counters(name):
            self.kept[name] = total
        return total

    def instruction(
        self, computation: Computation, instruction: Instruction, values: "_Scalars"
    ) -> Cost:
        """The cost of an instruction of a computation that is run as it stands."""
        match instruction.opcode:
            case "while":
                return self.loop(instruction, values)
            case "call":
                inner = instruction.callee("to_apply")
                return self.body(inner, tuple(values[name] for name in instruction.operands))
            case "async-start":
                return self.body(instruction.callee("calls"), None)
            case "conditional":
                costs = [self.body(name, None) for name in instruction.branches]
                return max(costs, key=lambda c: (c.total_flops, c.moved))
        total = self.arithmetic(computation, instruction)
        if instruction.opcode not in _FREE and not _is_collective(instruction):
            total.moved += moved(self.program, computation, instruction)
        return total

    def arithmetic(self, computation: Computation, instruction: Instruction) -> Cost:
        """Products and collectives of an instruction and of what is fused into it."""
        total = Cost()
        opcode = instruction.opcode
        if opcode == "fusion":
            inner = self.program.computations[instruction.callee("calls")]
            for part in inner.instructions.values():
                total.add(self.arithmetic(inner, part))
        elif opcode in ("convolution", "dot"):
            count = convolution_flops if opcode == "convolution" else dot_flops
            operands = [i.shapes[0] for i in computation.operands(instruction)]
            total.flops[arithmetic_type(instruction, operands)] += count(instruction, operands)
        elif opcode == "custom-call":
            target = instruction.text("custom_call_target").strip('"')
            if target not in _NO_PRODUCTS:
                total.unknown[f"the work of the kernel {target}"] += 1
        elif _is_collective(instruction) and not _continues(instruction):
            total.collectives[collective(self.program, computation, instruction)] += 1
        return total

    def loop(self, instruction: Instruction, values: "_Scalars") -> Cost:
        """The cost of a loop with all its trips."""
        body, condition = instruction.callee("body"), instruction.callee("condition")
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes)
        total = Cost()
        if not known or self.follows_counters(body):
            state = values[instruction.operands[0]]
            for _ in range(MAX_TRIPS):
                goes_on = self.result(condition, (state,))
                if goes_on is None:
                    break
                if not goes_on:
                    return total
                total.add(self.body(body, (state,)))
                state = self.result(body, (state,))
            total = Cost()
        total.add(self.body(body, (None,)), int(known[1]) if known else 1)
        if not known:
            total.unknown["a loop of unknown length, counted once"] += 1
        return total

    def result(self, name: str, arguments: tuple[Value, ...]) -> Value:
        """The value of a computation as far as it is scalar integers."""
        computation = self.program.computations[name]
        return _Scalars(self.program, computation, arguments)[computation.root.name]

    @functools.cache  # noqa: B019 (it lives as long as one count)
    def follows_counters(self, name: str) -> bool:
        """Whether the cost of a computation depends on its arguments: it has loops whose length XLA has not noted."""
        for i in self.program.computations[name].instructions.values():
            if i.opcode == "while" and "known_trip_count" not in i.attributes:
                return True
            inner = {"while": "body", "call": "to_apply"}.get(i.opcode)
            called = (i.callee(inner),) if inner else i.branches
            if any(map(self.follows_counters, called)):
                return True
        return False


class _Scalars:
    """The values of a computation's instructions, made when asked for."""

    def __init__(
        self, program: Program, computation: Computation, arguments: tuple[Value, ...]
    ) -> None:
        self.program = program
        self.computation = computation
        self.arguments = arguments
        self.values: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self.values:
            self.values[name] = self.evaluate(self.computation.instructions[name])
        return self.values[name]

    def evaluate(self, i: Instruction) -> Value:
        """The value of an instruction, None where it is no scalar integer."""
        match i.opcode:
            case "parameter":
                number = int(i.argument)
                return self.arguments[number] if number < len(self.arguments) else None
            case "tuple":
                return tuple(self[name] for name in i.operands)
            case "get-tuple-element":
                whole = self[i.operands[0]]
                return whole[int(i.text("index"))] if isinstance(whole, tuple) else None
            case "copy" | "bitcast" | "copy-start" | "copy-done" | "opt-barrier" | "reshape":
                return self[i.operands[0]]
        if len(i.shapes) != 1 or i.shapes[0].elements != 1 or i.shapes[0].dtype[0] not in "sup":
            return None
        match i.opcode:
            case "constant":
                text = i.argument.strip("{} ")
                return int({"true": "1", "false": "0"}.get(text, text))
            case "fusion" | "call":
                inner = self.program.computations[i.callee("calls", "to_apply")]
                given = tuple(self[name] for name in i.operands)
                return _Scalars(self.program, inner, given)[inner.root.name]
        if i.opcode not in _INTEGER and i.opcode != "compare":
            return None
        given = tuple(self[name] for name in i.operands)
        if any(not isinstance(v, int) for v in given):
            return None
        function = _COMPARE[i.text("direction")] if i.opcode == "compare" else _INTEGER[i.opcode]
        return int(function(*given))


_COMPARE: dict[str, Callable[..., bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_INTEGER: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "negate": lambda a: -a,
    "convert": lambda a: a,
    "broadcast": lambda a: a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "select": lambda which, a, b: a if which else b,
}


def arithmetic_type(instruction: Instruction, operands: Iterable[Shape]) -> str:
    """What kind of multiplications a product needs: the widest operand's type, and the precision asked for."""
    wide = max((s.dtype for s in operands), key=lambda d: Shape(d, ()).bytes)
    if wide != "f32":
        return wide
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    return f"f32 {precision[1]}" if precision and precision[1] != "default" else "f32"


def dot_flops(instruction: Instruction, operands: list[Shape]) -> int:
    """Two for each product of a matrix product."""
    contracted = [operands[0].dims[d] for d in instruction.numbers("lhs_contracting_dims")]
    return 2 * instruction.shapes[0].elements * int(np.prod(contracted, dtype=np.int64))


def convolution_flops(instruction: Instruction, operands: list[Shape]) -> int:
    """Two for each product of a convolution that is with neither padding nor the holes of a dilation."""
    left, right = operands[:2]
    out = instruction.shapes[0]
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not found:
        raise ValueError(f"a convolution without dim_labels: {instruction.name}")
    left_labels, right_labels, out_labels = found.groups()
    window = _window(instruction)
    groups = int(instruction.text("batch_group_count") or 1)
    products = left.dims[left_labels.index("b")] // groups
    products *= right.dims[right_labels.index("i")] * right.dims[right_labels.index("o")]
    for place, label in enumerate(sorted(set(left_labels) - {"b", "f"})):
        step = {key: values[place] for key, values in window.items()}
        low, _ = step["pad"]
        products *= valid_positions(
            left.dims[left_labels.index(label)],
            right.dims[right_labels.index(label)],
            out.dims[out_labels.index(label)],
            stride=step["stride"],
            low=low,
            left_dilation=step["lhs_dilate"],
            right_dilation=step["rhs_dilate"],
        )
    return 2 * products


def valid_positions(
    length: int,
    kernel: int,
    out: int,
    *,
    stride: int = 1,
    low: int = 0,
    left_dilation: int = 1,
    right_dilation: int = 1,
) -> int:
    """Pairs (output position, kernel position) of one dimension of a convolution that meet an element of the input.

    Args:
      length: of the input.
      kernel: of the kernel.
      out: of the output.
      stride: input positions from one output position to the next.
      low: zeros before the input, negative to cut it.
      left_dilation: input positions from one element to the next.
      right_dilation: input positions from one kernel element to the next.
    """
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * right_dilation - low
    inside = (place >= 0) & (place <= (length - 1) * left_dilation)
    return int(np.sum(inside & (place % left_dilation == 0)))


def _window(instruction: Instruction) -> dict[str, list[Any]]:
    """Per spatial dimension: stride, padding and dilations of a convolution."""
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    parts = dict(part.split("=") for part in found[1].split()) if found else {}
    count = len(parts["size"].split("x")) if "size" in parts else 0

    def numbers(key: str) -> list[Any]:
        return [int(n) for n in parts[key].split("x")] if key in parts else [1] * count

    pad = [
        [int(n) for n in p.split("_")] for p in parts.get("pad", "0_0" + "x0_0" * count).split("x")
    ]
    return {
        "pad": pad,
        "stride": numbers("stride"),
        "lhs_dilate": numbers("lhs_dilate"),
        "rhs_dilate": numbers("rhs_dilate"),
    }


def _is_collective(instruction: Instruction) -> bool:
    return instruction.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES


def _continues(instruction: Instruction) -> bool:
    """Whether it is the end or a part of a collective that has been counted at its start.

    TPUs spread a gather over the fusions that are computed meanwhile; each of them names it again.
    """
    if instruction.opcode.endswith("-done"):
        return True
    part = re.search(
        r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"', instruction.attributes
    )
    return part is not None and int(part[1]) >= 0


def collective(program: Program, computation: Computation, instruction: Instruction) -> Collective:
    """Reads a collective."""
    kind = instruction.opcode.removesuffix("-start")
    given = computation.operands(instruction)
    devices = _devices(program, instruction)
    arrays = [shape for operand in given for shape in operand.shapes[:1]]
    size = sum(shape.bytes for shape in arrays)
    if kind == "all-gather":
        size *= devices
        # A start makes (what is given, what is gotten, and on some devices more), flattened.
        first = len(arrays) if instruction.opcode.endswith("-start") else 0
        arrays = list(instruction.shapes[first : first + len(arrays)])
    return Collective(kind, tuple(map(str, arrays)), size, devices, _source(instruction, given))


def _source(instruction: Instruction, given: list[Instruction]) -> str:
    """Where most of what is sent comes from, and from how many other places the rest.

    jit(step)/jvp(ResNet)/stage1_block2/bn1/reduce_sum -> jvp(ResNet)/stage*_block*/bn*/reduce_sum.
    """
    places: collections.Counter[str] = collections.Counter()
    for operand in given:
        # The name of an instruction made of several is all of theirs: "(jit(step)/a:jit(step)/b)" or "jit(step)/a;jit(step)/b".
        own = operand.op_name if len(given) > 1 else ""
        name = own or instruction.op_name or operand.op_name
        first = re.split(r"[:;]", name.lstrip("("))[0]
        place = re.sub(r"\d+", "*", re.sub(r"^jit\(\w+\)/", "", first))
        places[place] += sum(shape.bytes for shape in operand.shapes[:1])
    (most, _), *others = places.most_common() or [("", 0)]
    return f"{most} and {len(others)} other places" if others else most


def _devices(program: Program, instruction: Instruction) -> int:
    """How many devices talk with each other."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text):
        return len(set(re.findall(r"\d+", pairs[1])))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = dict(part.split("=") for part in mesh[1].split(","))
        return int(np.prod([int(sizes[axis]) for axis in mesh[2].split(",") if axis]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return groups[1].count(",") + 1
    return program.partitions


def moved(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads from and writes to main memory.

    Arrays in the chip's own memory are free. Of what is only sliced or gathered, what is taken counts; where a part is
    written into an array in its place, the part.
    """
    operands = computation.operands(instruction)
    if instruction.opcode in ("copy-start", "slice-start"):
        # The result is (destination, source, flag): one is read, one written, as much as the destination holds.
        there = instruction.shapes[0]
        here = operands[0].shapes[0]
        return float(there.bytes * ((not there.near) + (not here.near)))
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.callee("calls")]
        return sum(
            _read(inner, inner.parameters[n], operand) for n, operand in enumerate(operands)
        ) + _written(inner, inner.root, instruction.shapes)
    if instruction.opcode in _READS_A_PART:
        return _main(instruction.shapes) + (
            0 if operands[0].shapes[0].near else sum(s.bytes for s in instruction.shapes)
        )
    if instruction.opcode == "dynamic-update-slice":
        part = operands[1].shapes[0]
        return float(part.bytes * ((not part.near) + (not instruction.shapes[0].near)))
    return _main(instruction.shapes) + sum(_main(operand.shapes) for operand in operands)


def _main(arrays: Iterable[Shape]) -> float:
    return float(sum(s.bytes for s in arrays if not s.near))


def _read(inner: Computation, parameter: Instruction, operand: Instruction) -> float:
    """What a fusion reads of an operand."""
    readers = _through_bitcasts(inner, parameter)
    whole = _main(operand.shapes)
    parts = 0.0
    for name, reader in readers:
        if reader.opcode in _READS_A_PART and reader.operands[0] == name:
            parts += sum(s.bytes for s in reader.shapes)
        elif not (reader.opcode == "dynamic-update-slice" and reader.operands[0] == name):
            return whole
    return min(whole, parts)


def _through_bitcasts(inner: Computation, source: Instruction) -> list[tuple[str, Instruction]]:
    """(name under which it is read, reader) of a value, bitcasts left out."""
    found = []
    for reader in inner.readers[source.name]:
        if reader.opcode == "bitcast":
            found += _through_bitcasts(inner, reader)
        else:
            found.append((source.name, reader))
    return found


def _written(inner: Computation, root: Instruction, shapes: tuple[Shape, ...]) -> float:
    """What a fusion writes."""
    if root.opcode == "tuple":
        parts = [
            _written(inner, inner.instructions[n], s) for n, s in _elements(inner, root, shapes)
        ]
        return sum(parts)
    while root.opcode == "bitcast":
        root = inner.instructions[root.operands[0]]
    if root.opcode == "dynamic-update-slice" and shapes and not shapes[0].near:
        return float(inner.instructions[root.operands[1]].shapes[0].bytes)
    return _main(shapes)


def _elements(
    inner: Computation, root: Instruction, shapes: tuple[Shape, ...]
) -> Iterable[tuple[str, tuple[Shape, ...]]]:
    """(name, its arrays among the flattened `shapes`) of the elements of a tuple."""
    start = 0
    for name in root.operands:
        count = len(inner.instructions[name].shapes)
        yield name, shapes[start : start + count]
        start += count
