"""What the commands of ``raftkv-admin`` share: global options, exit codes, errors, output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from raftkv.cli.common import (
    TARGET,
    Interrupted,
    Target,
    describe,
    output,
    print_json,
    say,
    target_options,
    timeout_option,
)
from raftkv.cli.common import run as run_coroutine
from raftkv.cli.console import Section, display
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
_VARIABLES: Final = "raftkv.cli.admin.variables"
"""In click's notes: the global options that were given, and which of them by variables of the environment."""

DEFAULT_TIMEOUT: Final = 5.0


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
    """Not all was done; the same command resumes. The message says how far it is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options. ``timeout``: seconds for each question to the cluster."""

    target: Target
    timeout: float = DEFAULT_TIMEOUT
    output: str = "table"
    yes: bool = False

    def client(self) -> AdminClient:
        """A client of the cluster that is spoken to."""
        return AdminClient(self.target.endpoints, timeout=self.timeout, tls=self.target.tls, token=self.target.token)


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep what was given. The environment is read at both places, and must not outdo an option before the noun."""
    given, variables = ctx.meta.setdefault(_GIVEN, {}), ctx.meta.setdefault(_VARIABLES, set())
    source = ctx.get_parameter_source(param.name or "")
    if source is ParameterSource.COMMANDLINE:
        given[param.name] = value
        variables.discard(param.name)
    elif source is ParameterSource.ENVIRONMENT and param.name not in given:
        given[param.name] = value
        variables.add(param.name)


_NOTED: Final[Mapping[str, Any]] = {"expose_value": False, "callback": _note}
_ASKING: Final = (*target_options(**_NOTED), timeout_option(DEFAULT_TIMEOUT, **_NOTED))
_OUTPUT: Final = output(**_NOTED)
_YES: Final = click.option("-y", "--yes", is_flag=True, help="Skip confirmation prompts.", **_NOTED)


def global_options(command: F) -> F:
    """The options that may stand before the command's name, or after it."""
    for option in reversed((*_ASKING, _OUTPUT, _YES)):
        command = option(command)
    return command


def command(
    group: click.Group, name: str, *, asks: bool = True, confirms: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a function a command of ``group`` that also takes those global options that mean something to it.

    ``asks``: it asks the cluster. ``confirms``: it asks the user first, see :func:`confirm`.
    """
    options = (*(_ASKING if asks else ()), _OUTPUT, *((_YES,) if confirms else ()))

    def make(function: Callable[..., Any]) -> click.Command:
        for option in reversed(options):
            function = option(function)
        return group.command(name)(function)

    return make


def settings() -> Settings:
    """The global options of the command that runs.

    Raises click.BadParameter for endpoints that cannot be, ConfigError for contexts and certificates.
    """
    notes = click.get_current_context().meta
    given: dict[str, Any] = notes.get(_GIVEN, {})
    chosen = {name: value for name, value in given.items() if name in TARGET}
    target = Target.chosen(chosen, notes.get(_VARIABLES, ()))
    try:
        # Not where the options are read: one after the command's name outdoes the environment.
        parse_endpoints(target.endpoints)
    except InvalidArgument as error:
        raise click.BadParameter(str(error), param_hint="--endpoints") from None
    return Settings(target, **{name: value for name, value in given.items() if name not in TARGET})


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
        return f"{error}; check the cluster before you retry"
    return describe(error) if isinstance(error, RaftKVError) else str(error)


def complain(message: str) -> None:
    """One line for people, on stderr."""
    say(f"{_NAME}: {message}")


def confirm(question: str) -> None:
    """Ask the user before something that cannot be undone, unless --yes was given.

    Raises click.UsageError if there is nobody to ask, Precondition if the answer is no.
    """
    if settings().yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask at: give --yes to confirm.")
    if not click.confirm(question, err=True):
        raise Precondition("nothing was changed")


# Output


def emit(report: dict[str, Any], show: Callable[[dict[str, Any]], Iterable[Section | str]]) -> None:
    """Print ``report``: as JSON, or as the tables and lines that ``show`` makes of it."""
    if settings().output == "json":
        print_json({"schema": SCHEMA, **report})
    else:
        display(show(report))
