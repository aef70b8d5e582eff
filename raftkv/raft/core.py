"""PySyncObj 0.3.17's core, driven by hand. No other file knows the library.

What the library still decides: terms, whether a vote is granted, when an election is won, whether a follower's log
matches and where it must be cut, the entry that opens a term.

What is decided here and in the rest of this package instead: when anything is durable, what counts as committed, what
is sent when, who may stand for election, reads, snapshots, time and randomness. The library's methods for those are
replaced below. The module is loaded a second time under no name, so that replacing its clock, log storage and poller
touches nobody else's PySyncObj.

The two meet in :class:`Core`: events go in through its methods, and what the library wants to send comes out as their
return values. Nothing here awaits, logs or sends.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from raftkv.errors import RaftKVError
from raftkv.raft.config import RaftConfig
from raftkv.raft.log import BrokenInvariant, GroupLog
from raftkv.raft.ready import Entry

FOLLOWER: Final = 0
CANDIDATE: Final = 1
LEADER: Final = 2

WANTED_VERSION: Final = "0.3.17"

PRIVATE_STATE: Final = (
    "otherNodes",
    "raftState",
    "raftCurrentTerm",
    "raftLeader",
    "raftElectionDeadline",
    "raftCommitIndex",
    "raftLastApplied",
    "raftNextIndex",
    "raftMatchIndex",
    "noopIDx",
)
"""Attributes ``SyncObj.__<name>`` that the adapter reads or sets."""

PRIVATE_CALLED: Final = ("onMessageReceived", "setCurrentTerm", "setState", "onBecomeLeader")
"""Methods ``SyncObj.__<name>`` that the adapter calls."""

PRIVATE_OVERRIDDEN: Final = (
    "generateRaftTimeout",
    "applyLogEntries",
    "sendAppendEntries",
    "onBecomeLeader",
    "tryLogCompaction",
    "loadDumpFile",
    "doApplyCommand",
    "parseChangeClusterRequest",
)
"""Methods ``SyncObj.__<name>`` that the adapter replaces; the library looks them up on the instance."""


if VERSION != WANTED_VERSION:
    raise RaftKVError(f"raftkv needs pysyncobj {WANTED_VERSION}, found {VERSION}")


class _Poller:
    """The library polls its sockets here; it has none."""

    def poll(self, timeout: float) -> None:
        pass


_time: float | None = None


def _set_time(now: float) -> None:
    """Set the time that the library sees until the next call. Called at each entry into a core."""
    global _time
    _time = now


def _now() -> float:
    if _time is None:
        raise RaftKVError("the library was entered without a time")
    return _time


def _load() -> ModuleType:
    spec = importlib.util.find_spec("pysyncobj.syncobj")
    if spec is None or spec.loader is None:
        raise RaftKVError("pysyncobj cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.monotonicTime = _now  # type: ignore[attr-defined]
    module.createJournal = lambda journal: journal  # type: ignore[attr-defined]
    module.createPoller = lambda _: _Poller()  # type: ignore[attr-defined]
    return module


_module: Any = _load()
SyncObj: Any = _module.SyncObj


class _Journal(Journal):  # type: ignore[misc]
    """A group's log as the library wants its log storage: position 0 is the base."""

    def __init__(self, log: GroupLog) -> None:
        self._log = log

    def __getitem__(self, item: Any) -> Any:
        return self._log.entries[item]

    def __len__(self) -> int:
        return len(self._log.entries)

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._log.append(command, idx, term)

    def deleteEntriesFrom(self, position: int) -> None:
        self._log.truncate(self._log.base_index + position)

    def deleteEntriesTo(self, position: int) -> None:
        self._log.compact(self._log.base_index + position)

    def clear(self) -> None:
        raise BrokenInvariant("the library's own snapshots are off")

    def setRaftCommitIndex(self, index: int) -> None:
        self._log.commit(index)

    def getRaftCommitIndex(self) -> int:
        return self._log.base_index

    def setCurrentTerm(self, term: int, vote: int | None) -> None:
        self._log.set_hard_state(term, vote or 0)

    def getCurrentTerm(self) -> int:
        return self._log.term

    def getVotedForNodeId(self) -> int | None:
        return self._log.vote or None

    def _destroy(self) -> None:
        pass


class _Peer(int, Node):  # type: ignore[misc]
    """A member of the group: its number, so that what the library keeps by member is found by number, and the order of
    its sets is fixed."""

    __eq__ = int.__eq__
    __ne__ = int.__ne__
    __hash__ = int.__hash__
    __str__ = int.__repr__


class _Capture(Transport):  # type: ignore[misc]
    """Collects what the library sends, for the method that called the library."""

    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.sent: list[tuple[int, dict[str, Any]]] = []

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        self.sent.append((node.id, message))
        return True

    def take(self) -> list[tuple[int, dict[str, Any]]]:
        sent, self.sent = self.sent, []
        return sent


