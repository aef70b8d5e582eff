"""The incoming direction: connections that peers dialled, their hellos, messages and pings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from raftkv import limits
from raftkv.addresses import crowded
from raftkv.log_limit import limited
from raftkv.peer.frames import CHECKSUM, Decoder, ProtocolViolation, Seal
from raftkv.peer.handshake import Accepting
from raftkv.peer.hello import MAX_HANDSHAKE_BYTES, Hello, HelloRefused, Reason
from raftkv.peer.wiring import HANDSHAKE_TIMEOUT, MAX_STRANGERS, SILENCE_TIMEOUT, Wiring, log, peer_name

_MAX_PONG_BUFFER = 64 * 1024
"""Bytes of pongs that a peer leaves unread before it is dropped; an honest peer has one or two in flight."""


class Acceptor:
    """All accepted connections of a node, at most one per peer once they have said hello."""

    def __init__(self, wiring: Wiring, on_hello: Callable[[Hello], None]) -> None:
        self._wiring = wiring
        self._on_hello = on_hello
        self._strangers: dict[AcceptedConnection, str] = {}
        self._peers: dict[int, AcceptedConnection] = {}
        self._ended = False

    def connection(self) -> asyncio.Protocol:
        """A protocol for the listener's next connection."""
        return AcceptedConnection(self, self._wiring)

    def arrived(self, connection: AcceptedConnection) -> None:
        if self._ended:
            connection.drop("")
            return
        if len(self._strangers) >= MAX_STRANGERS:
            crowded(self._strangers).drop("too many connections without a hello")
        self._strangers[connection] = connection.host

    def introduced(self, connection: AcceptedConnection, hello: Hello) -> None:
        """A connection's dialler has proven what it said. Raises HelloRefused if it is not welcome."""
        self._wiring.admit(hello)
        del self._strangers[connection]
        before = self._peers.get(hello.node)
        if before is not None:
            before.drop("")
        self._peers[hello.node] = connection

    def welcomed(self, hello: Hello) -> None:
        self._on_hello(hello)

    def gone(self, connection: AcceptedConnection) -> None:
        self._strangers.pop(connection, None)
        if self._peers.get(connection.node) is connection:
            del self._peers[connection.node]

    def silence(self, node: int, now: float) -> float | None:
        """Seconds since ``node`` was heard, to about half a second; None if it has no connection to this node."""
        connection = self._peers.get(node)
        return None if connection is None else connection.silence(now)

    def drop_peer(self, node: int) -> None:
        """Take nothing more from ``node`` until it says hello again."""
        connection = self._peers.get(node)
        if connection is not None:
            connection.drop("")

    def tick(self, now: float, late: bool) -> None:
        """Drop what has been silent for too long."""
        for connection in [*self._strangers, *(self._peers[node] for node in sorted(self._peers))]:
            connection.tick(now, late)

    def end(self) -> None:
        """Close all connections and refuse to take another."""
        self._ended = True
        for connection in [*self._strangers, *(self._peers[node] for node in sorted(self._peers))]:
            connection.close()


