"""The last look of a run, when all is calm again: a write to every group, a read of every key, and a scan of all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from faults.check.history import History, Kind, Operation, Outcome
from faults.check.numbered import Asked
from faults.check.problem import CheckProblem
from faults.keys import PREFIX
from faults.workloads.kinds import Workload
from faults.workloads.recorder import Recorder
from raftkv.client.types import Record

LAST_TIMEOUT: Final = 10.0
"""Of calls whose success is the question, in seconds."""

_ATTEMPTS: Final = 3
"""Writes of the last look until one is known to have happened: one packet may take two seconds without any fault too,
and what it carried is not told a second time if a session's record has gone within tight bounds."""

_HOPELESS: Final = 1.0
"""Seconds for each read once a call has failed: the run has failed too, and a group that is dead has many keys."""


async def look_at_everything(
    last: Recorder,
    history: History,
    fresh: Sequence[str],
    workloads: Sequence[Workload],
    report: Callable[[str, str], None],
    at_once: int = 1,
) -> list[tuple[str, CheckProblem]]:
    """What the workloads find wrong, each with its name. ``report(kind, text)`` is told of all else. Closes the client.

    ``fresh``: keys to write to. What abusers wrote is left out. ``at_once``: keys that are read at the same time.
    """
    patience = LAST_TIMEOUT
    for key in fresh:
        for _ in range(_ATTEMPTS):
            written = await last.put(key, "fresh")
            if written.outcome is not Outcome.UNKNOWN:
                break
        if written.outcome is not Outcome.OK:
            report("liveness", f"no write after the storm: {written.describe()}")
            patience = _HOPELESS
    await asyncio.sleep(max(workload.settle for workload in workloads))
    reads: dict[str, Operation] = {}
    tags = {one.key for one in history.operations if one.kind is Kind.TXN}
    in_slots = await _read_slots(last, history, tags, report)
    keys = [key for key in history.all_keys() if key not in tags]
    for start in range(0, len(keys), at_once):
        for one in await asyncio.gather(*(last.get(key, timeout=patience) for key in keys[start : start + at_once])):
            reads[one.key] = one
            if one.outcome is not Outcome.OK:
                report("liveness", f"no read after the storm: {one.describe()}")
                patience = _HOPELESS
    found: dict[str, Record] = {}
    async for record in last.client.scan():
        if not record.key.startswith(PREFIX.encode()):
            found[record.key.decode()] = record
    for key, value in in_slots.items():
        there = found.pop(key, None)
        if (None if there is None else there.value.decode()) != value:
            report("scan", f"{key} is {value} by a transaction and {there} by scan")
    for key in sorted({*reads, *found}):
        there, read = found.get(key), reads.get(key)
        scanned = None if there is None else (there.value.decode(), there.version)
        seen = None if read is None or read.found is None else (read.found, read.version)
        if scanned != seen:
            report("scan", f"{key} is {seen} by get and {scanned} by scan")
    await last.client.close()
    return [(workload.name, problem) for workload in workloads for problem in workload.problems(history, found)]


async def _read_slots(
    last: Recorder, history: History, tags: Iterable[str], report: Callable[[str, str], None]
) -> dict[str, str | None]:
    """What transactions were about, each tag by one transaction: key -> value."""
    found: dict[str, str | None] = {}
    for tag in sorted(tags):
        names = sorted(set().union(*(Asked.of(one).keys() for one in history.of(tag))))
        read = await last.transact(tag, Asked([], [["get", name, None] for name in names], []))
        if read.outcome is Outcome.OK:
            found.update(zip((tag + name for name in names), json.loads(read.found or "[]"), strict=True))
        else:
            report("liveness", f"no transaction after the storm: {read.describe()}")
    return found
