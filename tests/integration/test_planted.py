"""Real nodes with planted faults break the promise in question, and nodes without them do not."""

from __future__ import annotations

import random

import grpc
import pytest

import raftkv
from faults.process.planted import MAIN, environment
from raftkv.client.session import client_id
from raftkv.clock import SystemClock
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
        with raftkv.Client(running.address(alone), timeout=2) as kv:
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
        client = client_id(int(SystemClock().wall() * 1000), random.Random(1))
        named = kv_pb2.RequestId(client_id=client, sequence=1, first_incomplete=1)
        request = kv_pb2.PutRequest(key=b"k", value=b"v", request_id=named)
        first, second = stub.Put(request, timeout=PATIENCE).version, stub.Put(request, timeout=PATIENCE).version
        assert (second > first) is bool(fault)


@pytest.mark.parametrize("fault", ["", "acknowledge before majority"])
def test_a_leader_alone_acknowledges_what_dies_with_it(fault: str) -> None:
    with cluster(fault) as running:
        leader = running.leader(1)
        others = [node for node in running.nodes if node != leader]
        with raftkv.Client(running.address(leader), timeout=2) as kv:
            kv.put("k", "before")
            for node in others:
                running.kill(node)
            if not fault:
                with pytest.raises(raftkv.OutcomeUnknown):
                    kv.put("k", "behind")
                return
            kv.put("k", "behind")
        running.kill(leader)
        for node in others:
            running.restart(node, wait=False)
        with raftkv.Client(running.endpoints, timeout=PATIENCE) as kv:
            record = kv.get("k")
            assert record is not None
            assert record.value == b"before", "an acknowledged write is lost"
