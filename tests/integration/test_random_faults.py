"""Promises 1 to 4 on real processes under random faults: kills, pauses, a lost majority, followers that are far behind.

A history of calls is checked by the records' versions: they order the writes of a key, so the history is linearizable
if that order agrees with real time and every value that was read is that of the write with its version.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import pytest

import raftkv
from raftkv.clock import SystemClock
from raftkv.testing import LocalCluster
from raftkv.v1 import kv_pb2, kv_pb2_grpc
from tests.waiting import PATIENCE, becomes, until

_CLOCK = SystemClock()


@dataclass
class Call:
    """``version`` 0: the outcome of a write is unknown, or a read found nothing."""

    key: str
    write: bool
    value: bytes
    began: float
    ended: float = float("inf")
    version: int = 0


@dataclass
class History:
    name: str
    calls: list[Call] = field(default_factory=list)
    refused: int = 0
    counted: int = 0
    perhaps: int = 0

    def check(self) -> None:
        """Fails unless every key's calls are linearizable."""
        for key in {call.key for call in self.calls}:
            self._check([call for call in self.calls if call.key == key])

    def _check(self, calls: list[Call]) -> None:
        values = {call.version: call.value for call in calls if call.write and call.version}
        assert len(values) == sum(call.write and call.version > 0 for call in calls), "two writes share a version"
        unknown = {call.value: call.began for call in calls if call.write and not call.version}
        for call in calls:
            if call.version and call.version not in values:
                assert unknown.pop(call.value, float("inf")) <= call.ended, f"nobody wrote {call}"
                values[call.version] = call.value
            assert not call.version or values[call.version] == call.value, f"wrong value: {call}"
        ended = sorted((call for call in calls if call.write is False or call.version), key=lambda call: call.ended)
        newest, at = Call("", False, b"", 0.0), 0
        for call in sorted(calls, key=lambda call: call.began):
            while at < len(ended) and ended[at].ended < call.began:
                newest = max(newest, ended[at], key=lambda one: one.version)
                at += 1
            if not call.write or call.version:
                assert call.version >= newest.version + call.write, f"{call} does not see {newest}"


async def _mixed(client: raftkv.AsyncClient, history: History, worker: int, stop: asyncio.Event) -> None:
    """Reads and writes of few keys, and increments of one counter, until ``stop``."""
    rng = random.Random(worker)
    number = 0
    while not stop.is_set():
        number += 1
        key = f"{history.name}:{rng.randrange(12)}"
        if rng.random() < 0.1:
            await _increment(client, history)
        elif rng.random() < 0.5:
            call = Call(key, True, b"%d:%d" % (worker, number), _CLOCK.now())
            history.calls.append(call)
            try:
                call.version = (await client.put(key, call.value)).version
                call.ended = _CLOCK.now()
            except raftkv.OutcomeUnknown:
                pass
            except raftkv.NotApplied:
                history.calls.remove(call)
                history.refused += 1
        else:
            call = Call(key, False, b"", _CLOCK.now())
            try:
                record = await client.get(key, consistency=rng.choice(["linearizable", "quorum"]))
            except raftkv.RaftKVError:
                continue
            call.ended = _CLOCK.now()
            if record is not None:
                call.value, call.version = record.value, record.version
            history.calls.append(call)


async def _increment(client: raftkv.AsyncClient, history: History) -> None:
    try:
        record = await client.get(history.name)
        old = None if record is None else record.value
        if await client.cas(history.name, expected=old, value=b"%d" % (int(old or b"0") + 1)):
            history.counted += 1
    except raftkv.OutcomeUnknown:
        history.perhaps += 1
    except raftkv.NotApplied:
        pass


