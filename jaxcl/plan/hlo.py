"""The text of a compiled program as computations and instructions.

XLA prints a program as named computations, each a list of lines

    %name = f32[8,128]{1,0:T(8,128)} opcode(%operand, ...), attribute=value, ..., metadata={op_name="jit(step)/..."}

in which operands are names. Shapes are those of one device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

# Bits of an element, by the name of the type. Tokens and opaque values have none.
_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "bf16": 16,
    "c64": 64,
    "c128": 128,
}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_PARENTHESIS = re.compile(r"[()]")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array on one device.

    Attributes:
      dtype: "f32", "bf16", ...
      dims: its lengths.
      near: it lies in the chip's own memory (a memory space other than the main one).
    """

    dtype: str
    dims: tuple[int, ...]
    near: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without the padding of its layout."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"\d+", self.dtype)
            bits = int(digits[0]) if digits else 0
        return -(-self.elements * bits // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: unique in the program.
      opcode: what it does.
      shapes: the array that it makes, or those of a tuple, nested ones flattened.
      operands: names in the same computation.
      argument: the text between the parentheses, for constants and parameters.
      attributes: the text after them.
      root: its value is the computation's.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    root: bool

    @functools.cached_property
    def op_name(self) -> str:
        """Where it comes from in the traced program, "" if XLA does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def text(self, attribute: str) -> str:
        """The value of an attribute up to the next comma or brace, "" without it."""
        found = re.search(rf"\b{attribute}=\{{?([^,{{}}]*)", self.attributes)
        return found[1] if found else ""

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """An attribute of the form {1,2,3}."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()

    def callee(self, *attributes: str) -> str:
        """The computation that the first of the attributes names, "" for none."""
        for attribute in attributes:
            found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
            if found:
                return found[1]
        return ""

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if found:
            return tuple(n.strip().lstrip("%") for n in found[1].split(","))
        both = (self.callee("true_computation"), self.callee("false_computation"))
        return tuple(name for name in both if name)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions; those that read one come after it.

    Attributes:
      name: unique in the program.
      instructions: by name.
    """

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value is the computation's."""
        return next(i for i in self.instructions.values() if i.root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by number."""
        return {int(i.argument): i for i in self.instructions.values() if i.opcode == "parameter"}

    @functools.cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """Name -> the instructions that read it."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                found[name].append(instruction)
        return found

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that it reads."""
        return [self.instructions[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that is run.
      partitions: number of devices that run it together.
    """

    computations: Mapping[str, Computation]
    entry: str
    partitions: int


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` gives.

    Raises:
      ValueError: it is no such text.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    inside: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if inside is None:
            head = _COMPUTATION.match(line)
            if head:
                name, inside = head[2], {}
                entry = name if head[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, inside)
            inside = None
        else:
            instruction = _instruction(line)
            if instruction:
                inside[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: expected the text of a compiled HLO module")
    found = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Program(computations, entry, int(found[1]) if found else 1)


def shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a type such as "(f32[8]{0:T(128)S(1)}, u32[])"."""
    return tuple(
        Shape(dtype, tuple(int(re.sub(r"\D", "", n)) for n in dims.split(",") if n), _near(layout))
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def _near(layout: str) -> bool:
    return re.search(r"S\([1-9]\d*\)", layout) is not None


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    argument = line[opcode.end() : close - 1]
    operands = () if opcode[1] == "constant" else tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        shapes=shapes(line[start:end]),
        operands=operands,
        argument=argument,
        attributes=line[close:],
        root=bool(head[1]),
    )


def _closing(line: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in _PARENTHESIS.finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"a parenthesis is not closed: {line.strip()[:200]}")
