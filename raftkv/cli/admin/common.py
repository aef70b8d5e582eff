"""What the commands of ``raftkv-admin`` share: global options, exit codes, errors, output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeVar

import click

from raftkv.cli.common import DEFAULT_ENDPOINTS, describe, print_json
from raftkv.cli.common import run as run_coroutine
from raftkv.client.admin import AdminClient
from raftkv.client.routing import parse_endpoints
from raftkv.errors import ConditionFailed, DeadlineExceeded, InvalidArgument, RaftKVError, Unavailable
from shards.planner import PlanError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

SCHEMA: Final = 1
"""Version of the JSON that the commands print. Fields may be added under the same number."""

_NAME: Final = "raftkv-admin"
_GIVEN: Final = "raftkv.cli.admin"
DEFAULT_TIMEOUT: Final = 5.0
_WIDE: Final = 10_000


class AdminExit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    UNREACHABLE = 3
    PRECONDITION = 4
    UNHEALTHY = 5
    PARTIAL = 6
    INTERRUPTED = 130


class Precondition(RaftKVError):
    """What is asked for cannot be done as the cluster is now; nothing was changed. The message says why."""


class Partial(RaftKVError):
    """Not all was done; the same command goes on. The message says how far it is."""


class Interrupted(Exception):
    """The user ended a command; the message says what goes on without it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options. ``timeout``: seconds for each question to the cluster."""

    endpoints: str = DEFAULT_ENDPOINTS
    timeout: float = DEFAULT_TIMEOUT
    output: str = "table"
    yes: bool = False

    def client(self) -> AdminClient:
        """A client of the cluster at the endpoints."""
        return AdminClient(self.endpoints, timeout=self.timeout)


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name is not None:
        ctx.meta.setdefault(_GIVEN, {})[param.name] = value


def _options(envvar: str | None) -> list[Callable[[F], F]]:
    common: dict[str, Any] = {"expose_value": False, "callback": _note}
    return [
        click.option(
            "--endpoints",
            envvar=envvar,
            metavar="HOST:PORT,...",
            help=f"Nodes to ask; any of them is enough.  [env: RAFTKV_ENDPOINTS; default: {DEFAULT_ENDPOINTS}]",
            **common,
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True, max=600),
            metavar="SECONDS",
            help=f"Longest time for one question to the cluster.  [default: {DEFAULT_TIMEOUT:g}]",
            **common,
        ),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "json"]),
            help="For people or for programs.  [default: table]",
            **common,
        ),
        click.option(
            "-y", "--yes", is_flag=True, default=None, help="Ask nothing before what cannot be undone.", **common
        ),
    ]


def global_options(command: F) -> F:
    """The options that may stand before the command's name, or after it."""
    for option in reversed(_options("RAFTKV_ENDPOINTS")):
        command = option(command)
    return command


def command(group: click.Group, name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a function a command of ``group`` that also takes the global options."""

    def make(function: Callable[..., Any]) -> click.Command:
        # Read from the environment once, before the command's name: else it would outdo an option that stands there.
        for option in reversed(_options(None)):
            function = option(function)
        return group.command(name)(function)

    return make


def settings() -> Settings:
    """The global options of the command that runs. Raises click.BadParameter for endpoints that cannot be."""
    given: dict[str, Any] = click.get_current_context().meta.get(_GIVEN, {})
    found = Settings(**given)
    try:
        # Not where the options are read: one after the command's name outdoes the environment.
        parse_endpoints(found.endpoints)
    except InvalidArgument as error:
        raise click.BadParameter(str(error), param_hint="--endpoints") from None
    return found


# Running


def ask(main: Callable[[AdminClient], Coroutine[Any, Any, T]], goes_on: str = "") -> T:
    """Run ``main`` with a client of the cluster. ``goes_on``: what to tell a user who interrupts it."""
    chosen = settings()

    async def whole() -> T:
        async with chosen.client() as client:
            return await main(client)

    try:
        return run_coroutine(whole())
    except KeyboardInterrupt:
        raise Interrupted(goes_on) from None


def exit_code(error: Exception) -> AdminExit:
    """The exit code that tells a script what kind of failure ``error`` is."""
    if isinstance(error, ConditionFailed | Precondition | PlanError):
        return AdminExit.PRECONDITION
    if isinstance(error, Partial):
        return AdminExit.PARTIAL
    if isinstance(error, Unavailable | DeadlineExceeded):
        return AdminExit.UNREACHABLE
    return AdminExit.ERROR


def explain(error: Exception) -> str:
    """One message for people."""
    if isinstance(error, DeadlineExceeded):
        return f"{error}; look at the cluster before you try again"
    return describe(error) if isinstance(error, RaftKVError) else str(error)


def complain(message: str) -> None:
    """One line for people, on stderr."""
    click.echo(f"{_NAME}: {message}", err=True)


def confirm(question: str) -> None:
    """Ask the user before something that cannot be undone, unless --yes was given.

    Raises click.UsageError if there is nobody to ask, Precondition if the answer is no.
    """
    if settings().yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask at: give --yes if you mean it.")
    if not click.confirm(question, err=True):
        raise Precondition("nothing was changed")


# Output


class Section(NamedTuple):
    """A table for people: a heading (may be empty), the columns' names and rows of text and numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def emit(report: dict[str, Any], show: Callable[[dict[str, Any]], Iterable[Section | str]]) -> None:
    """Print ``report``: as JSON, or as the tables and lines that ``show`` makes of it."""
    if settings().output == "json":
        print_json({"schema": SCHEMA, **report})
    else:
        display(show(report))


def display(parts: Iterable[Section | str]) -> None:
    """Print tables and lines to stdout, a blank line between them where a table stands."""
    from rich.console import Console

    # Only a terminal has an edge: what a script reads stays in one line.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    before: Section | str | None = None
    for part in parts:
        if before is not None and not (isinstance(before, str) and isinstance(part, str)):
            console.print()
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            if part.title:
                console.print(part.title, markup=False, style="bold")
            console.print(_table(part))
        before = part


def _table(section: Section) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(section.columns):
        numbers = [row[at] for row in section.rows if row[at] not in ("", "-")]
        right = bool(numbers) and all(isinstance(one, int | float) for one in numbers)
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return table