class Core(SyncObj):  # type: ignore[misc]
    """One replica's Raft state.

    The voters are those that the log names, which may leave this node out: then it neither stands nor counts itself.
    """

    def __init__(self, node: int, log: GroupLog, now: float, rng: random.Random, config: RaftConfig) -> None:
        _set_time(now)
        self.now = now
        """Time of the input that is being taken, in seconds."""
        self._node = node
        self._rng = rng
        self._timing = config
        self._log = log
        self._won = False
        self._votes: set[tuple[int, int]] = set()
        self._capture = _Capture()
        self._known: dict[int, _Peer] = {}
        self._voters: tuple[int, ...] = ()
        self._others: list[int] = []
        conf = _module.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            raftMinTimeout=config.election_min,
            raftMaxTimeout=config.election_max,
            appendEntriesPeriod=config.heartbeat,
            leaderFallbackTimeout=config.election_max,
            connectionTimeout=config.election_max,
            logCompactionMinEntries=2**62,
            logCompactionMinTime=2**62,
            useFork=False,
            journalFile=_Journal(log),
        )
        super().__init__(_Peer(node), [], conf, nodeClass=_Peer, transport=self._capture)
        self._SyncObj__raftLastApplied = log.base_index
        self._follow_voters()

    def _peer(self, node: int) -> _Peer:
        peer = self._known.get(node)
        if peer is None:
            peer = self._known[node] = _Peer(node)
        return peer

    def _follow_voters(self) -> None:
        """The log was changed: take over the voters that it names now."""
        voters = self._log.configurations.voters
        if voters == self._voters:
            return
        if self.role() == LEADER and self._node not in voters:
            raise BrokenInvariant(f"node {self._node} leads and is no longer among the voters {voters}")
        before, self._voters = self._voters, voters
        self._others = [node for node in voters if node != self._node]
        self._SyncObj__otherNodes = {self._peer(node) for node in self._others}
        for node in set(before) - set(voters):
            self._capture._onNodeDisconnected(self._peer(node))
        for node in self._others:
            self._capture._onNodeConnected(self._peer(node))

    # -- views

    def term(self) -> int:
        return self._SyncObj__raftCurrentTerm  # type: ignore[no-any-return]

    def role(self) -> int:
        return self._SyncObj__raftState  # type: ignore[no-any-return]

    def leader(self) -> int:
        """Node that leads as far as this replica knows, 0 = nobody."""
        leader: Any = self._SyncObj__raftLeader
        return 0 if leader is None else int(leader.id)

    def voters(self) -> tuple[int, ...]:
        return self._voters

    def votes(self) -> bool:
        """Whether this node is among the voters."""
        return self._node in self._voters

    def peers(self) -> list[int]:
        """The other voters, ascending."""
        return self._others

    def commit_index(self) -> int:
        return self._SyncObj__raftCommitIndex

    def applied_index(self) -> int:
        return self._SyncObj__raftLastApplied

    def no_op_index(self) -> int:
        """Index of the entry that opened this leader's term."""
        return self._SyncObj__noopIDx  # type: ignore[no-any-return]

    def election_deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    def next_index(self, peer: int) -> int:
        return self._SyncObj__raftNextIndex[peer]  # type: ignore[no-any-return]

    def match_index(self, peer: int) -> int:
        return self._SyncObj__raftMatchIndex.get(peer, 0)  # type: ignore[no-any-return]

    # -- elections

    def postpone_election(self) -> None:
        self._SyncObj__raftElectionDeadline = self.now + self._SyncObj__generateRaftTimeout()

    def campaign(self) -> list[tuple[int, dict[str, Any]]]:
        """Start an election in the next term. Returns the vote requests, each with the voter that it is for."""
        if self.role() == LEADER:
            raise BrokenInvariant("a leader does not campaign")
        if not self.votes():
            raise BrokenInvariant(f"node {self._node} is not among the voters {self._voters} and cannot campaign")
        _set_time(self.now)
        self._votes.clear()
        self._SyncObj__raftElectionDeadline = -1.0
        self._onTick(0.0)
        sent = self._capture.take()
        self._finish_election()
        requests = [(peer, message) for peer, message in sent if message["type"] == "request_vote"]
        return sorted(requests, key=lambda request: request[0])

    def receive_vote_request(self, peer: int, term: int, last_index: int, last_term: int) -> bool:
        """Returns whether the vote is granted (and recorded in the log storage)."""
        self._deliver(
            peer, {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
        )
        return any(message["type"] == "response_vote" for _, message in self._capture.take())

    def receive_vote(self, peer: int, term: int) -> None:
        """Count a vote: once for each voter and term, whatever the network repeats."""
        if self.role() != CANDIDATE or term != self.term() or (term, peer) in self._votes or peer not in self._voters:
            return
        self._votes.add((term, peer))
        self._deliver(peer, {"type": "response_vote", "term": term})
        self._finish_election()

    def _finish_election(self) -> None:
        # Deferred until the library's tick is over: within it, the rest of the tick would count this node's log as
        # stored by a majority of one before it is durable.
        if self._won:
            self._won = False
            # What a learner was known to hold in an older term must not count in this one.
            self._SyncObj__raftNextIndex.clear()
            self._SyncObj__raftMatchIndex.clear()
            SyncObj._SyncObj__onBecomeLeader(self)

    def adopt_term(self, term: int) -> None:
        """Another node is at a later term: follow it."""
        if term > self.term():
            self._SyncObj__setCurrentTerm(term, None)
            self.step_down()

    def step_down(self) -> None:
        self._SyncObj__setState(FOLLOWER)
        self._set_leader(None)

    def _set_leader(self, leader: _Peer | None) -> None:
        self._SyncObj__raftLeader = leader

    # -- replication

    def append(self, command: bytes) -> int:
        """Leader: add an entry of the current term. Returns its index."""
        index = self._log.last_index + 1
        self._log.append(command, index, self.term())
        self._follow_voters()
        return index

    def track(self, peer: int) -> None:
        """Leader: keep count of what ``peer`` holds, voter or not; nothing is known of it yet."""
        self._SyncObj__raftNextIndex.setdefault(self._peer(peer), self._log.last_index + 1)
        self._SyncObj__raftMatchIndex.setdefault(self._peer(peer), 0)

    def untrack(self, peer: int) -> None:
        """Forget what ``peer`` holds."""
        self._SyncObj__raftNextIndex.pop(peer, None)
        self._SyncObj__raftMatchIndex.pop(peer, None)

    def receive_append(
        self, peer: int, term: int, previous: int, previous_term: int, entries: list[Entry], commit: int
    ) -> dict[str, Any]:
        """Hand an append to the library. Returns its acknowledgement."""
        if self.role() == LEADER and term == self.term():
            raise BrokenInvariant(f"two leaders in term {term}: this node and node {peer}")
        self._deliver(
            peer,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "entries": entries,
                "prevLogIdx": previous,
                "prevLogTerm": previous_term,
            },
        )
        self._follow_voters()
        replies = [message for _, message in self._capture.take() if message["type"] == "next_node_idx"]
        if len(replies) != 1:
            raise BrokenInvariant(f"an append was answered {len(replies)} times")
        return replies[0]

    def follow(self, peer: int, term: int) -> None:
        """A leader of this or a later term was heard without an append (it offers a snapshot)."""
        if self.role() == LEADER and term == self.term():
            raise BrokenInvariant(f"two leaders in term {term}: this node and node {peer}")
        if term > self.term():
            self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(FOLLOWER)
        self._set_leader(self._peer(peer))
        self.postpone_election()

    def receive_match(self, peer: int, match: int) -> None:
        """Leader: ``peer`` holds this log up to ``match``. What was sent beyond it stays in flight."""
        ahead = self.next_index(peer)
        self._deliver(peer, {"type": "next_node_idx", "next_node_idx": match + 1, "reset": False, "success": True})
        self.set_next_index(peer, max(ahead, match + 1))

    def set_next_index(self, peer: int, index: int) -> None:
        """Clamped: never below what is known to match, never past the end of the own log."""
        low, high = self.match_index(peer) + 1, self._log.last_index + 1
        self._SyncObj__raftNextIndex[peer] = max(low, min(index, high))

    def set_commit_index(self, index: int) -> None:
        if index < self.commit_index():
            raise BrokenInvariant(f"commit index would go back from {self.commit_index()} to {index}")
        self._SyncObj__raftCommitIndex = index
        self._log.commit(index)

    def set_applied_index(self, index: int) -> None:
        self._SyncObj__raftLastApplied = index

    def install_snapshot(self, index: int, term: int, voters: Sequence[int]) -> None:
        """The state machine holds the state of ``index``: start the log there, with the voters as of then."""
        if index <= self.commit_index():
            raise BrokenInvariant(f"snapshot {index} is not beyond the commit index {self.commit_index()}")
        self._log.reset(index, term, voters)
        self._follow_voters()
        self._SyncObj__raftCommitIndex = index
        self._SyncObj__raftLastApplied = index

    def _deliver(self, peer: int, message: dict[str, Any]) -> None:
        _set_time(self.now)
        self._SyncObj__onMessageReceived(self._peer(peer), message)

    # -- what the library would do by itself and must not

    def _SyncObj__generateRaftTimeout(self) -> float:
        timing = self._timing
        return timing.election_min + (timing.election_max - timing.election_min) * self._rng.random()

    def _SyncObj__onBecomeLeader(self) -> None:
        self._won = True

    def _SyncObj__sendAppendEntries(self) -> None:
        """Sending is ours (``leadership.py``): a window, no copies of the tail, no time box."""

    def _SyncObj__applyLogEntries(self) -> bool:
        """Applying is ours (``group.py``): each entry is handed out once, and no exception is retried for ever."""
        return False

    def _SyncObj__tryLogCompaction(self) -> None:
        """Snapshots are ours (``snapshots.py``)."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        raise BrokenInvariant("the library's own snapshots are off")

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        raise BrokenInvariant("the library never applies commands")

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:
        """Entries never pass through pickle."""
