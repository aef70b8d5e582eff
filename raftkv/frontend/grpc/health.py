"""The standard health service: SERVING exactly while the node is ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from grpc import aio

    from raftkv.clock import Clock
    from raftkv.frontend.port import NodePort

WATCH_PERIOD: Final = 0.25
"""Seconds between two looks at the state for a watcher; changes are reported that late."""


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the stubs do not type it
    """Answers for the whole server (the empty name) and for each service in ``names``."""

    def __init__(self, node: NodePort, clock: Clock, names: tuple[str, ...]) -> None:
        self._node = node
        self._clock = clock
        self._names = frozenset(("", *names))
        self._stopping = False

    def stop(self) -> None:
        """NOT_SERVING from now on."""
        self._stopping = True

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = None
        while not self._stopping:
            status = self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await self._pause()
        if told != health_pb2.HealthCheckResponse.NOT_SERVING:
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._names:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if not self._stopping and self._node.status().ready:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    async def _pause(self) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(WATCH_PERIOD, lambda: None if over.done() else over.set_result(None))
        try:
            await over
        finally:
            timer.cancel()
