"""The service Admin: what clients and operators ask about the cluster, and what operators change."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.json_format import MessageToDict

from raftkv.api.failures import failure_of, known_code
from raftkv.api.messages import fields_of, leaders_over_of, map_message, state_message, status_message
from raftkv.api.status import ClusterState
from raftkv.commands.base import GroupCommand
from raftkv.commands.group import Check
from raftkv.commands.members import Transfer
from raftkv.commands.meta import ChangeCluster, ReadCluster
from raftkv.commands.registry import check
from raftkv.commands.results import ClusterReport, Result, UsersReport
from raftkv.commands.rights import Right
from raftkv.commands.users import ReadUsers, UserCommand
from raftkv.errors import Code, InvalidArgument, RaftKVError
from raftkv.frontend.grpc.guard import abort, budget_of, caller
from raftkv.frontend.grpc.users import first_user, is_local, users_command, users_message
from raftkv.frontend.port import NODE, Caller, OpenDoor, answer_to
from raftkv.log_limit import limited
from raftkv.store.codec import pack, unpack
from raftkv.store.meta_state import MetaState
from raftkv.store.users import NO_USERS, decode
from raftkv.v1 import admin_pb2, admin_pb2_grpc
from shards.map import META_GROUP, ShardMap
from shards.slots import rule_refusal

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from grpc import aio

    from raftkv.frontend.port import AdminPort, Door

    Context = aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)

_ONE_ARGUMENT: Final[dict[str, str]] = {
    "pause": "pause",
    "remove_group": "remove group",
    "undrain_node": "undrain",
    "remove_node": "remove node",
    "add_join_token": "add join token",
}
_TOKEN_BYTES: Final = 16
_SLOTS_AT_ONCE: Final = 512
_CHECK_BITS: Final = 48
_AUDIT_LINES: Final = 100


NEEDS: Final[dict[str, Right | None]] = {
    # What a client must know to find its way.
    "GetMap": Right.NONE,
    "GetStatus": Right.NONE,
    "GetState": Right.NONE,
    "ReadSnapshot": Right.BACKUP,
    # It has a token for that.
    "Join": None,
    "Bootstrap": None,
}
"""The rights that the methods need, None: their callers need not be users. All others need ADMIN."""

_SECRET: Final = frozenset({"token", "digest", "password", "incarnation", "add_join_token"})
"""Fields that the audit trail does not hold."""


class AdminService(admin_pb2_grpc.AdminServicer):
    """Any node answers for the whole cluster, but for GetStatus, GetSlots and GetDigests, which are its own."""

    def __init__(self, node: AdminPort, door: Door | None = None) -> None:
        self._node = node
        self._door = door or OpenDoor()
        self._map_answer = _MapAnswer()
        self._state_wire = b""
        self._state = MetaState()
        self._slots: asyncio.Task[admin_pb2.GetSlotsResponse] | None = None

    async def GetMap(self, request: admin_pb2.GetMapRequest, context: Context) -> admin_pb2.GetMapResponse:
        await _check_rule(request, context)
        known = self._node.cluster_map()
        if known is None:
            await abort(context, Result(int(Code.UNAVAILABLE), detail="the node does not know the shard map yet"))
        return self._map_message(known)

    def _map_message(self, known: ShardMap) -> admin_pb2.GetMapResponse:
        return self._map_answer.message(known, self._node.leaders())

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Context) -> admin_pb2.GetStatusResponse:
        return status_message(self._node.status())

    async def GetState(self, request: admin_pb2.GetStateRequest, context: Context) -> admin_pb2.GetStateResponse:
        await _check_rule(request, context)
        now, state = await self._meta_state(context)
        assert state.map is not None
        found = ClusterState(
            state.map,
            {},
            vouched=True,
            now=now,
            job=state.job,
            moves=tuple(state.moves.values()),
            finished=state.finished,
            wanted=state.wanted,
            waiting=self._node.waiting(),
            draining=frozenset(state.draining),
        )
        return state_message(found, self._map_message(state.map))

    async def Change(self, request: admin_pb2.ChangeRequest, context: Context) -> admin_pb2.ChangeResponse:
        token = request.token or secrets.token_bytes(_TOKEN_BYTES)
        arguments = _change_arguments(request)
        if arguments is None or len(token) != _TOKEN_BYTES:
            await abort(
                context, Result(int(Code.INVALID_ARGUMENT), detail="a change and a token of 16 bytes are required")
            )
        command = ChangeCluster(META_GROUP, token, arguments[0], pack(arguments[1:]))
        result = await self._do(context, request.WhichOneof("change") or "", request, command)
        return admin_pb2.ChangeResponse(id=result.number)

    async def Join(self, request: admin_pb2.JoinRequest, context: Context) -> admin_pb2.JoinResponse:
        await _check_rule(request, context)
        known = self._node.cluster_map()
        if known is not None and request.cluster_id not in ("", known.cluster_id):
            text = f"this is cluster {known.cluster_id}, not {request.cluster_id}"
            await abort(context, Result(int(Code.WRONG_CLUSTER), detail=text))
        if not request.incarnation:
            await abort(context, Result(int(Code.INVALID_ARGUMENT), detail="the data folder's incarnation is missing"))
        # A folder joins once, however often it asks.
        digest = sha256(request.token.encode()).digest() if request.token else b""
        arguments = pack([request.address, request.peer_address, request.incarnation, digest])
        joining = ChangeCluster(META_GROUP, secrets.token_bytes(_TOKEN_BYTES), "add node", arguments)
        result = await self._note(context, "join", request, joining)
        if result.code != Code.OK:
            peer = context.peer()
            log.warning(
                "refused to let the node at %.200r join, asked by %s: %s",
                request.address,
                peer,
                result.detail,
                extra=limited(peer.rpartition(":")[0]),
            )
            await abort(context, result)
        _, state = await self._meta_state(context, NODE)
        assert state.map is not None
        return admin_pb2.JoinResponse(
            node=result.number,
            map=map_message(state.map, self._node.leaders(), to_member=True),
            **fields_of(self._node.settings()),
        )

    async def Transfer(self, request: admin_pb2.TransferRequest, context: Context) -> admin_pb2.TransferResponse:
        await self._do(context, "transfer", request, Transfer(request.group, request.node))
        return admin_pb2.TransferResponse()

    async def GetSlots(self, request: admin_pb2.GetSlotsRequest, context: Context) -> admin_pb2.GetSlotsResponse:
        # Whoever asks meanwhile gets the same answer.
        if self._slots is None or self._slots.done():
            self._slots = asyncio.create_task(self._collect_slots())
        return await asyncio.shield(self._slots)

    async def _collect_slots(self) -> admin_pb2.GetSlotsResponse:
        answer = admin_pb2.GetSlotsResponse()
        for at, one in enumerate(self._node.slot_stats(), start=1):
            answer.slots.add(slot=one.slot, group=one.group, keys=one.keys, bytes=one.bytes, operations=one.operations)
            if at % _SLOTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return answer

    async def StartCheck(self, request: admin_pb2.StartCheckRequest, context: Context) -> admin_pb2.StartCheckResponse:
        check = secrets.randbits(_CHECK_BITS) + 1
        await self._do(context, "start_check", request, Check(request.group, check))
        return admin_pb2.StartCheckResponse(check=check)

    async def GetDigests(self, request: admin_pb2.GetDigestsRequest, context: Context) -> admin_pb2.GetDigestsResponse:
        found = self._node.digests(request.group, request.check)
        if found is None:
            return admin_pb2.GetDigestsResponse()
        return admin_pb2.GetDigestsResponse(done=True, **fields_of(found))

    async def ReadSnapshot(
        self, request: admin_pb2.ReadSnapshotRequest, context: Context
    ) -> AsyncIterator[admin_pb2.ReadSnapshotResponse]:
        self._door.note(caller(), "read_snapshot", _arguments(request), "started")
        try:
            async for chunk in self._node.read_snapshot(request.group):
                yield admin_pb2.ReadSnapshotResponse(chunk=chunk)
        except RaftKVError as problem:
            await abort(context, failure_of(problem))

    async def Bootstrap(self, request: admin_pb2.BootstrapRequest, context: Context) -> admin_pb2.BootstrapResponse:
        if not is_local(context.peer()):
            text = "the first user is made on a node's own machine, over a loopback address"
            self._door.note(caller(), "bootstrap", _arguments(request), Code.PERMISSION_DENIED.name)
            await abort(context, Result(int(Code.PERMISSION_DENIED), detail=text))
        token = request.token or secrets.token_bytes(_TOKEN_BYTES)
        await self._change_users(context, "bootstrap", request, lambda: first_user(request, token))
        return admin_pb2.BootstrapResponse()

    async def GetUsers(self, request: admin_pb2.GetUsersRequest, context: Context) -> admin_pb2.GetUsersResponse:
        result = await self._ask(context, ReadUsers(META_GROUP, 0))
        report = result.answer
        assert isinstance(report, UsersReport)
        return users_message(decode(report.users) if report.users else NO_USERS)

    async def ChangeUsers(
        self, request: admin_pb2.ChangeUsersRequest, context: Context
    ) -> admin_pb2.ChangeUsersResponse:
        token = request.token or secrets.token_bytes(_TOKEN_BYTES)
        kind = request.WhichOneof("change") or "change_users"
        await self._change_users(context, kind, request, lambda: users_command(request, token))
        return admin_pb2.ChangeUsersResponse()

    async def ReadAudit(self, request: admin_pb2.ReadAuditRequest, context: Context) -> admin_pb2.ReadAuditResponse:
        try:
            return admin_pb2.ReadAuditResponse(lines=await self._door.notes(request.lines or _AUDIT_LINES))
        except OSError as problem:
            text = f"the audit trail cannot be read: {problem.strerror or problem}"
            await abort(context, Result(int(Code.INTERNAL), detail=text))

    async def _change_users(
        self, context: Context, action: str, request: Message, make: Callable[[], UserCommand]
    ) -> None:
        try:
            command = make()
            check(command)
        except InvalidArgument as error:
            await abort(context, failure_of(error))
        await self._do(context, action, request, command)

    async def _do(self, context: Context, action: str, request: Message, op: GroupCommand) -> Result:
        """As :meth:`_ask`, for what changes something."""
        result = await self._note(context, action, request, op)
        if result.code != Code.OK:
            await abort(context, result)
        return result

    async def _note(self, context: Context, action: str, request: Message, op: GroupCommand) -> Result:
        """What becomes of a change, which is noted in any case."""
        outcome = Code.UNKNOWN.name
        try:
            result = await answer_to(self._node.submit, op, budget_of(context), caller().operator())
            outcome = known_code(result.code).name
        finally:
            self._door.note(caller(), action, _arguments(request), outcome)
        return result

    async def _meta_state(self, context: Context, asking: Caller | None = None) -> tuple[int, MetaState]:
        result = await self._ask(context, ReadCluster(META_GROUP), asking)
        report = result.answer
        assert isinstance(report, ClusterReport)
        if report.state != self._state_wire:
            self._state, self._state_wire = MetaState.from_wire(unpack(report.state)), report.state
        return report.time, self._state

    async def _ask(self, context: Context, op: GroupCommand, asking: Caller | None = None) -> Result:
        result = await answer_to(self._node.submit, op, budget_of(context), asking or caller().operator())
        if result.code != Code.OK:
            await abort(context, result)
        return result


def _arguments(request: Message) -> dict[str, Any]:
    """What a request asks for, without secrets."""
    told: dict[str, Any] = _without_secrets(MessageToDict(request, preserving_proto_field_name=True))
    return told


def _without_secrets(fields: Any) -> Any:
    if isinstance(fields, dict):
        return {name: _without_secrets(value) for name, value in fields.items() if name not in _SECRET}
    return [_without_secrets(one) for one in fields] if isinstance(fields, list) else fields


async def _check_rule(
    request: admin_pb2.GetMapRequest | admin_pb2.GetStateRequest | admin_pb2.JoinRequest, context: Context
) -> None:
    """Whoever gets a map must place keys by its rule."""
    if refusal := rule_refusal(request.slot_rule):
        await abort(context, Result(int(Code.WRONG_VERSION), detail=refusal))


def _change_arguments(request: admin_pb2.ChangeRequest) -> list[Any] | None:
    """Verb and arguments of the meta group's command, None if the request asks for nothing."""
    kind = request.WhichOneof("change")
    if kind == "start_plan":
        plan = request.start_plan
        moves = [[list(move.slots), move.source, move.target] for move in plan.moves]
        return ["plan", plan.epoch, moves, plan.concurrency, plan.rate]
    if kind == "change_voters":
        return ["want", request.change_voters.epoch, _desired_voters(request.change_voters.groups)]
    if kind == "spread_leaders":
        spread = request.spread_leaders
        return ["spread leaders", spread.epoch, str(leaders_over_of(spread.over)), _desired_voters(spread.groups)]
    if kind == "drain_node":
        return ["drain", request.drain_node.epoch, request.drain_node.node, _desired_voters(request.drain_node.groups)]
    if kind == "pace":
        return ["tune", request.pace.concurrency, request.pace.rate]
    if kind == "add_group":
        return ["add group", list(request.add_group.voters)]
    if kind == "cancel":
        return ["cancel"]
    if kind is not None and kind in _ONE_ARGUMENT:
        return [_ONE_ARGUMENT[kind], getattr(request, kind)]
    return None


def _desired_voters(groups: Iterable[admin_pb2.WantedVoters]) -> list[Any]:
    return [[one.group, list(one.voters)] for one in groups]


class _MapAnswer:
    """The map as a message, made once for each map and its leaders: with many slots it takes tens of milliseconds."""

    def __init__(self) -> None:
        self._of: tuple[ShardMap, dict[int, int]] | None = None
        self._message = admin_pb2.GetMapResponse()

    def message(self, known: ShardMap, leaders: dict[int, int]) -> admin_pb2.GetMapResponse:
        """Not to be changed."""
        if self._of != (known, leaders):
            self._message = map_message(known, leaders)
            self._of = (known, leaders)
        return self._message
