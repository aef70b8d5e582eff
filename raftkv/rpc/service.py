"""The services KV and Admin over a front end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc

from raftkv.errors import Code, InvalidArgument, RaftKVError
from raftkv.limits import DEFAULT_TIMEOUT, MAX_TIMEOUT
from raftkv.rpc import convert
from raftkv.rpc.errors import CLUSTER_KEY, NODE_KEY, failure_of, status_of
from raftkv.rpc.frontend import slots_of
from raftkv.rpc.pipeline import PipelineStream
from raftkv.store.operations import Op, Result
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc

if TYPE_CHECKING:
    from grpc import aio

    from raftkv.clock import Clock
    from raftkv.rpc.frontend import Frontend, NodeStatus, ReplicaStatus

    Context = aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)
_OK = int(Code.OK)
_CONDITION_FAILED = int(Code.CONDITION_FAILED)
Request = TypeVar("Request")


class KVService(kv_pb2_grpc.KVServicer):
    """Unary RPCs, one operation each, and the Pipeline."""

    def __init__(self, frontend: Frontend, clock: Clock) -> None:
        self._frontend = frontend
        self._clock = clock
        self._streams: dict[PipelineStream, None] = {}
        self._draining = False

    async def Get(self, request: kv_pb2.GetRequest, context: Context) -> kv_pb2.GetResponse:
        result = await self._run(convert.get_operation, request, context)
        if not result.version:
            return kv_pb2.GetResponse()
        return kv_pb2.GetResponse(record=convert.record(request.key, result))

    async def Put(self, request: kv_pb2.PutRequest, context: Context) -> kv_pb2.PutResponse:
        return kv_pb2.PutResponse(version=(await self._run(convert.put_operation, request, context)).version)

    async def Delete(self, request: kv_pb2.DeleteRequest, context: Context) -> kv_pb2.DeleteResponse:
        return kv_pb2.DeleteResponse(existed=(await self._run(convert.delete_operation, request, context)).version > 0)

    async def CompareAndSwap(
        self, request: kv_pb2.CompareAndSwapRequest, context: Context
    ) -> kv_pb2.CompareAndSwapResponse:
        result = await self._run(convert.cas_operation, request, context, answers=(_OK, _CONDITION_FAILED))
        return kv_pb2.CompareAndSwapResponse(swapped=result.code == _OK, version=result.version)

    async def Scan(self, request: kv_pb2.ScanRequest, context: Context) -> kv_pb2.ScanResponse:
        return convert.scan_response(await self._run(convert.scan_operation, request, context))

    async def Pipeline(
        self, request_iterator: AsyncIterator[kv_pb2.PipelineRequest], context: Context
    ) -> AsyncIterator[kv_pb2.PipelineResponse]:
        if self._draining:
            await _abort(context, Result(int(Code.UNAVAILABLE), detail="the node is stopping"))
        status = self._frontend.status()
        # Sent before the first message is read: a client that has not seen it knows that nothing was executed.
        await context.send_initial_metadata(((CLUSTER_KEY, status.cluster_id), (NODE_KEY, str(status.node))))
        stream = PipelineStream(self._frontend, self._clock)
        self._streams[stream] = None
        reader = asyncio.create_task(stream.run(request_iterator))
        try:
            async for response in stream.responses():
                yield response
        finally:
            self._streams.pop(stream, None)
            reader.cancel()
        if isinstance(stream.failure, RaftKVError):
            await _abort(context, failure_of(stream.failure))
        elif stream.failure is not None:
            log.error("a pipeline of %s failed", context.peer(), exc_info=stream.failure)
            await _abort(context, Result(int(Code.INTERNAL), detail="the stream failed: see the node's log"))

    def drain(self) -> None:
        """Read nothing more from any Pipeline; each ends when what it has read is answered."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.stop_reading()

    async def _run(
        self,
        convert_request: Callable[[Request, int], Op],
        request: Request,
        context: Context,
        answers: tuple[int, ...] = (_OK,),
    ) -> Result:
        """The result of the request's operation, its code one of ``answers``; everything else aborts the RPC."""
        try:
            op = convert_request(request, slots_of(self._frontend))
        except InvalidArgument as error:
            await _abort(context, failure_of(error))
        remaining: float | None = context.time_remaining()
        timeout = DEFAULT_TIMEOUT if remaining is None else min(max(remaining, 0.001), MAX_TIMEOUT)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def reply(_: int, result: Result) -> None:
            if not answer.done():
                answer.set_result(result)

        self._frontend.submit((op,), timeout, reply)
        result = await answer
        if result.code not in answers:
            await _abort(context, result)
        return result


class AdminService(admin_pb2_grpc.AdminServicer):
    """What clients and operators ask about the cluster."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def GetMap(self, request: admin_pb2.GetMapRequest, context: Context) -> admin_pb2.GetMapResponse:
        known = self._frontend.cluster_map()
        if known is None:
            await _abort(context, Result(int(Code.UNAVAILABLE), detail="the node does not know the shard map yet"))
        leaders = self._frontend.leaders()
        return admin_pb2.GetMapResponse(
            cluster_id=known.cluster_id,
            epoch=known.epoch,
            slots=known.slots,
            nodes=[admin_pb2.NodeInfo(id=node.id, address=node.address) for node in known.nodes],
            groups=[
                admin_pb2.GroupInfo(id=group.id, voters=group.voters, leader=leaders.get(group.id, 0))
                for group in known.groups
            ],
            ranges=[admin_pb2.SlotRange(first=first, last=last, group=group) for first, last, group in known.ranges()],
        )

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Context) -> admin_pb2.GetStatusResponse:
        return status_message(self._frontend.status())


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
    )


async def _abort(context: Context, result: Result) -> NoReturn:
    status, text, metadata = status_of(result)
    await context.abort(status, text, metadata)
    raise grpc.RpcError(text)  # never reached: abort raises
