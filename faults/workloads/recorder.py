"""A client whose calls end in the history: what it was told, never an exception."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from faults.check.history import History, Kind, Operation, Outcome
from raftkv import AsyncClient
from raftkv.client.types import CasResult, Consistency, Record
from raftkv.errors import ConditionFailed, NotApplied, OutcomeUnknown, RaftKVError
from shards.slots import DEFAULT_SLOTS, slot_of

T = TypeVar("T")


class OperationListener(Protocol):
    """Is told of every operation when it begins and when the call has returned."""

    def invoked(self, operation: Operation) -> None:
        """It says what was asked for."""

    def completed(self, operation: Operation) -> None:
        """It says what was answered."""


class Recorder:
    """``name``: the client's name in the history. ``now``: true time in seconds.

    ``patience``: seconds after which a write is given up by cancelling it, drawn anew for each; None = never.
    ``slots``: of the cluster.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: str,
        history: History,
        now: Callable[[], float],
        patience: Callable[[], float | None] = lambda: None,
        slots: int = DEFAULT_SLOTS,
        listener: OperationListener | None = None,
    ) -> None:
        self.client = client
        self.name = name
        self._history = history
        self._now = now
        self._patience = patience
        self._slots = slots
        self._listener = listener

    async def get(self, key: str, consistency: Consistency = "linearizable", timeout: float | None = None) -> Operation:
        """``timeout``: seconds, None = the client's."""
        operation = self._begin(Kind.GET, key)
        operation.stale = consistency == "stale"
        return await self._read(operation, self.client.get(key, consistency=consistency, timeout=timeout))

    async def scan(self, key: str) -> Operation:
        """A get by another way: the first record of a scan that starts just below ``key``."""
        operation = self._begin(Kind.GET, key)
        name = key.encode()

        async def first() -> Record | None:
            below = name[:-1] + bytes([name[-1] - 1]) + b"\xff"
            page, _ = await self.client.scan_slot(slot_of(name, self._slots), below, limit_bytes=1)
            return page[0] if page and page[0].key == name else None

        return await self._read(operation, first())

    async def look(self, keys: Sequence[str]) -> list[Operation]:
        """Gets of all ``keys`` at one moment, by one page of a scan. They are sorted and share a hash tag, and there
        are no others between them in their slot. Raises ValueError if they are too large for a page."""
        first, *others = operations = [self._begin(Kind.GET, key) for key in keys]
        for one in others:
            one.began = first.began
            if self._listener is not None:
                self._listener.invoked(one)
        name = keys[0].encode()

        async def page() -> dict[str, Record]:
            below = name[:-1] + bytes([name[-1] - 1]) + b"\xff"
            found, more = await self.client.scan_slot(slot_of(name, self._slots), below)
            if more and (not found or found[-1].key < keys[-1].encode()):
                raise ValueError(f"{keys[0]} to {keys[-1]} do not fit into one page")
            return {record.key.decode(): record for record in found}

        def answer(found: dict[str, Record]) -> None:
            for one in operations:
                self._tell(one, found.get(one.key))

        await self._run(first, page(), answer)
        for one in others:
            one.outcome, one.error, one.ended, one.answered = first.outcome, first.error, first.ended, first.answered
            if self._listener is not None:
                self._listener.completed(one)
        return operations

    async def _read(self, operation: Operation, call: Coroutine[Any, Any, Record | None]) -> Operation:
        return await self._run(operation, call, lambda record: self._tell(operation, record))

    def _tell(self, operation: Operation, record: Record | None) -> None:
        if record is None:
            operation.version = 0
        else:
            operation.found, operation.version = record.value.decode(), record.version

    async def put(self, key: str, value: str, *, ttl: float | None = None, expect: int | None = None) -> Operation:
        operation = self._begin(Kind.PUT, key)
        operation.value, operation.ttl, operation.expect = value, ttl, expect

        def answer(written: Any) -> None:
            operation.done, operation.version = True, written.version

        return await self._run(operation, self.client.put(key, value, ttl=ttl, if_version=expect), answer)

    async def delete(self, key: str, *, expect: int | None = None) -> Operation:
        operation = self._begin(Kind.DELETE, key)
        operation.expect = expect

        def answer(there: bool) -> None:
            operation.done = there

        return await self._run(operation, self.client.delete(key, if_version=expect), answer)

    async def cas(self, key: str, expected: str | None, value: str, *, ttl: float | None = None) -> Operation:
        operation = self._begin(Kind.CAS, key)
        operation.expected, operation.value, operation.ttl = expected, value, ttl

        def answer(swapped: CasResult) -> None:
            operation.done, operation.version = swapped

        return await self._run(operation, self.client.cas(key, expected, value, ttl=ttl), answer)

    def _begin(self, kind: Kind, key: str) -> Operation:
        return self._history.begin(self.name, kind, key, self._now())

    async def _run(self, operation: Operation, call: Coroutine[Any, Any, T], answer: Callable[[T], None]) -> Operation:
        patience = self._patience() if operation.write else None
        if self._listener is not None:
            self._listener.invoked(operation)
        try:
            async with asyncio.timeout(patience) as limit:
                answered = await call
        except ConditionFailed as failed:
            operation.version = failed.version
            operation.outcome = Outcome.OK
        except RaftKVError as error:
            known = isinstance(error, NotApplied)
            if not known and not (operation.write and isinstance(error, OutcomeUnknown)):
                raise
            operation.outcome = Outcome.REFUSED if known else Outcome.UNKNOWN
            operation.error = f"{type(error).__name__}: {error}"
        except TimeoutError:
            if not limit.expired():
                raise  # the client's own, which is none of its errors
            operation.outcome, operation.error = Outcome.UNKNOWN, f"cancelled after {patience:.3f} s"
        else:
            answer(answered)
            operation.outcome = Outcome.OK
        if operation.outcome is not Outcome.UNKNOWN:
            operation.ended = self._now()
        operation.answered = self._now()
        if self._listener is not None:
            self._listener.completed(operation)
        return operation
