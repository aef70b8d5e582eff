"""The gRPC server of a node: services, health, reflection, limits and a graceful end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from raftkv.errors import ListenError
from raftkv.limits import MAX_CONNECTIONS, MAX_MESSAGE_BYTES
from raftkv.rpc.admin import AdminService
from raftkv.rpc.health import HealthService
from raftkv.rpc.service import KVService
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc

if TYPE_CHECKING:
    from raftkv.clock import Clock
    from raftkv.rpc.frontend import AdminFrontend

_HANDSHAKE: Final = 5.0
"""Seconds in which a connection must have begun to speak HTTP/2."""

_IDLE: Final = 60.0
"""Seconds without a call after which a connection is closed; clients that still want something connect again."""

_OPTIONS: Final = (
    # Two nodes on one port would each get half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE * 1000)),
    ("grpc.max_connection_idle_ms", int(_IDLE * 1000)),
)
_NAMES: Final = (
    kv_pb2.DESCRIPTOR.services_by_name["KV"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
)


class RpcServer:
    """Serves ``frontend`` at ``listen`` (host:port; port 0 = any free one), to so many ``connections`` at a time."""

    def __init__(
        self, frontend: AdminFrontend, listen: str, clock: Clock, *, connections: int = MAX_CONNECTIONS
    ) -> None:
        self._connections = connections
        self._listen = listen
        self._kv = KVService(frontend, clock)
        self._admin = AdminService(frontend)
        self._health = HealthService(frontend, clock, _NAMES)
        self._server: aio.Server | None = None
        self.port = 0
        """Port in use, known after :meth:`start`."""
        self.tally = self._kv.tally
        """What clients' operations came to."""

    async def start(self) -> None:
        """Listen and serve. Raises ListenError if the address cannot be listened on."""
        server = aio.server(options=(*_OPTIONS, ("grpc.max_allowed_incoming_connections", self._connections)))
        kv_pb2_grpc.add_KVServicer_to_server(self._kv, server)
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*_NAMES, health, reflection.SERVICE_NAME), server)
        try:
            port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            port = 0
            cause: Exception | None = error
        else:
            cause = None
        if not port:
            await server.stop(None)
            raise ListenError(
                f"cannot listen for clients on {self._listen}: the port is in use or the address is not this machine's"
            ) from cause
        self.port = port
        self._server = server
        await server.start()

    async def stop(self, grace: float = 3.0) -> None:
        """Take nothing new, answer what was read, end within ``grace`` seconds. Another call may shorten that."""
        if self._server is None:
            return
        self._health.stop()
        self._kv.drain()
        await self._server.stop(grace)
