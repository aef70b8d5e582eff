"""``python -m faults run`` and ``list``."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from faults.process.run import ChaosPlan, run
from faults.process.scenarios import SCENARIOS, ChaosScenario
from faults.process.toxiproxy import ToxiproxyError
from faults.report.journal import EVENTS, HISTORY, load
from faults.report.stats import KIND_COLUMNS, RunStats, merged, stats_of
from faults.report.writing import write_report
from raftkv.cli.console import Section, console, display
from raftkv.clock import SystemClock

PASSED: Final = 0
BROKEN: Final = 1
NOT_RUN: Final = 2

_FOLDER: Final = Path("chaos")


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What the command was asked for. ``out``: None = a new folder under ``chaos``."""

    scenarios: tuple[str, ...]
    everything: bool
    seed: int
    seconds: float
    nodes: int
    operations: int
    out: Path | None
    planted: str
    secure: bool = False


def show_scenarios() -> None:
    """Print what there is to choose from."""
    rows = [(one.name, one.what, ", ".join(dict.fromkeys(one.faults))) for one in SCENARIOS.values()]
    display([Section("", ("scenario", "what it is", "faults"), rows)], frames=True)


def execute(order: ChaosOptions) -> int:
    """Run what was ordered and print what came of it; PASSED, BROKEN or NOT_RUN."""
    chosen = _chosen(order)
    if isinstance(chosen, str):
        click.echo(chosen, err=True)
        return NOT_RUN
    out = order.out or _FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-seed-{order.seed}"
    if out.exists() and any(out.iterdir()):
        click.echo(f"{out} is not empty: name a new folder with --out", err=True)
        return NOT_RUN
    # Ends as with Ctrl-C: the cluster's processes are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = console(stderr=True)
    found: list[RunStats] = []
    for scenario in chosen:
        folder = out / scenario.name if len(chosen) > 1 else out
        where.print(Text.assemble((scenario.name, "bold"), f": {scenario.what}"))
        try:
            found.append(_one(scenario, order, folder, where))
        except ToxiproxyError as problem:
            click.echo(str(problem), err=True)
            return NOT_RUN
    stats = merged(found)
    _show(stats)
    click.echo(f"report: {write_report(out)}")
    for one in stats.runs:
        for text in one.problems:
            click.echo(f"PROBLEM {one.scenario}: {text}")
    click.echo("passed" if stats.passed else "FAILED")
    return PASSED if stats.passed else BROKEN


def _chosen(order: ChaosOptions) -> list[ChaosScenario] | str:
    """The scenarios, or what is wrong with the order."""
    names = tuple(SCENARIOS) if order.everything else tuple(dict.fromkeys(order.scenarios))
    if order.everything and order.scenarios:
        return "either --all or --scenario"
    if not names:
        return f"name a --scenario, or --all; there are {', '.join(SCENARIOS)}"
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        return f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}"
    return [SCENARIOS[name] for name in names]


def _one(scenario: ChaosScenario, order: ChaosOptions, folder: Path, where: Console) -> RunStats:
    clock = SystemClock()
    began = clock.now()

    def say(text: str) -> None:
        where.print(f"{clock.now() - began:7.1f} {text}")

    plan = ChaosPlan(
        scenario,
        folder,
        order.seed,
        order.seconds,
        order.nodes,
        operations=order.operations,
        planted=order.planted,
        secure=order.secure,
    )
    passed = run(plan, say).passed
    if passed:
        # What is left is logs; a failure's data tell more.
        for data in folder.glob("cluster/node-*/data"):
            shutil.rmtree(data)
    where.print("passed" if passed else Text("FAILED", "bold red"))
    assert (folder / HISTORY).exists()
    assert (folder / EVENTS).exists()
    return stats_of(load(folder))


def _show(stats: RunStats) -> None:
    kinds = Section("", KIND_COLUMNS, [kind.cells() for kind in stats.kinds()])
    display([Section("", ("", ""), list(stats.rows())), kinds], frames=True)
