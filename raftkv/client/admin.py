"""The operators' client: the service Admin, asked of whichever node answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from hashlib import sha256
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from raftkv.api.credentials import check_credentials
from raftkv.api.failures import error_of, known_code
from raftkv.api.messages import digests_of, map_of, read, state_of, status_of
from raftkv.api.status import ClusterSettings, ClusterState, Digests, Joined, NodeStatus, SlotStats
from raftkv.client.arguments import check_timeout
from raftkv.client.routing import parse_endpoints
from raftkv.client.tls import TLS
from raftkv.client.transport import FAILURES, failure, showing
from raftkv.client.transport import connect as channel_to
from raftkv.clock import Clock, SystemClock, sleep
from raftkv.errors import OUTCOMES, Code, DeadlineExceeded, RaftKVError, Unavailable
from raftkv.limits import DEFAULT_TIMEOUT
from raftkv.v1 import admin_pb2, admin_pb2_grpc
from shards.slots import SLOT_RULE

if TYPE_CHECKING:
    from grpc import aio

    from raftkv.commands.results import Result

T = TypeVar("T")

_MAP: Final = admin_pb2.GetMapRequest(slot_rule=SLOT_RULE)
_STATE: Final = admin_pb2.GetStateRequest(slot_rule=SLOT_RULE)
_TOKEN_BYTES: Final = 16
_JOIN_TOKEN_BYTES: Final = 32
_PAUSE: Final = 0.2
"""Seconds before all nodes are asked again."""

_SHARE: Final = 3
"""A node that does not answer costs at most this part of the time, so that others are asked too."""

_MIN_ATTEMPT: Final = 1.0
_ONE_NODE: Final = 2.0
"""Seconds for what a node answers out of its memory: one that needs longer is not well."""


class AdminClient:
    """Asks the nodes at ``endpoints`` in turn, and those of the map once one has answered.

    ``timeout``: seconds for each call, all attempts included. ``tls``, ``token`` as of :class:`raftkv.AsyncClient`.
    Calls raise the errors of :mod:`raftkv.errors`: Unavailable if no node answered in time, ConditionFailed with the
    reason if the cluster refuses a change, DeadlineExceeded if it is not known whether a change was made. A change is
    made once, however often it is tried.
    """

    def __init__(
        self,
        endpoints: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: TLS | None = None,
        token: str | None = None,
        clock: Clock | None = None,
        connect: Callable[[str], aio.Channel] | None = None,
    ) -> None:
        self._addresses = list(parse_endpoints(endpoints))
        self._timeout = check_timeout(timeout)
        self._clock = clock or SystemClock()
        self._token = None if token is None else check_credentials(token)
        self._connect = connect or partial(channel_to, credentials=None if tls is None else tls.read())
        self._channels: dict[str, aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close(None)

    # Questions that any node answers

    async def state(self) -> ClusterState:
        """The cluster as the meta group knows it now."""
        answer = await self._any(lambda stub, left: stub.GetState(_STATE, timeout=left))
        return self._known(state_of(answer, vouched=True))

    async def state_or_map(self) -> ClusterState:
        """:meth:`state`, or a node's copy of the map if the meta group cannot answer."""
        try:
            return await self.state()
        except (Unavailable, DeadlineExceeded):
            return await self.known()

    async def known(self) -> ClusterState:
        """What a node knows by itself: its copy of the map."""
        found = await self._any(
            lambda stub, left: stub.GetMap(_MAP, timeout=left),
            timeout=min(self._timeout, _ONE_NODE),
        )
        return self._known(state_of(admin_pb2.GetStateResponse(map=found), vouched=False))

    async def change(self, request: admin_pb2.ChangeRequest) -> int:
        """Change the cluster; the id of the job or group that was made, else 0."""
        if not request.token:
            request.token = secrets.token_bytes(_TOKEN_BYTES)
        return (await self._any(lambda stub, left: stub.Change(request, timeout=left), changes=True)).id

    async def transfer(self, group: int, node: int) -> None:
        """Ask the leader of ``group`` to hand over to ``node``. It may go wrong afterwards: see who leads."""
        request = admin_pb2.TransferRequest(group=group, node=node)
        await self._any(lambda stub, left: stub.Transfer(request, timeout=left))

    async def start_check(self, group: int) -> int:
        """Make every replica of ``group`` note its digest as of one log entry; the check's number."""
        request = admin_pb2.StartCheckRequest(group=group)
        return (await self._any(lambda stub, left: stub.StartCheck(request, timeout=left))).check

    async def add_join_token(self) -> str:
        """A token with which one node may join, within an hour. The cluster gets to know its SHA-256 only."""
        token = secrets.token_urlsafe(_JOIN_TOKEN_BYTES)
        await self.change(admin_pb2.ChangeRequest(add_join_token=sha256(token.encode()).digest()))
        return token

    async def join(
        self, address: str, peer_address: str, incarnation: str, cluster_id: str = "", token: str = ""
    ) -> Joined:
        """Make the data folder ``incarnation`` a node of the cluster. Asked again, it has the same outcome.

        ``token``: of :meth:`add_join_token`; a folder that has joined needs none.
        """
        request = admin_pb2.JoinRequest(
            address=address,
            peer_address=peer_address,
            incarnation=incarnation,
            cluster_id=cluster_id,
            slot_rule=SLOT_RULE,
            token=token,
        )
        answer = await self._any(lambda stub, left: stub.Join(request, timeout=left))
        return Joined(answer.node, map_of(answer.map), read(ClusterSettings, answer))

    async def users(self) -> admin_pb2.GetUsersResponse:
        """All users and roles."""
        return await self._any(lambda stub, left: stub.GetUsers(admin_pb2.GetUsersRequest(), timeout=left))

    async def change_users(self, request: admin_pb2.ChangeUsersRequest) -> None:
        """Change users or roles."""
        if not request.token:
            request.token = secrets.token_bytes(_TOKEN_BYTES)
        await self._any(lambda stub, left: stub.ChangeUsers(request, timeout=left), changes=True)

    async def bootstrap(self, name: str, digest: bytes) -> None:
        """Make the first user, who may do everything; ``digest``: SHA-256 of the token. Of a node on this machine."""
        request = admin_pb2.BootstrapRequest(token=secrets.token_bytes(_TOKEN_BYTES), name=name, digest=digest)
        # Without a look at the node first, which wants a user once there is one.
        await self._any(lambda stub, left: stub.Bootstrap(request, timeout=left))

    # Questions to one node, which gets two seconds at most

    async def status(self, address: str) -> NodeStatus:
        """What the node at ``address`` says of itself."""
        request = admin_pb2.GetStatusRequest()
        return status_of(await self._one(address, lambda stub, left: stub.GetStatus(request, timeout=left)))

    async def slots(self, address: str) -> list[SlotStats]:
        """StatsOfSlots of the slots of the groups that the node at ``address`` leads."""
        request = admin_pb2.GetSlotsRequest()
        answer = await self._one(address, lambda stub, left: stub.GetSlots(request, timeout=left))
        return [read(SlotStats, one) for one in answer.slots]

    async def digests(self, address: str, group: int, check: int) -> Digests | None:
        """What the replica of ``group`` at ``address`` noted for ``check``, None: nothing (yet)."""
        request = admin_pb2.GetDigestsRequest(group=group, check=check)
        return digests_of(await self._one(address, lambda stub, left: stub.GetDigests(request, timeout=left)))

    async def audit(self, address: str, lines: int) -> list[str]:
        """The latest lines of the audit trail of the node at ``address``, the oldest first."""
        request = admin_pb2.ReadAuditRequest(lines=lines)
        return list((await self._one(address, lambda stub, left: stub.ReadAudit(request, timeout=left))).lines)

    async def read_snapshot(self, address: str, group: int) -> AsyncIterator[bytes]:
        """The chunks of a group's state as of now; ``address`` is its leader's. The time-out is for each chunk."""
        call = self._stub(address).ReadSnapshot(admin_pb2.ReadSnapshotRequest(group=group))
        chunks = call.__aiter__()
        try:
            while True:
                async with asyncio.timeout(self._timeout):
                    message = await anext(chunks, None)
                if message is None:
                    return
                yield message.chunk
        except TimeoutError:
            raise Unavailable(f"{address}: no more data of group {group} for {self._timeout:g} s") from None
        except FAILURES as error:
            raise _lost(address, failure(error)) from None
        finally:
            call.cancel()

    # How to ask

    def _known(self, state: ClusterState) -> ClusterState:
        self._addresses = list(dict.fromkeys([*self._addresses, *(node.address for node in state.map.nodes)]))
        return state

    def _stub(self, address: str) -> admin_pb2_grpc.AdminAsyncStub:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._connect(address)
        stub: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(showing(channel, self._token))
        return stub

    async def _one(self, address: str, ask: Callable[[admin_pb2_grpc.AdminAsyncStub, float], Awaitable[T]]) -> T:
        try:
            return await ask(self._stub(address), min(self._timeout, _ONE_NODE))
        except FAILURES as error:
            raise _lost(address, failure(error)) from None

    async def _any(
        self,
        ask: Callable[[admin_pb2_grpc.AdminAsyncStub, float], Awaitable[T]],
        *,
        changes: bool = False,
        timeout: float | None = None,
    ) -> T:
        """The answer of the first node that has one. ``changes``: an attempt without an answer may have had effect."""
        timeout = self._timeout if timeout is None else timeout
        end = self._clock.now() + timeout
        problems: dict[str, str] = {}
        unknown = False
        while True:
            for address in tuple(self._addresses):
                left = end - self._clock.now()
                if left <= 0:
                    break
                stub, patience = self._stub(address), min(left, max(timeout / _SHARE, _MIN_ATTEMPT))
                sent = False
                try:
                    if changes:
                        # Whoever does not answer this has surely not heard of the change.
                        await stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=patience)
                        patience = max(0.0, min(patience, end - self._clock.now()))
                    sent = True
                    answer = await ask(stub, patience)
                except FAILURES as error:
                    result = failure(error)
                    if not _worth_another(result):
                        raise error_of(result) from None
                    problems[address] = _brief(result.detail)
                    unknown = unknown or (sent and not _definite(result))
                    continue
                # Asked first the next time.
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return answer
            if end - self._clock.now() <= _PAUSE:
                break
            await sleep(self._clock, _PAUSE)
        text = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
        if changes and unknown:
            raise DeadlineExceeded(f"it is not known whether the change was made: {text}")
        spent = timeout - (end - self._clock.now())
        raise Unavailable(f"no node could answer in {spent:.3g} s (timeout {timeout:g} s): {text}")


def _definite(result: Result) -> bool:
    return OUTCOMES[known_code(result.code)].definite


def _brief(text: str) -> str:
    """For people: without what gRPC says around the system's error."""
    return text.removeprefix("failed to connect to all addresses; last error: ").rpartition("to remote host: ")[2]


def _worth_another(result: Result) -> bool:
    code = known_code(result.code)
    return OUTCOMES[code].retry or code is Code.DEADLINE_EXCEEDED


def _lost(address: str, result: Result) -> RaftKVError:
    """For a question to one node, which changes nothing: a failure without a promise means that it is not there."""
    if known_code(result.code) in (Code.UNKNOWN, Code.DEADLINE_EXCEEDED):
        return Unavailable(f"{address}: {_brief(result.detail)}")
    return error_of(result)