def _storm(name: str, cluster: LocalCluster, nemesis: Callable[[], None]) -> None:
    """Run the mixed workload on keys under ``name`` beside ``nemesis``, then check the history and the last state."""
    history = History(name)

    async def run() -> None:
        stop = asyncio.Event()
        async with raftkv.AsyncClient(cluster.endpoints, timeout=2.0) as client:
            workers = [asyncio.create_task(_mixed(client, history, number, stop)) for number in range(12)]
            try:
                await asyncio.to_thread(nemesis)
                await becomes(lambda: len(history.calls) > 500)
            finally:
                stop.set()
                await asyncio.gather(*workers)
            for key in {call.key for call in history.calls}:
                call = Call(key, False, b"", _CLOCK.now())
                record = await client.get(key, timeout=PATIENCE)
                call.ended = _CLOCK.now()
                if record is not None:
                    call.value, call.version = record.value, record.version
                history.calls.append(call)
            counter = await client.get(history.name, timeout=PATIENCE)
            count = 0 if counter is None else int(counter.value)
            assert history.counted <= count <= history.counted + history.perhaps

    asyncio.run(run())
    history.check()


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2) as running:
        yield running


@pytest.fixture
def cluster(shared: LocalCluster) -> LocalCluster:
    """With all nodes up, whatever an earlier test did to them; each test has keys of its own or takes what it finds."""
    shared.start()
    return shared


def _pause(seconds: float) -> None:
    asyncio.run(asyncio.sleep(seconds))


def test_the_checker_finds_stale_reads_lost_writes_and_invented_values() -> None:
    """A checker is trusted only after it has caught planted faults."""
    first = Call("k", True, b"a", 0.0, 1.0, 1)
    second = Call("k", True, b"b", 2.0, 3.0, 2)
    History("k", [first, second, Call("k", False, b"a", 0.5, 2.5, 1), Call("k", False, b"b", 2.5, 4.0, 2)]).check()
    for fault in (
        Call("k", False, b"a", 4.0, 5.0, 1),
        Call("k", False, b"", 4.0, 5.0),
        Call("k", False, b"c", 4.0, 5.0, 3),
        Call("k", False, b"a", 4.0, 5.0, 2),
        Call("k", True, b"c", 4.0, 5.0, 2),
    ):
        with pytest.raises(AssertionError):
            History("k", [first, second, fault]).check()


def test_kills_of_random_nodes_leave_a_linearizable_history(cluster: LocalCluster) -> None:
    rng = random.Random(1)

    def nemesis() -> None:
        for _ in range(5):
            victim = rng.choice(cluster.nodes)
            cluster.kill(victim)
            _pause(rng.uniform(0.0, 0.8))
            cluster.restart(victim, wait=rng.random() < 0.5)
            _pause(rng.uniform(0.0, 0.5))
        cluster.wait_ready(PATIENCE)

    _storm("kills", cluster, nemesis)


def test_paused_leaders_leave_a_linearizable_history(cluster: LocalCluster) -> None:
    rng = random.Random(2)

    def nemesis() -> None:
        for seconds in (0.3, 1.0, 2.0, 0.6):
            victim = cluster.leader(rng.choice([1, 2]))
            cluster.pause(victim)
            _pause(seconds)
            cluster.resume(victim)
            _pause(0.3)
        cluster.wait_ready()

    _storm("pauses", cluster, nemesis)


@pytest.mark.parametrize("consistency", [kv_pb2.CONSISTENCY_LINEARIZABLE, kv_pb2.CONSISTENCY_QUORUM])
def test_a_leader_that_slept_serves_no_old_value(
    cluster: LocalCluster, consistency: kv_pb2.Consistency.ValueType
) -> None:
    """The read is in the leader's socket when it wakes up, before it has heard that there is another leader."""
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        group = 1
        key = _key_of(client, cluster, group)
        client.put(key, b"old")
        sleeper = cluster.leader(group)
        cluster.pause(sleeper)
        try:
            client.put(key, b"new")
            with grpc.insecure_channel(cluster.address(sleeper)) as channel:
                asked = kv_pb2_grpc.KVStub(channel).Get.future(
                    kv_pb2.GetRequest(key=key.encode(), consistency=consistency), timeout=PATIENCE
                )
                _pause(0.2)
                cluster.resume(sleeper)
                assert asked.result().record.value == b"new"
        finally:
            cluster.resume(sleeper)


