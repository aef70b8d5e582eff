"""Moves slots from group to group, while this node leads the meta group.

The meta group's state has the moves in progress, their sources and targets have how far each is, and the table of
``shards/moves.py`` has the next step. The records go from the source's leader to the target (``copier.py``). This
driver keeps nothing else but counters for reports, so whoever leads the meta group next goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from raftkv.api.status import Move
from raftkv.clock import Clock, sleep
from raftkv.commands.base import GroupCommand
from raftkv.commands.moving import (
    Activate,
    Complete,
    Copy,
    Copying,
    Freeze,
    ImportBegin,
    ImportDrop,
    MoveState,
    Release,
    Track,
    Untrack,
)
from raftkv.commands.results import CopyReport, MoveReport, Result
from raftkv.frontend.counters import Durations
from raftkv.log_limit import limited
from raftkv.node.drivers.internal_client import Ask, Failed, Leading, meta_command
from raftkv.store.meta_state import MetaState
from shards.moves import Impossible, Phase, SourceState, Step, TargetState, after, next_step

log = logging.getLogger(__name__)

_MOST_BYTES: Final = 4 * 1024 * 1024
_LEAST_BYTES: Final = 16 * 1024
_PER_SECOND: Final = 4
"""A source is asked for so many bytes at a time: without a rate the most, else what the rate allows in a quarter of a
second. All moves together keep to the job's rate, which may change meanwhile."""

_RETRY: Final = 0.2
_AFTER_MISTAKE: Final = 2.0
"""Seconds before a step that failed is looked at again."""

_FREEZES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


_COMMANDS: Final[dict[Step, Callable[[Move], GroupCommand]]] = {
    Step.BEGIN: lambda move: ImportBegin(move.target, move.id, move.slots),
    Step.TRACK: lambda move: Track(move.source, move.id, move.slots),
    Step.ACTIVATE: lambda move: Activate(move.target, move.id),
    Step.RELEASE: lambda move: Release(move.source, move.id),
    Step.UNTRACK: lambda move: Untrack(move.source, move.id, move.slots),
    Step.DROP: lambda move: ImportDrop(move.target, move.id, move.slots),
}
"""Steps that are one command of one group."""


@dataclass(slots=True)
class _Progress:
    """Of one move, as far as this driver has seen it. ``seq``, ``cursor``: of the last chunk imported.

    ``records``, ``bytes``: copied. ``frozen_at``: clock time, 0 = not frozen yet. ``freeze``: seconds without service.
    """

    seq: int = 0
    cursor: bytes = b""
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
        """Stop; the next leader goes on."""
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
        progress = _Progress()
        log.info("move %d: %d slots from group %d to %d", move.id, len(move.slots), move.source, move.target)
        while (state := self._leading()) is not None:
            known = state.moves.get(move.id)
            if known is None:
                break
            try:
                await self._advance(known, progress)
            except (Failed, Impossible) as moment:
                # What is impossible was asked for by another driver since: this one looks again, if it leads at all.
                log.info("move %d: %s; retrying", move.id, moment, extra=limited(f"move {move.id}"))
                await sleep(self._clock, _RETRY)
            except Exception:
                # A mistake of ours must not stop the other moves, nor be repeated in a tight loop.
                log.exception("move %d cannot continue", move.id)
                await sleep(self._clock, _AFTER_MISTAKE)
        self.run()

    async def _advance(self, move: Move, progress: _Progress) -> None:
        """Look where the move is and take all steps from there. Raises Failed, or Impossible."""
        if move.phase is Phase.CANCELLED:
            # Before anything is asked of the target, whose majority may be gone: the source's clients wait.
            await self._ask(_COMMANDS[Step.UNTRACK](move))
        phase, (source, target) = move.phase, await self._look(move, progress)
        while (step := next_step(phase, source, target)) is not Step.FINISH:
            await self._take(step, move, progress)
            phase, source, target = after(step, phase, source, target)
            state = self._leading()
            if state is None or move.id not in state.moves:
                return
            if state.moves[move.id].phase is Phase.CANCELLED:
                phase = Phase.CANCELLED
        await self._meta("finish", move.id, progress.records, progress.bytes, int(progress.freeze * 1000))
        self._count(phase, progress)

    async def _look(self, move: Move, progress: _Progress) -> tuple[SourceState, TargetState]:
        at_source = (await self._ask(MoveState(move.source, move.id))).answer
        at_target = (await self._ask(MoveState(move.target, move.id))).answer
        assert isinstance(at_source, MoveReport)
        assert isinstance(at_target, MoveReport)
        progress.seq, progress.cursor = at_target.seq, at_target.cursor
        return SourceState(at_source.source), TargetState(at_target.target)

    async def _take(self, step: Step, move: Move, progress: _Progress) -> None:
        if step is Step.COPY:
            await self._copy(move, progress)
            progress.frozen_at = self._clock.now()
            await self._ask(Freeze(move.source, move.id))
        elif step is Step.COMPLETE:
            complete = Complete(move.source, move.id, move.target, progress.seq, progress.cursor)
            progress.records = (await self._have_copied(complete, progress)).records
        elif step is Step.COMMIT:
            await self._meta("commit", move.id)
        else:
            await self._ask(_COMMANDS[step](move))
        if step is Step.ACTIVATE and progress.frozen_at:
            progress.freeze = self._clock.now() - progress.frozen_at

    def _count(self, phase: Phase, progress: _Progress) -> None:
        if phase is Phase.CANCELLED:
            self.cancelled += 1
            return
        self.committed += 1
        if progress.freeze:
            self.freezes.observe(progress.freeze)

    async def _copy(self, move: Move, progress: _Progress) -> None:
        """Have records copied until few are left."""
        more = True
        while more:
            wait = self._spent_until - self._clock.now()
            if wait > 0:
                await sleep(self._clock, wait)
            state = self._leading()
            if state is None or state.moves.get(move.id, move).phase is not Phase.STARTED:
                raise Failed("the move was cancelled, or another node drives it")
            rate = 0 if state.job is None else state.job.rate
            limit = min(max(rate // _PER_SECOND, _LEAST_BYTES), _MOST_BYTES) if rate else _MOST_BYTES
            copy = Copy(move.source, move.id, move.target, progress.seq, progress.cursor, limit)
            report = await self._have_copied(copy, progress)
            if rate:
                self._spent_until = max(self._spent_until, self._clock.now()) + report.copied / rate
            more = report.more

    async def _have_copied(self, op: Copying, progress: _Progress) -> CopyReport:
        report = (await self._ask(op)).answer
        assert isinstance(report, CopyReport)
        progress.seq, progress.cursor = report.seq, report.cursor
        progress.bytes += report.copied
        return report


def _may_start(state: MetaState) -> bool:
    job = state.job
    return job is not None and bool(job.pending) and not job.paused and len(state.moves) < job.concurrency
