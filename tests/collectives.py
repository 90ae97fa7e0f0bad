"""What a compiled program sends between devices, read from its text."""

import math
import re
from typing import NamedTuple

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-broadcast"),
    *("all-to-all", "ragged-all-to-all", "collective-permute"),
)
_RESULT = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")


class Sent(NamedTuple):
    """One array of a collective's result; combined collectives have several.

    Attributes:
      kind: of the collective.
      shape: of the array, on one device.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.shape)


def sent(text):
    """Every array that the collectives of a compiled program make, those of tuples one by one."""
    return [
        Sent(kind, tuple(int(n) for n in shape.split(",") if n))
        for result, kind in _RESULT.findall(text)
        for shape in re.findall(r"\w+\[([\d,]*)\]", result)
    ]


def strangers(text, params, largest):
    """What is sent and is neither a parameter's gradient nor small: images, activations, a table of all pairs.

    Args:
      text: of a compiled program.
      params: arrays: the parameters, whose gradients may be summed.
      largest: elements that anything else may have: embeddings, sums, statistics.
    """
    gradients = {sides(leaf.shape) for leaf in params}
    return [
        array
        for array in sent(text)
        if array.size > largest
        and not (array.kind == "all-reduce" and sides(array.shape) in gradients)
    ]


def sides(shape):
    """A shape however XLA may have turned its axes, or left out those of length 1."""
    return tuple(sorted(n for n in shape if n > 1))
