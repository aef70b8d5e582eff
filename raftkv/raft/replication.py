"""A leader's view of its followers: what was sent, what was acknowledged, and when a majority was last heard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from raftkv import limits
from raftkv.raft.log import GroupLog

_WEIGHT: Final = 0.125
"""Weight of the newest answer in a follower's answer time."""

_LATELY: Final = 1.0
"""Seconds whose shortest answer tells how far a follower is: some heartbeats."""

_OVERDUE: Final = 2.0
"""Answer times after which a follower is late."""

_SOONEST_LATE: Final = 0.01
"""Seconds before which no follower is late: a node takes so long for other things now and then."""


@dataclass(slots=True)
class Progress:
    """One follower in the current term.

    ``sent``: appends not yet acknowledged: (seq, send time, bytes); ``loaded`` of them have entries, of ``bytes`` in
    all. ``acked``: the latest append that was acknowledged, ``contact``: when it was sent. ``probe``: rejections of
    appends before this seq are outdated. ``stored``: the follower's (start, counter) when it last acknowledged a match.
    ``data_loss``: it has forgotten what it had acknowledged, ``lost`` (index, term) if that was in this term.
    ``forgotten``: the start of a learner's former replica, whose late answers mean nothing. ``matched``: the latest
    append that was acknowledged with a match. ``answer_time``: seconds from an append to its answer, averaged over the
    latest ones. ``round_trip``: the shortest of them of late, so without what disks and queues add; infinite before the
    first.
    """

    link_number: int
    contact: float
    probe: int = 0
    heartbeat_due: float = 0.0
    sent: deque[tuple[int, float, int]] = field(default_factory=deque)
    bytes: int = 0
    loaded: int = 0
    acked: int = 0
    stored: tuple[int, int] = (0, 0)
    data_loss: bool = False
    lost: tuple[int, int] = (0, 0)
    forgotten: int | None = None
    offer_due: float = 0.0
    matched: int = 0
    answer_time: float = 0.0
    round_trip: float = float("inf")
    _shortest: float = float("inf")
    _shortest_until: float = float("-inf")

    def window_open(self) -> bool:
        """Whether more entries may be sent. Heartbeats do not count: on a far link one is always in flight."""
        return self.loaded < limits.MAX_INFLIGHT_APPENDS and self.bytes < limits.MAX_INFLIGHT_APPEND_BYTES

    def may_ask(self) -> bool:
        """Whether an append may be sent only to be answered."""
        return len(self.sent) < limits.MAX_INFLIGHT_APPENDS and self.bytes < limits.MAX_INFLIGHT_APPEND_BYTES

    def on_sent(self, seq: int, now: float, size: int) -> None:
        self.sent.append((seq, now, size))
        self.bytes += size
        self.loaded += size > 0

    def on_ack(self, seq: int, now: float) -> None:
        """Links keep order, so an acknowledgement answers for everything sent before it too."""
        while self.sent and self.sent[0][0] <= seq:
            number, sent_at, size = self.sent.popleft()
            self.bytes -= size
            self.loaded -= size > 0
            if number == seq:
                self._hear(seq, sent_at, now)

    def on_heard(self, seq: int, now: float) -> None:
        """The append was heard; what it carried is still in flight, and so the window stays as it is."""
        for number, sent_at, _ in self.sent:
            if number == seq:
                self._hear(seq, sent_at, now)

    def _hear(self, seq: int, sent_at: float, now: float) -> None:
        if seq > self.acked:
            self.acked, self.contact = seq, sent_at
            took = now - sent_at
            self.answer_time += _WEIGHT * (took - self.answer_time)
            if took < self._shortest:
                self._shortest = took
            if now >= self._shortest_until:
                self.round_trip, self._shortest = self._shortest, float("inf")
                self._shortest_until = now + _LATELY
            elif took < self.round_trip:
                self.round_trip = took

    def patience(self, longest: float) -> float:
        """Seconds after which an answer is late, at most ``longest``."""
        return min(max(_OVERDUE * self.answer_time, _SOONEST_LATE), longest)

    def late(self, now: float, longest: float) -> bool:
        """Whether the oldest append in flight should have been answered by now."""
        return bool(self.sent) and now >= self.sent[0][1] + self.patience(longest)

    def on_match(self, seq: int, at: tuple[int, int]) -> None:
        """The follower acknowledged a match; answers of the same start may arrive out of order."""
        self.matched = max(self.matched, seq)
        if at[0] != self.stored[0] or at[1] > self.stored[1]:
            self.stored = at

    def forget_sent(self, link_number: int, seq: int) -> None:
        """Appends in flight are lost or useless; ``seq`` is the next number to be sent."""
        self.link_number = link_number
        self.probe = seq
        self.sent.clear()
        self.bytes = self.loaded = 0


def counted(progress: Mapping[int, Progress], voters: Collection[int]) -> dict[int, Progress]:
    """The followers whose answers count: a learner's count for nothing."""
    return {peer: one for peer, one in progress.items() if peer in voters}


def to_ask(
    voters: Mapping[int, Progress],
    link_number: Callable[[int], int],
    seq: int,
    since: float,
    now: float,
    longest: float,
) -> list[int]:
    """Which of the other ``voters`` to send an append, so that those that got one from ``seq`` on are a majority.

    The leader counts as one of them. Those that answer soonest are asked first; all are once one of those that were
    asked, ``since`` then, is late, by ``longest`` at most. What has been sent on a link that broke is lost.
    """
    lacking, moment = (len(voters) + 1) // 2, 0.0
    others: list[tuple[bool, float, int]] = []
    for peer, progress in voters.items():
        link = link_number(peer)
        if progress.acked >= seq:
            lacking -= 1
        elif link and link == progress.link_number and progress.sent and progress.sent[-1][0] >= seq:
            lacking -= 1
            moment = max(moment, progress.patience(longest))
        elif link and not progress.data_loss:
            others.append((progress.late(now, longest), progress.answer_time, peer))
    if moment and now >= since + moment:
        lacking = len(others)
    return [peer for _, _, peer in sorted(others)[: max(lacking, 0)]]


def committable(log: GroupLog, held: Iterable[int], term: int) -> int:
    """The last entry that a leader of ``term`` may commit by counting, 0 = none.

    ``held``: up to where each other voter is known to hold the log. The leader counts its own log only as far as it is
    durable. Only an entry of the own term proves that all before it are committed (Raft, figure 8).
    """
    index = int(majority_value([log.durable_index, *held]))
    return index if log.term_at(index) == term else 0


def majority_value(values: list[float] | list[int]) -> float:
    """The greatest value that a majority of ``values`` reaches."""
    return sorted(values, reverse=True)[len(values) // 2]
