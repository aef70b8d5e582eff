"""What a replica does while it leads one term: replication, commit, leases, reads, transfer of the leadership."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from raftkv import limits
from raftkv.raft import replication
from raftkv.raft.config import RaftConfig
from raftkv.raft.configurations import Voters
from raftkv.raft.core import Core
from raftkv.raft.log import BrokenInvariant, GroupLog
from raftkv.raft.lost import LostEntries
from raftkv.raft.messages import APPEND, Type
from raftkv.raft.reads import ReadDone, ReadQueue
from raftkv.raft.ready import Outputs
from raftkv.raft.replication import Progress, majority_value

_NEAR: Final = 0.004
"""Seconds in which a busy follower answers on a short link."""

_ENTRY: Final = 0.001
"""Seconds that an entry takes a busy leader, about: so many fit into what a round trip takes longer."""


@dataclass(slots=True)
class _Transfer:
    target: int
    deadline: float
    sent: bool = False


class Leadership:
    """A leader's state.

    ``link_number``: tells the number of the link to a node, 0 while it is down; another number than before means that
    messages may have been lost in between. ``seq``: of the last append that this replica has sent, in whatever term.
    """

    def __init__(
        self,
        group: int,
        core: Core,
        log: GroupLog,
        lost: LostEntries,
        outputs: Outputs,
        config: RaftConfig,
        link_number: Callable[[int], int],
        seq: int,
    ) -> None:
        self._group = group
        self._core = core
        self._log = log
        self._lost = lost
        self._outputs = outputs
        self._config = config
        self._link_number = link_number
        self.term = core.term()
        self.since = core.now
        self.seq = seq + 1
        self.open = False
        """Whether the entry that opened the term is applied."""
        self.followers: dict[int, Progress] = {}
        self.counted: dict[int, Progress] = {}
        """The followers whose answers count."""
        self.reads = ReadQueue()
        self.transfer: _Transfer | None = None
        self._round_seq = 0
        self._round_began = 0.0
        self._lease_off = False
        self._time = 0
        self._opened_at = 0.0

    # -- views

    def answers(self, peer: int, now: float) -> bool:
        """Whether ``peer`` is a follower in contact with this leader."""
        progress = self.followers.get(peer)
        return progress is not None and not progress.data_loss and now < progress.contact + self._config.election_max

    def contact(self, now: float) -> float:
        """Latest moment after which a majority has heard this leader (send time of an acknowledged append)."""
        return majority_value([now, *(progress.contact for progress in self.counted.values())])

    def _confirmed(self) -> int:
        """Latest append that a majority has acknowledged, itself included."""
        return int(majority_value([self.seq + 1, *(progress.acked for progress in self.counted.values())]))

    def in_contact(self, now: float) -> bool:
        """Whether a majority has heard this leader so lately that it elects nobody else on its own."""
        return now < self.contact(now) + self._config.lease

    def lease_holds(self, now: float) -> bool:
        """Whether no other node can have been elected, so that this leader knows every committed entry."""
        return self.open and not self._lease_off and self.in_contact(now)

    def lonely(self) -> bool:
        """Whether no majority has answered for so long that this leader steps down."""
        now = self._core.now
        return now - max(self.contact(now), self.since) > self._config.contact_timeout

    def heartbeat_due(self) -> bool:
        now = self._core.now
        return any(now >= progress.heartbeat_due for progress in self.followers.values())

    def approaches(self, peer: int, index: int, now: float) -> bool:
        """Whether ``peer`` is a follower in contact with this leader that has not reached ``index`` yet."""
        return self.answers(peer, now) and self._core.match_index(peer) < index

    def best_target(self, now: float) -> int:
        """The voter that holds most of the log among those in contact, at a tie the lowest id; 0 = none."""
        live = [peer for peer in self._core.peers() if self.answers(peer, now)]
        return max(live, key=lambda peer: (self._core.match_index(peer), -peer), default=0)

    def round_trip(self, now: float) -> float:
        """Seconds to as many followers as a majority needs and back, without what disks and queues add; 0 = unknown."""
        needed, alive = (len(self.counted) + 1) // 2, now - self._config.election_max
        trips = sorted([one.round_trip for one in self.counted.values() if one.contact > alive])
        return trips[needed - 1] if 0 < needed <= len(trips) else 0.0

    def worthwhile_entries(self) -> int:
        """How many entries may be open at a time, so that what is proposed waits for none on a far link.

        Where an entry is committed in about the time that it takes to make and apply it, a second one gains nothing and
        costs as much as the first.
        """
        return max(1, int(min((self.round_trip(self._core.now) - _NEAR) / _ENTRY, limits.MAX_OPEN_ENTRIES)))

    # -- group time

    def opened(self, time: int) -> None:
        """The entry that opened the term is applied, at group time ``time``."""
        self.open = True
        self._time, self._opened_at = time, self._core.now

    def time(self, now: float) -> int:
        """Group time in ms: that of the last entry when the term was opened, and what has passed on this leader's own
        clock since then."""
        return self._time + int((now - self._opened_at) * 1000)

    # -- members

    def follow(self, replicas: Iterable[int], voters: Voters) -> None:
        """Replicate to the current voters and learners; those that had been followed already keep their progress."""
        core, before = self._core, self.followers
        self.followers = {}
        for peer in replicas:
            progress = before.pop(peer, None)
            if progress is not None and progress.data_loss and peer not in voters:
                core.untrack(peer)
                progress = None
            if progress is None:
                core.track(peer)
                link_number = self._link_number(peer)
                progress = Progress(link_number, contact=float("-inf"), probe=self.seq, heartbeat_due=core.now)
            self.followers[peer] = progress
        for peer in before:
            core.untrack(peer)
        self.counted = replication.counted(self.followers, voters)

    # -- commit and reads

    def advance_commit(self) -> None:
        index = self._committable()
        if index > self._core.commit_index():
            self._core.set_commit_index(index)

    def _committable(self) -> int:
        match = self._core.match_index
        held = [0 if progress.data_loss else match(peer) for peer, progress in self.counted.items()]
        return replication.committable(self._log, held, self.term)

    def has_work(self) -> bool:
        """Whether a step has something to commit, to send, to read or to hand over. Heartbeats aside."""
        if len(self.reads) or self.transfer is not None or self._committable() > self._core.commit_index():
            return True
        return any(self._lacks(peer, progress) for peer, progress in self.followers.items())

    def _lacks(self, peer: int, progress: Progress) -> bool:
        """Whether ``peer`` can be sent something that it does not hold."""
        link_number, first, log = self._link_number(peer), self._core.next_index(peer), self._log
        if link_number == 0 or progress.data_loss:
            return False
        if link_number != progress.link_number:  # what was sent on the former one may be lost
            return True
        return first <= log.last_index and (first <= log.base_index or progress.window_open())

    def take_reads(self, applied: int, lease: bool) -> list[ReadDone]:
        """The reads to be served once entry ``applied`` is applied. ``lease``: whether the lease allows it then."""
        return self.reads.take(applied, self._confirmed(), lease) if len(self.reads) else []

    # -- replication

    def replicate(self) -> None:
        """Send every follower what it lacks, or a heartbeat that is due."""
        core, log, now = self._core, self._log, self._core.now
        asked = self._ask() if len(self.reads) else ()
        last = log.last_index
        parts: dict[int, tuple[list[tuple[int, bytes]], int]] = {}  # most followers lack the same
        for peer, progress in self.followers.items():
            link_number = self._link_number(peer)
            if link_number == 0:
                continue
            if progress.data_loss:
                self._lost.tell(peer, progress)
                continue
            if link_number != progress.link_number:
                progress.forget_sent(link_number, self.seq + 1)
                if core.match_index(peer):
                    core.set_next_index(peer, core.match_index(peer) + 1)
            first = core.next_index(peer)
            if first <= log.base_index:
                self.offer(peer, progress)
                # Heartbeats go on: the follower will refuse them, but its answers count as contact.
                first = last + 1
            idle = True
            while first <= last and progress.window_open():
                part = parts.get(first)
                if part is None:
                    entries = log.between(first, last + 1, limits.MAX_ENTRY_BYTES)
                    size = sum([len(entry[0]) for entry in entries])
                    part = parts[first] = [(entry[2], entry[0]) for entry in entries], size
                self._send_append(peer, progress, first, *part)
                first += len(part[0])
                core.set_next_index(peer, first)
                idle = False
            # A round for reads does not pile up before a follower that answers nothing: heartbeats suffice for it.
            if idle and (now >= progress.heartbeat_due or (peer in asked and progress.may_ask())):
                self._send_append(peer, progress, first, [], 0)

    def _ask(self) -> Collection[int]:
        """Who gets an append for the reads that wait, whatever else there is to send."""
        confirmed, now = self._confirmed(), self._core.now
        if self.reads.wants_round(self._round_seq, confirmed):
            self._round_seq, self._round_began = self.seq + 1, now
        elif self._round_seq <= confirmed:
            return ()
        return replication.to_ask(
            self.counted, self._link_number, self._round_seq, self._round_began, now, self._config.heartbeat
        )

    def _send_append(
        self, peer: int, progress: Progress, first: int, entries: list[tuple[int, bytes]], size: int
    ) -> None:
        now = self._core.now
        self.seq += 1
        progress.on_sent(self.seq, now, size)
        progress.heartbeat_due = now + self._config.heartbeat
        term, commit = self._log.term_at(first - 1), self._core.commit_index()
        fields = (self.term, self.seq, progress.link_number, first - 1, term, commit)
        self._outputs.send(peer, [self._group, APPEND, *fields, entries])

    def offer(self, peer: int, progress: Progress) -> None:
        """Tell ``peer`` that only a snapshot helps it. Repeated until it has it."""
        snapshot, now = self._log.snapshot, self._core.now
        if snapshot is not None and now >= progress.offer_due:
            progress.offer_due = now + self._config.heartbeat
            self._outputs.send(peer, [self._group, Type.SNAPSHOT_OFFER, self.term, *snapshot])

    def on_ack(
        self,
        peer: int,
        term: int,
        seq: int,
        link_number: int,
        matches: bool,
        index: int,
        last: int,
        stored: Sequence[int],
    ) -> None:
        if term != self.term:
            return
        progress, core = self.followers[peer], self._core
        at = (stored[0], stored[1])
        if progress.data_loss or seq > self.seq or at[0] == progress.forgotten:
            return
        if matches:
            if index - 1 > self._log.last_index:
                raise BrokenInvariant(f"node {peer} claims entry {index - 1} of {self._log.last_index}")
            progress.on_ack(seq, core.now)
            if index - 1 > core.match_index(peer):
                core.receive_match(peer, index - 1)
            progress.on_match(seq, at)
        elif link_number == progress.link_number and seq >= progress.probe:
            lost = last < core.match_index(peer) and (at[0] != progress.stored[0] or at[1] > progress.stored[1])
            if lost and peer not in core.voters():
                # Nothing was built on what it held: its replica was dropped and came back.
                progress.forgotten = progress.stored[0]
                core.untrack(peer)
                core.track(peer)
            elif lost:
                self._lost.found(peer, progress, core.match_index(peer), last)
                return
            progress.on_ack(seq, core.now)
            progress.forget_sent(link_number, self.seq + 1)
            core.set_next_index(peer, index)

    def on_heard(self, peer: int, term: int, seq: int) -> None:
        if term == self.term and not self.followers[peer].data_loss:
            self.followers[peer].on_heard(seq, self._core.now)

    # -- transfer

    def start_transfer(self, target: int) -> bool:
        """Hand the leadership to ``target``, as soon as it holds the whole log. Returns whether it was started."""
        if not self.open or target not in self._core.peers() or self.transfer is not None:
            return False
        self.transfer = _Transfer(target, self._core.now + self._config.transfer_timeout)
        return True

    def transfer_overdue(self) -> bool:
        """Whether a transfer that has come to nothing has just ended."""
        overdue = self.transfer is not None and self._core.now > self.transfer.deadline
        if overdue:
            self.transfer = None
        return overdue

    def continue_transfer(self) -> None:
        transfer = self.transfer
        if transfer is None or transfer.sent or self._core.match_index(transfer.target) != self._log.last_index:
            return
        transfer.sent = True
        # The successor is elected although followers have just heard this leader: no local read again in this term.
        self._lease_off = True
        self._outputs.send(transfer.target, [self._group, Type.TIMEOUT_NOW, self.term])
