"""Which examples make the batch of a step: the position is a function of (seed, step)."""

from jaxcl.data.samplers.base import ColumnSampler, Sampler
from jaxcl.data.samplers.build import make_sampler
from jaxcl.data.samplers.classes import ClassBalanced, MPerClass
from jaxcl.data.samplers.hierarchical import Hierarchical
from jaxcl.data.samplers.pairs import PairSampler
from jaxcl.data.samplers.uniform import Uniform

__all__ = [
    "ClassBalanced",
    "ColumnSampler",
    "Hierarchical",
    "MPerClass",
    "PairSampler",
    "Sampler",
    "Uniform",
    "make_sampler",
]
