"""Plans compared with those that were recorded: what a change of jaxcl, jax or libtpu does to a program on a pod.

A file of plans has, by the versions of jax and libtpu and by the name of the plan, the numbers that are compared. Another
version compiles another program, so it has a record of its own.
"""

import json
from collections.abc import Mapping

from etils import epath

from jaxcl.plan.plan import Plan

TOLERANCE = 0.05


def name(plan: Plan) -> str:
    """Which plan it is."""
    return (
        f"{plan.name} {plan.network} b{plan.batch_size} {plan.topology.text}"
        f"{' megacore' * plan.topology.megacore}"
    )


def versions(plan: Plan) -> str:
    """By what it was compiled."""
    return ", ".join(f"{key} {value or 'none'}" for key, value in sorted(plan.versions.items()))


def numbers(plan: Plan) -> dict[str, float]:
    """What is compared: bytes by kind, operations, collectives by kind, modelled times."""
    found = {f"memory/{kind}": float(count) for kind, count in plan.memory.items()}
    found |= {
        "memory, together": float(plan.needed),
        "moved bytes": plan.moved,
        "sent bytes": plan.sent,
    }
    found |= {f"flops/{kind}": float(count) for kind, count in plan.flops.items()}
    for kind, (count, size, _) in plan.kinds.items():
        found |= {f"{kind}/count": float(count), f"{kind}/bytes": float(size)}
    return found | {f"modelled seconds/{part}": value for part, value in plan.seconds.items()}


def read(path: epath.PathLike) -> dict[str, dict[str, dict[str, float]]]:
    """The records of a file, {} if there is none."""
    file = epath.Path(path)
    return json.loads(file.read_text()) if file.exists() else {}


def write(path: epath.PathLike, plan: Plan) -> None:
    """Records a plan, in the place of an earlier one of its name and versions."""
    records = read(path)
    records.setdefault(versions(plan), {})[name(plan)] = numbers(plan)
    epath.Path(path).write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")


def recorded(path: epath.PathLike, plan: Plan) -> dict[str, float] | None:
    """The numbers of a plan's record, None if there is none for its name and versions."""
    return read(path).get(versions(plan), {}).get(name(plan))


def differences(plan: Plan, record: Mapping[str, float], tolerance: float = TOLERANCE) -> list[str]:
    """A line for every number that is further from its record than `tolerance` of it, new or gone."""
    now = numbers(plan)
    lines = []
    for key in sorted({*now, *record}):
        before, after = record.get(key, 0.0), now.get(key, 0.0)
        if abs(after - before) > tolerance * abs(before):
            change = f"{after / before - 1:+.1%}" if before else "new"
            lines.append(f"{key}: {before:,.6g} recorded, {after:,.6g} now ({change})")
    return lines
