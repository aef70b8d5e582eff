"""``raftkv load`` and ``raftkv dump``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import raftkv
from raftkv.cli.common import Exit, complain, describe, endpoints_option, exit_code, output_option, print_json, run
from raftkv.cli.common import timeout_option as timeout
from raftkv.cli.loading import Loader, ProgressFile, fingerprint
from raftkv.cli.records import Format, Item, dump_line, format_of, read_items
from raftkv.clock import SystemClock
from raftkv.errors import InvalidArgument, RaftKVError, Unavailable
from raftkv.limits import MAX_TTL

_FLUSH_BYTES = 256 * 1024


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), help="Default: by the file's suffix.")
@click.option("--key-column", default="key", show_default=True, metavar="NAME", help="Column or field of the key.")
@click.option(
    "--value-column", default="value", show_default=True, metavar="NAME", help="Column or field of the value."
)
@click.option(
    "--in-flight", type=click.IntRange(1, 10_000), default=256, show_default=True, help="Writes under way at a time."
)
@click.option("--restart", is_flag=True, help="Forget the progress of an earlier load of this file.")
@endpoints_option
@timeout(60.0)
@output_option
def load(
    file: Path,
    kind: Format | None,
    key_column: str,
    value_column: str,
    in_flight: int,
    restart: bool,
    endpoints: str,
    timeout: float,
    output: str,
) -> int:
    """Write all records of FILE: JSON Lines with key and value, or CSV with a header.

    The whole file is checked before the first write. FILE.progress remembers how far the load has come, and the same
    command goes on from there if it was interrupted. Of a key that comes more than once, the last value stays.
    """
    if key_column == value_column:
        raise click.UsageError("--key-column and --value-column name the same column")
    kind = kind or format_of(file)
    identity = fingerprint(file)
    total = _count(file, read_items(file, kind, key_column, value_column))

    async def transfer() -> tuple[Loader, int, float, RaftKVError | None]:
        clock = SystemClock()
        async with raftkv.AsyncClient(endpoints, timeout=timeout) as client:
            progress = ProgressFile(file, identity, await _cluster_id(client))
            if restart:
                progress.remove()
            skip = min(progress.read(), total)
            if skip:
                complain(f"going on after the {skip} records that were loaded before (--restart begins anew)")
            with _bar(total) as bar:
                task = bar.add_task("loading", total=total, completed=skip)
                loader = Loader(client, clock, progress.write, lambda done: bar.update(task, completed=done), in_flight)
                start = clock.now()
                failure = None
                try:
                    await loader.run(read_items(file, kind, key_column, value_column), skip)
                except RaftKVError as error:
                    failure = error
            if failure is None:
                progress.remove()
            if progress.problem:
                complain(f"progress could not be saved, an interrupted load begins anew: {progress.problem}")
            return loader, skip, clock.now() - start, failure

    loader, skipped, seconds, failure = run(transfer())
    if failure is not None:
        complain(describe(failure))
        complain(
            f"stopped: {loader.written} records written now, {skipped} before, of {total}; the same command goes on"
        )
    if output == "json":
        counts = {"written": loader.written, "skipped": skipped, "expired": loader.expired, "total": total}
        print_json({**counts, "complete": failure is None, "seconds": round(seconds, 3)})
    elif failure is None:
        extra = f", {skipped} had been loaded before" if skipped else ""
        extra += f", {loader.expired} had expired" if loader.expired else ""
        rate = loader.written / seconds if seconds else 0.0
        click.echo(f"{loader.written} records written in {seconds:.1f} s ({rate:,.0f}/s){extra}")
    return Exit.DONE if failure is None else exit_code(failure)


def _count(file: Path, items: Iterator[Item]) -> int:
    """Number of records. Raises InvalidArgument for the first that the cluster would not take."""
    latest = SystemClock().wall() + MAX_TTL
    total = 0
    for item in items:
        total += 1
        if item.expires_at is not None and item.expires_at > latest:
            raise InvalidArgument(f"{file}: line {item.line}: expires_at is more than {MAX_TTL} s ahead")
    return total


async def _cluster_id(client: raftkv.AsyncClient) -> str:
    seen = await client.status()
    for endpoint in seen:
        if endpoint.status is not None and endpoint.status.cluster_id:
            return endpoint.status.cluster_id
    raise Unavailable("no node answers: " + "; ".join(f"{e.address}: {e.error or 'has no map yet'}" for e in seen))


def _bar(total: int) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal or not total)


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Default: stdout.")
@endpoints_option
@timeout(30.0)
def dump(out: Path | None, endpoints: str, timeout: float) -> None:
    """Write all records as JSON Lines, in no particular order; `raftkv load` reads them back.

    A key or value that is not UTF-8 comes as key_b64 or value_b64. Each record is read linearizably; writes that
    happen during the dump may or may not be in it.
    """

    async def transfer(write_to: BinaryIO | None) -> int:
        target = sys.stdout.buffer if write_to is None else write_to
        count, size = 0, 0
        lines: list[bytes] = []
        async with raftkv.AsyncClient(endpoints, timeout=timeout) as client:
            async for record in client.records():
                lines.append(dump_line(*record))
                size += len(lines[-1])
                count += 1
                if size >= _FLUSH_BYTES:
                    target.write(b"".join(lines))
                    lines.clear()
                    size = 0
        target.write(b"".join(lines))
        target.flush()
        return count

    if out is None:
        count = run(transfer(None))
    else:
        part = out.with_name(out.name + ".part")
        try:
            with part.open("wb") as file:
                count = run(transfer(file))
            part.replace(out)
        except RaftKVError:
            raise
        except OSError as error:
            raise InvalidArgument(f"{out}: cannot write it: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)
    complain(f"{count} records")
