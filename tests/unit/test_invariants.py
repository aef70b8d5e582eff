"""Guarantee: what goes wrong inside the nodes is noticed, and named by its kind, even if no client ever sees it.

Each test breaks one replica's memory or disk by hand. Before it does, nothing was reported.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from faults.sim.cluster import WAL_FOLDER, SimCluster, SimNode, SimSettings
from faults.sim.invariants import Invariants
from faults.sim.loop import SimLoop, simulate
from raftkv import AsyncClient
from raftkv.commands.records import Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft import RaftGroup
from raftkv.raft.entries import encoded, pack_batch
from raftkv.raft.log import NO_OP
from raftkv.raft.messages import Type
from raftkv.storage.wal_format import segment_name
from shards.slots import slot_of

GROUP = 1
SLOTS = 256
KEY = "a"


class World:
    """A cluster of three nodes and one group of data, and those who look at it."""

    def __init__(self, loop: SimLoop, settings: SimSettings | None) -> None:
        self.cluster = SimCluster(loop, random.Random(1), nodes=3, groups=1, slots=SLOTS, settings=settings)
        self.invariants = Invariants(self.cluster)
        self.client: AsyncClient = self.cluster.client("c1")

    @property
    def problems(self) -> list[str]:
        return self.invariants.problems

    async def start(self) -> None:
        await self.cluster.start()
        await self.write(5)

    async def write(self, count: int) -> None:
        for number in range(count):
            await self.client.put(KEY, str(number))

    def node(self, number: int) -> SimNode:
        return self.cluster.nodes[number]

    def group(self, number: int) -> RaftGroup:
        """The replica of the group of data on that node."""
        node = self.cluster.nodes[number].node
        assert node is not None
        group = node._replicas.get(GROUP)
        assert group is not None
        return group

    def leader(self) -> int:
        return self.cluster.leaders()[GROUP]

    def followers(self) -> tuple[int, int]:
        """Of the group of data; the second one leads nothing, not the meta group either."""
        leading = self.cluster.leaders()
        one, other = (number for number in self.cluster.nodes if number != leading[GROUP])
        return (other, one) if leading[0] == other else (one, other)

    async def settled(self) -> None:
        """Until all replicas that run have all that the leader has."""
        last = self.group(self.leader()).log.last_index
        running = [node.id for node in self.cluster.nodes.values() if node.state == "running"]
        await until(lambda: all(self.group(one).core.applied_index() >= last for one in running))
        await until(lambda: all(self.group(one).log.durable_index >= last for one in running))

    async def proposed(self) -> asyncio.Task[Any]:
        """A write that stands in the leader's log, where nobody has committed it."""
        group = self.group(self.leader())
        before = group.log.last_index
        writing = asyncio.create_task(self.client.put(KEY, "more"))
        await until(lambda: group.log.last_index > before)
        return writing

    async def everywhere_and_not_committed(
        self, number: int, change: Callable[[RaftGroup], object]
    ) -> tuple[asyncio.Task[Any], int]:
        """A write and its index. ``change`` is done to one replica between its arrival there and its commit."""
        index = self.group(self.leader()).log.last_index + 1
        changed = False

        def watch(_: SimNode) -> None:
            nonlocal changed
            groups = [self.group(one) for one in self.cluster.nodes]
            if not changed and all(group.log.last_index >= index > group.core.commit_index() for group in groups):
                changed = True
                self.node(number).process.run(change, self.group(number))

        assert self.problems == []
        self.cluster.on_turn.insert(0, watch)
        writing = asyncio.create_task(self.client.put(KEY, "more"))
        await until(lambda: changed)
        return writing, index

    async def breaks(self, number: int, change: Callable[[RaftGroup], object]) -> None:
        """Let ``change`` be done to the replica on that node, in its name; nothing was wrong before."""
        assert self.problems == []
        group = self.group(number)
        self.node(number).process.run(change, group)
        self.node(number).process.run(group.step)

    async def reported(self, kind: str) -> str:
        """The first problem of that kind."""
        await until(lambda: any(problem.startswith(f"{kind}: ") for problem in self.problems))
        return next(problem for problem in self.problems if problem.startswith(f"{kind}: "))

    def kinds(self) -> set[str]:
        return {problem.partition(":")[0] for problem in self.problems}


