"""What people read: tables, lines, progress bars. Texts are data: neither emoji nor markup is looked for in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

_WIDE: Final = 10_000
_PROSE: Final = 20
"""Characters below which the text of a last column is not broken into lines."""


class Section(NamedTuple):
    """A table for people: a heading (may be empty), the columns' names and rows of text and numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def console(*, stderr: bool = False) -> Console:
    """Where people read. Only a terminal has an edge: what a script or a file gets stays in one line."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, emoji=False, markup=False, highlight=False, width=None if terminal else _WIDE)


def display(parts: Iterable[Section | str], *, frames: bool = False) -> None:
    """Print tables and lines to stdout, a blank line between them where a table stands. ``frames``: around tables."""
    where = console()
    before: Section | str | None = None
    for part in parts:
        if before is not None and not (isinstance(before, str) and isinstance(part, str)):
            where.print()
        if isinstance(part, str):
            where.print(part, soft_wrap=True)
        else:
            if part.title:
                where.print(part.title, style="bold", soft_wrap=True)
            print_table(where, _table(part, frames))
        before = part


def _table(section: Section, frame: bool) -> Table:
    """Numbers stand to the right."""
    made = Table(box=box.HEAVY_HEAD if frame else None, pad_edge=frame, show_header=any(section.columns))
    for at, name in enumerate(section.columns):
        numbers = [row[at] for row in section.rows if row[at] not in ("", "-")]
        right = bool(numbers) and all(isinstance(one, int | float) for one in numbers)
        widest = max(cell_len(str(cell)) for cell in (name, *(row[at] for row in section.rows)))
        # Ids, numbers and addresses stay whole; what is long to read stands last, or in a frame anywhere.
        last = at == len(section.columns) - 1
        made.add_column(
            Text(name),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=not (last or frame),
            min_width=None if frame else min(widest, _PROSE) if last else widest,
        )
    for row in section.rows:
        made.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return made


def print_table(where: Console, made: Table) -> None:
    """Print a table, over the edge of a terminal that is narrower than its words: nothing is cut off or broken."""
    edge, where.width = where.width, _WIDE
    where.width = max(edge, where.measure(made).minimum)
    where.print(made)
    where.width = edge


def make_progress(*columns: ProgressColumn | str, disable: bool = False, **attributes: Any) -> Progress:
    """A progress bar on stderr, if that is a terminal: what goes on, the bar, ``columns``.

    A text among ``columns`` is a format of the task's fields.
    """
    where = console(stderr=True)
    shown = (TextColumn(one, markup=False) if isinstance(one, str) else one for one in columns)
    first = (TextColumn("{task.description}", markup=False), BarColumn())
    return Progress(*first, *shown, console=where, disable=disable or not where.is_terminal, **attributes)
