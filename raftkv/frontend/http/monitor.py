"""Metrics and probes of a node over HTTP, in the node's own loop, so that no other thread looks at its state.

It needs no disk and asks no other node. Whoever talks to it gets one answer per connection, within a few seconds;
there are few connections at a time, and scrapes get a small share of the loop. So a slow or hostile client costs the
node little, and probes are answered beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client.aiohttp import make_aiohttp_handler

from raftkv.addresses import Address
from raftkv.errors import ListenError, NotApplied, Unauthenticated
from raftkv.frontend.http import metrics
from raftkv.frontend.port import OpenDoor
from raftkv.log_limit import limited
from raftkv.tls import Arrivals

if TYPE_CHECKING:
    import ssl

    from aiohttp.typedefs import Handler

    from raftkv.api.status import ReplicaStatus
    from raftkv.clock import Clock, Timer
    from raftkv.frontend.counters import Counters
    from raftkv.frontend.port import Door, MonitoredNode, NodeStats

log = logging.getLogger(__name__)

CONNECTIONS: Final = 16
"""At a time; another one ends the oldest, so that those who hold connections do not shut out a probe."""

PATIENCE: Final = 5.0
"""Seconds from the connection to its end, whoever is slow."""

SHARE: Final = 0.1
"""Of the loop's time, for all scrapes; what a second of it has saved may be spent at once."""

FRESH: Final = 0.1
"""Seconds for which what ``/readyz`` saw is not looked at again."""

_LINE: Final = 4096
_HEADERS: Final = 64
_GRACE: Final = 0.5


def _no_fault_of_the_client(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


# Whoever sends malformed requests must not fill the node's log with them.
_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_no_fault_of_the_client)


class Monitor:
    """Serves ``/metrics``, ``/livez`` and ``/readyz`` of ``node`` at ``host:port``; port 0 = any free one.

    ``door`` lets users in who want metrics; probes are for everybody. ``tls``: the context of the next connection, by
    default none. ``ask_clients``: metrics are for clients with a certificate only.
    """

    def __init__(
        self,
        node: MonitoredNode,
        counters: Counters,
        host: str,
        port: int,
        clock: Clock,
        door: Door | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        *,
        ask_clients: bool = False,
    ) -> None:
        self._node = node
        self._clock = clock
        self._host = host
        self._arrivals = None if tls is None else Arrivals(tls, self._visit, most=CONNECTIONS, patience=PATIENCE)
        self._door = door or OpenDoor()
        self._ask_clients = ask_clients
        self._stopping = False
        self._scrapes_due = 0.0
        self._seen: NodeStats | None = None
        self._seen_until = 0.0
        self._open: dict[_Visit, None] = {}
        self._listener: asyncio.Server | None = None
        app = web.Application(middlewares=[self._answer], client_max_size=_LINE)
        self._scrape = make_aiohttp_handler(metrics.registry(node, counters))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_http_log,
            keepalive_timeout=0,
            lingering_time=0,
            max_line_size=_LINE,
            max_field_size=_LINE,
            max_headers=_HEADERS,
            shutdown_timeout=_GRACE,
        )
        self.port = port
        """Port in use, known after :meth:`start`."""

    async def start(self) -> None:
        """Listen and serve. Raises ListenError if the address cannot be listened on."""
        await self._runner.setup()
        try:
            factory = self._arrivals or self._visit
            listener = await asyncio.get_running_loop().create_server(factory, self._host, self.port)
        except OSError as error:
            await self._runner.cleanup()
            raise ListenError(
                f"cannot listen for metrics on {Address(self._host, self.port)}: {error.strerror or error}"
            ) from error
        self._listener = listener
        self.port = listener.sockets[0].getsockname()[1]

    def stopping(self) -> None:
        """The node is about to end: not ready from now on."""
        self._stopping = True

    async def stop(self) -> None:
        """Listen no more and end all connections. Safe to call twice."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.close()
        if self._arrivals is not None:
            self._arrivals.close()
        for visit in list(self._open):
            visit.end()
        await self._runner.cleanup()

    def _visit(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        assert server is not None
        return _Visit(server, self._open, self._clock)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """One answer per connection, and no mistake of ours that goes further than a 500."""
        response: web.StreamResponse
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            response = web.Response(status=refusal.status, text=f"{refusal.reason}\n")
            if refusal.status == web.HTTPUnauthorized.status_code:
                response.headers["WWW-Authenticate"] = 'Bearer realm="raftkv", Basic realm="raftkv"'
        except Exception:
            log.exception(
                "%s cannot be answered",
                request.path,
                extra=limited(request.path, request.headers.get("X-Request-ID", "")),
            )
            response = web.Response(status=500, text="internal error: see the node's log\n")
        response.force_close()
        return response

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if self._ask_clients and (transport is None or transport.get_extra_info("peercert") is None):
            raise web.HTTPForbidden
        if self._door.closed:
            await self._admit(request)
        since = self._clock.now()
        if self._scrapes_due > since:
            raise web.HTTPTooManyRequests
        try:
            return await self._scrape(request)
        finally:
            took = self._clock.now() - since
            self._scrapes_due = max(self._scrapes_due, since - 1.0) + took / SHARE

    async def _admit(self, request: web.Request) -> None:
        """Raises what an answer without metrics is."""
        name = request.transport and request.transport.get_extra_info("peername")
        peer = str(Address(*name[:2])) if name else "unknown"
        try:
            await self._door.enter(peer, request.headers.get("Authorization"))
        except Unauthenticated:
            raise web.HTTPUnauthorized from None
        except NotApplied:
            raise web.HTTPServiceUnavailable from None

    async def _livez(self, _: web.Request) -> web.Response:
        # That this runs at all is most of the answer. Other nodes must not matter: who restarts a node because its
        # cluster is in trouble makes it worse.
        alive = self._node.alive()
        return web.json_response({"alive": alive}, status=200 if alive else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        now = self._clock.now()
        if self._seen is None or now >= self._seen_until:
            self._seen, self._seen_until = self._node.stats(), now + FRESH
        stats, status = self._seen, self._seen.status
        ready = status.ready and self._node.alive() and not self._stopping
        groups = [_group(one.status) for one in stats.replicas if one.member]
        answer = {
            "ready": ready,
            "node": status.node,
            "stopping": self._stopping,
            "map_epoch": status.map_epoch,
            "disk_full": stats.disk_full,
            "groups": groups,
        }
        return web.json_response(answer, status=200 if ready else 503)


def _group(status: ReplicaStatus) -> dict[str, Any]:
    """``lag``: committed entries that the replica has not applied yet; ``leader``: node, null if unknown."""
    return {
        "group": status.group,
        "role": status.role.name.lower(),
        "leader": status.leader or None,
        "term": status.term,
        "lag": status.commit_index - status.applied_index,
    }


class _Visit(asyncio.Protocol):
    """One connection: ended when its time is up, or when others want its place."""

    def __init__(self, server: Callable[[], asyncio.Protocol], visits: dict[_Visit, None], clock: Clock) -> None:
        self._server = server
        self._inner: asyncio.Protocol | None = None
        self._open = visits
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._timer: Timer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._open) >= CONNECTIONS:
            next(iter(self._open)).end()
        self._open[self] = None
        self._timer = self._clock.call_later(PATIENCE, self.end)
        self._inner = self._server()
        self._inner.connection_made(transport)

    def connection_lost(self, problem: Exception | None) -> None:
        self._open.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        if self._inner is not None:
            self._inner.connection_lost(problem)

    def end(self) -> None:
        self._open.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()
