"""``raftkv-admin backup create|verify|restore``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

import raftkv
from raftkv.api.status import ClusterState
from raftkv.cli.admin import archive
from raftkv.cli.admin.archive import BackupError, GroupFile, Manifest
from raftkv.cli.admin.common import AdminExit, Precondition, ask, command, confirm, emit
from raftkv.cli.admin.maps import map_report
from raftkv.cli.admin.restoring import IN_FLIGHT, restore_all
from raftkv.cli.admin.text import counted, ranges_text, shortened, size_text
from raftkv.cli.admin.watch import Bar, progress_bar
from raftkv.cli.console import Section
from raftkv.cli.parameters import FilePath
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock, sleep
from raftkv.errors import DeadlineExceeded, Overloaded, RaftKVError, Unavailable

_ROUNDS: Final = 5
"""Times that groups are read (again) because slots moved between them meanwhile."""

_PAUSE: Final = 1.0
_ATTEMPTS: Final = 20
"""Times that one group is tried, a second apart: covers elections and nodes that come back."""

_FOLDER = click.argument("folder", metavar="DIR", type=FilePath(folder=True))


@click.group("backup")
def backup_command() -> None:
    """Copies of all records in a folder of this machine."""


@command(backup_command, "create")
@_FOLDER
def create(folder: Path) -> None:
    """Write all records to DIR, which is made or must be empty.

    Each group is read at its leader as of one moment, after the command began; the groups' moments differ. The backup
    is complete once DIR/manifest.json exists. Exits with 4 if slots go on moving between the groups while it reads.

    \b
    Example:
      raftkv-admin backup create /backups/monday
    """
    archive.prepare_folder(folder)

    async def main(client: AdminClient) -> Manifest:
        with progress_bar("reading groups") as bar:
            state, files = await read_all(client, folder, bar)
        now = datetime.fromtimestamp(SystemClock().wall(), UTC).isoformat(timespec="seconds")
        shard_map = state.map
        ordered = tuple(files[group] for group in sorted(files))
        return Manifest(shard_map.cluster_id, raftkv.__version__, now, shard_map.slots, map_report(state), ordered)

    manifest = ask(main, f"{folder} is not a complete backup: the same command starts over")
    archive.write_manifest(folder, manifest)
    emit(manifest_report(folder, manifest), show_manifest)


async def read_all(client: AdminClient, folder: Path, bar: Bar) -> tuple[ClusterState, dict[int, GroupFile]]:
    """A file of every group, such that each slot is owned by exactly one of them. Raises Precondition."""
    files: dict[int, GroupFile] = {}
    again: set[int] = set()
    trouble = ""
    for attempt in range(_ROUNDS):
        state = await client.state()
        groups = [group.id for group in state.map.data_groups()]
        for gone in set(files).difference(groups):
            (folder / files.pop(gone).name).unlink(missing_ok=True)
        due = [group for group in groups if group not in files or group in again]
        for at, group in enumerate(due):
            bar.show(at, len(due), f"group {group}" + (f", {trouble}" if trouble else ""))
            files[group] = await read_group(client, folder, group)
        missing, doubled = archive.coverage(files.values(), state.map.slots)
        if not missing and not doubled:
            return state, files
        # A slot changed owner between two of the reads. All were made after the start, so only these have to be again.
        owners = (await client.state()).map.owners
        again = {owners[slot] for slot in missing} | {group for found in doubled.values() for group in found}
        trouble = f"slots are moving: {shortened(ranges_text([*missing, *doubled]))}"
        if attempt + 1 < _ROUNDS:
            await sleep(SystemClock(), _PAUSE)
    raise Precondition(
        f"{trouble}, in each of {_ROUNDS} attempts: `raftkv-admin rebalance pause` and try again, or try later"
    )


async def read_group(client: AdminClient, folder: Path, group: int) -> GroupFile:
    """Write the file of one group, read at whoever leads it. Raises Unavailable, BackupError."""
    problem: Exception = Unavailable(f"group {group} has no leader")
    for attempt in range(_ATTEMPTS):
        if attempt:
            await sleep(SystemClock(), _PAUSE)
        try:
            state = await client.state_or_map()
            leader = state.leaders.get(group)
            if leader is None:
                continue
            writer = archive.GroupWriter(folder, group)
            try:
                async for chunk in client.read_snapshot(state.map.node(leader).address, group):
                    writer.add(chunk)
                return await asyncio.to_thread(writer.finish)
            except BaseException:
                writer.abandon()
                raise
        except (Unavailable, DeadlineExceeded, Overloaded) as error:
            problem = error
        except RaftKVError:
            raise
        except OSError as error:
            raise BackupError(f"{folder}: cannot write there: {error.strerror or error}") from None
    kind = Overloaded if isinstance(problem, Overloaded) else Unavailable
    raise kind(f"group {group} could not be read: {problem}")


def manifest_report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What a backup holds."""
    return {
        "folder": str(folder),
        "cluster_id": manifest.cluster_id,
        "created_at": manifest.created_at,
        "records": manifest.records,
        "bytes": manifest.bytes,
        "files": [
            {"name": file.name, "group": file.group, "size": file.size, "records": file.records, "bytes": file.bytes}
            for file in manifest.files
        ],
    }


