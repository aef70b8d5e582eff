"""``python -m bench grow``, and what it leaves: ``result.json``, ``grow.md`` and a picture for each curve."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from bench import disturbance, folders, grow, machine, svg
from bench.folders import data_option, out_option, overwrite_option
from bench.grow import CURVES, GrowOptions
from bench.markdown import escaped, table
from bench.progress import ProgressBar
from bench.results import RESULT
from bench.svg import Line, Panel
from raftkv.cli.console import Section, display

MARKDOWN: Final = "grow.md"
_HEADINGS: Final = (
    "ops/s", "p50 ms", "p99 ms", "nodes us/op", "busiest us/op", "client us/op", "MiB of a node", "failed",
)  # fmt: skip
_MANY: Final = (3, 5, 9, 16, 32, 64)
"""Nodes of which a core each is computed."""
_SPREAD: Final = 20


@click.command("grow")
@click.argument("curve", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="Print the curves and exit.")
@click.option("--quick", is_flag=True, help="Two small values of each, 0.2 s each: only to see that it works.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0, help="Per measurement.")
@click.option("--warmup", type=click.FloatRange(min=0), default=0.5, help="Seconds before each measurement.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=6.0,
    help="Per curve; what would take longer is left out.",
)
@click.option("--seed", type=click.IntRange(0), default=1, help="Seed of keys and values.")
@data_option
@out_option("result.json, grow.md and the pictures")
@overwrite_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json prints result.json.")
def command(
    curve: tuple[str, ...],
    listing: bool,
    quick: bool,
    seconds: float,
    warmup: float,
    minutes: float,
    seed: int,
    data: Path | None,
    out: Path | None,
    overwrite: bool,
    output: str,
) -> None:
    """Measure each CURVE, or all: rates, latencies and processor time per operation along one thing at a time.

    Exit code 1 if an operation failed.

    \b
    Example:
      python -m bench grow groups values
    """
    if listing:
        found = [(one.name, ", ".join(f"{value:,}" for value in one.values), one.what) for one in CURVES.values()]
        display([Section("", ("curve", "values", "what it is"), found)], frames=True)
        return
    if unknown := [name for name in curve if name not in CURVES]:
        raise click.UsageError(f"there is no curve {', '.join(unknown)}; --list prints those that there are")
    chosen = [one for name, one in CURVES.items() if not curve or name in curve]
    if quick:
        seconds, warmup = min(seconds, 0.2), min(warmup, 0.05)
    options = GrowOptions(seconds, warmup, minutes, quick, seed, data)
    folder = folders.chosen(out, datetime.now(UTC), "-grow", overwrite=overwrite)
    # Ends as with Ctrl-C: the processes of clusters and generators are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    told = {**dataclasses.asdict(options), "data": None if data is None else str(data)}
    curves: list[dict[str, Any]] = []
    result = {"format": grow.FORMAT, "machine": machine.facts(), "options": told, "curves": curves}
    with ProgressBar(sum(len(one.quick if quick else one.values) for one in chosen)) as watcher:
        for one in chosen:
            curves.append(grow.measure(one, options, watcher))
            # What was measured is kept, whatever becomes of the rest.
            write(folder, result)
    click.echo(json.dumps(result) if output == "json" else f"page: {folder / MARKDOWN}")
    if any(point["errors"] for one in curves for point in one["points"]):
        raise SystemExit(1)


def write(folder: Path, result: dict[str, Any]) -> None:
    """Everything, over what an earlier call left there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    for one in result["curves"]:
        if one["points"]:
            (folder / f"grow-{one['name']}.svg").write_text(picture(one), encoding="utf-8")
    (folder / MARKDOWN).write_text(page(result), encoding="utf-8")


def picture(curve: dict[str, Any]) -> str:
    """Rates, processor time per operation and latency of a curve."""
    points, axis = curve["points"], curve["axis"]
    values = sorted({point["value"] for point in points})
    log = values[-1] >= _SPREAD * max(values[0], 1)
    ticks = svg.ticks(axis, values)
    rates = [_line(points, op, op.upper(), "per_second") for op in _ops(points)]
    costs = [
        _line(points, op, f"{op.upper()} {who}", f"{who}_us", dashed=who == "client")
        for op in _ops(points)
        for who in ("nodes", "client")
    ]
    return svg.lines(
        f"{curve['name']}: {curve['what']}",
        [
            Panel("operations per second", axis, rates, ticks, log, _far(rates)),
            Panel("microseconds of processor time per operation", axis, costs, ticks, log, _far(costs)),
        ],
    )


