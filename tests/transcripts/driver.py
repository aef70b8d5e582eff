"""Plays a transcript: what goes into the replicas of a group, and beneath each line, indented, what comes out.

A transcript is a script and its own expected output. Lines that begin in the first column are played; ``#`` begins a
comment. Each node has a disk that syncs at once, unless it is slow, and applies at once what is committed.

    group 1 2 3 [learners 4]      start these nodes, the first ones with a vote
    elect NODE                    it becomes the leader of them all; how is not shown
    after SECONDS                 time passes; nobody notices before it ticks
    tick NODE                     NODE looks at the time
    deliver [SRC>DST ...]         what is on its way (on these links) arrives, then what comes of that, until nothing is
    pass [SRC>DST ...]            only what is on its way now
    lose [SRC>DST ...]            it is lost
    slow NODE / synced NODE       its disk syncs nothing any more / has synced everything
    put NODE VALUE, read NODE lease|quorum, voters NODE 1 2 3, transfer NODE TARGET
    snapshot NODE                 a snapshot of all that is applied was written, and the log forgets what it covers
    installed NODE                the snapshot that NODE fetches is there and taken over
    again SRC>DST N               the message that arrived N messages ago on this link arrives once more
    forget NODE INDEX             its disk forgets what came since entry INDEX, that one included; then as restart
    restart NODE                  NODE is killed, and comes back with what was on its disk
    show NODE                     its role, log and indexes
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, Final

from faults.sim.raftreplica import recover
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft import RaftConfig
from raftkv.raft.configurations import CONFIG, unpack_voters
from raftkv.raft.consensus import Consensus
from raftkv.raft.entries import is_batch, unpack_batch
from raftkv.raft.log import FIRST_INDEX
from raftkv.raft.messages import Type
from raftkv.raft.proposals import Proposal
from raftkv.raft.ready import Appended, Barred, Covered, HardState, Offer, Ready, Record, Truncated

_GROUP: Final = 1
_ROLES: Final = ("follower", "candidate", "leader")
_FIELDS: Final[dict[Type, str]] = {
    Type.APPEND: "term {0}, after entry {3} of term {4}, commit {5}: {6}",
    Type.ACK: "term {0}, {3}, {5} is the last",
    Type.STALE: "term {0}",
    Type.PREVOTE: "term {0}? last entry {1} of term {2}",
    Type.PREVOTE_REPLY: "term {0}: {1}, own term {2}",
    Type.VOTE: "term {0}, last entry {1} of term {2}{3}",
    Type.VOTE_REPLY: "term {0}",
    Type.TIMEOUT_NOW: "term {0}",
    Type.SNAPSHOT_OFFER: "term {0}: of entry {1} of term {2}",
    Type.HEARD: "term {0}",
    Type.LOST: "term {0}: had entry {1} of term {2}",
    Type.BARRED: "term {0}",
}


def _entry(command: bytes) -> str:
    if command.startswith(CONFIG):
        return f"voters {' '.join(map(str, unpack_voters(command)))}"
    if is_batch(command):
        return ", ".join(f"put {op.value.decode()}" for op in unpack_batch(command)[1] if isinstance(op, Put))
    return "no-op"


def _message(message: list[Any]) -> str:
    kind, fields = Type(message[1]), list(message[2:])
    if kind == Type.APPEND:
        fields[6] = "; ".join(f"{_entry(command)} of term {term}" for term, command in fields[6]) or "heartbeat"
    elif kind == Type.ACK:
        fields[3] = f"holds up to {fields[4] - 1}" if fields[3] else f"no match, try {fields[4]}"
    elif kind == Type.PREVOTE_REPLY:
        fields[1] = "yes" if fields[1] else "no"
    elif kind == Type.VOTE:
        fields[3] = ", asked to by the leader" if fields[3] else ""
    return f"{kind.name} {_FIELDS[kind].format(*fields)}"


def _record(record: Record) -> str:
    if isinstance(record, HardState):
        return f"term {record.term}, vote for {record.vote or 'nobody'}"
    if isinstance(record, Appended):
        return f"entry {record.index} of term {record.term}: {_entry(record.command)}"
    if isinstance(record, Truncated):
        return f"no entry from {record.first} on"
    if isinstance(record, Covered):
        return f"a snapshot covers entry {record.index} of term {record.term}"
    assert isinstance(record, Barred)
    return f"lost entries up to {record.index} of term {record.term}"


class _Node:
    """One replica, what its disk holds, and what waits for the disk."""

    def __init__(self, play: Play, number: int, founders: tuple[int, ...]) -> None:
        self.play, self.number, self.founders = play, number, founders
        self.slow = False
        self.records: list[Record] = []
        self.durable = self.starts = 0
        self.base: tuple[int, int, tuple[int, ...]] = (FIRST_INDEX, 0, founders)
        self.start()

    def start(self) -> None:
        self.starts += 1
        del self.records[self.durable :]
        found = recover(self.records)
        self.waiting: list[tuple[int, int, list[Any]]] = []
        self.offer: Offer | None = None
        self.recorded = 0
        index, base_term, voters = self.base
        self.replica = Consensus(
            _GROUP,
            self.number,
            self.play.now,
            hard_state=(found.term, found.vote),
            base=(index, base_term),
            base_voters=voters,
            entries=[entry for entry in found.entries if entry[1] > index],
            lost=found.lost != (0, 0),
            rng=random.Random(100 * self.starts + self.number),
            config=RaftConfig(),
            link_number=lambda _: 1,
        )
        if self.play.learners:
            self.replica.set_learners(self.play.learners, self.play.now)

    def step(self) -> None:
        ready = self.replica.step(self.play.now)
        for record in ready.records:
            self.play.say(self.number, "persist", _record(record))
        self.records += ready.records
        self.recorded += len(ready.records)
        for node, message in ready.messages:
            self.send(node, message, "send")
        self.waiting += [(self.recorded, node, message) for node, message in ready.after]
        for _, text in ready.notes:
            self.play.say(self.number, "note", text)
        self.finish(ready)
        if not self.slow:
            self.sync()
        else:
            for _, node, message in self.waiting[len(self.waiting) - len(ready.after) :]:
                self.play.say(self.number, "hold", f"for {node}: {_message(message)}")
        if ready.more:
            self.step()

    def finish(self, ready: Ready) -> None:
        for entry in ready.committed:
            self.play.say(self.number, "apply", f"entry {entry.index}: {_entry(entry.command)}")
            if entry.opened is not None:
                entry.opened.answer([Result(Code.OK)] * len(entry.opened.ops))
        for read in ready.reads:
            read(Code.OK)
        for to, what in ready.answers:
            to(what)
        if ready.fetch is not None and ready.fetch != self.offer:
            self.offer = ready.fetch
            where = f"of entry {self.offer.index} of term {self.offer.term} from {self.offer.peer}"
            self.play.say(self.number, "fetch", f"the snapshot {where}")
        if ready.committed and self.replica.applied(ready.committed[-1].index, 0, self.play.now):
            self.step()

    def sync(self) -> None:
        """All that was persisted is on stable storage: what waited for it may leave."""
        self.durable = len(self.records)
        waiting, self.waiting = self.waiting, []
        for _, node, message in waiting:
            self.send(node, message, "send")
        if self.replica.synced(self.recorded):
            self.step()

    def send(self, node: int, message: list[Any], how: str) -> None:
        self.play.say(self.number, how, f"to {node}: {_message(message)}")
        self.play.wire.append((self.number, node, [message[0], int(message[1]), *message[2:]]))

    def answers(self, what: str) -> Callable[[Any], None]:
        def answer(outcome: Any) -> None:
            result = outcome[0] if isinstance(outcome, list) else outcome
            code = result if isinstance(result, Code) else Code(result.code)
            detail = "" if isinstance(result, Code) else result.detail
            hint = "" if isinstance(result, Code) or not result.hint else f", {result.hint} leads"
            self.play.say(self.number, "answer", f"{what}: {code.name}{hint}{': ' * bool(detail)}{detail}")

        return answer

    # -- lines of a transcript

    def do_tick(self) -> None:
        self.replica.tick(self.play.now)

    def do_slow(self) -> None:
        self.slow = True

    def do_synced(self) -> None:
        self.slow = False
        self.sync()

    def do_put(self, value: str) -> None:
        done = self.answers(f"put {value}")
        refusal = self.replica.propose(Proposal([Put(0, b"k", value.encode())], len(value), done))
        if refusal is not None:
            done(refusal)

    def do_read(self, kind: str) -> None:
        done = self.answers(f"{kind} read")
        refusal = self.replica.read(kind == "quorum", done)
        if refusal is not None:
            done(refusal)

    def do_voters(self, *voters: str) -> None:
        self.replica.change_members([*map(int, voters)], self.answers(f"voters {' '.join(voters)}"), self.play.now)

    def do_transfer(self, target: str) -> None:
        if not self.replica.transfer(int(target), self.play.now):
            self.play.say(self.number, "answer", "transfer: refused")

    def do_snapshot(self) -> None:
        log, index = self.replica.log, self.replica.core.applied_index()
        term = log.term_at(index)
        assert term is not None
        self.base = index, term, log.configurations.at(index)
        self.replica.snapshot_written(index, term, 100)
        log.compact(index)

    def do_installed(self) -> None:
        assert self.offer is not None
        voters = self.play.nodes[self.offer.peer].base[2]
        self.base = self.offer.index, self.offer.term, voters
        self.replica.snapshot_installed(self.offer, 0, voters)

    def do_forget(self, index: str) -> None:
        appended = [one.index if isinstance(one, Appended) else 0 for one in self.records]
        self.durable = appended.index(int(index))
        self.start()

    def do_restart(self) -> None:
        self.start()

    def do_show(self) -> None:
        log, core = self.replica.log, self.replica.core
        entries = "; ".join(f"{index} of term {term}" for _, index, term in log.entries)
        role = _ROLES[core.role()]
        self.play.say(self.number, "is", f"{role} in term {core.term()}, committed {core.commit_index()}")
        self.play.say(self.number, "holds", entries)


class Play:
    """One transcript being played. ``played``: its lines, with what came out."""

    def __init__(self) -> None:
        self.now = 100.0
        self.nodes: dict[int, _Node] = {}
        self.learners: tuple[int, ...] = ()
        self.wire: list[tuple[int, int, list[Any]]] = []
        self.arrived: dict[str, list[list[Any]]] = {}
        self.played: list[str] = []

    def say(self, node: int, how: str, what: str) -> None:
        self.played.append(f"    {node} {how:<8}{what}")

    def play(self, line: str) -> None:
        words = line.split()
        if not words or words[0].startswith("#"):
            return
        name, arguments = words[0], words[1:]
        if name == "group":
            at = arguments.index("learners") if "learners" in arguments else len(arguments)
            voters, self.learners = tuple(map(int, arguments[:at])), tuple(map(int, arguments[at + 1 :]))
            self.nodes = {node: _Node(self, node, voters) for node in (*voters, *self.learners)}
            self.now += 1.0  # whoever has just started votes for nobody
        elif name == "elect":
            shown = len(self.played)
            self.play(f"tick {arguments[0]}")
            self.play("deliver")
            del self.played[shown:]
        elif name == "after":
            self.now += float(arguments[0])
        elif name == "again":
            src, dst = map(int, arguments[0].split(">"))
            self.arrive(src, dst, self.arrived[arguments[0]][-int(arguments[1])])
        elif name in ("deliver", "pass", "lose"):
            self._links(name, arguments)
        else:
            self._input(name, self.nodes[int(arguments[0])], arguments[1:])

    def _links(self, name: str, links: list[str]) -> None:
        moving = True
        while moving:
            found = [item for item in self.wire if not links or f"{item[0]}>{item[1]}" in links]
            moving = bool(found) and name == "deliver"
            for item in found:
                self.wire = [other for other in self.wire if other is not item]
                src, dst, message = item
                if name == "lose":
                    self.say(dst, "misses", f"from {src}: {_message(message)}")
                else:
                    self.arrived.setdefault(f"{src}>{dst}", []).append(message)
                    self.arrive(src, dst, message)

    def arrive(self, src: int, dst: int, message: list[Any]) -> None:
        self.say(dst, "gets", f"from {src}: {_message(message)}")
        self.nodes[dst].replica.receive(src, message, self.now)
        self.nodes[dst].step()

    def _input(self, name: str, node: _Node, arguments: list[str]) -> None:
        action = getattr(node, f"do_{name}", None)
        if action is None:
            raise ValueError(f"no such line: {name}")
        action(*arguments)
        if name not in ("slow", "show"):
            node.step()


def played(script: Iterable[str]) -> str:
    """The transcript with what comes out now."""
    play = Play()
    for line in script:
        if line.startswith("    "):
            continue
        play.played.append(line.rstrip())
        play.play(line)
    return "\n".join(play.played) + "\n"
