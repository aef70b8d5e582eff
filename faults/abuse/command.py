"""``python -m faults abuse``: perform scenarios, print what was found, compare two files of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from faults.abuse.catalogue import SCENARIOS, perform
from faults.abuse.stage import Found, Measurement
from faults.disks import NoSickDisks
from raftkv.cli.console import Section, console, display

PASSED: Final = 0
BROKEN: Final = 1
NOT_RUN: Final = 2
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class AbuseOptions:
    """What the command was asked for. ``out``: a file for what is found, None = none."""

    names: tuple[str, ...]
    short: bool
    output: str
    out: Path | None
    product: Path | None


def show_scenarios() -> None:
    """Print what there is to choose from."""
    display(
        [Section("", ("scenario", "what it does"), [(one.name, one.what) for one in SCENARIOS.values()])], frames=True
    )


def execute(order: AbuseOptions) -> int:
    """Perform what was ordered and print what was found; PASSED, BROKEN or NOT_RUN."""
    if unknown := [name for name in order.names if name not in SCENARIOS]:
        click.echo(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}", err=True)
        return NOT_RUN
    # Ends as with Ctrl-C: the cluster's processes are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = console(stderr=True)
    found: list[Found] = []
    for name in dict.fromkeys(order.names or SCENARIOS):
        where.print(f"{name}: {SCENARIOS[name].what}")
        try:
            one = perform(SCENARIOS[name], short=order.short, product=order.product)
        except NoSickDisks as problem:
            where.print(f"left out: {problem}")
            continue
        where.print(f"{'passed' if one.passed else 'FAILED'} ({one.seconds:g} s)")
        found.append(one)
    report = _report(order, found)
    if order.out is not None:
        order.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if order.output == "json":
        click.echo(json.dumps(report))
    else:
        display([_section(one) for one in found], frames=True)
        click.echo("passed" if report["passed"] else "FAILED")
    return PASSED if report["passed"] else BROKEN


def _report(order: AbuseOptions, found: Sequence[Found]) -> dict[str, Any]:
    tree = order.product or Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=tree, capture_output=True, text=True, check=False
    )
    return {
        "format": _FORMAT,
        "commit": described.stdout.strip(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "short": order.short,
        "passed": all(one.passed for one in found),
        "scenarios": [one.to_json() for one in found],
    }


def _section(one: Found) -> Section:
    rows = [(one.name, one.text, one.bound, "" if one.passed else "FAILED") for one in one.figures]
    if one.problem:
        rows.append(("it broke off", one.problem, "", "FAILED"))
    return Section(f"{one.name} ({one.seconds:g} s)", ("figure", "found", "bound", ""), rows)


# -- the table of docs/operations.md


def load(path: Path) -> dict[str, Found]:
    """What a file of ``--out`` holds, by scenario. Raises ClickException."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] != _FORMAT:
            raise ValueError(f"format {report['format']}")
        return {one["name"]: Found.from_json(one) for one in report["scenarios"]}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise click.ClickException(f"{path}: not what --out has written: {problem!r}") from None


def table(before: dict[str, Found], after: dict[str, Found]) -> Iterator[str]:
    """The lines of a table in Markdown: for each scenario what it does, and its measurements in both.

    Left out are measurements within their bounds in both and the same, waits without a bound, and what health says
    when all is over.
    """
    yield "| scenario | number | bound | before | after |"
    yield "|---|---|---|---|---|"
    for name, scenario in SCENARIOS.items():
        if name not in before and name not in after:
            continue
        yield f"| `{name}` | {scenario.what} | | | |"
        old, new = _measured(before.get(name)), _measured(after.get(name))
        for title in dict.fromkeys([*old, *new]):
            first, second = old.get(title), new.get(title)
            bound = next((one.bound for one in (second, first) if one is not None), "")
            same = first is not None and second is not None and first.passed and first.text == second.text
            waits = any(one is not None and one.timed for one in (first, second))
            if not (same if bound else waits) and title != "health afterwards":
                yield f"| | {title} | {bound} | {_cell(first)} | {_cell(second)} |"


def _measured(found: Found | None) -> dict[str, Measurement]:
    if found is None:
        return {}
    figures = {one.name: one for one in found.figures}
    if found.problem:
        figures["it broke off"] = Measurement("it broke off", found.problem.replace("|", "/").splitlines()[0])
    return figures


def _cell(measured: Measurement | None) -> str:
    if measured is None:
        return "-"
    return measured.text if measured.passed else f"**{measured.text}**"
