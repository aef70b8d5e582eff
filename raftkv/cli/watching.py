"""``raftkv watch``."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

import raftkv
from raftkv.cli.common import Target, argument_bytes, field, output_option, run, targeted
from raftkv.cli.common import timeout_option as timeout
from raftkv.cli.ranges import printable

_MARKS: Final = ("image", "whole", "live")
"""Types of events that are of no key."""


@click.command()
@click.argument("key", required=False)
@click.option("--prefix", metavar="KEY", help="All keys that begin with this; an empty one: all keys.")
@click.option("--start", metavar="TOKEN", help="Go on behind the event that had this token.")
@click.option("--initial", is_flag=True, help="First the records that are there.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many changes.")
@targeted
@timeout(30.0)
@output_option
def watch(
    key: str | None,
    prefix: str | None,
    start: str | None,
    initial: bool,
    count: int | None,
    target: Target,
    timeout: float,
    output: str,
) -> None:
    """Write what happens to KEY, or to keys that begin with a prefix, a change a line, until it is interrupted.

    With `-o json` each line is an object, with the token to go on from.

    \b
    Example:
      raftkv watch --prefix user: --count 1
    """
    if (key is None) == (prefix is None):
        raise click.UsageError("give a KEY or --prefix")

    def line(event: raftkv.WatchEvent) -> str:
        if output == "json":
            shown: dict[str, Any] = {"type": event.type}
            if event.type not in _MARKS:
                shown.update(field("key", event.key))
            if event.value is not None:
                shown.update(field("value", event.value))
            return json.dumps({**shown, "version": event.version, "token": event.token}, ensure_ascii=False)
        text = f"{event.type}\t{printable(event.key)}"
        return text if event.value is None else f"{text}\t{printable(event.value)}"

    async def write() -> None:
        left = count
        out = sys.stdout.buffer
        async with (
            target.client(timeout) as client,
            client.watch(
                key=None if key is None else argument_bytes(key),
                prefix=None if prefix is None else argument_bytes(prefix),
                start=start,
                initial=initial,
            ) as events,
        ):
            async for event in events:
                if output == "json" or event.type not in _MARKS:
                    out.write(line(event).encode("utf-8", "backslashreplace") + b"\n")
                    out.flush()
                if left is not None and event.type not in _MARKS:
                    left -= 1
                    if not left:
                        return

    run(write())