def _key_of(client: raftkv.Client, cluster: LocalCluster, group: int) -> str:
    """A key of ``group``: the one whose write moves that group's commit index."""

    def commit() -> int:
        return max(int(entry["commit"]) for entry in cluster.status()["groups"] if entry["id"] == group)

    for number in range(50):
        before = commit()
        client.put(f"probe{number}", b"")
        if commit() > before:
            return f"probe{number}"
    raise AssertionError(f"no key of group {group}")


def test_without_a_majority_calls_fail_typed_and_go_on_with_one(cluster: LocalCluster) -> None:
    """In time, too, as tests/unit/test_client_deadlines.py shows on virtual time."""
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        client.put("k", b"1")
        alive = cluster.nodes[0]
        for node in cluster.nodes[1:]:
            cluster.kill(node)
        for call in (lambda: client.put("k", b"2", timeout=1.5), lambda: client.get("k", timeout=1.5)):
            with pytest.raises((raftkv.OutcomeUnknown, raftkv.Unavailable)):
                call()
        cluster.kill(alive)
        with pytest.raises((raftkv.Unavailable, raftkv.OutcomeUnknown)):
            client.put("k", b"3", timeout=0.5)
        for node in cluster.nodes:
            cluster.restart(node, wait=False)
        cluster.wait_ready()
        record = client.get("k")
        assert record is not None
        assert record.value in (b"1", b"2", b"3")
        client.put("k", b"4")


def test_a_node_without_a_majority_still_ends_in_order(cluster: LocalCluster) -> None:
    """SIGTERM must not wait for a leadership that nobody can take."""
    for node in cluster.nodes[1:]:
        cluster.kill(node)
    assert cluster.stop_node(cluster.nodes[0], timeout=PATIENCE)


def test_nodes_that_stop_together_do_not_hand_leaderships_around(cluster: LocalCluster) -> None:
    """Each node gives a leadership away once: two that stop must not pass it to and fro until their time is up."""

    def terms() -> int:
        found: list[int] = []

        def all_told() -> bool:
            found[:] = [int(group["term"]) for group in cluster.status()["groups"]]
            return len(found) == 3

        until(all_told)
        return sum(found)

    before = terms()
    assert set(cluster.stop(PATIENCE).values()) == {True}
    cluster.start()
    assert terms() - before <= 8 * 3


def test_a_follower_that_was_away_for_long_takes_a_snapshot_and_agrees() -> None:
    """It is killed once more while the snapshot is on its way; then all replicas hold the same number of records."""
    with LocalCluster(nodes=3, groups=1, raft={"snapshot_bytes": 65_536}) as cluster:
        away = next(node for node in cluster.nodes if node != cluster.leader(1))

        async def fill(start: int, count: int) -> None:
            async with raftkv.AsyncClient(cluster.endpoints, timeout=PATIENCE) as client:
                for first in range(start, start + count, 500):
                    await asyncio.gather(*(client.put(f"r{i}", b"v" * 1000) for i in range(first, first + 500)))

        asyncio.run(fill(0, 1000))
        cluster.kill(away)
        asyncio.run(fill(1000, 6000))
        for _ in range(3):
            cluster.restart(away, wait=False)
            _pause(0.7)
            cluster.kill(away)
        cluster.restart(away)
        expected = 7000
        until(lambda: _records(cluster) == [expected] * 3, "all have all records")
        cluster.kill(next(node for node in cluster.nodes if node != away))
        with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
            assert sum(1 for _ in client.scan()) == expected


def _records(cluster: LocalCluster) -> list[int]:
    async def ask() -> list[int]:
        async with raftkv.AsyncClient(cluster.endpoints, timeout=2.0) as client:
            seen = await client.status()
        statuses = [endpoint.status for endpoint in seen]
        return [r.records for s in statuses if s is not None for r in s.replicas if r.group == 1]

    return asyncio.run(ask())
