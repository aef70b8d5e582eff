"""The network port and its real implementation, the only place that opens sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from raftkv.addresses import Address, parse_address, parse_listen_address
from raftkv.errors import ConfigError
from raftkv.lookups import Lookups
from raftkv.tls import Arrivals

_BACKLOG = 128

TLS_TIMEOUT: Final = 2.0
"""Seconds for the handshake of TLS: a stranger holds a connection no longer without having proven anything."""

MAX_HANDSHAKES: Final = 64
"""Accepted connections that have not finished it."""


class CannotListen(ConfigError):
    """The node cannot accept connections at its peer address; the message says why."""


class AddressInUse(CannotListen):
    """Another process listens at the node's peer address."""


class Listener(Protocol):
    """A place at which connections are accepted."""

    @property
    def address(self) -> str:
        """``host:port``, with the real port when port 0 was asked for."""

    def close(self) -> None:
        """Accept nothing more; connections made before stay open."""


class Network(Protocol):
    """Where streams between nodes come from: TCP, or a simulator."""

    async def dial(self, address: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """Connect to ``address`` (``host:port``) and attach ``factory()``. Raises OSError or BadAddress."""

    async def listen(self, address: str, factory: Callable[[], asyncio.Protocol]) -> Listener:
        """Attach ``factory()`` to every connection made to ``address`` (``host:port``).

        Raises :class:`CannotListen` or BadAddress.
        """

    def doubt(self, connection: asyncio.BaseTransport, cluster_id: str, node: int) -> str:
        """Why it is not certain that ``node`` of that cluster is at the other end; "" if the network proves it."""


class TcpListener:
    """A listening TCP socket of the running loop."""

    def __init__(self, server: asyncio.Server, arrivals: Arrivals | None = None) -> None:
        self._server = server
        self._arrivals = arrivals
        host, port = server.sockets[0].getsockname()[:2]
        self._address = str(Address(host, port))

    @property
    def address(self) -> str:
        return self._address

    def close(self) -> None:
        self._server.close()
        if self._arrivals is not None:
            self._arrivals.close()


class PeerTls(Protocol):
    """TLS between nodes, both of which have certificates."""

    accepting: ssl.SSLContext
    """For the next connection of a node to this one. It checks no names: :meth:`doubt` does."""

    dialling: ssl.SSLContext
    """For the next connection to a node."""

    def doubt(self, certificate: Mapping[str, Any] | None, cluster_id: str, node: int) -> str:
        """Why ``certificate`` is not that of ``node``; "" if it is."""


class TcpNetwork:
    """Real connections on the running asyncio loop, without Nagle's delay; with ``tls``, encrypted."""

    def __init__(self, tls: PeerTls | None = None) -> None:
        self._tls = tls
        self._lookups = Lookups()

    async def dial(self, address: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        parsed = parse_address(address)
        hosts = await self._lookups.addresses(parsed.host) if parsed.is_name else [parsed.host]
        transport = await self._connect(hosts, parsed.port, factory)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return transport

    async def listen(self, address: str, factory: Callable[[], asyncio.Protocol]) -> Listener:
        host, port = parse_listen_address(address, any_port=True)
        loop = asyncio.get_running_loop()
        arrivals = self._arrivals(factory)
        try:
            # asyncio and uvloop switch Nagle's delay off for accepted connections themselves.
            server = await loop.create_server(arrivals or factory, host, port, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(f"peer address {address} is in use by another process") from error
            raise CannotListen(f"cannot listen at peer address {address}: {error.strerror or error}") from error
        return TcpListener(server, arrivals)

    def doubt(self, connection: asyncio.BaseTransport, cluster_id: str, node: int) -> str:
        if self._tls is None:
            return "a plain connection does not prove who is at its other end"
        return self._tls.doubt(connection.get_extra_info("peercert"), cluster_id, node)

    def _arrivals(self, factory: Callable[[], asyncio.Protocol]) -> Arrivals | None:
        tls = self._tls
        if tls is None:
            return None
        return Arrivals(lambda: tls.accepting, factory, most=MAX_HANDSHAKES, patience=TLS_TIMEOUT)

    async def _connect(self, hosts: list[str], port: int, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """A connection to the first of ``hosts`` that takes one."""
        *others, last = hosts
        for host in others:
            with contextlib.suppress(OSError):
                return await self._open(host, port, factory)
        return await self._open(last, port, factory)

    async def _open(self, host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            return (await loop.create_connection(factory, host, port))[0]
        tls: dict[str, Any] = {"ssl": self._tls.dialling, "ssl_handshake_timeout": TLS_TIMEOUT}
        return (await loop.create_connection(factory, host, port, **tls))[0]
