"""What the commands share: exit codes, errors, options, output."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import IntEnum
from typing import Any, Final, TextIO, TypeVar

import click
from click.core import ParameterSource

from raftkv.cli.files import STANDARD
from raftkv.cli.parameters import Duration, duration_text
from raftkv.client.routing import parse_endpoints
from raftkv.errors import ConditionFailed, DeadlineExceeded, OutcomeUnknown, RaftKVError, Unavailable
from raftkv.limits import MAX_TIMEOUT, MAX_VALUE_BYTES, MIN_TIMEOUT

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ENDPOINTS: Final = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_MET = 4
    INTERRUPTED = 130


class Interrupted(Exception):
    """The user ended a command; the message says what goes on without it."""


def exit_code(error: RaftKVError) -> Exit:
    """The exit code that tells a script what kind of failure ``error`` is."""
    if isinstance(error, ConditionFailed):
        return Exit.NOT_MET
    if isinstance(error, Unavailable | DeadlineExceeded):
        return Exit.UNREACHABLE
    return Exit.ERROR


def describe(error: RaftKVError) -> str:
    """One message for people, which says so if a write may have taken effect."""
    text = str(error) or type(error).__name__
    if isinstance(error, OutcomeUnknown):
        return f"{text} (the write may or may not have taken effect; read the key to know)"
    return text


def complain(message: str) -> None:
    """One line for people, on stderr."""
    say(f"raftkv: {message}")


def say(line: str) -> None:
    """A line on stderr; if that is a full disk, or its reader has gone, what a command does and its exit code stay."""
    try:
        click.echo(line, err=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Let ``stream`` go nowhere: nothing more can be said to it, not even at interpreter exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def checked(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, T], T]:
    """A callback of an option: what ``parse`` refuses is wrong usage, told before anything is done."""

    def check(_ctx: click.Context, _param: click.Parameter, value: T) -> T:
        if isinstance(value, str):
            try:
                parse(value)
            except RaftKVError as error:
                raise click.BadParameter(str(error)) from None
        return value

    return check


def endpoints(**attributes: Any) -> Callable[[F], F]:
    """The option ``--endpoints``, with further ``attributes`` of click's."""
    return click.option(
        "--endpoints",
        envvar="RAFTKV_ENDPOINTS",
        default=DEFAULT_ENDPOINTS,
        show_default=True,
        show_envvar=True,
        metavar="HOST:PORT,...",
        help="Nodes to ask; any of them is enough.",
        **{"callback": checked(parse_endpoints), **attributes},
    )


def timeout_option(default: float, **attributes: Any) -> Callable[[F], F]:
    """The option ``--timeout``; ``default`` in seconds."""
    return click.option(
        "--timeout",
        type=Duration(MAX_TIMEOUT, least=MIN_TIMEOUT),
        default=duration_text(default),
        show_default=True,
        help="Longest time for one operation, retries included.",
        **attributes,
    )


def output(**attributes: Any) -> Callable[[F], F]:
    """The option ``--output``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Output format.",
        **attributes,
    )


endpoints_option = endpoints()
output_option = output()


def print_json(value: object) -> None:
    """One line of JSON on stdout: UTF-8 whatever the locale."""
    # Only a surrogate without its twin (of a path that is not UTF-8) has no UTF-8; backslashes make it JSON's escape.
    click.echo(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def field(name: str, data: bytes) -> dict[str, str]:
    """``data`` under ``name`` if it is UTF-8, else as base64 under ``name_b64``."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": base64.b64encode(data).decode()}


def argument_bytes(text: str) -> bytes:
    """The bytes that the shell gave, whatever the locale and whether or not they are text in it."""
    return os.fsencode(text)


def argument_value(text: str) -> bytes:
    """A value given as an argument, or on stdin if that is ``-``; one byte too many if that has more than a value."""
    return sys.stdin.buffer.read(MAX_VALUE_BYTES + 1) if text == STANDARD else argument_bytes(text)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine on the fastest loop at hand."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    except (Unavailable, DeadlineExceeded) as error:
        if _default_endpoints():
            error.add_note("no --endpoints were given: is a cluster running here? `raftkv up` starts one")
        raise


def _default_endpoints() -> bool:
    """Whether the running command asks nodes and nobody named them, by an option or the environment."""
    context = click.get_current_context(silent=True)
    sources = set()
    while context is not None:
        sources.add(context.get_parameter_source("endpoints"))
        context = context.parent
    return sources - {None} == {ParameterSource.DEFAULT}


def stdout_is_terminal() -> bool:
    return sys.stdout.isatty()
