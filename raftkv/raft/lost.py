"""A replica that has lost entries which it had acknowledged: a disk that went back in time.

What it acknowledged may be committed by that, and it may have voted without knowing it any more. So it must not count
again, in no later term, whatever it holds by then: it gets no further entries, and gives no votes. Its leader notices
and tells it, and it bars itself durably; every later leader hears so from it. The bar goes with the replica, when the
node is replaced in the group.

No replica bars itself for less: a leader speaks of what was acknowledged in its own term, and within that term nothing
takes an acknowledged entry out of a log, but dropping the replica, of which the WAL keeps how far it reached.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from raftkv.raft.messages import Type
from raftkv.raft.ports import LogWriter, Outbox
from raftkv.raft.replication import Progress

if TYPE_CHECKING:
    from raftkv.raft.group import RaftGroup

log = logging.getLogger(__name__)


class LostEntries:
    """What one replica knows of it.

    ``here``: whether this one has lost entries. ``floor``: term and index of the end of a log that this node dropped.
    """

    def __init__(
        self, group: RaftGroup, wal: LogWriter, outbox: Outbox, heartbeat: float, floor: tuple[int, int], here: bool
    ) -> None:
        self._group = group
        self._wal = wal
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._floor = floor
        self.here = here

    # -- as leader

    def found(self, peer: int, progress: Progress, match: int, last: int) -> None:
        """``peer`` had acknowledged entry ``match`` in this term, and says now that its log ends at ``last``."""
        group = self._group
        progress.amnesia = True
        held = group.log.term_at(max(match, group.log.base_index))
        assert held is not None  # a leader's log holds all that was acknowledged to it
        progress.lost = match, held
        found = f"node {peer} has lost entries that it had acknowledged ({last} of {match})"
        log.error("group %d: %s: it no longer counts", group.group, found)

    def tell(self, peer: int, progress: Progress, now: float) -> None:
        """Instead of appends: say what ``peer`` had acknowledged, and that there is a leader."""
        if now >= progress.heartbeat_due:
            progress.heartbeat_due = now + self._heartbeat
            group = self._group
            self._outbox.send(peer, [group.group, Type.LOST, group.core.term(), *progress.lost])

    def _on_barred(self, peer: int, term: int, progress: Progress | None) -> None:
        """``peer`` says so itself."""
        if progress is not None and not progress.amnesia and term == self._group.core.term():
            progress.amnesia = True
            log.error("group %d: node %d lost entries in an earlier term: it does not count", self._group.group, peer)

    # -- messages

    def receive(self, peer: int, kind: int, fields: list[Any], progress: Progress | None) -> None:
        """``progress``: of ``peer``, if this replica leads."""
        if kind == Type.LOST:
            self._on_lost(peer, *fields)
        else:
            self._on_barred(peer, fields[0], progress)

    # -- as follower

    def _on_lost(self, peer: int, term: int, index: int, index_term: int) -> None:
        """A leader says that this replica had acknowledged entry ``index``, 0 = none that it knows of."""
        group = self._group
        if group.follow(peer, term) and max(group.log.last_index, self._floor[1]) < index:
            self.here = True
            self._wal.lost(group.group, index_term, index)
            log.error(
                "group %d: this node has lost entries that it had acknowledged (%d of %d): it neither votes nor counts "
                "there until it is replaced",
                *(group.group, group.log.last_index, index),
            )
            self.answer(peer, term)

    def answer(self, peer: int, term: int) -> None:
        """Tell a leader that this replica does not count."""
        message: list[Any] = [self._group.group, Type.BARRED, term]
        self._outbox.send_when_durable(peer, message)
