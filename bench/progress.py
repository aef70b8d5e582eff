"""How far a run is, on standard error: a bar on a terminal, elsewhere a line for each measurement."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import click
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from raftkv.cli.console import make_progress

_FRESH: int = 2
"""Times a second that the bar is drawn: the machine is busy with what is measured."""


class ProgressBar:
    """Says what is under way and what came of it. ``total``: measurements of the whole run."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = make_progress(
                MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=_FRESH
            )
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def doing(self, text: str) -> None:
        """What is under way now."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def found(self, text: str) -> None:
        """One measurement is over: its result in a line."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
            self._bar.console.print(text)
        else:
            click.echo(f"{self._done}/{self._total} {text}", err=True)