Scenario = Callable[[World], Coroutine[Any, Any, None]]


def run(scenario: Scenario, settings: SimSettings | None = None) -> None:
    async def main(loop: SimLoop) -> None:
        world = World(loop, settings)
        await world.start()
        await scenario(world)

    simulate(main)


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def replace_last(group: RaftGroup, command: bytes, term: int) -> None:
    """Give the last entry of a log other contents, in memory only."""
    group.log.entries[-1] = (command, group.log.last_index, term)


def leads_from_now_on(group: RaftGroup) -> None:
    """Take the term that the replica is in for won."""
    group.core._won = True
    group.core._finish_election()
    group.consensus._observe()


# -- nothing is wrong


def test_a_cluster_that_changes_its_leader_and_loses_power_is_accused_of_nothing() -> None:
    """Writes, a hand-over, a crash of the leader, snapshots: each looked at, none reported."""

    async def scenario(world: World) -> None:
        await world.write(60)
        led = world.invariants.leaderships
        heir = world.followers()[0]
        await world.breaks(world.leader(), lambda group: group.transfer(heir))
        await until(lambda: world.leader() == heir)
        await world.write(20)
        world.invariants.promises.before_crash(world.node(heir))
        world.cluster.kill(heir, power_loss=True)
        world.invariants.promises.after_crash(world.node(heir))
        await world.write(20)
        assert world.leader() != heir
        world.cluster.restart(heir)
        await world.cluster.ready(10.0)
        await world.write(20)
        await world.settled()
        for number in world.cluster.nodes:
            group = world.group(number)
            assert group.snapshots.index > 1
            world.invariants.compare(world.node(number), group, group.core.applied_index())
        assert world.problems == []
        assert world.invariants.leaderships >= led + 2
        assert world.invariants.digests > 9
        assert world.invariants.promises.crashes == 1
        assert all(len(voters) >= 2 for (_, term, _), voters in world.invariants.promises.votes.items() if term == 1)

    run(scenario, SimSettings(snapshot_bytes=2048, keep_entries=5))


def test_a_problem_that_goes_on_is_told_once() -> None:
    async def scenario(world: World) -> None:
        for _ in range(3):
            world.invariants.report("kind", "what")
        world.invariants.report("kind", "what else")
        assert world.problems == ["kind: what", "kind: what else"]
        assert sum("PROBLEM" in line for line in world.cluster.trace.lines) == 2

    run(scenario)


# -- entries and states


@pytest.mark.parametrize("leads", [False, True], ids=["follower", "leader"])
def test_an_entry_that_others_have_committed_must_be_the_same_everywhere(leads: bool) -> None:
    async def scenario(world: World) -> None:
        broken = world.leader() if leads else world.followers()[1]
        await world.settled()
        writing, index = await world.everywhere_and_not_committed(
            broken, lambda group: replace_last(group, NO_OP, group.log.last_term)
        )
        assert f"entry {index} of group {GROUP} " in await world.reported("committed")
        writing.cancel()

    run(scenario)


def test_state_machines_that_applied_the_same_entries_must_be_equal() -> None:
    async def scenario(world: World) -> None:
        broken = world.followers()[1]
        await world.settled()
        op = Put(slot_of(b"stray", SLOTS), b"stray", b"1", client=bytes(16), seq=1)
        await world.breaks(broken, lambda group: group.machine.apply(0, [op], encoded(pack_batch(0, [op]))))
        await world.write(16)
        found = await world.reported("state")
        assert f"n{broken}" in found
        assert f"group {GROUP} at entry 16" in found or f"group {GROUP} at entry 32" in found
        assert world.kinds() == {"state"}

    run(scenario)


def test_a_state_is_compared_at_any_entry_on_demand() -> None:
    """As the end of a run does, wherever it ends."""

    async def scenario(world: World) -> None:
        one, other = world.followers()
        await world.settled()
        index = world.group(one).core.applied_index()
        world.invariants.compare(world.node(one), world.group(one), index)
        await world.breaks(other, lambda group: setattr(group.machine, "time", group.machine.time + 1))
        world.invariants.compare(world.node(other), world.group(other), index)
        assert world.problems == [f"state: n{other} and n{one} differ in group {GROUP} at entry {index}"]

    run(scenario)


# -- leaders


