"""What the commands share: exit codes, errors, options, output."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any, Final, TypeVar

import click

from raftkv.client.routing import parse_endpoints
from raftkv.errors import ConditionFailed, DeadlineExceeded, OutcomeUnknown, RaftKVError, Unavailable

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
    click.echo(f"raftkv: {message}", err=True)


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


def endpoints_option(command: F) -> F:
    return click.option(
        "--endpoints",
        callback=checked(parse_endpoints),
        envvar="RAFTKV_ENDPOINTS",
        default=DEFAULT_ENDPOINTS,
        show_default=True,
        show_envvar=True,
        metavar="HOST:PORT,...",
        help="Nodes to ask; any of them is enough.",
    )(command)


def timeout_option(default: float) -> Callable[[F], F]:
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True, max=600),
        default=default,
        show_default=True,
        metavar="SECONDS",
        help="Longest time for one operation, retries included.",
    )


def output_option(command: F) -> F:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="For people or for programs.",
    )(command)


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


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine on the fastest loop at hand."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def stdout_is_terminal() -> bool:
    return sys.stdout.isatty()
