"""Connections rather than operations: idle ones, ones that are taken back, and messages that are none."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import raftkv
from faults.abuse.stage import AbuseScenario, Stage
from faults.keys import PREFIX
from raftkv.client.transport import FAILURES, connect
from raftkv.errors import RaftKVError
from raftkv.limits import WAL_SEGMENT_BYTES
from raftkv.v1 import admin_pb2, kv_pb2

_BEGUN: Final = 30.0
_TIMEOUT: Final = 15.0
_VALUE: Final = 256 * 1024
_SERVICES: Final = (kv_pb2.DESCRIPTOR.services_by_name["KV"], admin_pb2.DESCRIPTOR.services_by_name["Admin"])


def _made(counts: Mapping[str, int]) -> int:
    """Connections that were tried."""
    return sum(counts.get(name, 0) for name in ("open", "closed", "refused"))


class _IdleSockets(AbuseScenario):
    memory = None
    descriptors = 256
    at_peers: ClassVar[bool]

    async def run(self, stage: Stage) -> None:
        cluster = stage.cluster
        at = [cluster.peer_address(node) if self.at_peers else cluster.address(node) for node in cluster.nodes]
        count, failed, done = 260, Counter[str](), 0
        # Every group of every node logs it: this is as much as fills the next segments.
        writes = 3 * WAL_SEGMENT_BYTES // _VALUE
        async with raftkv.AsyncClient(cluster.endpoints, timeout=_TIMEOUT) as client:
            await client.put(f"{PREFIX}before", b"x")
            async with stage.watched(), stage.abused("idle sockets", addresses=at, connections=count) as abuser:
                await abuser.until(lambda counts: _made(counts) >= count * len(at), _BEGUN)
                stage.note("idle connections open to each node", abuser.counts.get("open", 0) / len(at))
                for number in range(writes):
                    try:
                        await client.put(f"{PREFIX}segment/{number % 20}", b"s" * _VALUE)
                        done += 1
                    except RaftKVError as problem:
                        failed[type(problem).__name__] += 1
                        if stage.alive() < len(cluster.nodes):
                            break
                stage.note("writes meanwhile", done, least=writes)
                stage.note("writes that failed", failed.total(), most=0)
                stage.note("a new client is served meanwhile", int(await stage.served()), least=1)
                stage.note("nodes that live meanwhile", stage.alive(), least=len(cluster.nodes))


class IdleSocketsOfClients(_IdleSockets):
    name = "idle-sockets-clients"
    what = "260 idle connections to each node's port for clients, at a limit of 256 descriptors; then WAL segments fill"
    at_peers = False


class IdleSocketsOfPeers(_IdleSockets):
    name = "idle-sockets-peers"
    what = "260 idle connections to each node's port for peers, at a limit of 256 descriptors; then WAL segments fill"
    at_peers = True


class IdleConnections(AbuseScenario):
    name = "idle-connections"
    what = "1,500 idle HTTP/2 connections to one node"

    async def run(self, stage: Stage) -> None:
        count = self.size(1500, 300)
        async with (
            stage.watched(),
            stage.beside(),
            stage.abused("idle sockets", addresses=stage.addresses()[:1], connections=count, greet=True) as abuser,
        ):
            await abuser.until(lambda counts: _made(counts) >= count, _BEGUN)
            await asyncio.sleep(self.size(5, 1))
            stage.note("open", abuser.counts.get("open", 0), "connections")


class RapidResets(AbuseScenario):
    name = "rapid-resets"
    what = "200,000 HTTP/2 calls that are reset at once, on 4 connections"

    async def run(self, stage: Stage) -> None:
        calls = self.size(200_000, 5_000)
        async with (
            stage.watched(),
            stage.beside(),
            stage.abused("rapid resets", addresses=stage.addresses()[:1], connections=4, calls=calls) as abuser,
        ):
            await abuser.until(lambda counts: counts.get("resets", 0) >= calls, self.size(30, 10))
            await asyncio.sleep(1.0)
            stage.note("calls that were reset", abuser.counts.get("resets", 0), least=1)


class MalformedProtobuf(AbuseScenario):
    name = "malformed-protobuf"
    what = "garbage as the message of each method of both services"

    async def run(self, stage: Stage) -> None:
        rng = random.Random(1)
        codes: Counter[str] = Counter()
        methods = [method for service in _SERVICES for method in service.methods if method.name != "Pipeline"]
        async with stage.watched():
            channel = connect(stage.addresses()[0])
            for one in methods:
                for garbage in (b"\xff\xff\xff\xff\xff", b"\x0a\xff\xff\xff\x7f", rng.randbytes(500)):
                    method: Any = channel.unary_unary(f"/{one.containing_service.full_name}/{one.name}", None, None)
                    try:
                        await method(garbage, timeout=_TIMEOUT)
                        codes["OK"] += 1
                    except FAILURES as problem:
                        codes[_code(problem)] += 1
            for _ in range(3):
                stream: Any = channel.stream_stream("/raftkv.v1.KV/Pipeline", None, None)(None, timeout=_TIMEOUT)
                try:
                    await stream.write(rng.randbytes(500))
                    await stream.read()
                    codes[(await stream.code()).name] += 1
                except FAILURES as problem:
                    codes[_code(problem)] += 1
            await channel.close(None)
        stage.note("answers", ", ".join(f"{code} {number}" for code, number in sorted(codes.items())))
        stage.note("answers that never came", codes["DEADLINE_EXCEEDED"], most=0)


def _code(problem: BaseException) -> str:
    code = getattr(problem, "code", None)
    return type(problem).__name__ if code is None else str(code().name)