class AcceptedConnection(asyncio.Protocol):
    """One connection that somebody made to this node."""

    def __init__(self, acceptor: Acceptor, wiring: Wiring) -> None:
        self.node = 0
        self.address = ""
        self._acceptor = acceptor
        self._wiring = wiring
        self._transport: asyncio.Transport | None = None
        self._handshake = Accepting(wiring.identity, wiring.secret)
        self._decoder = Decoder(MAX_HANDSHAKE_BYTES)
        self._seal: Seal = CHECKSUM
        self._proven = False
        """Whether it is the node that its hello names, as far as can be told."""
        self._dead = False
        self._heard = False
        self._last_heard = 0.0

    @property
    def host(self) -> str:
        """The other end's host."""
        return self.address.rpartition(":")[0] or self.address

    def drop(self, problem: str) -> None:
        """Close at once; log ``problem`` unless it is empty."""
        if self._dead:
            return
        self._dead = True
        if problem:
            who = f"node {self.node}" if self.node else "an unknown peer"
            source = who if self.node else self.host
            log.warning("dropped the connection from %s at %s: %s", who, self.address, problem, extra=limited(source))
        self._acceptor.gone(self)
        self.abort()

    def _refuse(self, refusal: HelloRefused) -> None:
        """Answer no and close."""
        hello, source = self._handshake.hello, self.host
        if hello is None:
            who = "a dialler"
        elif self._proven:
            who = f"node {hello.node}"
            source = f"{who} at {self.host}"
        else:
            who = f"one that says it is node {hello.node}"
        log.warning("refused %s at %s: %s", who, self.address, refusal, extra=limited(source))
        self._write(self._handshake.refuse(refusal))
        self.close()

    def close(self) -> None:
        self._dead = True
        self._acceptor.gone(self)
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def silence(self, now: float) -> float:
        return 0.0 if self._heard else now - self._last_heard

    def tick(self, now: float, late: bool) -> None:
        """``late``: this node itself stood still, which says nothing of the peer."""
        if self._heard or late:
            self._heard = False
            self._last_heard = now
        elif self.node:
            if now - self._last_heard >= SILENCE_TIMEOUT:
                self.drop(f"silent for {SILENCE_TIMEOUT} s")
        elif now - self._last_heard >= HANDSHAKE_TIMEOUT:
            self.drop(f"no hello within {HANDSHAKE_TIMEOUT} s")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: the transports of uvloop only look like asyncio's.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self.address = peer_name(transport)
        self._last_heard = self._wiring.clock.now()
        self._wiring.opened(self)
        self._acceptor.arrived(self)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
            if not self.node and len(frames) > 1:
                raise ProtocolViolation("it did not wait for the answer to its hello")
            for frame in frames:
                if self._dead:
                    return
                if self.node:
                    self._deliver(frame)
                else:
                    self._introduce(frame)
        except ProtocolViolation as violation:
            self.drop(str(violation))
        except Exception as error:  # noqa: BLE001 the supervisor gets it
            self.drop(f"its message could not be handled: {error!r}")
            self._wiring.crash(error)

    def _introduce(self, frame: list[Any]) -> None:
        try:
            reply = self._handshake.take(frame)
            if reply is not None:
                self._write(reply)
                return
            hello = self._handshake.hello
            assert hello is not None
            self._check_connection(hello)
            self._proven = True
            self._acceptor.introduced(self, hello)
        except HelloRefused as refusal:
            self._refuse(refusal)
            return
        self.node = hello.node
        self._heard = True
        self._write(self._handshake.welcome())
        self._decoder.seal, self._seal = self._handshake.seals()
        self._decoder.limit = limits.MAX_FRAME_BYTES
        self._acceptor.welcomed(hello)

    def _check_connection(self, hello: Hello) -> None:
        wiring = self._wiring
        if wiring.secret is None:
            assert self._transport is not None
            problem = wiring.network.doubt(self._transport, hello.cluster_id, hello.node)
            if problem:
                raise HelloRefused(Reason.NOT_PROVEN, problem)

    def _deliver(self, frame: list[Any]) -> None:
        self._heard = True
        node = self.node
        on_message = self._wiring.on_message
        ping = 0
        for message in frame:
            if type(message) is list:
                on_message(node, message)
                if self._dead:
                    return
            elif type(message) is int:
                ping = message
            else:
                raise ProtocolViolation(f"a message is {type(message).__name__}, not an array")
        if ping:
            self._pong(ping)

    def _pong(self, number: int) -> None:
        clock = self._wiring.clock
        self._write([[number, clock.now(), clock.wall()]])
        if self._transport is not None and self._transport.get_write_buffer_size() > _MAX_PONG_BUFFER:
            self.drop("it does not read the answers to its pings")

    def _write(self, messages: list[Any]) -> None:
        if self._transport is not None:
            self._transport.write(self._wiring.encoder.frame_of(messages, self._seal))

    def connection_lost(self, exc: Exception | None) -> None:
        self._dead = True
        self._wiring.closed(self)
        self._acceptor.gone(self)
