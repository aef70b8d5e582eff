"""Moves slots from group to group, while this node leads the meta group.

What is under way stands in the meta group's state; how far each move is, in its source and its target. This driver
keeps nothing else but the figures for reports, so whoever leads the meta group next goes on (``shards/moves.py``).
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Any, Final

from raftkv.clock import Clock, sleep
from raftkv.commands.moving import (
    Activate,
    Export,
    Freeze,
    ImportBegin,
    ImportChunk,
    ImportDrop,
    ImportFinal,
    MoveState,
    Release,
    Summarize,
    Track,
    Untrack,
)
from raftkv.commands.results import ExportPage, MoveReport, MoveSummary, Result
from raftkv.log_limit import limited
from raftkv.node.drivers.internal_client import Ask, Failed, Leading, meta_command
from raftkv.rpc.tally import Durations
from raftkv.store.meta_state import Job, MetaState, Move
from shards.moves import Impossible, Phase, SourceState, Step, TargetState, next_step

log = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 256 * 1024
"""Asked of the source at a time: about a millisecond of its loop."""

_FEW_BYTES: Final = 64 * 1024
_FEW_RECORDS: Final = 256
"""So little is left to be copied that the source may be frozen: it is brought over in a few milliseconds."""

_MANY_RECORDS: Final = 10_000
"""A digest of more takes longer than another entry."""

_RETRY: Final = 0.2
_AFTER_MISTAKE: Final = 2.0
"""Seconds before a step that failed is looked at again."""

_FREEZES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(slots=True)
class _Figures:
    """Of one move, as far as this driver has seen it. ``frozen_at``: clock time, 0 = not frozen yet."""

    records: int = 0
    bytes: int = 0
    frozen_at: float = 0.0
    freeze: float = 0.0


class Mover:
    """``leading`` gives the meta group's state while this node leads it, else None. ``ask`` executes an operation."""

    def __init__(self, leading: Leading, ask: Ask, clock: Clock, rng: random.Random) -> None:
        self._leading = leading
        self._ask = ask
        self._clock = clock
        self._rng = rng
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._starting: asyncio.Task[None] | None = None
        self._spent_until = 0.0
        self.committed = self.cancelled = 0
        """Moves that this driver has seen to their end."""
        self.freezes = Durations(_FREEZES)
        """How long their slots had no service."""

    def run(self) -> None:
        """Take up what is under way. Called about ten times a second, and when a move has ended."""
        state = self._leading()
        if state is None:
            return
        for number, move in state.moves.items():
            task = self._tasks.get(number)
            if task is None or task.done():
                self._tasks[number] = self._spawn(self._drive(move))
        for number in [number for number, task in self._tasks.items() if task.done() and number not in state.moves]:
            del self._tasks[number]
        if _may_start(state) and (self._starting is None or self._starting.done()):
            self._starting = self._spawn(self._start_next())

    def close(self) -> None:
        """Let go; the next leader goes on."""
        for task in (*self._tasks.values(), *([] if self._starting is None else [self._starting])):
            task.cancel()

    @staticmethod
    def _spawn(main: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(main)

    async def _start_next(self) -> None:
        try:
            while (state := self._leading()) is not None and _may_start(state):
                if not (await self._meta("next")).number:
                    break
        except Failed as failure:
            log.warning("no move was started: %s", failure, extra=limited("the meta group"))
        self.run()

    async def _meta(self, verb: str, *arguments: Any) -> Result:
        return await self._ask(meta_command(self._rng, verb, *arguments))

    # -- one move

    async def _drive(self, move: Move) -> None:
        figures = _Figures()
        log.info("move %d: %d slots from group %d to %d", move.id, len(move.slots), move.source, move.target)
        while (state := self._leading()) is not None:
            known = state.moves.get(move.id)
            if known is None:
                break
            try:
                await self._advance(known, figures)
            except Failed as failure:
                log.info("move %d: %s; looking again", move.id, failure, extra=limited(f"move {move.id}"))
                await sleep(self._clock, _RETRY)
            except Impossible as moment:
                # Another node drives the move since, and has changed what this one had asked before: it looks again, if
                # it leads at all.
                log.info("move %d: %s; looking again", move.id, moment, extra=limited(f"move {move.id}"))
                await sleep(self._clock, _RETRY)
            except Exception:
                # A mistake of ours must not stop the other moves, nor be repeated in a tight loop.
                log.exception("move %d cannot go on", move.id)
                await sleep(self._clock, _AFTER_MISTAKE)
        self.run()

    async def _advance(self, move: Move, figures: _Figures) -> None:
        """Look where the move is and take all steps from there. Raises Failed, or Impossible."""
        if move.phase is Phase.CANCELLED:
            # Before anything is asked of the target, whose majority may be gone: the source's clients wait.
            await self._ask(Untrack(move.source, move.id, move.slots))
        source, target, seq, cursor = await self._look(move)
        phase = move.phase
        while True:
            step = next_step(phase, source, target)
            if step is Step.BEGIN:
                await self._ask(ImportBegin(move.target, move.id, move.slots))
                target = TargetState.IMPORTING
            elif step is Step.TRACK:
                await self._ask(Track(move.source, move.id, move.slots))
                source = SourceState.TRACKED
            elif step is Step.COPY:
                seq, cursor = await self._copy(move, seq, cursor, figures)
                figures.frozen_at = self._clock.now()
                await self._ask(Freeze(move.source, move.id))
                source = SourceState.FROZEN
            elif step is Step.FINAL:
                await self._bring_the_rest(move, seq, cursor, figures)
                target = TargetState.STAGED
            elif step is Step.COMMIT:
                await self._meta("commit", move.id)
                phase = Phase.COMMITTED
            elif step is Step.ACTIVATE:
                await self._ask(Activate(move.target, move.id))
                target = TargetState.ACTIVE
                if figures.frozen_at:
                    figures.freeze = self._clock.now() - figures.frozen_at
            elif step is Step.RELEASE:
                await self._ask(Release(move.source, move.id))
                source = SourceState.RELEASED
            elif step is Step.UNTRACK:
                await self._ask(Untrack(move.source, move.id, move.slots))
                source = SourceState.CANCELLED
            elif step is Step.DROP:
                await self._ask(ImportDrop(move.target, move.id, move.slots))
                target = TargetState.CANCELLED
            else:
                freeze = int(figures.freeze * 1000)
                await self._meta("finish", move.id, figures.records, figures.bytes, freeze)
                self._count(phase, figures)
                return
            state = self._leading()
            if state is None or move.id not in state.moves:
                return
            if state.moves[move.id].phase is Phase.CANCELLED:
                phase = Phase.CANCELLED

    def _count(self, phase: Phase, figures: _Figures) -> None:
        if phase is Phase.CANCELLED:
            self.cancelled += 1
            return
        self.committed += 1
        if figures.freeze:
            self.freezes.observe(figures.freeze)

    async def _look(self, move: Move) -> tuple[SourceState, TargetState, int, bytes]:
        at_source = (await self._ask(MoveState(move.source, move.id))).answer
        at_target = (await self._ask(MoveState(move.target, move.id))).answer
        assert isinstance(at_source, MoveReport)
        assert isinstance(at_target, MoveReport)
        return SourceState(at_source.source), TargetState(at_target.target), at_target.seq, at_target.cursor

    async def _copy(self, move: Move, seq: int, cursor: bytes, figures: _Figures) -> tuple[int, bytes]:
        """Bring records over until few are left."""
        while True:
            page = await self._export(move, cursor)
            await self._within_rate(len(page.chunk))
            seq, cursor = seq + 1, page.cursor
            await self._import(move, seq, page, figures)
            if page.done or (page.records <= _FEW_RECORDS and page.record_bytes <= _FEW_BYTES):
                return seq, cursor
            state = self._leading()
            if state is None or state.moves.get(move.id, move).phase is not Phase.STARTED:
                raise Failed("the move was cancelled, or another node drives it")

    async def _bring_the_rest(self, move: Move, seq: int, cursor: bytes, figures: _Figures) -> None:
        """The source is frozen and clients wait: as few rounds as can be, and no rate."""
        while True:
            question = self._ask(Summarize(move.source, move.id))
            page, told = await asyncio.gather(self._export(move, cursor), question)
            seq, cursor = seq + 1, page.cursor
            if page.done:
                break
            await self._import(move, seq, page, figures)
        found = told.answer
        assert isinstance(found, MoveSummary)
        figures.records = found.records
        final = ImportFinal(move.target, move.id, found.summary)
        if figures.records > _MANY_RECORDS:
            # What follows has an entry of its own then, before which the target's replicas digest in slices.
            await self._import(move, seq, page, figures)
            await self._ask(final)
            return
        # Both are proposed in this turn, and so share an entry in this order.
        await asyncio.gather(self._import(move, seq, page, figures), self._ask(final))

    async def _export(self, move: Move, cursor: bytes) -> ExportPage:
        page = (await self._ask(Export(move.source, move.id, cursor, _CHUNK_BYTES))).answer
        assert isinstance(page, ExportPage)
        return page

    async def _import(self, move: Move, seq: int, page: ExportPage, figures: _Figures) -> None:
        await self._ask(ImportChunk(move.target, move.id, seq, page.cursor, page.chunk))
        figures.bytes += len(page.chunk)

    async def _within_rate(self, size: int) -> None:
        """All moves together keep to the job's rate."""
        state = self._leading()
        job: Job | None = None if state is None else state.job
        if job is None or not job.rate:
            return
        now = self._clock.now()
        self._spent_until = max(self._spent_until, now) + size / job.rate
        await sleep(self._clock, self._spent_until - now)


def _may_start(state: MetaState) -> bool:
    job = state.job
    return job is not None and bool(job.pending) and not job.paused and len(state.moves) < job.concurrency