def test_a_term_has_one_leader() -> None:
    async def scenario(world: World) -> None:
        leader, second = world.leader(), world.followers()[1]
        await world.settled()
        term = world.group(leader).core.term()
        await world.breaks(second, leads_from_now_on)
        found = await world.reported("two leaders")
        assert found == f"two leaders: n{second} and n{leader} both lead group {GROUP} in term {term}"

    run(scenario)


def test_a_leader_has_the_votes_of_a_majority_and_all_that_was_committed() -> None:
    async def scenario(world: World) -> None:
        usurper = world.followers()[1]
        for other in world.cluster.nodes:
            if other != usurper:
                world.cluster.network.cut(f"n{usurper}", f"n{other}")
        await world.write(5)
        missing = world.group(world.leader()).core.commit_index()
        term = world.group(world.leader()).core.term() + 1

        def usurp(group: RaftGroup) -> None:
            group.core.adopt_term(term)
            group.consensus._observe()
            leads_from_now_on(group)

        assert world.group(usurper).log.last_index < missing
        await world.breaks(usurper, usurp)
        leads = f"n{usurper} leads group {GROUP} in term {term}"
        assert await world.reported("votes") == f"votes: {leads} by the votes of [{usurper}]"
        assert await world.reported("leader") == f"leader: {leads} without committed entry {missing}"

    run(scenario)


@pytest.mark.parametrize("leases", [True, False])
def test_no_leader_is_elected_within_the_lease_of_another(leases: bool) -> None:
    """Unless clocks are wild, where leases promise nothing."""

    async def scenario(world: World) -> None:
        world.invariants._leases = leases
        old, (heir, other) = world.leader(), world.followers()
        await world.settled()
        for number in (heir, other):
            world.cluster.network.cut(f"n{old}", f"n{number}")
        assert world.group(old).lease_holds()
        await world.breaks(heir, lambda group: group.elections.campaign(transfer=True))
        await until(lambda: world.group(heir).leads())
        assert world.group(old).lease_holds()
        if leases:
            term = world.group(heir).core.term()
            found = await world.reported("lease")
            assert (
                found
                == f"lease: n{heir} leads group {GROUP} in term {term} within the lease of n{old} in term {term - 1}"
            )
        await asyncio.sleep(0.1)
        assert world.kinds() == ({"lease"} if leases else set())

    run(scenario)


@pytest.mark.parametrize("stays", [True, False])
def test_a_leader_without_contact_to_a_majority_steps_down(stays: bool) -> None:
    async def scenario(world: World) -> None:
        old = world.leader()
        await world.settled()
        for number in world.followers():
            world.cluster.network.cut(f"n{old}", f"n{number}")
        if stays:
            await world.breaks(old, lambda group: setattr(group.consensus.lead, "since", math.inf))
            found = await world.reported("contact")
            assert found == f"contact: n{old} goes on leading group {GROUP} without a majority"
        else:
            await until(lambda: not world.group(old).leads())
            await until(lambda: world.leader() != old)
        assert world.kinds() == ({"contact"} if stays else set())

    run(scenario)


# -- what counts as stored, and as committed


def test_a_leader_counts_on_a_follower_for_what_it_holds_only() -> None:
    async def scenario(world: World) -> None:
        leader, away = world.leader(), world.followers()[1]
        await world.settled()
        world.cluster.pause(away)
        held = world.group(away).log.last_index
        await world.write(3)
        await world.breaks(leader, lambda group: group.core.receive_match(away, held + 2))
        found = await world.reported("match")
        assert found.startswith(f"match: n{leader} counts on n{away} for entry {held + 2} of group {GROUP} ")
        assert found.endswith(f"which ends at {held}, durable to {held}")

    run(scenario)


def test_a_leader_counts_on_a_follower_for_what_is_durable_only() -> None:
    """An entry in a follower's memory may be gone tomorrow."""

    async def scenario(world: World) -> None:
        leader, slow = world.leader(), world.followers()[1]
        await world.settled()
        world.cluster.slow_sync(slow, 5.0)
        await world.write(3)
        log = world.group(slow).log
        await until(lambda: log.last_index == world.group(leader).log.last_index)
        assert log.durable_index < log.last_index
        await world.breaks(leader, lambda group: group.core.receive_match(slow, log.last_index))
        found = await world.reported("match")
        assert found.endswith(f"which ends at {log.last_index}, durable to {log.durable_index}")

    run(scenario)


