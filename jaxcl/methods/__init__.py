"""The methods, by name."""

from jaxcl.methods.base import Apply, LossOut, Method
from jaxcl.methods.simclr import SimCLR

METHODS: dict[str, type] = {
    "simclr": SimCLR,
}

__all__ = ["METHODS", "Apply", "LossOut", "Method", "SimCLR"]
