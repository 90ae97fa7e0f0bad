"""Whether a configuration fits a pod, and what it sends round there: found out without the pod.

`python -m jaxcl.plan --config=configs/simclr_tpu.py --topology=v5e:4x8`
"""

from jaxcl.plan.chips import Chip, PlanError, Topology, parse
from jaxcl.plan.plan import Plan, build, facts, make, weak_scaling

__all__ = [
    "Chip",
    "Plan",
    "PlanError",
    "Topology",
    "build",
    "facts",
    "make",
    "parse",
    "weak_scaling",
]