def _ops(points: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(point["op"] for point in points))


def _line(points: Sequence[dict[str, Any]], op: str, label: str, name: str, dashed: bool = False) -> Line:
    colour: svg.Colour = "get" if op == "get" else "set"
    return Line(label, colour, [(one["value"], one[name]) for one in points if one["op"] == op], dashed)


def _far(lines: Sequence[Line]) -> bool:
    """Whether figures differ so much that they need a logarithmic axis."""
    found = [y for line in lines for _, y in line.points if y > 0]
    return bool(found) and max(found) > _SPREAD * min(found)


def page(result: dict[str, Any]) -> str:
    """Tables, pictures, and what follows for a machine with a core for each node."""
    curves = result["curves"]
    parts = ["# How cost grows", " · ".join(f"[{one['name']}](#{one['name']})" for one in curves)]
    if many := _many_cores(curves):
        parts += ["## A core for each node", *many]
    for one in curves:
        parts += [f"## {one['name']}", f"{one['what'][:1].upper()}{one['what'][1:]}."]
        if one["points"]:
            parts += [f"![{one['name']}: {one['what']}](grow-{one['name']}.svg)", _table(one)]
        if one["left_out"]:
            parts.append(
                "\n".join(f"- not measured: {left['value']:,}: {escaped(left['why'])}" for left in one["left_out"])
            )
    options = result["options"]
    said = [
        f"{options['seconds']:g} s each, closed loop, after {options['warmup']:g} s",
        machine.line(result["machine"]),
    ]
    told = [(f"{one['name']} {point['value']:,}", point) for one in curves for point in one["points"]]
    said += [disturbed] if (disturbed := disturbance.remark(told)) else []
    parts += ["## How it was measured", "\n".join(f"- {escaped(one)}" for one in said)]
    return "\n\n".join(parts) + "\n"


def _table(curve: dict[str, Any]) -> str:
    lines = []
    for point in sorted(curve["points"], key=lambda one: (one["op"], one["value"])):
        latencies = (point["latency_ms"][name] for name in ("p50", "p99"))
        lines.append(
            [
                f"{point['value']:,} {point['op'].upper()}",
                f"{point['per_second']:,.0f}",
                *("-" if one is None else f"{one:.2f}" for one in latencies),
                *(f"{point[name]:,.1f}" for name in ("nodes_us", "busiest_us", "client_us")),
                f"{point['node_bytes'] / 2**20:,.0f}",
                ", ".join(f"{count:,} {kind}" for kind, count in point["errors"].items()) or "0",
            ]
        )
    return table((curve["axis"], *_HEADINGS), lines, range(1, len(_HEADINGS) + 1))


def _many_cores(curves: Sequence[dict[str, Any]]) -> list[str]:
    """What nodes with a core each could do by the processor time that was found; [] if nodes were not measured."""
    points = [point for one in curves if one["name"] == "nodes" for point in one["points"] if point["nodes_us"]]
    if not points:
        return []
    # Most nodes that were measured: with more of them, messages are smaller, and cost more for each operation.
    costs = {point["op"]: point["nodes_us"] for point in sorted(points, key=lambda one: one["value"])}
    most = max(point["value"] for point in points)
    lines = [[str(nodes), *(f"{nodes * 1e6 / cost:,.0f}" for cost in costs.values())] for nodes in _MANY]
    heading = ("nodes", *(f"{op.upper()}/s at most" for op in costs))
    spent = ", ".join(f"{cost:.1f} us for a {op.upper()}" for op, cost in costs.items())
    text = (
        f"With {most} nodes, leaders spread over them, an operation took {spent} of processor time of all nodes "
        "together. Nodes with a core each that share the work evenly can do no more than this, whatever clients do; "
        "disks and network have to keep up. This is computed and was not measured."
    )
    return [text, table(heading, lines, range(len(heading)))]