def show_manifest(report: dict[str, Any]) -> Iterator[Section | str]:
    """The table of ``backup create``."""
    rows = [(file["name"], file["group"], file["records"], size_text(file["size"])) for file in report["files"]]
    yield Section("", ("file", "group", "records", "size"), rows)
    yield (
        f"{report['folder']}: {counted(report['records'], 'record')} of cluster {report['cluster_id']}, "
        f"{report['created_at']}"
    )


@command(backup_command, "verify", asks=False)
@_FOLDER
def verify(folder: Path) -> int:
    """Check all of the backup in DIR: checksums, contents, and that every slot is in it once. Exits with 5 if not.

    Contacts no cluster.

    \b
    Example:
      raftkv-admin backup verify /backups/monday
    """
    report = verify_report(folder, archive.read_manifest(folder))
    emit(report, show_verify)
    return AdminExit.DONE if report["valid"] else AdminExit.UNHEALTHY


def verify_report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What a backup holds, and what is wrong with it."""
    found = [{"file": file, "text": text} for file, text in archive.problems(folder, manifest)]
    return {**manifest_report(folder, manifest), "valid": not found, "problems": found}


def show_verify(report: dict[str, Any]) -> Iterator[Section | str]:
    """The tables of ``backup verify``."""
    yield from show_manifest(report)
    if report["problems"]:
        yield Section("", ("file", "problem"), [(one["file"], one["text"]) for one in report["problems"]])
    else:
        yield "the backup is valid"


@command(backup_command, "restore", confirms=True)
@_FOLDER
@click.option(
    "--into-nonempty", is_flag=True, help="Also into a cluster that holds records: what is in both is replaced."
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 10_000),
    default=IN_FLIGHT,
    show_default=True,
    help="Writes in flight at a time.",
)
@click.option("--restart", is_flag=True, help="Forget the progress of an earlier restore of this backup.")
def restore(folder: Path, into_nonempty: bool, in_flight: int, restart: bool) -> None:
    """Write all records of the backup in DIR into the cluster at --endpoints, which must be empty.

    The whole backup is verified first. The cluster may have other groups and slots. Records get new versions,
    and keep the rest of their time to live. After an interruption the same command resumes, once it has read back
    what was written.

    \b
    Example:
      raftkv-admin backup restore /backups/monday
    """
    manifest = archive.read_manifest(folder)
    report = verify_report(folder, manifest)
    if not report["valid"]:
        first = report["problems"][0]
        raise BackupError(f"{folder}: {first['file']}: {first['text']} (`raftkv-admin backup verify` shows all)")
    confirm(f"Write {counted(manifest.records, 'record')} into the cluster?")
    result = ask(
        lambda client: restore_all(
            client, folder, manifest, into_nonempty=into_nonempty, in_flight=in_flight, restart=restart
        ),
        "what was written is kept, and the same command resumes",
    )
    emit(result, show_restore)


def show_restore(report: dict[str, Any]) -> Iterator[Section | str]:
    """One line."""
    extra = f", {report['skipped']:,} were written before" if report["skipped"] else ""
    extra += f", {report['expired']:,} had expired" if report["expired"] else ""
    yield f"{counted(report['written'], 'record')} written in {report['seconds']:.1f} s{extra}"
