"""A replica that has lost entries which it had acknowledged, because its disk was rolled back to older data.

Entries may have been committed because this replica acknowledged them, and it may have forgotten votes. So it must not
count again in any later term, whatever it holds by then: it gets no further entries and gives no votes. The leader
notices the loss and tells the replica, which bars itself durably and tells every later leader. The bar ends when the
node is replaced in the group.

No healthy replica bars itself. A leader only reports a loss of what was acknowledged in its own term, and within one
term an acknowledged entry leaves a log only if the replica is dropped; the WAL keeps how far a dropped log reached.
"""

from __future__ import annotations

import logging

from raftkv.raft.core import Core
from raftkv.raft.log import GroupLog
from raftkv.raft.messages import Type
from raftkv.raft.ready import Barred, Outputs
from raftkv.raft.replication import Progress


class LostEntries:
    """What one replica knows of lost entries.

    ``here``: whether this one has lost entries. ``floor``: term and index of the end of a log that this node dropped.
    """

    def __init__(
        self,
        group: int,
        core: Core,
        log: GroupLog,
        outputs: Outputs,
        heartbeat: float,
        floor: tuple[int, int],
        here: bool,
    ) -> None:
        self._group = group
        self._core = core
        self._log = log
        self._outputs = outputs
        self._heartbeat = heartbeat
        self._floor = floor
        self.here = here

    # -- as leader

    def found(self, peer: int, progress: Progress, match: int, last: int) -> None:
        """``peer`` had acknowledged entry ``match`` in this term, and says now that its log ends at ``last``."""
        progress.data_loss = True
        held = self._log.term_at(max(match, self._log.base_index))
        assert held is not None  # a leader's log holds all that was acknowledged to it
        progress.lost = match, held
        found = f"node {peer} has lost entries that it had acknowledged ({last} of {match})"
        self._outputs.note(logging.ERROR, f"{found}: it no longer counts")

    def tell(self, peer: int, progress: Progress) -> None:
        """Sent instead of appends: tells ``peer`` what it had acknowledged, and that there is a leader."""
        now = self._core.now
        if now >= progress.heartbeat_due:
            progress.heartbeat_due = now + self._heartbeat
            self._outputs.send(peer, [self._group, Type.LOST, self._core.term(), *progress.lost])

    def on_barred(self, peer: int, term: int, progress: Progress) -> None:
        """``peer`` itself says that it has lost entries."""
        if not progress.data_loss and term == self._core.term():
            progress.data_loss = True
            self._outputs.note(logging.ERROR, f"node {peer} lost entries in an earlier term: it does not count")

    # -- as follower

    def on_lost(self, peer: int, term: int, index: int, index_term: int) -> None:
        """The leader says that this replica had acknowledged entry ``index``, 0 = none that it knows of."""
        last = self._log.last_index
        if max(last, self._floor[1]) < index:
            self.here = True
            self._outputs.record(Barred(index, index_term))
            self._outputs.note(
                logging.ERROR,
                f"this node has lost entries that it had acknowledged ({last} of {index}): it neither votes nor counts "
                "there until it is replaced",
            )
            self.answer(peer, term)

    def answer(self, peer: int, term: int) -> None:
        """Tell a leader that this replica does not count."""
        self._outputs.send(peer, [self._group, Type.BARRED, term])
