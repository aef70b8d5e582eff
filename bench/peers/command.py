"""``python -m bench compare``."""

from __future__ import annotations

import dataclasses
import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from bench import folders
from bench.folders import data_option, out_option, overwrite_option
from bench.machine import facts
from bench.peers import comparison, tables
from bench.peers.comparison import CALLS, WORKLOADS
from bench.peers.contestants import CONTESTANTS, Contestant
from raftkv.cli.console import Section, console, display

_CALLS: Final = "calls"


@click.command("compare")
@click.option("--list", "listing", is_flag=True, help="Print the contestants and workloads and exit.")
@click.option("--only", metavar="NAME,...", show_default="all that are installed", help="Contestants.")
@click.option(
    "--workload",
    type=click.Choice([*WORKLOADS, _CALLS]),
    multiple=True,
    default=("shared", "own"),
    help=f"May be repeated; {_CALLS} is {', '.join(CALLS)}.",
)
@click.option(
    "--workers", type=click.IntRange(1, 10_000), show_default="those of the workload", help="Operations in flight."
)
@click.option("--tools/--no-tools", default=True, help="The peers' own tools too.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    show_default="as many as fit, up to 5",
    help="Per measurement.",
)
@click.option("--warmup", type=click.FloatRange(min=0), default=0.5, help="Seconds before each measurement.")
@click.option("--repeat", type=click.IntRange(1, 100), default=3, help="Rounds; numbers are medians of them.")
@click.option("--minutes", type=click.FloatRange(min=0), default=9.0, help="No round begins that would end later.")
@click.option("--keys", type=click.IntRange(1, 10_000_000), default=10_000, help="Number of distinct keys.")
@click.option("--seed", type=click.IntRange(0), default=1, help="Seed of keys and values.")
@data_option
@out_option("result.json, compare.md and the pictures")
@overwrite_option
@click.option("-o", "--output", type=click.Choice(["text", "markdown", "json"]), default="text")
def compare_command(
    listing: bool,
    only: str | None,
    workload: tuple[str, ...],
    workers: int | None,
    tools: bool,
    seconds: float | None,
    warmup: float,
    repeat: int,
    minutes: float,
    keys: int,
    seed: int,
    data: Path | None,
    out: Path | None,
    overwrite: bool,
    output: str,
) -> None:
    """The same workload on raftkv and its peers, in turn: rates, latencies, ratios, and what each promises.

    A peer that is not installed is a row that says how to get it. Exit code 1 if a measurement or an operation failed.

    \b
    Example:
      python -m bench compare --only raftkv,etcd --workload shared
    """
    if listing:
        _list()
        return
    chosen = _chosen(only)
    if not tools:
        chosen = [_without_tools(one) for one in chosen]
    names = dict.fromkeys(name for given in workload for name in (CALLS if given == _CALLS else (given,)))
    workloads = [comparison.with_workers(WORKLOADS[name], workers) for name in names]
    started = datetime.now(UTC)
    folder = folders.chosen(out, started, "-compare", overwrite=overwrite)
    options = comparison.ComparisonOptions(seconds or 0.0, warmup, repeat, minutes, keys, seed, data)
    if seconds is None:
        options = dataclasses.replace(options, seconds=comparison.fitting_seconds(chosen, workloads, options))
    # Ends as with Ctrl-C: servers, generators and tools are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = facts()
    result = comparison.measure(
        chosen, workloads, options, keep=lambda found: tables.write(folder, {"machine": machine, **found})
    )
    result = {"machine": machine, **result}
    if output == "json":
        click.echo(json.dumps(result))
    elif output == "markdown":
        click.echo(tables.markdown(result), nl=False)
    else:
        tables.show(console(), result)
        click.echo(f"files: {folder}")
    if any(_failed(row) for row in result["rows"]):
        raise SystemExit(1)


def _failed(row: dict[str, Any]) -> bool:
    return bool(row.get("errors")) or bool(row["problem"] and not row["absent"])


def _chosen(only: str | None) -> list[Contestant]:
    if only is None:
        return list(CONTESTANTS.values())
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown or not names:
        raise click.UsageError(f"there is no contestant {', '.join(unknown) or repr(only)}; --list prints them")
    chosen = [one for name, one in CONTESTANTS.items() if name in names]
    for one in chosen:
        if missing := one.missing():
            raise click.UsageError(f"{one.name} is {missing}")
    return chosen


def _without_tools(one: Contestant) -> Contestant:
    return dataclasses.replace(one, cases=tuple(case for case in one.cases if case.way.kind != "tool"))


def _list() -> None:
    found = [(one.name, one.what, one.version()) for one in CONTESTANTS.values()]
    contestants = Section("", ("contestant", "what it is", "version"), found)
    loads = Section("", ("workload", "what it is"), [(one.name, one.what) for one in WORKLOADS.values()])
    display([contestants, loads], frames=True)
