"""Copies slots that move from a group that this node leads straight to the target, as the driver of the move asks.

How far the copy is stands in the target's state, and each page says on which one it follows: so whatever is repeated,
late or done by two nodes at once is refused there, and the next leader of the source goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from raftkv.clock import Clock, heard, sleep
from raftkv.commands.moving import Complete, Copy, Copying, ImportChunk, ImportFinal
from raftkv.commands.results import CopyReport, ExportPage, MoveSummary, Result
from raftkv.errors import Code
from raftkv.node.drivers.internal_client import Ask, Failed
from raftkv.node.replicas import Replica, Replicas

Done = Callable[[Result], None]

_CHUNK_BYTES: Final = 256 * 1024
"""Of a page: about a millisecond of the loop."""

_SPAN: Final = 0.4
"""Seconds after which a copy is answered, so that the driver sees how it goes and may end it."""

_FEW_BYTES: Final = 64 * 1024
_FEW_RECORDS: Final = 256
"""So little is left to be copied that the source may be frozen: it is copied in a few milliseconds."""

_MANY_RECORDS: Final = 10_000
"""A digest of more takes longer than another entry."""

_SLICE: Final = 0.005
"""Seconds of a turn of the loop for the summary of a move."""


class _Ended(Exception):
    """The copy cannot go on here; ``result`` says why."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result


class Copier:
    """``replicas`` are this node's. ``ask`` executes a command wherever its group is led."""

    def __init__(self, replicas: Replicas, ask: Ask, clock: Clock) -> None:
        self._replicas = replicas
        self._ask = ask
        self._clock = clock
        self._running: dict[int, tuple[type[Copying], asyncio.Task[Result]]] = {}
        self._summarizing = asyncio.Lock()
        """A group makes one summary at a time: of two, each would begin the other's anew."""

    def run(self, op: Copying, done: Done) -> None:
        """Call ``done`` once with the outcome. What is asked for again while it goes on is done once."""
        kind, task = self._running.get(op.move, (None, None))
        if task is None or kind is not type(op):
            task = asyncio.get_running_loop().create_task(self._run(op, task))
            self._running[op.move] = type(op), task
            task.add_done_callback(lambda ended: self._forget(op.move, ended))
        task.add_done_callback(lambda ended: None if ended.cancelled() else done(ended.result()))

    def close(self) -> None:
        """Stop; the next leader of the source is asked again."""
        for _, task in self._running.values():
            task.cancel()

    def _forget(self, move: int, ended: asyncio.Task[Result]) -> None:
        if self._running.get(move, (None, None))[1] is ended:
            del self._running[move]

    async def _run(self, op: Copying, before: asyncio.Task[Result] | None) -> Result:
        if before is not None:
            # Another driver has asked for it: two copies at once would only refuse each other's pages.
            await asyncio.wait([before])
        try:
            report = await (self._complete(op) if isinstance(op, Complete) else self._copy(op))
        except _Ended as ended:
            return ended.result
        except Failed as failure:
            return Result(Code.CONDITION_FAILED, detail=str(failure))
        return Result(Code.OK, answer=report)

    async def _copy(self, op: Copying) -> CopyReport:
        assert isinstance(op, Copy)
        seq, cursor, copied = op.seq, op.cursor, 0
        until = self._clock.now() + _SPAN
        while True:
            page = await self._export(op, cursor, min(op.limit_bytes, _CHUNK_BYTES))
            seq, cursor, copied = seq + 1, page.cursor, copied + len(page.chunk)
            await self._import(op, seq, page)
            more = not page.done and (page.records > _FEW_RECORDS or page.record_bytes > _FEW_BYTES)
            if not more or copied >= op.limit_bytes or self._clock.now() >= until:
                return CopyReport(seq, cursor, copied, more, 0)

    async def _complete(self, op: Complete) -> CopyReport:
        """The source is frozen and clients wait: the summary is made meanwhile."""
        summarizing = asyncio.ensure_future(self._summary(op))
        summarizing.add_done_callback(heard)
        try:
            seq, cursor, copied = op.seq, op.cursor, 0
            while True:
                page = await self._export(op, cursor, _CHUNK_BYTES)
                seq, cursor, copied = seq + 1, page.cursor, copied + len(page.chunk)
                if page.done:
                    break
                await self._import(op, seq, page)
            found = await summarizing
        finally:
            summarizing.cancel()
        final = ImportFinal(op.target, op.move, found.summary)
        if found.records > _MANY_RECORDS:
            # What follows has an entry of its own then, before which the target's replicas digest in slices.
            await self._import(op, seq, page)
            await self._ask(final)
        else:
            # Both are proposed in this turn, and so share an entry in this order.
            await asyncio.gather(self._import(op, seq, page), self._ask(final))
        return CopyReport(seq, cursor, copied, more=False, records=found.records)

    async def _export(self, op: Copying, cursor: bytes, limit_bytes: int) -> ExportPage:
        page = _answer((await self._leading(op)).store.export(op.move, cursor, limit_bytes))
        assert isinstance(page, ExportPage)
        return page

    async def _summary(self, op: Copying) -> MoveSummary:
        """It goes on in every turn of the loop, and the loop has others to serve."""
        async with self._summarizing:
            replica = await self._leading(op)
            until = self._clock.now() + _SLICE
            while (result := replica.store.summary(op.move)) is None:
                if self._clock.now() >= until:
                    await sleep(self._clock, 0.0)
                    until = self._clock.now() + _SLICE
        found = _answer(result)
        assert isinstance(found, MoveSummary)
        return found

    async def _import(self, op: Copying, seq: int, page: ExportPage) -> None:
        await self._ask(ImportChunk(op.target, op.move, seq, page.cursor, page.chunk))

    async def _leading(self, op: Copying) -> Replica:
        """The source's replica, which leads and knows all that was acknowledged. Raises _Ended."""
        replica = self._replicas.data.get(op.group)
        if replica is None:
            raise _Ended(Result(Code.NOT_LEADER))
        known: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        replica.group.read(False, lambda code: None if known.done() else known.set_result(code))
        code = await known
        if code != Code.OK:
            raise _Ended(Result(code))
        return replica


def _answer(result: Result) -> object:
    if result.code != Code.OK:
        raise _Ended(result)
    return result.answer
