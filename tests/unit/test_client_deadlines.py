"""Guarantee: a call's time-out is all that it may take, and its error tells what is known, on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from faults.sim.clock import SimClock
from faults.sim.cluster import SimCluster
from faults.sim.loop import SimLoop, SimProcess, simulate
from faults.sim.network import MemoryNetwork
from faults.sim.transport import SimChannel, SimServer
from raftkv import AsyncClient
from raftkv.client.transport import GrpcTransport
from raftkv.commands.results import Result
from raftkv.errors import Code, DeadlineExceeded, OutcomeUnknown, Overloaded, RaftKVError, Unavailable
from raftkv.frontend.port import AdminPort
from tests.rpc_fakes import FakeFrontend, calls, failed, one_group_map

TIMEOUT = 0.5

Trouble = Callable[[SimCluster], None]


def all_silent(cluster: SimCluster) -> None:
    for node in cluster.nodes:
        cluster.pause(node)


def all_gone(cluster: SimCluster) -> None:
    for node in cluster.nodes:
        cluster.kill(node, power_loss=False)


def no_majority(cluster: SimCluster) -> None:
    for node in list(cluster.nodes)[1:]:
        cluster.kill(node, power_loss=False)


def outlasted(trouble: Trouble, call: Callable[[AsyncClient], Awaitable[object]]) -> tuple[RaftKVError, float]:
    """What ``call`` raised in ``trouble``, and by how much it outlasted its time-out."""

    async def main(loop: SimLoop) -> tuple[RaftKVError, float]:
        cluster = SimCluster(loop, random.Random(1), nodes=3, groups=2)
        await cluster.start()
        async with cluster.client("c1", timeout=TIMEOUT) as client:
            await client.put("k", b"", timeout=5.0)
            trouble(cluster)
            # The old leader's lease is over.
            await asyncio.sleep(3.0)
            began = loop.time()
            with pytest.raises(RaftKVError) as caught:
                await call(client)
            return caught.value, loop.time() - began - TIMEOUT

    return simulate(main)


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas", "scan"])
@pytest.mark.parametrize("trouble", [all_silent, all_gone, no_majority])
def test_a_call_takes_no_longer_than_its_time_out(trouble: Trouble, operation: str) -> None:
    error, late = outlasted(trouble, lambda client: calls(client)[operation]())
    # Not before either, but that a pause before another attempt would reach beyond it; timers are shared by calls.
    assert -TIMEOUT / 2 < late <= 0.05
    assert isinstance(error, Unavailable | OutcomeUnknown)


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas"])
def test_of_a_write_that_was_sent_the_outcome_is_unknown(operation: str) -> None:
    error, _ = outlasted(all_silent, lambda client: calls(client)[operation]())
    assert isinstance(error, Unavailable if operation == "get" else DeadlineExceeded)


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas"])
def test_of_what_reached_nobody_nothing_has_happened(operation: str) -> None:
    error, _ = outlasted(all_gone, lambda client: calls(client)[operation]())
    assert isinstance(error, Unavailable)


async def refused(loop: SimLoop, refusal: Result, call: Callable[[AsyncClient], Awaitable[object]]) -> None:
    """Call while both nodes answer every operation with ``refusal``."""
    network, fronts = MemoryNetwork(), [FakeFrontend(node) for node in (1, 2)]
    addresses = [f"n{front.node}:1" for front in fronts]
    clock = SimClock(loop, SimProcess(loop, "all"))
    for front, address in zip(fronts, addresses, strict=True):
        front.map, front.leading = one_group_map(addresses), {0: 1, 1: 1}
        front.script = lambda op: refusal
        host = network.host(f"n{front.node}")
        await SimServer(cast(AdminPort, front), address, host, clock).start()
    transport = GrpcTransport(lambda address: cast(Any, SimChannel(network.host("c"), address)))
    async with AsyncClient(addresses, timeout=TIMEOUT, transport=transport, clock=clock) as client:
        await call(client)


@pytest.mark.parametrize("operation", ["get", "put", "delete", "cas"])
@pytest.mark.parametrize(("code", "error"), [(Code.UNAVAILABLE, Unavailable), (Code.OVERLOADED, Overloaded)])
def test_refusals_until_the_deadline_are_definite(code: Code, error: type[RaftKVError], operation: str) -> None:
    with pytest.raises(error, match="no leader"):
        simulate(lambda loop: refused(loop, failed(code, "no leader"), lambda client: calls(client)[operation]()))
