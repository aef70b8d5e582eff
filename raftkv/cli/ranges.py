"""``raftkv scan|count|delete-prefix``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

import click

import raftkv
from raftkv.cli.common import Exit, Target, argument_bytes, field, output_option, print_json, run, targeted
from raftkv.cli.common import timeout_option as timeout

_FLUSH_BYTES: Final = 64 * 1024


def _bytes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bytes | None:
    return None if value is None else argument_bytes(value)


def _range_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in (
        ("--end", "Stop before this key."),
        ("--start", "Begin with this key."),
        ("--prefix", "Only keys that begin with this."),
    ):
        function = click.option(name, callback=_bytes, metavar="KEY", help=text)(function)
    return function


@click.command()
@_range_options
@click.option("--limit", type=click.IntRange(1, (1 << 32) - 1), metavar="N", help="At most so many records.")
@click.option("--reverse", is_flag=True, help="From the last key to the first.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@targeted
@timeout(30.0)
@output_option
def scan(
    prefix: bytes | None,
    start: bytes | None,
    end: bytes | None,
    limit: int | None,
    reverse: bool,
    keys_only: bool,
    target: Target,
    timeout: float,
    output: str,
) -> None:
    """Write keys and values in key order, a record a line with a tab between them.

    What is not printable is escaped. With `-o json` each line is an object. Each page of records is read linearizably;
    writes that happen meanwhile may or may not be seen.

    \b
    Example:
      raftkv scan --prefix user: --limit 20
    """

    def line(record: raftkv.Record) -> str:
        if output == "json":
            shown: dict[str, Any] = {**field("key", record.key), "version": record.version}
            if not keys_only:
                shown.update(field("value", record.value))
            return json.dumps({**shown, "expires_at": record.expires_at}, ensure_ascii=False)
        return printable(record.key) if keys_only else f"{printable(record.key)}\t{printable(record.value)}"

    async def write() -> None:
        lines: list[bytes] = []
        size = 0
        out = sys.stdout.buffer
        async with target.client(timeout) as client:
            records = client.scan(
                prefix=prefix, start=start, end=end, limit=limit, reverse=reverse, keys_only=keys_only
            )
            async with aclosing(records):
                async for record in records:
                    lines.append(line(record).encode("utf-8", "backslashreplace") + b"\n")
                    size += len(lines[-1])
                    if size >= _FLUSH_BYTES:
                        out.write(b"".join(lines))
                        lines.clear()
                        size = 0
        out.write(b"".join(lines))
        out.flush()

    run(write())


def printable(data: bytes) -> str:
    """As text, what is not printable escaped."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


@click.command()
@_range_options
@targeted
@timeout(30.0)
@output_option
def count(
    prefix: bytes | None, start: bytes | None, end: bytes | None, target: Target, timeout: float, output: str
) -> None:
    """Count the records, all of them or those of a range.

    \b
    Example:
      raftkv count --prefix user:
    """

    async def ask() -> int:
        async with target.client(timeout) as client:
            return await client.count(prefix=prefix, start=start, end=end)

    found = run(ask())
    if output == "json":
        print_json({"count": found})
    else:
        click.echo(found)


@click.command("delete-prefix")
@click.argument("prefix", callback=_bytes)
@targeted
@timeout(30.0)
@output_option
def delete_prefix(prefix: bytes, target: Target, timeout: float, output: str) -> int:
    """Remove all records whose keys begin with PREFIX. Exits with 4 if there were none.

    They are removed one by one: after an error the same command removes the rest.

    \b
    Example:
      raftkv delete-prefix session:
    """

    async def ask() -> int:
        async with target.client(timeout) as client:
            return await client.delete_prefix(prefix)

    removed = run(ask())
    if output == "json":
        print_json({"removed": removed})
    else:
        click.echo(f"{removed} records removed")
    return Exit.DONE if removed else Exit.NOT_MET
