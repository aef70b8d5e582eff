"""The gRPC server of a node: services, health, reflection, limits and a graceful end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import _async, reflection, reflection_pb2_grpc

from raftkv.commands.rights import Right
from raftkv.errors import ListenError
from raftkv.frontend.grpc.admin import NEEDS, AdminService
from raftkv.frontend.grpc.guard import Guard
from raftkv.frontend.grpc.health import HealthService
from raftkv.frontend.grpc.kv import KVService
from raftkv.frontend.grpc.sockets import shut_down
from raftkv.frontend.port import OpenDoor
from raftkv.frontend.shares import Shares
from raftkv.limits import (
    MAX_CALLS,
    MAX_CONNECTIONS,
    MAX_HELD_BYTES,
    MAX_MESSAGE_BYTES,
    STALLED_READER,
)
from raftkv.log_limit import limited
from raftkv.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc

if TYPE_CHECKING:
    from raftkv.clock import Timer
    from raftkv.frontend.port import AdminPort, Door
    from raftkv.frontend.resources import Resources

_HANDSHAKE: Final = 5.0
"""Seconds in which a connection must have begun to speak HTTP/2."""

_IDLE: Final = 60.0
"""Seconds without a call after which a connection is closed; clients that still want something connect again."""

_WINDOW: Final = 256 * 1024
"""Bytes that a client may send on a call before the node asks for more: 25 MB/s at 10 ms from one another."""

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
    # Else the window grows with what arrives, to megabytes for each connection: what a flood sends is then in memory,
    # and its next messages are read before this node has begun with the last.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _WINDOW),
)
_ADMIN: Final = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
_HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_NAMES: Final = (kv_pb2.DESCRIPTOR.services_by_name["KV"].full_name, _ADMIN)


def _needs(service: str, method: str) -> Right | None:
    """The rights that a method needs whatever it is asked for, None: its caller need not be a user."""
    if service == _HEALTH:
        return None
    return NEEDS.get(method, Right.ADMIN) if service == _ADMIN else Right.NONE


_LOOK: Final = 1.0
"""Seconds between looks for readers that have stopped."""
_MISUSED: Final = "grpc_call_error"
"""In gRPC's text where a call was used wrongly: that is no client's doing."""
log = logging.getLogger(__name__)


def _remarkable(record: logging.LogRecord) -> bool:
    """False if gRPC tells that it could not write to a client: it has left, and nobody has to do anything."""
    problem = record.exc_info[1] if record.exc_info else None
    return not isinstance(problem, aio.InternalError) or _MISUSED in str(problem)


class ServerTls(Protocol):
    """The server's certificates. ``pem``: CAs, certificate and key as they are now; ``ask_clients``: whether clients
    need certificates."""

    pem: tuple[bytes, bytes, bytes]
    ask_clients: bool


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Those of a server whose every new connection has the certificates of that time."""
    used = tls.pem

    def configuration() -> grpc.ServerCertificateConfiguration:
        ca, cert, key = used
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    # None means: the same as before, which the stubs do not know.
    def fetch() -> Any:
        nonlocal used
        if tls.pem is used:
            return None
        used = tls.pem
        return configuration()

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, tls.ask_clients)


class GrpcServer:
    """Serves ``node`` at ``listen`` (host:port; port 0 = any free one), to so many ``connections`` at a time.

    ``tls``: the certificates of each new connection, without it nothing is encrypted. ``door``: who may come in, by
    default everybody.
    """

    def __init__(
        self,
        node: AdminPort,
        listen: str,
        resources: Resources,
        *,
        connections: int = MAX_CONNECTIONS,
        tls: ServerTls | None = None,
        door: Door | None = None,
    ) -> None:
        self._tls = tls
        self._door = door or OpenDoor()
        self._connections = connections
        self._listen = listen
        self.resources = resources
        self._clock = clock = resources.clock
        self._kv = KVService(node, resources, self._door)  # type: ignore[abstract]  # Its RPCs come from the registry.
        self._guards: list[Guard] = []
        self._timer: Timer | None = None
        self._admin = AdminService(node, self._door)
        self._health = HealthService(node, clock, _NAMES)
        self._server: aio.Server | None = None
        self.port = 0
        """Port in use, known after :meth:`start`."""

    async def start(self) -> None:
        """Listen and serve. Raises ListenError if the address cannot be listened on."""
        logging.getLogger("grpc._cython.cygrpc").addFilter(_remarkable)
        server = aio.server(options=(*_OPTIONS, ("grpc.max_allowed_incoming_connections", self._connections)))
        clock, door = self._clock, self._door
        data = Guard(server, Shares(MAX_CALLS, clock), self.resources.held, clock, door, _needs)
        # Shares of their own: whatever clients do with data, operators and probes are answered.
        others = Guard(server, Shares(MAX_CALLS, clock), Shares(MAX_HELD_BYTES // 4, clock), clock, door, _needs)
        self._guards = [data, others]
        kv_pb2_grpc.add_KVServicer_to_server(self._kv, data)  # type: ignore[arg-type]
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, others)  # type: ignore[arg-type]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, others)
        names = (*_NAMES, _HEALTH, reflection.SERVICE_NAME)
        servicer = _async.ReflectionServicer(names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, others)
        try:
            if self._tls is None:
                port = server.add_insecure_port(self._listen)
            else:
                port = server.add_secure_port(self._listen, _credentials(self._tls))
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
        self._timer = self._clock.call_later(_LOOK, self._look)

    async def stop(self, grace: float = 3.0) -> None:
        """Take nothing new, answer what was read, end within ``grace`` seconds. Another call may shorten that."""
        if self._server is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._health.stop()
        self._kv.drain()
        await self._server.stop(grace)

    def _look(self) -> None:
        """Where others wait for room, end connections whose answers nobody has read for long."""
        self._timer = self._clock.call_later(_LOOK, self._look)
        if not any(guard.answers.waiting for guard in self._guards):
            return
        late = self._clock.now() - STALLED_READER
        self._kv.watches.end_stalled(late)
        blocked = {peer for peer, since in self._kv.blocked().items() if since <= late}
        for guard in self._guards:
            blocked.update(peer for peer, since in guard.sending.values() if since <= late)
        if blocked:
            shut_down(blocked)
            for peer in blocked:
                source = limited(peer.rpartition(":")[0])
                log.warning("closed the connection from %s: it does not read its answers", peer, extra=source)
