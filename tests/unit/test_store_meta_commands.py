"""Guarantee: the meta group decides about moves, groups and nodes; what would harm is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.commands.base import Command
from raftkv.commands.meta import ChangeCluster, FormCluster
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.codec import pack
from raftkv.store.meta import MetaStore
from raftkv.store.meta_state import MetaState
from shards import Node, initial_map
from shards.moves import Phase


class Meta:
    """A meta store with a token of its own for each command."""

    def __init__(self, nodes: int = 4, groups: int = 2) -> None:
        self.store = MetaStore()
        members = [Node(i, f"h:{i}", f"p:{i}", f"life {i}") for i in range(1, nodes + 1)]
        first = initial_map("c", members, groups, 256, 3)
        self.store.apply(1, [FormCluster(pack(first.to_wire()))])
        self.number = 0
        self.time = 1

    @property
    def state(self) -> MetaState:
        return self.store.state

    @property
    def epoch(self) -> int:
        assert self.store.map is not None
        return self.store.map.epoch

    def slots_of(self, group: int) -> list[int]:
        assert self.store.map is not None
        return list(self.store.map.slots_of(group))

    def op(self, verb: str, *arguments: Any) -> ChangeCluster:
        self.number += 1
        return ChangeCluster(0, self.number.to_bytes(16, "big"), verb, pack(list(arguments)))

    def tell(self, op: Command) -> Result:
        self.time += 10
        before = self.store.digest()
        (result,) = self.store.apply(self.time, [op])
        if result.code != Code.OK:
            assert self.store.state == MetaState.from_wire(self.store.state.to_wire())
            assert before != self.store.digest()  # the time and the token
        return result

    def do(self, verb: str, *arguments: Any) -> int:
        result = self.tell(self.op(verb, *arguments))
        assert result.code == Code.OK, result.detail
        return result.number

    def refused(self, verb: str, *arguments: Any) -> str:
        state = self.state
        result = self.tell(self.op(verb, *arguments))
        assert result.code == Code.CONDITION_FAILED, result
        assert self.state is state
        return result.detail


def started(meta: Meta, count: int = 3, concurrency: int = 2) -> list[int]:
    """Slots of group 1, ``count`` of which are planned to move to group 2 one by one."""
    slots = meta.slots_of(1)
    plan = [[[slot], 1, 2] for slot in slots[:count]]
    assert meta.do("plan", meta.epoch, plan, concurrency, 0) == 1
    return slots


def test_a_plan_is_started_move_by_move_and_ends() -> None:
    meta = Meta()
    slots = started(meta)
    assert [meta.do("next") for _ in range(3)] == [1, 2, 0]
    meta.do("commit", 1)
    assert meta.state.moves[1].phase is Phase.COMMITTED
    assert meta.state.map is not None
    assert meta.state.map.owners[slots[0]] == 2
    assert meta.state.map.owners[slots[1]] == 1
    meta.do("finish", 1, 5, 600, 12)
    assert meta.do("next") == 3
    for number in (2, 3):
        meta.do("commit", number)
        meta.do("finish", number, 1, 1, 1)
    job = meta.state.job
    assert job is not None
    assert (job.open, job.done, job.done_slots, job.failed, job.moves) == (False, 3, 3, 0, 3)
    first = meta.state.finished[0]
    assert (first.id, first.records, first.bytes, first.freeze) == (1, 5, 600, 12)
    assert meta.slots_of(1) == slots[3:]


def test_commit_and_cancel_race_and_the_log_decides() -> None:
    meta = Meta()
    slots = started(meta)
    meta.do("next")
    meta.do("next")
    meta.do("commit", 1)
    meta.do("cancel")
    assert meta.state.moves[1].phase is Phase.COMMITTED
    assert meta.state.moves[2].phase is Phase.CANCELLED
    assert "cancelled" in meta.refused("commit", 2)
    assert "is committed" in meta.refused("abandon", 1)
    meta.do("commit", 1)
    meta.do("finish", 1, 0, 0, 0)
    meta.do("finish", 2, 0, 0, 0)
    assert meta.do("finish", 2, 0, 0, 0) == 0
    job = meta.state.job
    assert job is not None
    assert (job.open, job.cancelled, job.done, job.failed) == (False, True, 1, 2)
    assert meta.state.map is not None
    assert meta.state.map.owners[slots[1]] == 1


def test_a_move_is_not_forgotten_while_it_goes_on() -> None:
    meta = Meta()
    started(meta)
    meta.do("next")
    assert "is still under way" in meta.refused("finish", 1, 0, 0, 0)


def test_pause_and_tune() -> None:
    meta = Meta()
    started(meta)
    meta.do("pause", True)
    assert meta.do("next") == 0
    meta.do("pause", False)
    meta.do("tune", 1, 1000)
    assert [meta.do("next"), meta.do("next")] == [1, 0]
    assert meta.state.job is not None
    assert (meta.state.job.rate, meta.state.job.concurrency) == (1000, 1)


def test_a_plan_that_does_not_fit_the_map_is_refused() -> None:
    meta = Meta()
    slot = meta.slots_of(1)[0]
    assert "epoch" in meta.refused("plan", meta.epoch + 1, [[[slot], 1, 2]], 1, 0)
    assert "belongs to" in meta.refused("plan", meta.epoch, [[[slot], 2, 1]], 1, 0)
    assert "no data group 7" in meta.refused("plan", meta.epoch, [[[slot], 1, 7]], 1, 0)
    assert "no data group 0" in meta.refused("plan", meta.epoch, [[[slot], 1, 0]], 1, 0)
    assert "twice" in meta.refused("plan", meta.epoch, [[[slot], 1, 2], [[slot], 1, 2]], 1, 0)
    assert "nothing" in meta.refused("plan", meta.epoch, [], 1, 0)
    meta.do("plan", meta.epoch, [[[slot], 1, 2]], 1, 0)
    assert "under way" in meta.refused("plan", meta.epoch, [[[slot], 1, 2]], 1, 0)


def test_a_repeated_command_has_the_outcome_of_the_first() -> None:
    meta = Meta()
    slot = meta.slots_of(1)[0]
    plan = meta.op("plan", meta.epoch, [[[slot], 1, 2]], 1, 0)
    first, state = meta.tell(plan), meta.state
    assert meta.tell(plan) == first
    assert meta.state is state
    refused = meta.op("remove group", 1)
    assert meta.tell(refused) == meta.tell(refused)


def test_groups_come_and_go() -> None:
    meta = Meta()
    assert meta.do("add group", [1, 2, 4]) == 3
    assert meta.state.map is not None
    assert meta.state.map.group(3).founders == (1, 2, 4)
    assert "owns" in meta.refused("remove group", 1)
    meta.do("remove group", 3)
    assert meta.state.garbage == {(3, 1), (3, 2), (3, 4)}
    assert meta.do("add group", [1, 2, 3]) == 4
    assert "no node 9" in meta.refused("add group", [1, 2, 9])
    assert "each once" in meta.refused("add group", [1, 1])


def test_members_change_one_by_one() -> None:
    meta = Meta()
    group = meta.state.map.group(1) if meta.state.map is not None else None
    assert group is not None
    new = next(node for node in (1, 2, 3, 4) if node not in group.voters)
    old = group.voters[1]
    wanted = [new if node == old else node for node in group.voters]
    meta.do("want", meta.epoch, [[1, wanted]])
    assert meta.state.wanted == {1: tuple(wanted)}
    assert "not wanted" in meta.refused("learn", 1, 99)
    meta.do("learn", 1, new)
    assert meta.state.map is not None
    assert meta.state.map.group(1).learners == (new,)
    meta.do("voters", 1, meta.number, [*group.voters, new])
    assert meta.state.map.group(1).learners == ()
    assert meta.state.wanted
    meta.do("voters", 1, meta.number, wanted)
    assert meta.state.map.group(1).voters == tuple(wanted)
    assert meta.state.map.group(1).founders == group.founders
    assert not meta.state.wanted
    assert meta.state.garbage == {(1, old)}
    meta.do("want", meta.epoch, [[1, [old if node == new else node for node in wanted]]])
    assert "has not dropped" in meta.refused("learn", 1, old)
    meta.do("dropped", 1, old)
    meta.do("learn", 1, old)


def test_the_order_of_voters_is_a_preference_that_changes_at_once() -> None:
    meta = Meta()
    assert meta.state.map is not None
    voters = meta.state.map.group(1).voters
    meta.do("want", meta.epoch, [[1, voters[::-1]]])
    assert meta.state.map.group(1).voters == voters[::-1]
    assert not meta.state.wanted


def test_nodes_join_drain_and_leave_for_good() -> None:
    meta = Meta(nodes=3)
    assert meta.do("add node", "h:9", "p:9", "new life") == 4
    assert meta.do("add node", "h:9", "p:9", "new life") == 4
    assert "other addresses" in meta.refused("add node", "h:8", "p:9", "new life")
    told = meta.store.check(meta.op("add node", "h:8", "p:9", "new life"), 1)
    assert told is not None
    assert told.detail == "node 4 joined from this data folder with other addresses, h:9 and p:9"
    assert "has the address" in meta.refused("add node", "h:1", "p:8", "another")
    assert "still holds" in meta.refused("remove node", 3)
    assert meta.state.map is not None
    moved = [[g.id, [4 if node == 3 else node for node in g.voters]] for g in meta.state.map.groups_on(3)]
    assert "leaves replicas" in meta.refused("drain", meta.epoch, 3, [[1, [1, 2, 3]]])
    meta.do("drain", meta.epoch, 3, moved)
    assert meta.state.draining == (3,)
    assert "being drained" in meta.refused("add group", [1, 2, 3])
    for group, voters in moved:
        meta.do("learn", group, 4)
        meta.do("voters", group, meta.number, voters)
    meta.do("remove node", 3)
    meta.do("remove node", 3)
    assert meta.state.map.removed == (3,)
    assert not meta.state.garbage
    assert not meta.state.draining
    assert meta.do("add node", "h:3", "p:3", "life again") == 5


def test_a_drain_can_be_taken_back() -> None:
    meta = Meta(nodes=4)
    assert meta.state.map is not None
    moved = [
        [g.id, [next(n for n in (1, 2, 3, 4) if n not in g.voters) if node == 3 else node for node in g.voters]]
        for g in meta.state.map.groups_on(3)
    ]
    meta.do("drain", meta.epoch, 3, moved)
    meta.do("undrain", 3)
    assert not meta.state.wanted
    assert not meta.state.draining


@pytest.mark.parametrize(
    "command",
    [
        ["plan"],
        ["plan", 1, 7, 1, 0],
        ["plan", 1, [[[1], 1, 2]], 0, 0],
        ["plan", 1, [[["x"], 1, 2]], 1, 0],
        ["plan", True, [], 1, 0],
        ["commit", [1]],
        ["commit", {}],
        ["finish", 1, -1, 0, 0],
        ["pause", 1],
        ["nonsense"],
        ["want", 1, [[1]]],
        ["voters", 1, 1, []],
        ["voters", 1, "x", [1]],
        ["add node", 1, 2, 3],
        ["drain", 1, 1, 5],
        ["learn", 1, [1]],
    ],
)
def test_malformed_commands_change_nothing(command: list[Any]) -> None:
    meta = Meta()
    started(meta)
    meta.do("next")
    state = meta.state
    result = meta.tell(meta.op(*command))
    assert result.code in (Code.INVALID_ARGUMENT, Code.CONDITION_FAILED)
    assert meta.state is state


def test_a_snapshot_carries_everything() -> None:
    meta = Meta()
    started(meta)
    meta.do("next")
    meta.do("add group", [1, 2, 4])
    meta.do("remove group", 3)
    other = MetaStore()
    restore = other.begin_restore()
    for chunk in meta.store.snapshot().chunks():
        restore.feed(chunk)
    restore.finish()
    assert other.state == meta.state
    assert other.digest() == meta.store.digest()


def test_a_learner_stays_one_until_it_was_a_voter_or_its_node_is_removed() -> None:
    """Nobody can tell whether a change that makes it a voter is under way: it must not drop its replica."""
    meta = Meta()
    assert meta.state.map is not None
    group = meta.state.map.group(1)
    new = next(node for node in (1, 2, 3, 4) if node not in group.voters)
    meta.do("want", meta.epoch, [[1, [*group.voters[:2], new]]])
    meta.do("learn", 1, new)
    meta.do("want", meta.epoch, [[1, group.voters]])
    assert meta.state.map.group(1).learners == (new,)
    assert meta.state.wanted == {1: group.voters}
    assert not meta.state.garbage
    meta.do("voters", 1, meta.number, [*group.voters, new])
    meta.do("voters", 1, meta.number, group.voters)
    assert not meta.state.wanted
    assert meta.state.garbage == {(1, new)}


def test_a_node_that_is_only_to_become_a_voter_can_be_removed() -> None:
    meta = Meta(nodes=3)
    new = meta.do("add node", "h:9", "p:9", "new life")
    assert meta.state.map is not None
    voters = meta.state.map.group(1).voters
    meta.do("want", meta.epoch, [[1, [*voters[:2], new]]])
    meta.do("learn", 1, new)
    assert "about to get" in meta.refused("remove node", new)
    meta.do("want", meta.epoch, [[1, voters]])
    meta.do("remove node", new)
    assert meta.state.map.group(1).learners == ()
    meta.do("voters", 1, meta.number, voters)
    assert not meta.state.wanted


def test_a_late_report_of_voters_is_refused() -> None:
    meta = Meta()
    assert meta.state.map is not None
    voters = meta.state.map.group(1).voters
    new = next(node for node in (1, 2, 3, 4) if node not in voters)
    meta.do("voters", 1, 10, [*voters, new])
    meta.do("voters", 1, 12, voters)
    assert "known as of entry 12" in meta.refused("voters", 1, 10, [*voters, new])
    assert meta.state.map.group(1).voters == voters
    meta.do("voters", 1, 12, voters)


def test_what_leaders_are_spread_over_is_set_with_their_new_order() -> None:
    meta = Meta(nodes=3)
    assert "plan again" in meta.refused("spread leaders", meta.epoch + 1, "nodes", [])
    assert meta.tell(meta.op("spread leaders", meta.epoch, "racks", [])).code == Code.INVALID_ARGUMENT
    meta.do("spread leaders", meta.epoch, "nodes", [[1, [2, 1, 3]]])
    assert meta.store.map is not None
    assert meta.store.map.leaders_over == "nodes"
    assert meta.store.map.group(1).voters == (2, 1, 3)
    epoch = meta.epoch
    meta.do("spread leaders", epoch, "nodes", [])
    assert meta.epoch == epoch
    meta.do("spread leaders", epoch, "hosts", [])
    assert meta.store.map.leaders_over == "hosts"