def test_a_leader_counts_on_a_follower_for_the_same_entries_only() -> None:
    async def scenario(world: World) -> None:
        leader, broken = world.leader(), world.followers()[1]
        await world.settled()
        writing, index = await world.everywhere_and_not_committed(
            broken, lambda group: replace_last(group, group.log.entries[-1][0], group.log.last_term - 1)
        )
        found = await world.reported("match")
        assert found.startswith(f"match: n{leader} counts on n{broken} for entry {index} of group {GROUP} ")
        writing.cancel()

    run(scenario)


def test_a_leader_commits_what_a_majority_holds_only() -> None:
    async def scenario(world: World) -> None:
        leader, followers = world.leader(), world.followers()
        await world.settled()
        for number in followers:
            world.cluster.pause(number)
        writing = await world.proposed()
        last = world.group(leader).log.last_index
        await world.breaks(leader, lambda group: group.core.set_commit_index(last))
        found = await world.reported("commit")
        names = [f"n{number}" for number in sorted(followers)]
        assert found == f"commit: n{leader} commits entry {last} of group {GROUP} without {names}"
        writing.cancel()

    run(scenario)


def test_a_leader_commits_by_counting_what_is_of_its_own_term_only() -> None:
    """An entry of an older term that a majority holds can still be overwritten (Raft, figure 8)."""

    async def scenario(world: World) -> None:
        leader = world.leader()
        await world.settled()
        for number in world.followers():
            world.cluster.pause(number)
        writing = await world.proposed()

        def commit(group: RaftGroup) -> None:
            command, last, term = group.log.entries[-1]
            replace_last(group, command, term - 1)
            group.core.set_commit_index(last)

        term = world.group(leader).core.term()
        await world.breaks(leader, commit)
        assert f" of term {term - 1} in term {term}" in await world.reported("commit")
        writing.cancel()

    run(scenario)


def test_replicas_that_have_committed_the_same_have_the_same_voters() -> None:
    async def scenario(world: World) -> None:
        leader = world.leader()
        await world.settled()
        wrong = world.followers()[0]
        await world.breaks(wrong, lambda group: group.log.configurations.add(2, (1, 2)))
        await world.write(1)
        found = await world.reported("voters")
        assert f"of group {GROUP} at entry {world.group(leader).core.commit_index()}" in found
        assert "(1, 2, 3)" in found
        assert f"(1, 2) on n{wrong}" in found

    run(scenario)


def test_a_group_that_drops_a_replica_and_takes_it_back_is_accused_of_nothing() -> None:
    """A voter is removed, lets go of its replica, comes back as a learner and is a voter again, through real nodes."""

    async def scenario(world: World) -> None:
        leader, (_, gone) = world.leader(), world.followers()
        answers: list[Result] = []

        async def changed(*voters: int) -> None:
            answers.clear()
            node = world.node(leader)
            node.process.run(lambda: world.group(leader).change_members(voters, answers.append))
            await until(lambda: answers != [])
            assert answers[0].code == Code.OK, answers[0].detail

        await changed(*(one for one in world.cluster.nodes if one != gone))
        node = world.node(gone)
        assert node.node is not None
        replicas = node.node._replicas
        node.process.run(lambda: replicas.drop(GROUP))
        await world.write(30)
        node.process.run(lambda: replicas.ensure(GROUP, (1, 2, 3)))
        await until(lambda: replicas.get(GROUP) is not None)
        for number in world.cluster.nodes:
            world.node(number).process.run(lambda one: world.group(one).set_learners((gone,)), number)
        await world.write(10)
        await world.settled()
        await changed(1, 2, 3)
        await world.write(10)
        await world.settled()
        assert world.group(gone).voters == (1, 2, 3)
        world.invariants.promises.before_crash(node)
        world.cluster.kill(gone, power_loss=True)
        world.invariants.promises.after_crash(node)
        world.cluster.restart(gone)
        await world.cluster.ready(10.0)
        await world.settled()
        assert world.problems == []

    run(scenario)


# -- promises


