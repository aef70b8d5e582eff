"""What ``python -m bench run`` leaves: ``result.json``, ``report.html``, ``report.md`` and pictures as SVG.

``result.json`` is one object. Rates are operations per second, latencies milliseconds, sizes bytes, times seconds.

=============  =========================================================================================================
field          content
=============  =========================================================================================================
``format``     1: the version of what this table says
``machine``    :func:`bench.machine.facts`: date, commit, cores, processor, memory, versions of Python and libraries
``options``    what the command was asked for, as :class:`bench.series.Options` names it
``scenarios``  a list of the scenarios in their order, each with the fields below
=============  =========================================================================================================

Of a scenario: ``name``; ``what`` it is; ``axis``, the field by which its rows differ, or ""; ``beside``: ``fsync``,
durable writes of 4 KiB one after the other in the folder of the clusters' data, and ``echo``, gets of 50 workers over
bare gRPC (:mod:`bench.echo`), both taken before the scenario; ``rows``, one for each case.

====================  =================================================================================================
field of a row        content
====================  =================================================================================================
``label``             names the case
``nodes``             of the cluster; with ``groups`` and ``reads``, "lease" or "quorum"
``delay_ms``          that messages between nodes are delayed by
``op``                "get", "set" or a mix of :mod:`bench.workload`
``api``               "pipeline" or "unary"
``workers``           operations under way at a time, at most; of all processes together, as are ``clients``
``processes``         generators
``key_size``          with ``value_size`` and the number of ``keys``; ``distribution`` says how keys are chosen
``seconds``           that were measured, in all rounds
``operations``        that succeeded, in all rounds
``per_second``        median of the rounds
``latency_ms``        ``p50``, ``p95``, ``p99``: medians of the rounds; ``max``: of all rounds
``errors``            operations that failed by kind; "NotBegun": those of an open loop that waited in vain
``rate``              open loop: arrivals per second; their ``spacing``; ``waited``: those that found all workers busy
``kinds``             mixes: ``operations`` and ``latency_ms`` of each kind of operation, over all rounds
``records_per_scan``  of mixes that scan
``runs``              ``per_second``, ``latency_ms``, ``errors``, ``others`` and ``stolen`` of each round
``others``            share of the processors that other processes used, ``stolen``: that the host did not give: the
                      worst round's (:mod:`bench.disturbance`)
``percentiles``       [percentile, milliseconds] over all rounds, to 99.9999% if there were so many operations
``histogram``         all latencies in microseconds: an HdrHistogram, V2, compressed, base64
====================  =================================================================================================
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup
from rich import box
from rich.table import Table

from bench import charts, disturbance
from bench.markdown import table as as_markdown
from bench.series import Options

FORMAT: Final = 1
RESULT: Final = "result.json"
PAGE: Final = "report.html"
MARKDOWN: Final = "report.md"

_COLUMNS: Final = ("latencies in ms", "ops/s", "p50", "p95", "p99", "max", "number", "failed")
_PAGES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def options(chosen: Options) -> dict[str, Any]:
    """As ``result.json`` names them."""
    return {**dataclasses.asdict(chosen), "data": None if chosen.data is None else str(chosen.data)}


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write everything into ``folder``, over what an earlier call left there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    drawn = {one["name"]: charts.draw(one, folder) for one in result["scenarios"]}
    (folder / PAGE).write_text(page(result, drawn), encoding="utf-8")
    (folder / MARKDOWN).write_text(markdown(result), encoding="utf-8")


def page(result: dict[str, Any], drawn: dict[str, list[charts.Plot]]) -> str:
    """One file that needs nothing else: the pictures are in it."""
    plots = {name: [_inline(one) for one in some] for name, some in drawn.items()}
    template = _PAGES.get_template("report.html")
    return template.render(result=result, plots=plots, columns=_COLUMNS, cells=cells, headline=headline(result))


def _inline(plot: charts.Plot) -> Markup:
    # A page of HTML knows what svg is, and names no address.
    return Markup(re.sub(r' xmlns(:\w+)?="[^"]*"', "", plot.path.read_text(encoding="utf-8")))  # noqa: S704 - ours, escaped


def headline(result: dict[str, Any]) -> str:
    """The fastest get and the fastest set, in a sentence; "" without them."""
    rows = [row for one in result["scenarios"] for row in one["rows"] if row["operations"]]
    said = []
    for op in ("get", "set"):
        best = max((row for row in rows if row["op"] == op), key=lambda row: row["per_second"], default=None)
        if best:
            p99 = best["latency_ms"]["p99"]
            said.append(f"{op.upper()} up to {best['per_second']:,.0f}/s, p99 {p99:.1f} ms ({best['label']})")
    return "; ".join(said)


def markdown(result: dict[str, Any]) -> str:
    """To be pasted into a page."""
    numbers = range(1, len(_COLUMNS))
    parts = []
    for one in result["scenarios"]:
        lines = [line for row in one["rows"] for line in cells(row)]
        parts.append(f"{one['name']}: {one['what']}; {beside(one)}\n\n{as_markdown(_COLUMNS, lines, numbers)}")
    return "\n\n".join(parts) + "\n"


def table(scenario: dict[str, Any]) -> Table:
    """For a terminal."""
    made = Table(
        title=f"{scenario['name']}: {scenario['what']}",
        caption=beside(scenario),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for at, name in enumerate(_COLUMNS):
        made.add_column(name, justify="right" if at else "left", no_wrap=True)
    for row in scenario["rows"]:
        for line in cells(row):
            made.add_row(*line)
    return made


def cells(row: dict[str, Any]) -> list[list[str]]:
    """The lines of a table for one row: of a mix, one for each kind of operation too."""
    failed = ", ".join(f"{count:,} {kind}" for kind, count in row["errors"].items()) or "0"
    rate = f"{row['per_second']:,.0f}"
    lines = [[row["label"], rate, *_latencies(row), f"{row['operations']:,}", failed]]
    for kind, one in row.get("kinds", {}).items():
        name = f"  {kind.replace('_', ' ')}"
        if kind == "scan" and "records_per_scan" in row:
            name += f" of {row['records_per_scan']:g}"
        lines.append([name, "", *_latencies(one), f"{one['operations']:,}", ""])
    return lines


def _latencies(row: dict[str, Any]) -> list[str]:
    return ["-" if value is None else f"{value:.2f}" for value in row["latency_ms"].values()]


def beside(scenario: dict[str, Any]) -> str:
    """What the machine did by itself."""
    synced, echoed = scenario["beside"]["fsync"], scenario["beside"]["echo"]
    disturbed = disturbance.remark((row["label"], row) for row in scenario["rows"])
    return (
        f"beside it: fsync {synced['per_second']:,.0f}/s, "
        f"p50 {synced['p50_ms']:.2f} ms, p99 {synced['p99_ms']:.2f} ms; "
        f"echo of gets {echoed['per_second']:,.0f}/s{f'; {disturbed}' if disturbed else ''}"
    )


_PAGES.globals["beside"] = beside
