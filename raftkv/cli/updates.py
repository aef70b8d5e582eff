"""``raftkv incr|append|touch|persist``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

import raftkv
from raftkv.cli.common import (
    Exit,
    Target,
    argument_bytes,
    argument_value,
    complain,
    output_option,
    print_json,
    run,
    targeted,
    timeout_option,
)
from raftkv.cli.parameters import Duration
from raftkv.limits import MAX_TTL

T = TypeVar("T")

_CREATED_TTL = click.option(
    "--ttl",
    type=Duration(MAX_TTL),
    help="If it creates the key: remove it after this time. An existing key keeps its own.",
)
_IF_VERSION = click.option(
    "--if-version", type=click.IntRange(min=1), metavar="N", help="Only if the record has this version."
)


def _ask(target: Target, timeout: float, what: Callable[[raftkv.AsyncClient], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with target.client(timeout) as client:
            return await what(client)

    return run(ask())


@click.command()
@click.argument("key")
@click.option("--by", type=int, default=1, show_default=True, metavar="N", help="What to add; may be negative.")
@_CREATED_TTL
@targeted
@timeout_option(5.0)
@output_option
def incr(key: str, by: int, ttl: float | None, target: Target, timeout: float, output: str) -> None:
    """Add to the counter KEY and print it. A key that is absent counts as 0; its value must be a decimal integer.

    \b
    Example:
      raftkv incr visits --by 10
    """
    value = _ask(target, timeout, lambda kv: kv.incr(argument_bytes(key), by, ttl=ttl))
    if output == "json":
        print_json({"value": value})
    else:
        click.echo(str(value))


@click.command()
@click.argument("key")
@click.argument("value")
@_CREATED_TTL
@targeted
@timeout_option(5.0)
@output_option
def append(key: str, value: str, ttl: float | None, target: Target, timeout: float, output: str) -> None:
    """Add VALUE to the end of the value of KEY; `-` reads it from stdin.

    \b
    Example:
      raftkv append log "one more line"
    """
    data = argument_value(value)
    done = _ask(target, timeout, lambda kv: kv.append(argument_bytes(key), data, ttl=ttl))
    if output == "json":
        print_json(done._asdict())
    else:
        click.echo(f"length {done.length}, version {done.version}")


@click.command()
@click.argument("key")
@click.argument("ttl", type=Duration(MAX_TTL))
@_IF_VERSION
@targeted
@timeout_option(5.0)
@output_option
def touch(key: str, ttl: float, if_version: int | None, target: Target, timeout: float, output: str) -> int:
    """Remove KEY after TTL from now on: 90, 30s, 5m, 1h, 7d. Its value and version stay.

    Exits with 4 if there is no such key or the condition is not met.

    \b
    Example:
      raftkv touch session:7 1h
    """
    existed = _ask(target, timeout, lambda kv: kv.touch(argument_bytes(key), ttl, if_version=if_version))
    return _told(existed, "touched", output)


@click.command()
@click.argument("key")
@_IF_VERSION
@targeted
@timeout_option(5.0)
@output_option
def persist(key: str, if_version: int | None, target: Target, timeout: float, output: str) -> int:
    """Let KEY not expire any more. Its value and version stay.

    Exits with 4 if there is no such key or the condition is not met.

    \b
    Example:
      raftkv persist session:7
    """
    existed = _ask(target, timeout, lambda kv: kv.persist(argument_bytes(key), if_version=if_version))
    return _told(existed, "persistent", output)


def _told(existed: bool, done: str, output: str) -> int:
    if output == "json":
        print_json({"existed": existed})
    elif existed:
        click.echo(done)
    else:
        complain("no such key")
    return Exit.DONE if existed else Exit.NOT_MET
