"""Changes of a group's voters, one server at a time, and its learners.

A change is an entry that names all voters (:mod:`raftkv.raft.configurations`). Two majorities of lists that differ by
one server overlap, so no joint list is needed, as long as a leader has committed an entry of its own term before it
changes anything and waits for one change before the next.

Learners are not in the log: each replica is told them from outside. The leader replicates to them but never counts
them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft.configurations import Voters, differ_by_one, pack_voters
from raftkv.raft.core import Core
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import GroupLog
from raftkv.raft.ready import Outputs

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
class MembersView:
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

    def __init__(self, group: int, node: int, core: Core, log: GroupLog, outputs: Outputs) -> None:
        self._group = group
        self._node = node
        self._core = core
        self._log = log
        self._outputs = outputs
        self._asked: _Asked | None = None
        self._told: tuple[int, ...] = ()
        self._waiting: list[tuple[int, ChangeDone]] = []

    @property
    def learners(self) -> tuple[int, ...]:
        """The nodes that were set as learners and are not voters."""
        return tuple(node for node in self._told if node not in self._core.voters())

    @property
    def asks(self) -> bool:
        """Whether a change waits for the answer of a newcomer."""
        return self._asked is not None

    def knows(self, node: int) -> bool:
        """Whether ``node`` is a voter or a learner."""
        return node in self._core.voters() or node in self._told

    def replicas(self) -> list[int]:
        """All other nodes that hold the log."""
        return sorted({*self._core.voters(), *self._told} - {self._node})

    def set_learners(self, nodes: Iterable[int]) -> bool:
        """Returns whether that changes anything."""
        told = tuple(sorted(set(nodes)))
        before, self._told = self._told, told
        return told != before

    def view(self, lead: Leadership | None, now: float) -> MembersView:
        """``lead``: if this replica leads."""
        configurations, match = self._log.configurations, self._core.match_index
        peers = {}
        if lead is not None:
            peers = {node: PeerState(match(node), lead.answers(node, now)) for node in self.replicas()}
            peers[self._node] = PeerState(self._log.durable_index, contact=True)
        return MembersView(
            voters=configurations.voters,
            committed_voters=configurations.at(self._core.commit_index()),
            learners=self.learners,
            index=configurations.index,
            committed=self._settled(),
            peers=dict(sorted(peers.items())),
        )

    def _settled(self) -> bool:
        return self._log.configurations.index <= self._core.commit_index()

    # -- changes

    def change(self, lead: Leadership, voters: Sequence[int], done: ChangeDone, deadline: float) -> bool:
        """Start a change, or answer why not. Returns whether the voters have changed.

        ``deadline``: until when a newcomer has to answer.
        """
        wanted: Voters = tuple(sorted(set(voters)))
        present = self._core.voters()
        if lead.open and self._settled() and wanted == present:
            self._outputs.answer(done, Result(Code.OK))
            return False
        if self._refused(lead, wanted, done):
            return False
        newcomers = set(wanted) - set(present)
        if newcomers:
            self._asked = _Asked(wanted, newcomers.pop(), lead.seq, deadline, done)
            return False
        self._start(wanted, done)
        return True

    def look(self, lead: Leadership) -> bool:
        """At each step of a leader: bring a newcomer in that has answered. Returns whether the voters have changed.

        What is known of a newcomer may be that of a replica which its node has dropped since, and a voter that is
        believed to hold what it does not could help to commit it. So it has to acknowledge an append that was sent
        after the change was asked for: a node drops its replica before it may be asked for again.
        """
        asked = self._asked
        if asked is None:
            return False
        state = lead.followers.get(asked.newcomer)
        if state is not None and state.matched > asked.seq:
            self._asked = None
            if self._refused(lead, asked.wanted, asked.done):
                return False
            self._start(asked.wanted, asked.done)
            return True
        if self._core.now > asked.deadline:
            self._asked = None
            self._refuse(f"node {asked.newcomer} does not answer", asked.done)
        return False

    def _start(self, wanted: Voters, done: ChangeDone) -> None:
        index = self._core.append(pack_voters(wanted))
        self._outputs.note(logging.INFO, f"voters {_names(wanted)} from entry {index} on")
        self._waiting.append((index, done))

    def _refused(self, lead: Leadership, wanted: Voters, done: ChangeDone) -> bool:
        refusal = self._refusal(lead, wanted)
        if refusal is not None:
            self._refuse(refusal, done)
        return refusal is not None

    def _refuse(self, reason: str, done: ChangeDone) -> None:
        self._outputs.answer(done, Result(Code.CONDITION_FAILED, detail=f"group {self._group}: {reason}"))

    def _refusal(self, lead: Leadership, wanted: Voters) -> str | None:
        present, now = self._core.voters(), self._core.now
        if not lead.open:
            return "the leader has not committed an entry of its term yet"
        if not self._settled():
            return f"the change to voters {_names(present)} is not committed yet"
        if self._asked is not None:
            return f"node {self._asked.newcomer} is being checked"
        if lead.transfer is not None:
            return "the leadership is being handed over"
        if self._node not in wanted:
            return f"node {self._node} leads the group and cannot remove itself: hand the leadership over first"
        if not differ_by_one(present, wanted):
            return f"voters {_names(present)} and {_names(wanted)} differ by more than one server"
        for newcomer in set(wanted) - set(present):
            refusal = self._refuse_newcomer(lead, newcomer)
            if refusal is not None:
                return refusal
        silent = [node for node in wanted if node != self._node and not lead.answers(node, now)]
        if 2 * (len(wanted) - len(silent)) <= len(wanted):
            return f"there would be no majority of voters {_names(wanted)}: no answer from {_names(silent)}"
        return None

    def _refuse_newcomer(self, lead: Leadership, node: int) -> str | None:
        if node not in self._told:
            return f"node {node} is not a learner of the group"
        if not lead.answers(node, self._core.now):
            return f"node {node} does not answer"
        match, last = self._core.match_index(node), self._log.last_index
        if match < max(last - MAX_LAG, self._log.base_index):
            return f"node {node} is {last - match} entries behind"
        return None

    def committed(self, index: int) -> None:
        """The change of entry ``index`` is committed."""
        while self._waiting and self._waiting[0][0] <= index:
            self._outputs.answer(self._waiting.pop(0)[1], Result(Code.OK))

    def fail(self, outcome: Result) -> None:
        """The leadership is lost: the outcome of pending changes is unknown here."""
        waiting, self._waiting = self._waiting, []
        asked, self._asked = self._asked, None
        for done in [*(done for _, done in waiting), *(() if asked is None else (asked.done,))]:
            self._outputs.answer(done, outcome)


def _names(nodes: Iterable[int]) -> str:
    return ", ".join(map(str, nodes))
