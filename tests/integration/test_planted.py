"""Real nodes with planted faults break the promise in question, and nodes without them do not."""

from __future__ import annotations

import random

import grpc
import pytest

import raftkv
from faults.process.planted import MAIN, environment
from raftkv.clock import SystemClock
from raftkv.commands.client_ids import TAIL_BYTES, client_id
from raftkv.errors import Unavailable
from raftkv.testing import LocalCluster
from raftkv.v1 import kv_pb2, kv_pb2_grpc
from tests.waiting import PATIENCE


def cluster(fault: str, nodes: int = 3) -> LocalCluster:
    """Of one group; with no fault, of nodes as they are."""
    if not fault:
        return LocalCluster(nodes, 1)
    return LocalCluster(nodes, 1, main=MAIN, environment=environment(fault))


def test_each_start_of_each_node_says_which_fault_it_has() -> None:
    with cluster("no dedupe", nodes=1) as running:
        assert running.log(1).count("planted fault: no dedupe") == 1
        running.restart(1)
        assert running.log(1).count("planted fault: no dedupe") == 2


@pytest.mark.parametrize("fault", ["", "stale reads"])
def test_a_follower_alone_answers_from_its_own_state(fault: str) -> None:
    with cluster(fault) as running:
        with raftkv.Client(running.endpoints, timeout=PATIENCE) as kv:
            kv.put("k", "v")
        alone = next(node for node in running.nodes if node != running.leader(1))
        # What is to fail must not take long; what is to succeed may.
        with raftkv.Client(running.address(alone), timeout=PATIENCE if fault else 2) as kv:
            _wait_for_replica(running.address(alone))
            for node in running.nodes:
                if node != alone:
                    running.kill(node)
            if fault:
                record = kv.get("k")
                assert record is not None
                assert record.value == b"v"
            else:
                with pytest.raises(Unavailable):
                    kv.get("k")


def _wait_for_replica(address: str) -> None:
    """Until the node has applied the record itself: a leader's next append tells it what is committed."""
    with grpc.insecure_channel(address) as channel:
        stub = kv_pb2_grpc.KVStub(channel)
        stale = kv_pb2.GetRequest(key=b"k", consistency=kv_pb2.CONSISTENCY_STALE)
        while not stub.Get(stale, timeout=PATIENCE).HasField("record"):
            pass


@pytest.mark.parametrize("fault", ["", "no dedupe"])
def test_a_write_that_is_sent_again_is_executed_again(fault: str) -> None:
    with cluster(fault, nodes=1) as running, grpc.insecure_channel(running.address(1)) as channel:
        stub = kv_pb2_grpc.KVStub(channel)
        client = client_id(int(SystemClock().wall() * 1000), random.Random(1).randbytes(TAIL_BYTES))
        named = kv_pb2.RequestId(client_id=client, sequence=1, first_incomplete=1)
        request = kv_pb2.PutRequest(key=b"k", value=b"v", request_id=named)
        first, second = stub.Put(request, timeout=PATIENCE).version, stub.Put(request, timeout=PATIENCE).version
        assert (second > first) is bool(fault)


def test_a_leader_alone_acknowledges_nothing() -> None:
    with cluster("") as running, raftkv.Client(running.address(leader := running.leader(1)), timeout=PATIENCE) as kv:
        kv.put("k", "before")
        for node in running.nodes:
            if node != leader:
                running.kill(node)
        with pytest.raises(raftkv.OutcomeUnknown):
            kv.put("k", "behind", timeout=2)


def test_a_leader_that_acknowledges_before_a_majority_loses_acknowledged_writes() -> None:
    with cluster("acknowledge before majority") as running:
        while not acknowledges_alone(running, leader := running.leader(1)):
            running.start()  # it had stopped leading before it was asked
        running.kill(leader)
        others = [node for node in running.nodes if node != leader]
        for node in others:
            running.restart(node, wait=False)
        with raftkv.Client(running.endpoints, timeout=PATIENCE) as kv:
            record = kv.get("k")
            assert record is not None
            assert record.value == b"before", "an acknowledged write is lost"


def acknowledges_alone(running: LocalCluster, leader: int) -> bool:
    """Whether ``leader`` acknowledges a write after all others were killed. It stops leading soon after that."""
    with raftkv.Client(running.address(leader), timeout=PATIENCE) as kv:
        kv.put("k", "before")
        for node in running.nodes:
            if node != leader:
                running.kill(node)
        try:
            kv.put("k", "behind", timeout=2)
        except raftkv.OutcomeUnknown:
            return False
    return True