def test_a_node_votes_for_one_candidate_in_a_term() -> None:
    async def scenario(world: World) -> None:
        leader = world.leader()
        term = world.group(leader).core.term()
        voter = next(one for one in world.invariants.promises.votes[GROUP, term, leader] if one != leader)
        other = next(one for one in world.followers() if one != voter)
        await world.settled()

        def vote_again(group: RaftGroup) -> None:
            group.log.vote, group.core._SyncObj__votedForNodeId = 0, None
            group.receive(other, [GROUP, int(Type.VOTE), term, group.log.last_index, group.log.last_term, True])

        await world.breaks(voter, vote_again)
        found = await world.reported("vote")
        assert found == f"vote: n{voter} votes for n{leader} and n{other} in term {term} of group {GROUP}"

    run(scenario)


def end_of_log(node: SimNode) -> tuple[str, int]:
    """The WAL's last segment on a node at rest, and the place where what is written next goes."""
    assert node.node is not None
    wal = node.node._wal
    assert wal.durable == wal.appended
    return f"{WAL_FOLDER}/{segment_name(wal._segments[-1].number)}", wal._position


def forget_behind(node: SimNode, path: str, end: int) -> None:
    """As if nothing behind ``end`` had ever been synced."""
    written = node.disk.files()[path]
    assert written[end:].strip(b"\0")
    node.disk.replace(path, written[:end] + bytes(len(written) - end))


@pytest.mark.parametrize("seen", ["on its disk", "when it comes back"])
def test_what_was_durable_survives_a_crash(seen: str) -> None:
    async def scenario(world: World) -> None:
        node, promises = world.node(world.followers()[1]), world.invariants.promises
        await world.settled()
        end = end_of_log(node)
        await world.write(3)
        await world.settled()
        log = world.group(node.id).log
        assert world.problems == []
        promises.before_crash(node)
        world.cluster.kill(node.id, power_loss=True)
        forget_behind(node, *end)
        if seen == "on its disk":
            promises.after_crash(node)
        else:
            # Alone, so that nobody gives it back what it has lost.
            for other in world.cluster.nodes:
                if other != node.id:
                    world.cluster.network.cut(node.name, f"n{other}")
            world.cluster.restart(node.id)
        found = await world.reported("durability")
        assert found == (
            f"durability: {node.name} has lost durable entry {log.last_index - 2} of group {GROUP} in a crash"
        )
        # Its leader counts on what was lost until it hears of it, which may be looked at before or after.
        assert world.kinds() - {"match"} == {"durability", *(["held"] if seen == "when it comes back" else [])}

    run(scenario)


def test_a_vote_survives_a_crash() -> None:
    async def scenario(world: World) -> None:
        node, promises = world.node(world.followers()[1]), world.invariants.promises
        await world.settled()
        end = end_of_log(node)
        await world.breaks(world.leader(), lambda group: group.transfer(node.id))
        await until(lambda: world.group(node.id).leads())
        term = world.group(node.id).core.term()
        assert world.problems == []
        promises.before_crash(node)
        world.cluster.kill(node.id, power_loss=True)
        forget_behind(node, *end)
        promises.after_crash(node)
        found = await world.reported("wal")
        assert found == f"wal: {node.name} has forgotten its vote for {node.name} in term {term} of {GROUP}"

    run(scenario)


def test_a_crash_leaves_a_log_that_can_be_read() -> None:
    async def scenario(world: World) -> None:
        node, promises = world.node(world.followers()[1]), world.invariants.promises
        await world.settled()
        path, _ = end_of_log(node)
        promises.before_crash(node)
        world.cluster.kill(node.id, power_loss=True)
        node.disk.delete(path)
        promises.after_crash(node)
        (found,) = world.problems
        assert found.startswith(f"wal: {node.name} cannot read its log after a crash: ")

    run(scenario)


def test_a_disk_that_was_damaged_on_purpose_keeps_no_promise() -> None:
    async def scenario(world: World) -> None:
        node, promises = world.node(world.followers()[1]), world.invariants.promises
        await world.settled()
        end = end_of_log(node)
        await world.write(3)
        await world.settled()
        promises.before_crash(node)
        promises.lost(node.id)
        world.cluster.kill(node.id, power_loss=True)
        forget_behind(node, *end)
        promises.after_crash(node)
        world.cluster.restart(node.id)
        await until(lambda: (node.id, node.starts, GROUP) in world.invariants._seen)
        assert not world.kinds() & {"durability", "wal"}
        assert promises.crashes == 0

    run(scenario)
