"""Forwarding to other nodes: what was sent, what was answered, and when to stop waiting.

A node that is asked gets all the time that the operations have. Its answer counts whenever it comes, even if another
attempt was made meanwhile; the second attempt only costs some work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from msgspec.structs import replace

from raftkv import limits
from raftkv.api.patience import LEAST, TELLING, Patience
from raftkv.clock import Clock
from raftkv.commands.results import Result
from raftkv.errors import SETTLED, Code
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.node.leaders import Leaders, Peers
from raftkv.node.requests import Request
from shards.map import ShardMap

_NO_ANSWER: Final = Result(Code.UNKNOWN, detail="no answer from the group's leader")


class _Attempt(NamedTuple):
    """``number``: of the request's attempts. ``group``: which was asked."""

    request: Request
    number: int
    group: int


@dataclass(slots=True)
class _Batch:
    """Operations that another node was asked to execute. Clock times. ``missing``: answers that have not come.

    ``deadline``: when other attempts are made. From then on ``late``; the answers are still taken.
    """

    target: int
    sent: float
    deadline: float
    attempts: list[_Attempt]
    missing: int
    late: bool = False


class Forwarding:
    """``ended``: takes a request and the outcome of its latest attempt, or the answer to an earlier one."""

    def __init__(
        self,
        *,
        leaders: Leaders,
        peers: Peers,
        clock: Clock,
        first_number: int,
        ended: Callable[[Request, Result], None],
    ) -> None:
        self._leaders = leaders
        self._peers = peers
        self._clock = clock
        self._ended = ended
        self._number = first_number
        self._batches: dict[int, _Batch] = {}
        self._next: dict[tuple[int, Origin], list[_Attempt]] = {}
        self._due = False
        self._patience = Patience()
        self._answers: dict[int, list[tuple[int, int, Result]]] = {}
        self._answer_bytes: dict[int, int] = {}
        self._answers_due = False

    # -- asking

    def ask(self, request: Request, group: int, target: int) -> None:
        """Have ``target`` execute the request of ``group``; all of this turn and origin go together."""
        attempt = _Attempt(request, request.attempt, group)
        self._next.setdefault((target, request.caller.origin), []).append(attempt)
        if not self._due:
            self._due = True
            self._clock.call_later(0.0, self._send)

    def _send(self) -> None:
        self._due = False
        batches, self._next = self._next, {}
        now = self._clock.now()
        for (target, origin), attempts in batches.items():
            live = [attempt for attempt in attempts if not attempt.request.answered]
            for start, stop in _bounded([attempt.request.size for attempt in live]):
                part = live[start:stop]
                self._number += 1
                patience = LEAST
                if self._patience.needed:
                    patience = max(LEAST, *(self._patience.of(group, now) for group in {one.group for one in part}))
                self._batches[self._number] = _Batch(target, now, now + patience, part, len(part))
                timeout = max(1, int((min(attempt.request.deadline for attempt in part) - now) * 1000))
                ops = [attempt.request.op for attempt in part]
                self._peers.send(target, messages.ask(self._number, timeout, origin, ops))

    def on_answers(self, peer: int, answers: Sequence[tuple[int, int, Result]]) -> None:
        """Results of operations that ``peer`` was asked to execute."""
        now = self._clock.now()
        for number, index, result in answers:
            batch = self._batches.get(number)
            if batch is None or batch.target != peer or not 0 <= index < len(batch.attempts):
                continue
            batch.missing -= 1
            if not batch.missing:
                del self._batches[number]
            request, attempt, group = batch.attempts[index]
            if result.code in TELLING:
                self._patience.saw(group, now - batch.sent, now)
            if request.answered or (request.attempt != attempt and result.code not in SETTLED):
                continue
            if not request.op.stale:
                if result.code in SETTLED:
                    result = replace(result, hint=peer)
                if result.hint:
                    self._leaders.learn(group, result.hint)
                elif result.code in (Code.NOT_LEADER, Code.UNAVAILABLE):
                    self._leaders.denied(group, peer)
            self._ended(request, result)

    # -- what gets no answer

    def on_link_down(self, peer: int) -> None:
        """The link is down: requests to ``peer`` may or may not have arrived."""
        for number in [number for number, batch in self._batches.items() if batch.target == peer]:
            self._give_up(self._batches.pop(number))

    def _give_up(self, batch: _Batch) -> None:
        for request, attempt, _ in batch.attempts:
            if not request.answered and request.attempt == attempt:
                self._ended(request, _NO_ANSWER)

    def sweep(self, now: float, shard_map: ShardMap | None) -> None:
        """Called every few milliseconds: attempts that take too long, or went to a node that leads no more."""
        for number in [number for number, batch in self._batches.items() if batch.deadline <= now]:
            batch = self._batches[number]
            if not batch.late:
                batch.late = True
                self._give_up(batch)
            batch.deadline = now + LEAST
            if all(attempt.request.answered for attempt in batch.attempts):
                del self._batches[number]
        if self._batches and shard_map is not None:
            self._look_at_leaders(shard_map)

    def _look_at_leaders(self, shard_map: ShardMap) -> None:
        """Requests to a node that no longer leads may wait there in vain: ask the new leader at once."""
        changed = self._leaders.changed(shard_map)
        if not changed:
            return
        for batch in list(self._batches.values()):
            for request, attempt, group in batch.attempts:
                leader = changed.get(group, batch.target)
                if leader != batch.target and request.attempt == attempt and not request.op.stale:
                    self._ended(request, Result(Code.UNKNOWN, hint=leader, detail="the group has another leader"))

    # -- being asked

    def answer(self, peer: int, number: int, index: int, result: Result) -> None:
        """Tell ``peer`` the result of an operation that it asked for; all of this turn go together."""
        self._answers.setdefault(peer, []).append((number, index, result))
        if result.value is not None or result.answer is not None:
            self._answer_bytes[peer] = self._answer_bytes.get(peer, 0) + result.size()
        if not self._answers_due:
            self._answers_due = True
            self._clock.call_later(0.0, self._send_answers)

    def unsent(self, peer: int) -> int:
        """Bytes of values in answers of this turn to ``peer``, and those that wait on the link to it."""
        return self._answer_bytes.get(peer, 0) + self._peers.unsent(peer)

    def _send_answers(self) -> None:
        self._answers_due = False
        answers, self._answers = self._answers, {}
        self._answer_bytes.clear()
        for peer, results in answers.items():
            start = size = 0
            for at, (_, _, result) in enumerate(results):
                if size > limits.MAX_BATCH_BYTES:
                    self._peers.send(peer, messages.answer(results[start:at]))
                    start, size = at, 0
                size += limits.OP_OVERHEAD + result.size()
            self._peers.send(peer, messages.answer(results[start:]))


def _bounded(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut what has these sizes into runs of at most MAX_BATCH_BYTES."""
    cuts: list[tuple[int, int]] = []
    start = total = 0
    for at, size in enumerate(sizes):
        if total and total + size > limits.MAX_BATCH_BYTES:
            cuts.append((start, at))
            start, total = at, 0
        total += size
    if start < len(sizes):
        cuts.append((start, len(sizes)))
    return cuts
