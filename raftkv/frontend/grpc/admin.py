"""The service Admin: what clients and operators ask about the cluster, and what operators change."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.failures import failure_of
from raftkv.commands.base import GroupCommand
from raftkv.commands.group import Check
from raftkv.commands.members import Transfer
from raftkv.commands.meta import ChangeCluster, ReadCluster
from raftkv.commands.results import ClusterReport, Result
from raftkv.errors import Code, RaftKVError
from raftkv.frontend.grpc.guard import abort, budget_of
from raftkv.frontend.port import answer_to
from raftkv.store.codec import pack, unpack
from raftkv.store.meta_state import Job, MetaState
from raftkv.v1 import admin_pb2, admin_pb2_grpc
from shards.map import META_GROUP, ShardMap
from shards.moves import Phase
from shards.slots import SLOT_RULE, rule_refusal

if TYPE_CHECKING:
    from grpc import aio

    from raftkv.api.status import NodeStatus, ReplicaStatus
    from raftkv.frontend.port import AdminPort

    Context = aio.ServicerContext[Any, Any]

_PHASES: Final = {
    Phase.STARTED: admin_pb2.MOVE_PHASE_STARTED,
    Phase.COMMITTED: admin_pb2.MOVE_PHASE_COMMITTED,
    Phase.CANCELLED: admin_pb2.MOVE_PHASE_CANCELLED,
}
_ONE_ARGUMENT: Final[dict[str, str]] = {
    "pause": "pause",
    "remove_group": "remove group",
    "undrain_node": "undrain",
    "remove_node": "remove node",
}
_TOKEN_BYTES: Final = 16
_SLOTS_AT_ONCE: Final = 512
_CHECK_BITS: Final = 48


class AdminService(admin_pb2_grpc.AdminServicer):
    """Any node answers for the whole cluster, but for GetStatus, GetSlots and GetDigests, which are its own."""

    def __init__(self, node: AdminPort) -> None:
        self._node = node
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
        waiting = self._node.waiting()
        return admin_pb2.GetStateResponse(
            map=self._map_message(state.map),
            now_ms=now,
            job=None if state.job is None else _job_message(state.job),
            moves=[
                admin_pb2.Move(
                    id=move.id,
                    slots=move.slots,
                    source=move.source,
                    target=move.target,
                    phase=_PHASES[move.phase],
                    started_ms=move.started,
                )
                for move in state.moves.values()
            ],
            finished=[
                admin_pb2.FinishedMove(
                    id=one.id,
                    slots=one.slots,
                    source=one.source,
                    target=one.target,
                    committed=one.committed,
                    records=one.records,
                    bytes=one.bytes,
                    freeze_ms=one.freeze,
                    took_ms=one.took,
                )
                for one in state.finished
            ],
            wanted=[
                admin_pb2.WantedVoters(group=group, voters=voters, waiting=waiting.get(group, ""))
                for group, voters in sorted(state.wanted.items())
            ],
            draining=state.draining,
        )

    async def Change(self, request: admin_pb2.ChangeRequest, context: Context) -> admin_pb2.ChangeResponse:
        token = request.token or secrets.token_bytes(_TOKEN_BYTES)
        arguments = _change_arguments(request)
        if arguments is None or len(token) != _TOKEN_BYTES:
            await abort(
                context, Result(int(Code.INVALID_ARGUMENT), detail="a change and a token of 16 bytes are wanted")
            )
        result = await self._ask(context, ChangeCluster(META_GROUP, token, arguments[0], pack(arguments[1:])))
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
        arguments = pack([request.address, request.peer_address, request.incarnation])
        joining = ChangeCluster(META_GROUP, secrets.token_bytes(_TOKEN_BYTES), "add node", arguments)
        result = await self._ask(context, joining)
        _, state = await self._meta_state(context)
        assert state.map is not None
        settings = self._node.settings()
        return admin_pb2.JoinResponse(
            node=result.number,
            map=self._map_message(state.map),
            groups=settings.groups,
            replicas=settings.replicas,
            election_min=settings.election_min,
            election_max=settings.election_max,
            heartbeat=settings.heartbeat,
            snapshot_bytes=settings.snapshot_bytes,
        )

    async def Transfer(self, request: admin_pb2.TransferRequest, context: Context) -> admin_pb2.TransferResponse:
        await self._ask(context, Transfer(request.group, request.node))
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
        await self._ask(context, Check(request.group, check))
        return admin_pb2.StartCheckResponse(check=check)

    async def GetDigests(self, request: admin_pb2.GetDigestsRequest, context: Context) -> admin_pb2.GetDigestsResponse:
        found = self._node.digests(request.group, request.check)
        if found is None:
            return admin_pb2.GetDigestsResponse()
        return admin_pb2.GetDigestsResponse(done=True, slots=dict(found.slots), rest=found.rest)

    async def ReadSnapshot(
        self, request: admin_pb2.ReadSnapshotRequest, context: Context
    ) -> AsyncIterator[admin_pb2.ReadSnapshotResponse]:
        try:
            async for chunk in self._node.read_snapshot(request.group):
                yield admin_pb2.ReadSnapshotResponse(chunk=chunk)
        except RaftKVError as problem:
            await abort(context, failure_of(problem))

    async def _meta_state(self, context: Context) -> tuple[int, MetaState]:
        result = await self._ask(context, ReadCluster(META_GROUP))
        report = result.answer
        assert isinstance(report, ClusterReport)
        if report.state != self._state_wire:
            self._state, self._state_wire = MetaState.from_wire(unpack(report.state)), report.state
        return report.time, self._state

    async def _ask(self, context: Context, op: GroupCommand) -> Result:
        result = await answer_to(self._node.submit, op, budget_of(context))
        if result.code != Code.OK:
            await abort(context, result)
        return result


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
        return ["want", request.change_voters.epoch, _wishes(request.change_voters.groups)]
    if kind == "drain_node":
        return ["drain", request.drain_node.epoch, request.drain_node.node, _wishes(request.drain_node.groups)]
    if kind == "pace":
        return ["tune", request.pace.concurrency, request.pace.rate]
    if kind == "add_group":
        return ["add group", list(request.add_group.voters)]
    if kind == "cancel":
        return ["cancel"]
    if kind is not None and kind in _ONE_ARGUMENT:
        return [_ONE_ARGUMENT[kind], getattr(request, kind)]
    return None


def _wishes(groups: Iterable[admin_pb2.WantedVoters]) -> list[Any]:
    return [[one.group, list(one.voters)] for one in groups]


class _MapAnswer:
    """The map as a message, made once for each map and its leaders: with many slots it takes tens of milliseconds."""

    def __init__(self) -> None:
        self._of: tuple[ShardMap, dict[int, int]] | None = None
        self._message = admin_pb2.GetMapResponse()

    def message(self, known: ShardMap, leaders: dict[int, int]) -> admin_pb2.GetMapResponse:
        """Not to be changed."""
        if self._of != (known, leaders):
            self._message = _map_message(known, leaders)
            self._of = (known, leaders)
        return self._message


def _map_message(known: ShardMap, leaders: dict[int, int]) -> admin_pb2.GetMapResponse:
    return admin_pb2.GetMapResponse(
        cluster_id=known.cluster_id,
        epoch=known.epoch,
        slots=known.slots,
        nodes=[
            admin_pb2.NodeInfo(
                id=node.id, address=node.address, peer_address=node.peer_address, incarnation=node.incarnation
            )
            for node in known.nodes
        ],
        groups=[
            admin_pb2.GroupInfo(
                id=group.id,
                voters=group.voters,
                leader=leaders.get(group.id, 0),
                learners=group.learners,
                founders=group.founders,
            )
            for group in known.groups
        ],
        ranges=[admin_pb2.SlotRange(first=first, last=last, group=group) for first, last, group in known.ranges()],
        removed=known.removed,
        slot_rule=SLOT_RULE,
    )


def _job_message(job: Job) -> admin_pb2.Job:
    return admin_pb2.Job(
        id=job.id,
        pending=[admin_pb2.PlannedMove(slots=one.slots, source=one.source, target=one.target) for one in job.pending],
        moves=job.moves,
        slots=job.slots,
        rate=job.rate,
        concurrency=job.concurrency,
        started_ms=job.started,
        paused=job.paused,
        cancelled=job.cancelled,
        done=job.done,
        done_slots=job.done_slots,
        failed=job.failed,
        ended_ms=job.ended,
    )


def status_message(status: NodeStatus) -> admin_pb2.GetStatusResponse:
    """The message that says what ``status`` says."""
    return admin_pb2.GetStatusResponse(
        node=status.node,
        cluster_id=status.cluster_id,
        version=status.version,
        map_epoch=status.map_epoch,
        ready=status.ready,
        replicas=[_replica_message(replica) for replica in status.replicas],
        uptime_seconds=status.uptime,
        peers=[
            admin_pb2.PeerStatus(
                node=peer.node, up=peer.up, round_trip_seconds=peer.round_trip, silence_seconds=peer.silence
            )
            for peer in status.peers
        ],
        problems=[
            admin_pb2.Problem(kind=one.kind, text=one.text, group=one.group, node=one.node) for one in status.problems
        ],
    )


def _replica_message(replica: ReplicaStatus) -> admin_pb2.ReplicaStatus:
    return admin_pb2.ReplicaStatus(
        group=replica.group,
        role=admin_pb2.Role.ValueType(int(replica.role)),
        leader=replica.leader,
        term=replica.term,
        last_index=replica.last_index,
        commit_index=replica.commit_index,
        applied_index=replica.applied_index,
        snapshot_index=replica.snapshot_index,
        match=replica.match,
        records=replica.records,
        voters=replica.voters,
        learners=replica.learners,
    )
