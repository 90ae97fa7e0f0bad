"""A plan as one page of text."""

import collections
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxcl.plan.plan import Plan

_PRODUCTS = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "f32 high": "float32, precision high",
    "f32 highest": "float32, precision highest",
    "f64": "float64",
}


def page(plan: Plan, rows: int = 12) -> RenderableType:
    """The page of a plan; collectives by kind, and by place at most `rows`; each of them is in the JSON."""
    return Group(
        Text(headline(plan), style="bold"),
        Text(verdict(plan), style="green" if plan.fits else "red"),
        *(Text(note, style="dim") for note in plan.notes),
        Text("\nmemory of each device", style="italic"),
        memory_table(plan),
        Text("\ncollectives of a step, by kind", style="italic"),
        kind_table(plan),
        Text("\nthe same by place", style="italic"),
        collective_table(plan, rows),
        Text("\na step on each device; times are MODELLED, from stated peak rates", style="italic"),
        work_table(plan),
    )


def headline(plan: Plan) -> str:
    """One line: what is planned, where, by what."""
    devices = plan.topology.devices
    made = "compiled" if plan.compiled else "by formula"
    by = ", ".join(f"{name} {v}" for name, v in plan.versions.items() if v)
    return (
        f"{plan.name} ({plan.network}) on {plan.topology.text}: {plan.batch_size:,} images on {devices} devices,"
        f" {plan.batch_size // devices:,} on each ({made}; {by})"
    )


def verdict(plan: Plan) -> str:
    """One line: whether it fits, and by how much."""
    spare = plan.capacity - plan.needed
    how = f"{size(abs(spare))} {'spare' if plan.fits else 'too much'}"
    word = "fits" if plan.fits else "does not fit"
    share = plan.needed / plan.capacity if plan.capacity else 0.0
    return (
        f"{word}: {size(plan.needed)} of {size(plan.capacity)} on each device ({share:.0%}), {how}"
    )


def memory_table(plan: Plan) -> Table:
    """Bytes of each device by kind."""
    table = Table(box=None)
    table.add_column("kind")
    table.add_column("bytes", justify="right")
    table.add_column("", justify="right")
    for kind, count in plan.memory.items():
        table.add_row(kind, f"{count:,}", size(count))
    table.add_row("together", f"{plan.needed:,}", size(plan.needed), style="bold")
    return table


def kind_table(plan: Plan) -> Table:
    """All collectives of a step by kind."""
    table = Table(box=None)
    table.add_column("kind", no_wrap=True)
    for name in ("count", "bytes", "", "sent by a device"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, (count, total, sent) in sorted(plan.kinds.items(), key=lambda item: -item[1][2]):
        table.add_row(kind, f"{count:,}", f"{total:,}", size(total), size(sent))
    count = sum(count for count, _, _ in plan.kinds.values())
    total = sum(total for _, total, _ in plan.kinds.values())
    table.add_row(
        "together", f"{count:,}", f"{total:,}", size(total), size(plan.sent), style="bold"
    )
    return table


def collective_table(plan: Plan, rows: int) -> Table:
    """Collectives of a step, those from the same kind of place together."""
    groups: dict[tuple[str, str], list[tuple[int, int, float]]] = collections.defaultdict(list)
    for t in plan.transfers:
        c = t.collective
        groups[c.kind, c.source].append((t.count, c.bytes, t.count * c.sent))
    table = Table(box=None)
    table.add_column("kind", no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("each", justify="right", no_wrap=True)
    table.add_column("sent by a device", justify="right", no_wrap=True)
    table.add_column("of")
    order = sorted(groups.items(), key=lambda item: -sum(sent for _, _, sent in item[1]))
    for (kind, source), found in order[:rows]:
        table.add_row(
            kind,
            f"{sum(n for n, _, _ in found):,}",
            _range([s for _, s, _ in found]),
            size(sum(sent for _, _, sent in found)),
            source or "-",
        )
    if len(order) > rows:
        rest = [f for _, found in order[rows:] for f in found]
        count, sent = sum(n for n, _, _ in rest), sum(s for _, _, s in rest)
        each = _range([s for _, s, _ in rest])
        table.add_row("others", f"{count:,}", each, size(sent), f"{len(order) - rows} more places")
    total = sum(t.count for t in plan.transfers)
    table.add_row("together", f"{total:,}", "", size(plan.sent), style="bold")
    return table


def _range(sizes: Sequence[int]) -> str:
    """The smallest and the largest size, or the only one."""
    least, most = size(min(sizes)), size(max(sizes))
    return least if least == most else f"{least} .. {most}"


def work_table(plan: Plan) -> Table:
    """Operations and traffic of a step, and the least time for them."""
    table = Table(box=None)
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_column("at least", justify="right")
    chip, seconds = plan.topology.chip, plan.seconds
    for kind, count in sorted(plan.flops.items(), key=lambda item: -item[1]):
        time = duration(chip.seconds({kind: count})) if seconds else "-"
        table.add_row(f"products in {_PRODUCTS.get(kind, kind)}", f"{count:,.4g} FLOP", time)
    if plan.moved:
        table.add_row("its memory", size(plan.moved), duration(seconds.get("memory", 0.0)))
    table.add_row("links", size(plan.sent), duration(seconds.get("links", 0.0)))
    if seconds:
        slowest = max((part for part in seconds if part != "step"), key=lambda p: seconds[p])
        table.add_row(
            f"step, not faster than its {slowest}", "", duration(seconds["step"]), style="bold"
        )
    return table


def scaling_table(plans: Sequence[Plan]) -> RenderableType:
    """The same share of a batch on more and more devices."""
    table = Table(title="weak scaling; times are MODELLED", title_justify="left", box=None)
    for name in (
        "devices",
        "batch",
        "memory",
        "temporaries",
        "fits",
        "TFLOP",
        "sends",
        "sent",
        "step at\nleast",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        temporaries = plan.memory.get("temporaries", 0)
        table.add_row(
            f"{plan.topology.devices:,}",
            f"{plan.batch_size:,}",
            size(plan.needed),
            size(temporaries),
            "yes" if plan.fits else "NO",
            f"{sum(plan.flops.values()) / 1e12:.3g}",
            f"{sum(t.count for t in plan.transfers):,}",
            size(plan.sent),
            duration(plan.seconds.get("step", 0.0)),
        )
    note = plans[-1].topology.note
    return Group(table, Text(note, style="dim")) if note else table


def size(count: float) -> str:
    """Bytes in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds in ms or us, "-" where unknown."""
    if not seconds:
        return "-"
    return f"{1e3 * seconds:,.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:,.1f} us"
