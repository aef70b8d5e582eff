"""Changes of a group's voters, one server at a time, and its learners.

A change is an entry that names all voters (:mod:`raftkv.raft.configurations`). Two majorities of lists that differ by
one server overlap, so no joint list is needed, as long as a leader has committed an entry of its own term before it
changes anything and waits for one change before the next.

Learners are told to each replica from outside and are not in the log: the leader replicates to them and counts them
for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft.configurations import Voters, differ_by_one, pack_voters

if TYPE_CHECKING:
    from raftkv.raft.group import RaftGroup
    from raftkv.raft.replication import Progress

log = logging.getLogger(__name__)

MAX_LAG: Final = 1000
"""Entries that a learner may lack when it is made a voter: from then on commits may have to wait for it."""

ChangeDone = Callable[[Result], None]
"""Takes the outcome of a change. Called exactly once."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a leader knows of a replica: the last entry it is known to hold, and whether it answers."""

    match: int
    contact: bool


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a group as one replica sees them.

    ``voters`` are in effect, since entry ``index`` if that is still in the log, else 0; ``committed`` tells whether
    they are also ``committed_voters``. ``peers``: on the leader the state of every voter, itself included, and learner.
    """

    voters: Voters
    committed_voters: Voters
    learners: Voters
    index: int
    committed: bool
    peers: dict[int, PeerState]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A change that brings ``newcomer`` in, as soon as it acknowledges an append sent after ``seq``; see ``look``."""

    wanted: Voters
    newcomer: int
    seq: int
    deadline: float
    done: ChangeDone


class Membership:
    """The changes and learners of one replica."""

    def __init__(self, group: RaftGroup) -> None:
        self._group = group
        self._asked: _Asked | None = None
        self._told: tuple[int, ...] = ()
        self._waiting: list[tuple[int, ChangeDone]] = []

    @property
    def learners(self) -> tuple[int, ...]:
        """Those that were told and are no voters."""
        return tuple(node for node in self._told if node not in self._group.voters)

    def knows(self, node: int) -> bool:
        """Whether ``node`` is a voter or a learner."""
        return node in self._group.voters or node in self._told

    def replicas(self) -> list[int]:
        """All other nodes that hold the log."""
        return sorted({*self._group.voters, *self._told} - {self._group.node})

    def set_learners(self, nodes: Iterable[int]) -> bool:
        """Returns whether that changes anything."""
        told = tuple(sorted(set(nodes)))
        before, self._told = self._told, told
        return told != before

    def view(self) -> Members:
        group, configurations = self._group, self._group.log.configurations
        peers = {}
        if group.leads():
            peers = {node: PeerState(group.core.match_index(node), group.answers(node)) for node in self.replicas()}
            peers[group.node] = PeerState(group.log.durable_index, contact=True)
        return Members(
            voters=configurations.voters,
            committed_voters=configurations.at(group.core.commit_index()),
            learners=self.learners,
            index=configurations.index,
            committed=self._settled(),
            peers=dict(sorted(peers.items())),
        )

    def _settled(self) -> bool:
        return self._group.log.configurations.index <= self._group.core.commit_index()

    # -- changes

    def change(self, voters: Sequence[int], done: ChangeDone, seq: int, deadline: float) -> bool:
        """Leader: start a change, or answer why not. Returns whether the voters have changed.

        ``seq``: the last append sent. ``deadline``: until when a newcomer has to answer.
        """
        group = self._group
        wanted: Voters = tuple(sorted(set(voters)))
        if group.ready() and self._settled() and wanted == group.voters:
            _answer(done, Result(Code.OK))
            return False
        if self._refused(wanted, done):
            return False
        newcomers = set(wanted) - set(group.voters)
        if newcomers:
            self._asked = _Asked(wanted, newcomers.pop(), seq, deadline, done)
            return False
        self._start(wanted, done)
        return True

    def look(self, progress: Mapping[int, Progress], now: float) -> bool:
        """Leader, at each step: bring a newcomer in that has answered. Returns whether the voters have changed.

        What is known of a newcomer may be that of a replica which its node has dropped since, and a voter that is
        believed to hold what it does not could help to commit it. So it has to acknowledge an append that was sent
        after the change was asked for: a node drops its replica before it may be asked for again.
        """
        asked = self._asked
        if asked is None:
            return False
        state = progress.get(asked.newcomer)
        if state is not None and state.matched > asked.seq:
            self._asked = None
            if self._refused(asked.wanted, asked.done):
                return False
            self._start(asked.wanted, asked.done)
            return True
        if now > asked.deadline:
            self._asked = None
            self._refuse(f"node {asked.newcomer} does not answer", asked.done)
        return False

    def _start(self, wanted: Voters, done: ChangeDone) -> None:
        index = self._group.core.append(pack_voters(wanted))
        log.info("group %d: voters %s from entry %d on", self._group.group, _names(wanted), index)
        self._waiting.append((index, done))

    def _refused(self, wanted: Voters, done: ChangeDone) -> bool:
        refusal = self._refusal(wanted)
        if refusal is not None:
            self._refuse(refusal, done)
        return refusal is not None

    def _refuse(self, reason: str, done: ChangeDone) -> None:
        _answer(done, Result(Code.CONDITION_FAILED, detail=f"group {self._group.group}: {reason}"))

    def _refusal(self, wanted: Voters) -> str | None:
        group, present = self._group, self._group.voters
        if not group.ready():
            return "the leader has not committed an entry of its term yet"
        if not self._settled():
            return f"the change to voters {_names(present)} is not committed yet"
        if self._asked is not None:
            return f"node {self._asked.newcomer} is being looked at"
        if group.transfers():
            return "the leadership is being handed over"
        if group.node not in wanted:
            return f"node {group.node} leads the group and cannot remove itself: hand the leadership over first"
        if not differ_by_one(present, wanted):
            return f"voters {_names(present)} and {_names(wanted)} differ by more than one server"
        for newcomer in set(wanted) - set(present):
            refusal = self._refuse_newcomer(newcomer)
            if refusal is not None:
                return refusal
        silent = [node for node in wanted if node != group.node and not group.answers(node)]
        if 2 * (len(wanted) - len(silent)) <= len(wanted):
            return f"there would be no majority of voters {_names(wanted)}: no answer from {_names(silent)}"
        return None

    def _refuse_newcomer(self, node: int) -> str | None:
        group = self._group
        if node not in self._told:
            return f"node {node} is no learner of the group"
        if not group.answers(node):
            return f"node {node} does not answer"
        match, last = group.core.match_index(node), group.log.last_index
        if match < max(last - MAX_LAG, group.log.base_index):
            return f"node {node} is {last - match} entries behind"
        return None

    def applied(self, index: int) -> None:
        """The change of entry ``index`` is committed and applied."""
        while self._waiting and self._waiting[0][0] <= index:
            _answer(self._waiting.pop(0)[1], Result(Code.OK))

    def fail(self, outcome: Result) -> None:
        """This replica will not see what becomes of its changes."""
        waiting, self._waiting = self._waiting, []
        asked, self._asked = self._asked, None
        for done in [*(done for _, done in waiting), *(() if asked is None else (asked.done,))]:
            _answer(done, outcome)


def _answer(done: ChangeDone, result: Result) -> None:
    try:
        done(result)
    except Exception:
        # The caller's mistake is not the group's.
        log.exception("the receiver of a change's outcome failed")


def _names(nodes: Iterable[int]) -> str:
    return ", ".join(map(str, nodes))
