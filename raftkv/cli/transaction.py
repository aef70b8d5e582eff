"""``raftkv txn``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import raftkv
from raftkv.cli.common import Exit, Target, complain, field, output_option, print_json, run, targeted, timeout_option
from raftkv.cli.files import STANDARD
from raftkv.cli.parameters import FilePath
from raftkv.cli.script import WORDS, fill
from raftkv.commands.transactions import Step
from raftkv.limits import MAX_TXN_BYTES

_LONGEST = 4 * MAX_TXN_BYTES
"""Bytes of a script: JSON may need two characters for a byte."""


@click.command()
@click.argument("lines", nargs=-1, metavar="[LINE]...")
@click.option("-f", "--file", type=FilePath(stream=True), help="Read the lines, or JSON, from here; - is stdin.")
@targeted
@timeout_option(5.0)
@output_option
def txn(lines: tuple[str, ...], file: str | None, target: Target, timeout: float, output: str) -> int:
    """Check and change several keys of one slot at once, such as keys with the same {hash tag}.

    Each LINE is a check or an operation; without any, they are read from stdin. Exits with 4 if a check did not hold:
    then what stands behind `otherwise` was done.

    \b
      check KEY version N | value VALUE | absent
      put KEY VALUE [ttl TIME]
      delete KEY
      incr KEY [N] [ttl TIME]
      get KEY
      otherwise

    Words are quoted as in a shell; # begins a comment. JSON has the same words: docs/cli.md.

    \b
    Example:
      raftkv txn 'check {a}lock absent' 'put {a}lock me ttl 30s' otherwise 'get {a}lock'
    """
    if lines and file is not None:
        raise click.UsageError("lines and --file are mutually exclusive")
    text = "\n".join(lines) if lines else _read(file or STANDARD)

    async def commit() -> tuple[raftkv.AsyncTransaction, raftkv.TransactionResult]:
        async with target.client(timeout) as client:
            asked = client.txn()
            fill(asked, text)
            return asked, await asked.commit()

    asked, result = run(commit())
    steps = asked.steps if result else asked.instead
    rows = [_row(step, told) for step, told in zip(steps, result.results, strict=True)]
    if output == "json":
        print_json({"succeeded": result.succeeded, "number": result.number, "results": rows})
    else:
        if not result:
            complain("a check did not hold")
        for row in rows:
            click.echo(_line(row))
    return Exit.DONE if result else Exit.NOT_MET


def _read(file: str) -> str:
    try:
        if file == STANDARD:
            data = sys.stdin.buffer.read(_LONGEST + 1)
        else:
            with Path(file).open("rb") as source:
                data = source.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise raftkv.TooLarge(f"{file}: more than {_LONGEST} bytes")
        return data.decode()
    except UnicodeDecodeError as error:
        raise raftkv.InvalidArgument(f"{file}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise raftkv.InvalidArgument(f"{file}: {error.strerror}") from None


def _row(step: Step, told: Any) -> dict[str, Any]:
    """What one operation came to, for programs."""
    word = WORDS[type(step)]
    shown = field(word, step.key)
    match told:
        case raftkv.WriteResult():
            return {**shown, "version": told.version}
        case bool():
            return {**shown, "existed": told}
        case int():
            return {**shown, "value": told}
        case raftkv.Record():
            return {**shown, **field("value", told.value), "version": told.version, "expires_at": told.expires_at}
    return {**shown, "value": None}


def _line(row: dict[str, Any]) -> str:
    """The same for people."""
    (word, key), *rest = row.items()
    if row.get("existed") is False or (word.startswith("get") and "version" not in row):
        return f"{word} {key}: no such key"
    told = ", ".join(f"{name} {value}" for name, value in rest if name not in ("existed", "expires_at"))
    return f"{word} {key}: {told or 'deleted'}"
