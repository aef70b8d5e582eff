"""``raftkv get|put|delete``."""

from __future__ import annotations

import sys

import click

import raftkv
from raftkv.cli.common import (
    Exit,
    Target,
    argument_bytes,
    argument_value,
    complain,
    field,
    output_option,
    print_json,
    run,
    stdout_is_terminal,
    targeted,
    timeout_option,
)
from raftkv.cli.parameters import Duration
from raftkv.limits import MAX_TTL


@click.command()
@click.argument("key")
@click.option(
    "--consistency",
    type=click.Choice(["linearizable", "quorum", "stale"]),
    default="linearizable",
    show_default=True,
    help="Consistency of the read.",
)
@click.option("--delete", is_flag=True, help="Remove the key: of several who do this, one gets the value.")
@targeted
@timeout_option(5.0)
@output_option
def get(key: str, consistency: raftkv.Consistency, delete: bool, target: Target, timeout: float, output: str) -> int:
    """Write the value of KEY to stdout, byte for byte. Exits with 4 if there is no such key.

    \b
    Example:
      raftkv get user:1
    """
    if delete and consistency != "linearizable":
        raise click.UsageError("--delete and --consistency are mutually exclusive")

    async def ask() -> raftkv.Record | None:
        async with target.client(timeout) as client:
            if delete:
                return await client.get_and_delete(argument_bytes(key))
            return await client.get(argument_bytes(key), consistency=consistency)

    record = run(ask())
    if record is None:
        complain("no such key")
        return Exit.NOT_MET
    if output == "json":
        shown = {**field("key", record.key), **field("value", record.value), "version": record.version}
        print_json({**shown, "expires_at": record.expires_at})
    else:
        sys.stdout.buffer.write(record.value + (b"\n" if stdout_is_terminal() else b""))
        sys.stdout.buffer.flush()
    return Exit.DONE


@click.command()
@click.argument("key")
@click.argument("value")
@click.option("--ttl", type=Duration(MAX_TTL), help="Remove it after this time: 90, 30s, 5m, 1h, 7d.")
@click.option("--if-version", type=click.IntRange(min=1), metavar="N", help="Only if the record has this version.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key.")
@targeted
@timeout_option(5.0)
@output_option
def put(
    key: str,
    value: str,
    ttl: float | None,
    if_version: int | None,
    if_absent: bool,
    target: Target,
    timeout: float,
    output: str,
) -> None:
    """Set KEY to VALUE; `-` reads the value from stdin. Exits with 4 if the condition is not met.

    \b
    Example:
      raftkv put session:7 active --ttl 1h
    """
    if if_absent and if_version is not None:
        raise click.UsageError("--if-version and --if-absent are mutually exclusive")
    condition = raftkv.ABSENT if if_absent else if_version
    data = argument_value(value)

    async def ask() -> raftkv.WriteResult:
        async with target.client(timeout) as client:
            return await client.put(argument_bytes(key), data, ttl=ttl, if_version=condition)

    version = run(ask()).version
    if output == "json":
        print_json({"version": version})
    else:
        click.echo(f"version {version}")


@click.command()
@click.argument("key")
@click.option("--if-version", type=click.IntRange(min=1), metavar="N", help="Only if the record has this version.")
@click.option("--if-value", metavar="VALUE", help="Only if the record has this value.")
@targeted
@timeout_option(5.0)
@output_option
def delete(key: str, if_version: int | None, if_value: str | None, target: Target, timeout: float, output: str) -> int:
    """Remove KEY. Exits with 4 if there was no such key or the condition is not met.

    \b
    Example:
      raftkv delete user:1 --if-version 7
    """

    if if_version is not None and if_value is not None:
        raise click.UsageError("--if-version and --if-value are mutually exclusive")
    value = None if if_value is None else argument_bytes(if_value)

    async def ask() -> bool:
        async with target.client(timeout) as client:
            return await client.delete(argument_bytes(key), if_version=if_version, if_value=value)

    existed = run(ask())
    if output == "json":
        print_json({"existed": existed})
    elif existed:
        click.echo("deleted")
    else:
        complain("no such key")
    return Exit.DONE if existed else Exit.NOT_MET
