"""``python -m faults check``: the judgement of a history that lies in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from faults.check.history import History, Outcome
from faults.check.problem import Breach
from faults.check.story import latest, timeline
from faults.report.journal import HISTORY, JournalError, load_history
from faults.verdict import Judgement, judge_run
from raftkv.cli.console import Section, display

_SHOWN: Final = 20
"""Problems that are told; the rest usually follows from them."""

CLEAN: Final = 0
BROKEN: Final = 1
NO_HISTORY: Final = 2


def check_file(path: Path, *, fastest_clock: float, full: bool) -> int:
    """Print what is to be said of the history in ``path``, or in that folder; CLEAN, BROKEN or NO_HISTORY."""
    try:
        history = load_history(path / HISTORY if path.is_dir() else path)
        if not history.operations:
            raise JournalError(f"{path}: no operation is in it")
    except JournalError as error:
        click.echo(str(error), err=True)
        return NO_HISTORY
    found = judge_run(history, fastest_clock=fastest_clock)
    rows = [(name, f"{count:,}") for name, count in _rows(history, found)]
    display([Section("", ("", ""), rows)], frames=True)
    shown = found.problems if full else found.problems[:_SHOWN]
    for problem in shown:
        click.echo(f"\nPROBLEM {problem.text}")
        if problem.key in found.findings:
            for line in timeline(history.of(problem.key), found.findings[problem.key]):
                click.echo(line)
        elif problem.key:
            for line in latest(history.of(problem.key)):
                click.echo(line)
    if len(shown) < len(found.problems):
        click.echo(f"\n{len(found.problems) - len(shown)} more problems; --full shows them")
    click.echo("passed" if found.passed else "FAILED")
    return CLEAN if found.passed else BROKEN


def _rows(history: History, found: Judgement) -> Iterator[tuple[str, int]]:
    yield "operations", len(history.operations)
    for outcome, name in ((Outcome.OK, "ok"), (Outcome.REFUSED, "refused"), (Outcome.UNKNOWN, "unknown")):
        yield f"  {name}", history.count(outcome)
    yield "  without an answer", history.count(Outcome.OPEN)
    yield from found.counters().items()
    yield "other problems", found.count(Breach.OTHER, Breach.LATE)
