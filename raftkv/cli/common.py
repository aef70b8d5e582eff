"""What the commands share: exit codes, errors, options, output."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeVar

import click
from click.core import ParameterSource

from raftkv.cli import contexts
from raftkv.cli.files import STANDARD
from raftkv.cli.parameters import Duration, duration_text
from raftkv.client.routing import parse_endpoints
from raftkv.errors import ConditionFailed, DeadlineExceeded, OutcomeUnknown, RaftKVError, Unavailable
from raftkv.limits import MAX_TIMEOUT, MAX_VALUE_BYTES, MIN_TIMEOUT

if TYPE_CHECKING:
    from raftkv.client.aio import AsyncClient
    from raftkv.client.tls import TLS

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


def _file_option(name: str, what: str) -> Callable[..., Callable[[F], F]]:
    def make(**attributes: Any) -> Callable[[F], F]:
        return click.option(
            f"--tls-{name}",
            type=click.Path(dir_okay=False),
            envvar=f"RAFTKV_TLS_{name.upper()}",
            show_envvar=True,
            metavar="FILE",
            help=what,
            **attributes,
        )

    return make


_TLS: Final = (
    _file_option("ca", "TLS, with the CAs (PEM) that vouch for the cluster's nodes."),
    _file_option("cert", "This client's certificate (PEM), where nodes ask for one."),
    _file_option("key", "The key of --tls-cert (PEM)."),
)


def _server_name(**attributes: Any) -> Callable[[F], F]:
    return click.option(
        "--tls-server-name",
        envvar="RAFTKV_TLS_SERVER_NAME",
        show_envvar=True,
        metavar="NAME",
        help="What the nodes' certificates name, if not the hosts of the endpoints.",
        **attributes,
    )


def token_option(**attributes: Any) -> Callable[[F], F]:
    """The option ``--token``."""
    return click.option(
        "--token",
        envvar="RAFTKV_TOKEN",
        show_envvar=True,
        metavar="TOKEN",
        help="A user's token, or NAME:PASSWORD, where the cluster has users. Others may see options: rather use the "
        "variable, or a context.",
        **attributes,
    )


def _context_option(**attributes: Any) -> Callable[[F], F]:
    return click.option(
        "--context",
        envvar="RAFTKV_CONTEXT",
        show_envvar=True,
        metavar="NAME",
        help="The cluster with this name (`raftkv context`); options that say more outdo it.",
        **attributes,
    )


def tls_options(command: F) -> F:
    """The options of TLS."""
    for option in reversed((*_TLS, _server_name)):
        command = option()(command)
    return command


def target_options(**attributes: Any) -> list[Callable[[F], F]]:
    """All options that say which cluster is spoken to and how, with further ``attributes`` of click's."""
    return [option(**attributes) for option in (endpoints, *_TLS, _server_name, token_option, _context_option)]


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster that a command speaks to."""

    endpoints: str = DEFAULT_ENDPOINTS
    tls: TLS | None = None
    token: str | None = dataclasses.field(default=None, repr=False)

    def client(self, timeout: float) -> AsyncClient:
        """A client of it; ``timeout``: seconds for each of its calls. Raises ConfigError."""
        import raftkv

        return raftkv.AsyncClient(self.endpoints, tls=self.tls, token=self.token, timeout=timeout)

    @classmethod
    def chosen(cls, given: Mapping[str, str | None], variables: Collection[str] = ()) -> Target:
        """By what was ``given``, by options or ``variables`` of the environment: names of :data:`TARGET`.

        Who gives endpoints and no context means no context, also not the one in use. A context that an option names is
        not changed by variables: they may be of another cluster. Raises ConfigError.
        """
        name = given.get("context")
        outdone = variables if name is not None and "context" not in variables else ()
        own = {
            key.removeprefix("tls_"): value
            for key, value in given.items()
            if value is not None and key != "context" and key not in outdone
        }
        if name is None and "endpoints" not in own:
            name = contexts.load().current or None
        base = {} if name is None else asdict(contexts.load().get(name))
        whole = contexts.Context(**{"endpoints": DEFAULT_ENDPOINTS, **base, **own})
        click.get_current_context().meta[_UNNAMED] = not (name or "endpoints" in own)
        return cls(whole.endpoints, whole.tls(), whole.token)


def targeted(command: Callable[..., T]) -> Callable[..., T]:
    """Gives a command the options of :func:`target_options`, and with them its argument ``target``."""

    @wraps(command)
    def with_target(**arguments: Any) -> T:
        context = click.get_current_context()
        given = {name: arguments.pop(name) for name in TARGET}
        if context.get_parameter_source("endpoints") is ParameterSource.DEFAULT:
            given["endpoints"] = None
        variables = [name for name in TARGET if context.get_parameter_source(name) is ParameterSource.ENVIRONMENT]
        return command(target=Target.chosen(given, variables), **arguments)

    wrapped: Callable[..., T] = with_target
    for option in reversed(target_options()):
        wrapped = option(wrapped)
    return wrapped


_UNNAMED: Final = "raftkv.cli.unnamed"
"""In click's notes: nobody has said which cluster is meant, so it is the local one."""

TARGET: Final = ("endpoints", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token", "context")
"""Names of the options that say which cluster is spoken to."""


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
        context = click.get_current_context(silent=True)
        if context is not None and context.meta.get(_UNNAMED):
            error.add_note("no --endpoints were given: is a cluster running here? `raftkv up` starts one")
        raise


def stdout_is_terminal() -> bool:
    return sys.stdout.isatty()
