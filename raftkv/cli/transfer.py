"""``raftkv load`` and ``raftkv dump``."""

from __future__ import annotations

from contextlib import closing
from typing import BinaryIO

import click
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

import raftkv
from raftkv.cli.common import Exit, Target, complain, describe, exit_code, output_option, print_json, run, targeted
from raftkv.cli.common import timeout_option as timeout
from raftkv.cli.console import make_progress
from raftkv.cli.files import STANDARD, output_file
from raftkv.cli.loading import Loader, ProgressFile, Resumption, resume
from raftkv.cli.parameters import FilePath, LaterDefault
from raftkv.cli.records import Format, dump_line
from raftkv.cli.sources import Source
from raftkv.clock import SystemClock
from raftkv.errors import InvalidArgument, RaftKVError, Unavailable
from raftkv.limits import MAX_TTL

_FLUSH_BYTES = 256 * 1024


@click.command()
@click.argument("file", type=FilePath(stream=True))
@click.option(
    "--format",
    "kind",
    cls=LaterDefault,
    shown="by the file's suffix; of a pipe, jsonl",
    type=click.Choice(["jsonl", "csv"]),
    help="Format of the file.",
)
@click.option("--key-column", default="key", show_default=True, metavar="NAME", help="Column or field of the key.")
@click.option(
    "--value-column", default="value", show_default=True, metavar="NAME", help="Column or field of the value."
)
@click.option(
    "--in-flight", type=click.IntRange(1, 10_000), default=256, show_default=True, help="Writes in flight at a time."
)
@click.option("--restart", is_flag=True, help="Forget the progress of an earlier load of this file.")
@targeted
@timeout(60.0)
@output_option
def load(
    file: str,
    kind: Format | None,
    key_column: str,
    value_column: str,
    in_flight: int,
    restart: bool,
    target: Target,
    timeout: float,
    output: str,
) -> int:
    """Write all records of FILE: JSON Lines with key and value, or CSV with a header; `-` reads stdin.

    The whole file is checked before the first write. FILE.progress remembers how far the load has come, and the same
    command resumes there after an interruption, after it has read back what was written. Of a key that comes more
    than once, the last value stays. A pipe is copied to a temporary file, and an interrupted load of it starts over.

    \b
    Example:
      raftkv load users.csv --key-column id --value-column name
    """
    if key_column == value_column:
        raise click.UsageError("--key-column and --value-column name the same column")
    source = click.get_current_context().with_resource(closing(Source(file, kind, key_column, value_column)))
    total = _count(source)

    async def transfer() -> tuple[Loader, float, RaftKVError | None]:
        clock = SystemClock()
        async with target.client(timeout) as client:
            progress = ProgressFile(source.path, _about(source, await _cluster_id(client))) if source.lasts else None
            if progress is not None and restart:
                progress.remove()
            with _bar(total) as bar:
                task = bar.add_task("checking" if progress else "loading", total=total)

                def show(done: int) -> None:
                    bar.update(task, completed=done)

                loader = Loader(client, clock, progress.write if progress else None, show, in_flight)
                start = clock.now()
                failure = None
                try:
                    found = Resumption(0, False)
                    if progress is not None:
                        found = await resume(progress, source.items(), client, clock, show, complain, in_flight)
                    bar.update(task, description="loading", completed=found.skip)
                    await loader.run(source.items(), found.skip)
                except RaftKVError as error:
                    failure = error
            if progress is not None:
                if failure is None:
                    progress.remove()
                if progress.problem:
                    complain(f"progress could not be saved, an interrupted load starts over: {progress.problem}")
            return loader, clock.now() - start, failure

    loader, seconds, failure = run(transfer())
    skipped = loader.skipped
    if failure is not None:
        goes_on = source.lasts and not isinstance(failure, InvalidArgument)
        complain(describe(failure))
        complain(
            f"stopped: {loader.written} records written now, {skipped} before, of {total}; "
            f"the same command {'resumes' if goes_on else 'starts over'}"
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


def _count(source: Source) -> int:
    """Number of records. Raises InvalidArgument for the first that the cluster would not take."""
    latest = SystemClock().wall() + MAX_TTL
    total = 0
    for item in source.items():
        total += 1
        if item.expires_at is not None and item.expires_at > latest:
            raise InvalidArgument(f"{source.name}: line {item.line}: expires_at is more than {MAX_TTL} s ahead")
    return total


def _about(source: Source, cluster: str) -> dict[str, str]:
    return {
        "content": source.digest,
        "format": source.kind,
        "key column": source.key_column,
        "value column": source.value_column,
        "cluster": cluster,
    }


async def _cluster_id(client: raftkv.AsyncClient) -> str:
    seen = await client.status()
    for endpoint in seen:
        if endpoint.status is not None and endpoint.status.cluster_id:
            return endpoint.status.cluster_id
    # What was met on the way to a node names it already.
    told = ((one.address, one.error.removeprefix(f"{one.address}: ") or "has no map yet") for one in seen)
    raise Unavailable("no node answers: " + "; ".join(f"{address}: {text}" for address, text in told))


def _bar(total: int) -> Progress:
    return make_progress(MofNCompleteColumn(), TimeRemainingColumn(), disable=not total)


@click.command()
@click.option(
    "--out",
    type=FilePath(stream=True),
    default=STANDARD,
    show_default="- for stdout",
    metavar="FILE",
    help="Where to write. A file is replaced once all is written.",
)
@targeted
@timeout(30.0)
def dump(out: str, target: Target, timeout: float) -> None:
    """Write all records as JSON Lines, in key order; `raftkv load` reads them back.

    A key or value that is not UTF-8 comes as key_b64 or value_b64. Each record is read linearizably; writes that
    happen during the dump may or may not be in it.

    \b
    Example:
      raftkv dump --out records.jsonl
    """

    async def transfer(file: BinaryIO) -> int:
        count, size = 0, 0
        lines: list[bytes] = []
        async with target.client(timeout) as client:
            async for record in client.scan():
                lines.append(dump_line(*record))
                size += len(lines[-1])
                count += 1
                if size >= _FLUSH_BYTES:
                    file.write(b"".join(lines))
                    lines.clear()
                    size = 0
        file.write(b"".join(lines))
        return count

    try:
        with output_file(out) as file:
            count = run(transfer(file))
    except RaftKVError:
        raise
    except OSError as error:
        if out == STANDARD:
            raise
        raise InvalidArgument(f"{out}: cannot write it: {error.strerror or error}") from None
    complain(f"{count} records")
