"""A client whose calls end in the history: what it was told, never an exception."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

from faults.check.history import History, Kind, Operation, Outcome
from faults.check.numbered import Asked
from raftkv import AsyncClient
from raftkv.client.types import CasResult, Consistency, Record, TransactionResult, WatchEvent, WriteResult
from raftkv.errors import ConditionFailed, NotApplied, OutcomeUnknown, RaftKVError

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
    ``scans``: the same of a scan, whose pages have a time-out each.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: str,
        history: History,
        now: Callable[[], float],
        patience: Callable[[], float | None] = lambda: None,
        listener: OperationListener | None = None,
        scans: float | None = None,
    ) -> None:
        self.client = client
        self.name = name
        self._history = history
        self._now = now
        self._patience = patience
        self._listener = listener
        self._scans = scans

    async def get(self, key: str, consistency: Consistency = "linearizable", timeout: float | None = None) -> Operation:
        """``timeout``: seconds, None = the client's."""
        operation = self._begin(Kind.GET, key)
        operation.stale = consistency == "stale"
        return await self._read(operation, self.client.get(key, consistency=consistency, timeout=timeout))

    async def scan(self, key: str) -> Operation:
        """A get by another way: a scan of one key."""
        (operation,) = await self.sweep([key])
        return operation

    async def look(self, keys: Sequence[str]) -> list[Operation]:
        """Gets of all ``keys``, which share a hash tag, at one moment: by a scan that is small enough for one page."""
        return await self._gets(keys, prefix=keys[0][: keys[0].index("}") + 1])

    async def sweep(self, keys: Sequence[str], *, reverse: bool = False) -> list[Operation]:
        """Gets of all ``keys``, which are sorted, each at some moment of one scan.

        Raises ValueError if that gives a record twice or out of order.
        """
        return await self._gets(keys, start=keys[0], end=f"{keys[-1]}\0", reverse=reverse)

    async def _gets(self, keys: Sequence[str], **asked: Any) -> list[Operation]:
        first, *others = operations = [self._begin(Kind.GET, key) for key in keys]
        for one in others:
            one.began = first.began
            if self._listener is not None:
                self._listener.invoked(one)

        async def scan() -> dict[str, Record]:
            async with aclosing(self.client.scan(**asked)) as records:
                found = [record async for record in records]
            names = [record.key for record in found]
            if names != sorted(set(names), reverse=asked.get("reverse", False)):
                raise ValueError(f"a scan out of order: {names}")
            return {record.key.decode(): record for record in found}

        def answer(found: dict[str, Record]) -> None:
            for one in operations:
                self._tell(one, found.get(one.key))

        await self._run(first, scan(), answer, self._scans)
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

    async def incr(self, key: str) -> Operation:
        def answer(count: int) -> None:
            operation.done, operation.found = True, str(count)

        operation = self._begin(Kind.INCR, key)
        return await self._run(operation, self.client.incr(key, resolve=True), answer)

    async def transact(self, tag: str, asked: Asked) -> Operation:
        """A transaction on keys with this hash tag, whose names in ``asked`` follow it."""
        operation = self._begin(Kind.TXN, tag)
        operation.steps = asked.text()
        txn = self.client.txn()
        for key, value in asked.checks:
            txn.check(tag + key, value=value, absent=value is None)
        for verb, key, argument in asked.steps:
            getattr(txn, verb)(tag + key, *(() if argument is None else (argument,)))
        txn.otherwise()
        for verb, key, argument in asked.otherwise:
            getattr(txn, verb)(tag + key, *(() if argument is None else (argument,)))

        def answer(result: TransactionResult) -> None:
            operation.done, operation.version = result.succeeded, result.number
            operation.found = json.dumps([_plain(told) for told in result.results])

        return await self._run(operation, txn.commit(), answer)

    async def watch(self, prefix: str, start: str | None, seconds: float) -> AsyncGenerator[WatchEvent, None]:
        """What happens to keys that begin so, for so long, or until no group is to be had; ``start``: as of a watch.

        Raises Compacted and SlowConsumer: no history of a run is that long.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self.client.watch(prefix=prefix, start=start) as events:
                async for event in events:
                    yield event

    def _begin(self, kind: Kind, key: str) -> Operation:
        return self._history.begin(self.name, kind, key, self._now())

    async def _run(
        self,
        operation: Operation,
        call: Coroutine[Any, Any, T],
        answer: Callable[[T], None],
        patience: float | None = None,
    ) -> Operation:
        if operation.write:
            patience = self._patience()
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
            operation.outcome = Outcome.UNKNOWN if operation.write else Outcome.REFUSED
            operation.error = f"cancelled after {patience:.3f} s"
        else:
            answer(answered)
            operation.outcome = Outcome.OK
        if operation.outcome is not Outcome.UNKNOWN:
            operation.ended = self._now()
        operation.answered = self._now()
        if self._listener is not None:
            self._listener.completed(operation)
        return operation


def _plain(told: Any) -> Any:
    """What a step was told, as :class:`faults.check.numbered.Effect` has it."""
    if isinstance(told, Record):
        return told.value.decode()
    return None if isinstance(told, WriteResult) else told
