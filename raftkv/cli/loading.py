"""Loading a file into a cluster: many writes in flight, resumable, each record once and in the file's order per key.

A load that goes on skips what an earlier one has written. Whether that is still there only the cluster can tell: it may
have been emptied, or restored from an older backup, and may have kept its id. So it is read back first, all of it, and
if anything is missing the load begins anew. Reading is cheaper than writing. A marker key in the cluster would be
cheaper still, but every reader of all records (dumps, backups, counts) would have to know it, and it would survive the
deletion of all the others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from raftkv.cli.records import Item
from raftkv.client.types import Record
from raftkv.clock import Clock
from raftkv.errors import RaftKVError
from raftkv.files import write_atomically

SAVE_INTERVAL: Final = 1.0
SAVE_RECORDS: Final = 5000
"""Progress is saved after so many seconds or records: at most this much is written again by a load that was killed."""
_SAMPLE: Final = 1000
"""Records that are looked for if the earlier load was killed before it saved anything."""
_MOST_MISSING: Final = 1000
"""Keys that are not as they should be, until reading back ends: several may be in doubt if keys come twice."""


class Writer(Protocol):
    """The part of AsyncClient that loading uses."""

    async def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> object: ...


class Reader(Protocol):
    """The part of AsyncClient that reading back uses."""

    async def get(self, key: bytes) -> Record | None: ...


class ProgressFile:
    """``FILE.progress`` beside the file that is loaded; gone when the load is complete.

    It counts for the same input, options and cluster only: ``about`` says which. ``problem``: why progress could not be
    saved last, "" if it could. A load goes on without: its folder may be one that only others may write. A file of that
    name that is not raftkv's is never changed.
    """

    def __init__(self, source: Path, about: Mapping[str, str]) -> None:
        self.path = source.with_name(source.name + ".progress")
        self._about = dict(about)
        self.problem = ""

    def read(self) -> int | None:
        """Records that an earlier load has written, from the file's start; None if there was none like this one."""
        known = self._known()
        return known["done"] if known is not None and not self._differing(known) else None

    def other(self) -> str:
        """What differs from the load that left this file, for people; "" if nothing does, or there is no such file."""
        known = self._known()
        return "" if known is None else " and ".join(self._differing(known))

    def _differing(self, known: Mapping[str, Any]) -> list[str]:
        return [name for name, value in self._about.items() if known.get(name) != value]

    def _known(self) -> dict[str, Any] | None:
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else None
        except (OSError, ValueError):
            return None
        ours = isinstance(raw, dict) and type(raw.get("done")) is int and raw["done"] >= 0 and "cluster" in raw
        return raw if ours else None

    def _ours(self) -> bool:
        if self._known() is not None or not (self.path.exists() or self.path.is_symlink()):
            return True
        self.problem = f"{self.path} exists and is not a progress file"
        return False

    def write(self, done: int) -> None:
        """Remember that the first ``done`` records are written."""
        try:
            if self._ours():
                write_atomically(self.path, json.dumps({**self._about, "done": done}) + "\n")
                self.problem = ""
        except OSError as error:
            self.problem = str(error)

    def remove(self) -> None:
        """Forget all progress."""
        try:
            if self._ours():
                self.path.unlink(missing_ok=True)
        except OSError as error:
            self.problem = str(error)


class _Missing(RaftKVError):
    """So much is missing that reading on is of no use."""


