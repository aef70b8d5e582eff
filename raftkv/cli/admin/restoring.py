"""Writing the records of a backup into a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from raftkv.cli.admin import archive
from raftkv.cli.admin.archive import Manifest
from raftkv.cli.admin.common import Partial, Precondition, complain, settings
from raftkv.cli.admin.survey import slot_stats
from raftkv.cli.admin.text import counted
from raftkv.cli.admin.watch import progress_bar
from raftkv.cli.loading import Loader, ProgressFile, resume
from raftkv.cli.records import Item
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError, Unavailable
from raftkv.store.packed import fields

IN_FLIGHT: Final = 256
_WRITE_TIMEOUT: Final = 60.0
"""Seconds for one write: a restore outlasts elections and overload."""


class StandingClock(SystemClock):
    """Its wall time stands at 0, so that the time at which a record expires is how long it has to live."""

    def wall(self) -> float:
        return 0.0


def items_of(folder: Path, manifest: Manifest) -> Iterator[Item]:
    """All records, in the same order each time; ``expires_at``: seconds that were left when the group was read."""
    number = 0
    for file in manifest.files:
        state = archive.read_state(folder / file.name, file.sha256)
        for slot in archive.owned(state):
            for key, record in slot.records.items():
                value, _, expires = fields(record)
                number += 1
                yield Item(number, key, value, (expires - state.time) / 1000 if expires else None)


async def restore_all(
    client: AdminClient, folder: Path, manifest: Manifest, *, into_nonempty: bool, in_flight: int, restart: bool
) -> dict[str, Any]:
    """Write what the backup holds; how much that was. ``restart``: write anew what an earlier restore wrote.

    Raises Precondition if the cluster holds records that this restore did not write; Partial if it could not go on.
    """
    state = await client.state()
    path = folder / archive.MANIFEST
    progress = ProgressFile(path, {"backup": archive.checksum(path)[1], "cluster": state.map.cluster_id})
    if restart and progress.read() is not None:
        # Begun, but not written: what the cluster holds may be this restore's own.
        progress.write(0)
    clock = StandingClock()
    start = clock.now()
    failure: RaftKVError | None = None
    async with settings().target.client(_WRITE_TIMEOUT) as kv:
        with progress_bar("restoring") as bar:

            def show(done: int) -> None:
                bar.show(done, manifest.records)

            loader = Loader(kv, clock, progress.write, show, in_flight)
            try:
                found = await resume(progress, items_of(folder, manifest), kv, clock, show, complain, in_flight)
                if not found.ours and not into_nonempty:
                    await _check_empty(client)
                # From the first write on the cluster is not empty any more, and that is this restore's doing.
                progress.write(found.skip)
                await loader.run(items_of(folder, manifest), found.skip)
            except Precondition:
                raise
            except RaftKVError as error:
                failure = error
    if progress.problem:
        complain(f"progress could not be saved, an interrupted restore starts over: {progress.problem}")
    if failure is not None:
        done = f"{loader.done:,} of {counted(manifest.records, 'record')} are restored"
        raise Partial(f"{failure}; {done}, and the same command resumes")
    progress.remove()
    return {
        "records": manifest.records,
        "written": loader.written,
        "expired": loader.expired,
        "skipped": loader.skipped,
        "seconds": round(clock.now() - start, 3),
    }


async def _check_empty(client: AdminClient) -> None:
    state = await client.state()
    found = await slot_stats(client, state.map)
    if len(found) < state.map.slots:
        raise Unavailable("not all groups have a leader that answers, so it is not known whether the cluster is empty")
    keys = sum(one.keys for one in found.values())
    if keys:
        raise Precondition(
            f"the cluster holds {counted(keys, 'record')} already: restore into an empty one, or give --into-nonempty"
        )
