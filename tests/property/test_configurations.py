"""Property: whatever a log went through, the voters are those of its latest change, else those of its base.

Compared with the plainest model there is: keep every entry ever appended, look for the last change.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from faults.sim.raftreplica import GROUP, Dropped, recover
from raftkv.raft.configurations import CONFIG, Voters, pack_voters, unpack_voters
from raftkv.raft.log import FIRST_INDEX, GroupLog
from raftkv.raft.ready import Entry, Outputs, Record

VOTERS = st.lists(st.integers(1, 9), min_size=1, max_size=5, unique=True).map(lambda nodes: tuple(sorted(nodes)))


class LogMachine(RuleBasedStateMachine):
    """A log and its records, with changes, plain entries, truncation, compaction, snapshots and restarts."""

    @initialize(founders=VOTERS)
    def begin(self, founders: Voters) -> None:
        self.origin = founders
        self.entries: dict[int, bytes] = {}
        self.records: list[Record | Dropped] = []
        self.snapshot = (FIRST_INDEX, founders)
        self.term = 1
        self.outputs = Outputs()
        self.log = GroupLog(GROUP, self.outputs, (FIRST_INDEX, 0), founders, [], 1, 0)

    def expected(self, index: int) -> Voters:
        changes = [at for at, command in self.entries.items() if at <= index and command.startswith(CONFIG)]
        return unpack_voters(self.entries[max(changes)]) if changes else self.origin

    def persist(self) -> None:
        self.records += self.outputs.take([], [], False).records

    def add(self, command: bytes) -> None:
        index = self.log.last_index + 1
        self.log.append(command, index, self.term)
        self.entries[index] = command

    @rule(voters=VOTERS)
    def change(self, voters: Voters) -> None:
        self.add(pack_voters(voters))

    @rule(count=st.integers(1, 3))
    def write(self, count: int) -> None:
        for _ in range(count):
            self.add(b"\x00plain")

    @precondition(lambda self: self.log.last_index > max(self.snapshot[0], self.log.base_index))
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        floor = max(self.snapshot[0], self.log.base_index)
        first = data.draw(st.integers(floor + 1, self.log.last_index))
        self.log.truncate(first)
        self.entries = {index: command for index, command in self.entries.items() if index < first}
        self.term += 1

    @precondition(lambda self: self.log.last_index > max(self.snapshot[0], self.log.base_index))
    @rule(data=st.data(), keep=st.integers(0, 4))
    def take_snapshot(self, data: st.DataObject, keep: int) -> None:
        """As the group does: the snapshot has the voters of its entry, the log keeps a few entries before it."""
        index = data.draw(st.integers(max(self.snapshot[0], self.log.base_index) + 1, self.log.last_index))
        self.log.commit(index)
        self.snapshot = (index, self.log.configurations.at(index))
        term = self.log.term_at(index)
        assert term is not None
        self.log.cover(index, term, 1)
        self.log.compact(max(self.log.base_index, index - keep))

    @rule(ahead=st.integers(1, 5), voters=VOTERS)
    def install(self, ahead: int, voters: Voters) -> None:
        index = self.log.last_index + ahead
        self.snapshot = (index, voters)
        self.origin = voters
        self.log.reset(index, self.term, voters)
        self.entries = {}
        self.log.cover(index, self.term, 1)

    @rule()
    def restart(self) -> None:
        """Kill -9 after a sync: base and voters come from the snapshot, the rest from the WAL."""
        self.persist()
        state = recover(self.records)
        assert state.covered == self.snapshot[0]
        base = (state.covered, self.log.term_at(state.covered) or 0)
        self.outputs = Outputs()
        self.log = GroupLog(GROUP, self.outputs, base, self.snapshot[1], state.entries, 1, 0)

    @invariant()
    def voters_are_those_of_the_latest_change(self) -> None:
        configurations = self.log.configurations
        assert configurations.voters == self.expected(self.log.last_index)
        for index in range(self.log.base_index, self.log.last_index + 1):
            assert configurations.at(index) == self.expected(index)
        assert configurations.index <= self.log.last_index
        if configurations.index:
            assert self.entries[configurations.index].startswith(CONFIG)


TestLog = LogMachine.TestCase


@given(VOTERS)
def test_voters_survive_their_entry(voters: Voters) -> None:
    assert unpack_voters(pack_voters(voters)) == voters


@given(st.binary(max_size=40))
def test_other_bytes_are_refused_or_are_voters(data: bytes) -> None:
    """Nothing but an ascending list of ids passes, and that is what it is taken for."""
    try:
        voters = unpack_voters(CONFIG + data)
    except ValueError:
        return
    assert voters == tuple(sorted(set(voters)))
    assert voters
    assert voters[0] > 0


@given(VOTERS, VOTERS)
def test_majorities_of_neighbours_overlap(one: Voters, node: Voters) -> None:
    """What single-server changes rest on: lists that differ by one server have no disjoint majorities."""
    other = tuple(sorted(set(one) ^ {node[0]}))
    if other:
        union = set(one) | set(other)
        assert (len(one) // 2 + 1) + (len(other) // 2 + 1) > len(union)


def test_entries_of_the_base_are_refused() -> None:
    """A change that cannot be read is an error, not a change that is passed over."""
    entry: Entry = (CONFIG + b"\xc0", FIRST_INDEX + 1, 1)
    with pytest.raises(Exception, match="not a list of voters"):
        GroupLog(GROUP, Outputs(), (FIRST_INDEX, 0), (1,), [entry], 1, 0)