class _ReadBack:
    """A Writer that writes nothing, but reads whether the cluster holds what it is given.

    ``found``: records that it holds. ``missing``: keys whose last value it does not; a record with a time to live may
    have expired, so it may be missing.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.found = 0
        self.missing: set[bytes] = set()

    async def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> object:
        record = await self._reader.get(key)
        if record is not None and record.value == value and (record.expires_at is None) == (ttl is None):
            self.found += 1
            self.missing.discard(key)
        elif ttl is None:
            self.missing.add(key)
            if len(self.missing) > _MOST_MISSING:
                raise _Missing
        return None


class Resumption(NamedTuple):
    """Where a load goes on. ``skip``: records from the start that are written; ``ours``: the cluster holds some."""

    skip: int
    ours: bool


async def resume(
    progress: ProgressFile,
    items: Iterator[Item],
    reader: Reader,
    clock: Clock,
    show: Callable[[int], None],
    tell: Callable[[str], None],
    in_flight: int,
) -> Resumption:
    """Where to go on after an earlier load, by its progress and what the cluster holds; ``tell`` says why to people.

    Raises what reading raises.
    """
    known = progress.read()
    if known is None:
        if differing := progress.other():
            tell(f"{progress.path} is of another {differing}: starting over")
        return Resumption(0, False)
    back = _ReadBack(reader)
    try:
        await Loader(back, clock, None, show, in_flight).run(islice(items, known or _SAMPLE))
    except _Missing:
        pass
    if known and back.missing:
        tell(f"not all of the {known:,} records that were written before are still there unchanged: starting over")
        return Resumption(0, False)
    if known:
        tell(f"resuming after the {known:,} records that were written before (--restart starts over)")
    return Resumption(known, back.found > 0)


class Loader:
    """Writes records with ``in_flight`` at a time.

    ``done`` counts the records from the file's start that are written without a gap; ``written`` all that were written,
    ``expired`` those that were left out because their time had passed, ``skipped`` those written before.
    """

    def __init__(
        self,
        writer: Writer,
        clock: Clock,
        save: Callable[[int], None] | None,
        show: Callable[[int], None],
        in_flight: int = 256,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._save = save
        self._show = show
        self._in_flight = in_flight
        self._skip = 0
        self._ahead: set[int] = set()
        self._writing: dict[bytes, asyncio.Future[None]] = {}
        self._failure: BaseException | None = None
        self._saved_at = clock.now()
        self._saved = 0
        self.done = 0
        self.written = 0
        self.expired = 0
        self.skipped = 0

    async def run(self, items: Iterator[Item], skip: int = 0) -> None:
        """Write all ``items`` but the first ``skip``; raises the first failure after what was in flight has settled.

        Records with a time to live are written even so: whether they are still there only their time can tell.
        """
        self.done = self._saved = self._skip = skip
        due = self._due(items)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._in_flight):
                    group.create_task(self._work(due))
        finally:
            self._note_progress()
        if self._failure is not None:
            raise self._failure

    def _due(self, items: Iterator[Item]) -> Iterator[tuple[int, Item]]:
        again: set[bytes] = set()
        for number, item in enumerate(items):
            if number < self._skip and item.expires_at is None and item.key not in again:
                self.skipped += 1
                continue
            if number < self._skip:
                # What follows for the same key must follow again.
                again.add(item.key)
            yield number, item

    async def _work(self, due: Iterator[tuple[int, Item]]) -> None:
        loop = asyncio.get_running_loop()
        while self._failure is None:
            try:
                found = next(due, None)
            except RaftKVError as error:
                self._failure = error
                return
            if found is None:
                return
            number, item = found
            # A key that comes twice in the file must end with its last value.
            before = self._writing.get(item.key)
            mine = self._writing[item.key] = loop.create_future()
            try:
                if before is not None:
                    await before
                if self._failure is None:
                    await self._write(item)
                    self._advance(number)
            except Exception as error:  # noqa: BLE001 - raised by run() once the others have settled
                self._failure = self._failure or error
            finally:
                # Whoever waited for it and was cancelled has cancelled it too.
                if not mine.done():
                    mine.set_result(None)
                if self._writing.get(item.key) is mine:
                    del self._writing[item.key]

    async def _write(self, item: Item) -> None:
        ttl = None
        if item.expires_at is not None:
            ttl = item.expires_at - self._clock.wall()
            if ttl <= 0:
                self.expired += 1
                return
        await self._writer.put(item.key, item.value, ttl=ttl)
        self.written += 1

    def _advance(self, number: int) -> None:
        if number >= self._skip:
            self._ahead.add(number)
        while self.done in self._ahead:
            self._ahead.remove(self.done)
            self.done += 1
        self._show(self.done)
        now = self._clock.now()
        first = self.done > self._saved == 0
        if first or now - self._saved_at >= SAVE_INTERVAL or self.done - self._saved >= SAVE_RECORDS:
            self._note_progress()

    def _note_progress(self) -> None:
        self._saved_at, self._saved = self._clock.now(), self.done
        if self._save is not None:
            self._save(self.done)
