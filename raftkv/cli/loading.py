"""Loading a file into a cluster: many writes in flight, resumable, each record once and in the file's order per key."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from raftkv.cli.process import write_atomically
from raftkv.cli.records import Item
from raftkv.clock import Clock
from raftkv.errors import InvalidArgument

SAVE_INTERVAL: Final = 1.0
SAVE_RECORDS: Final = 5000
"""Progress is saved after so many seconds or records: at most this much is written again by a load that was killed."""
_HEAD: Final = 1024 * 1024


class Writer(Protocol):
    """The part of AsyncClient that loading uses."""

    async def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> object: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load has come: the first ``done`` records of the file are in the cluster."""

    file: str
    cluster: str
    done: int


def fingerprint(path: Path) -> str:
    """Tells a file from another one of the same name. Raises InvalidArgument if it cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.blake2b(file.read(_HEAD), digest_size=16)
            file.seek(max(0, size - _HEAD))
            digest.update(file.read(_HEAD))
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot read it: {error.strerror or error}") from None
    return f"{size}:{digest.hexdigest()}"


class ProgressFile:
    """``FILE.progress`` beside the file that is loaded; gone when the load is complete.

    ``problem``: why progress could not be saved last, "" if it could. A load goes on without: its folder may be one
    that only others may write.
    """

    def __init__(self, source: Path, file: str, cluster: str) -> None:
        self.path = source.with_name(source.name + ".progress")
        self._file = file
        self._cluster = cluster
        self.problem = ""

    def read(self) -> int:
        """Records that an earlier load of the same file into the same cluster has written; 0 if there was none."""
        known = self._known()
        return 0 if known is None else known.done

    def begun(self) -> bool:
        """Whether there was an earlier load of the same file into the same cluster, however far it came."""
        return self._known() is not None

    def _known(self) -> Progress | None:
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            known = Progress(str(raw["file"]), str(raw["cluster"]), int(raw["done"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return known if (known.file, known.cluster) == (self._file, self._cluster) else None

    def write(self, done: int) -> None:
        try:
            write_atomically(self.path, json.dumps({"file": self._file, "cluster": self._cluster, "done": done}) + "\n")
            self.problem = ""
        except OSError as error:
            self.problem = str(error)

    def remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            self.problem = str(error)


class Loader:
    """Writes records with ``in_flight`` at a time.

    ``done`` counts the records from the file's start that are written without a gap; ``written`` all that were written,
    ``expired`` those that were left out because their time had passed.
    """

    def __init__(
        self,
        writer: Writer,
        clock: Clock,
        save: Callable[[int], None],
        show: Callable[[int], None],
        in_flight: int = 256,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._save = save
        self._show = show
        self._in_flight = in_flight
        self._next = 0
        self._ahead: set[int] = set()
        self._writing: dict[bytes, asyncio.Future[None]] = {}
        self._failure: BaseException | None = None
        self._saved_at = clock.now()
        self._saved = 0
        self.done = 0
        self.written = 0
        self.expired = 0

    async def run(self, items: Iterator[Item], skip: int = 0) -> None:
        """Write all ``items`` but the first ``skip``; raises the first failure after what was in flight has settled."""
        for _ in range(skip):
            next(items, None)
        self.done = self._next = self._saved = skip
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._in_flight):
                    group.create_task(self._work(items))
        finally:
            self._save(self.done)
        if self._failure is not None:
            raise self._failure

    async def _work(self, items: Iterator[Item]) -> None:
        loop = asyncio.get_running_loop()
        while self._failure is None:
            try:
                item = next(items, None)
            except InvalidArgument as error:
                self._failure = error
                return
            if item is None:
                return
            number, self._next = self._next, self._next + 1
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
        self._ahead.add(number)
        while self.done in self._ahead:
            self._ahead.remove(self.done)
            self.done += 1
        self._show(self.done)
        now = self._clock.now()
        if now - self._saved_at >= SAVE_INTERVAL or self.done - self._saved >= SAVE_RECORDS:
            self._saved_at, self._saved = now, self.done
            self._save(self.done)
