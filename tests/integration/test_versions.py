"""Guarantee: a client and a node of which one places keys by another slot rule refuse each other with a code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import aio

import raftkv
from raftkv.api.grpc_status import result_of
from raftkv.client.admin import AdminClient
from raftkv.commands.results import Result, ScanPage
from raftkv.errors import OUTCOMES, Code, WrongVersion
from raftkv.local.joining import JoinError, Places, join
from raftkv.local.ports import free_ports
from raftkv.node.credentials import VARIABLE
from raftkv.v1 import admin_pb2, admin_pb2_grpc
from shards.slots import SLOT_RULE
from tests.rpc_fakes import FakeCluster, started
from tests.waiting import PATIENCE

OLD_MAP = admin_pb2.GetMapResponse(cluster_id="old", epoch=1, slots=256)


@asynccontextmanager
async def old_node() -> AsyncIterator[str]:
    """As a node of version 0.1 answers: it knows of no slot rule, and takes in nobody here."""

    def answers(answer: Message) -> Any:
        async def answered(_request: object, _context: object) -> Message:
            return answer

        return answered

    servicer: Any = admin_pb2_grpc.AdminServicer
    admin = servicer()
    admin.GetMap = answers(OLD_MAP)
    admin.GetStatus = answers(admin_pb2.GetStatusResponse(node=1))
    admin.GetState = answers(admin_pb2.GetStateResponse(map=OLD_MAP))
    server = aio.server()
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.parametrize("rule", [0, SLOT_RULE - 1, SLOT_RULE + 1], ids=["of 0.1", "earlier", "later"])
def test_a_client_of_another_rule_gets_no_map(rule: int) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            stub: Any = admin_pb2_grpc.AdminStub(channel)
            questions: list[Callable[[], Awaitable[object]]] = [
                lambda: stub.GetMap(admin_pb2.GetMapRequest(slot_rule=rule)),
                lambda: stub.GetState(admin_pb2.GetStateRequest(slot_rule=rule)),
                lambda: stub.Join(admin_pb2.JoinRequest(slot_rule=rule, incarnation="ab")),
            ]
            for question in questions:
                with pytest.raises(aio.AioRpcError) as caught:
                    await question()
                result = result_of(caught.value)
                assert result.code == Code.WRONG_VERSION
                assert f"keys get their slots by rule {SLOT_RULE} here" in result.detail
            assert not cluster.frontends[0].ops

    asyncio.run(main())
    outcome = OUTCOMES[Code.WRONG_VERSION]
    assert (outcome.definite, outcome.retry, outcome.grpc_status) == (True, False, "FAILED_PRECONDITION")


def test_a_node_that_scans_single_slots_is_refused() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            cluster.frontends[0].script = lambda op: Result(0, answer=ScanPage(((b"k", b"v", 1, -1),), b"", None))
            for scanned in (kv.count(), anext(kv.scan()), kv.delete_prefix("k")):
                with pytest.raises(WrongVersion, match="the page is not of the slot asked for"):
                    await scanned

    asyncio.run(main())


def test_a_node_of_version_0_1_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "known to all nodes")
    first, second = free_ports(2)
    places = Places(f"127.0.0.1:{first}", f"127.0.0.1:{second}")

    async def main() -> None:
        async with old_node() as address:
            async with raftkv.AsyncClient(address, timeout=PATIENCE) as kv:
                for call in (lambda: kv.put("k", b"v"), lambda: kv.get("k"), kv.slots, kv.count):
                    with pytest.raises(WrongVersion, match=f"{address}: keys get their slots by rule 2 here, none"):
                        await call()
            async with AdminClient(address, timeout=PATIENCE) as admin:
                for question in (admin.state, admin.known):
                    with pytest.raises(WrongVersion):
                        await question()
            with pytest.raises(JoinError, match="refuses this node: keys get their slots by rule 2 here"):
                await asyncio.to_thread(join, address, tmp_path, places)

    asyncio.run(main())
    assert not list(tmp_path.glob("*.json"))
