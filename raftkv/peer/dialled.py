"""The outgoing direction to one peer: dial, shake hands, send, ping, dial anew."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any, cast

from raftkv import limits
from raftkv.clock import Timer
from raftkv.errors import RaftKVError
from raftkv.log_limit import limited
from raftkv.peer.clocks import PeerClock, Reading
from raftkv.peer.frames import CHECKSUM, Decoder, ProtocolViolation, Seal
from raftkv.peer.handshake import Dialling
from raftkv.peer.hello import MAX_HANDSHAKE_BYTES, HelloRefused
from raftkv.peer.wiring import (
    HANDSHAKE_TIMEOUT,
    MAX_REDIAL,
    MIN_REDIAL,
    PONG_TIMEOUT,
    Wiring,
    log,
)

FRAME_BYTES = 1024 * 1024
"""Messages of one turn beyond so many bytes go into a further frame, so that the receiver's turns stay short."""

_MAX_TOLD = 8
"""Different problems that are logged from one connection to the next; each of them once."""


class DialledLink:
    """Keeps one connection to one peer. ``up`` from the welcome on until the connection fails.

    ``number``: of the latest connection, 0 = there was none yet.
    """

    def __init__(
        self, wiring: Wiring, node: int, address: str, number: int, dirty: Callable[[DialledLink], None]
    ) -> None:
        self.node = node
        self.address = address
        self.number = number
        self.up = False
        self.missed = 0
        """Attempts at this address since the last welcome there: none of them got one."""
        self._wiring = wiring
        self._dirty = dirty
        self._packed: list[bytes] = []
        self._bytes = 0
        self._attempt: _Attempt | None = None
        self._task: asyncio.Task[None] | None = None
        self._retry: Timer | None = None
        self._failures = 0
        self._told: set[str] = set()
        self._ended = False

    def dial(self) -> None:
        """Start an attempt, unless one is under way."""
        if self._ended or self._attempt is not None:
            return
        self._stop_retry()
        attempt = _Attempt(self, self._wiring, self.address)
        self._attempt = attempt
        attempt.deadline = self._wiring.clock.call_later(HANDSHAKE_TIMEOUT, partial(self._late, attempt))
        name = f"dial node {self.node}"
        self._task = asyncio.get_running_loop().create_task(self._connect(attempt), name=name)

    async def _connect(self, attempt: _Attempt) -> None:
        address = attempt.address
        try:
            await self._wiring.network.dial(address, lambda: attempt)
        except (OSError, RaftKVError) as error:
            self.lost(attempt, f"cannot connect to {address}: {error}")
        except Exception as error:  # noqa: BLE001 whatever resolvers and loops raise: one address must not end the node
            self.lost(attempt, f"cannot connect to {address}: {error!r}")

    def _late(self, attempt: _Attempt) -> None:
        attempt.fail(f"no answer from {self.address} within {HANDSHAKE_TIMEOUT} s")

    def welcomed(self, attempt: _Attempt) -> None:
        """The peer said welcome on the current attempt."""
        self._failures = self.missed = 0
        self._told.clear()
        self.number += 1
        self.up = True
        source = limited(f"node {self.node}")
        log.info("link %d to node %d at %s is up", self.number, self.node, self.address, extra=source)
        self._wiring.on_link(self.node, self.number, True)

    def down(self) -> None:
        """Send nothing more on the current connection; connection_lost will follow."""
        self.up = False
        self._packed.clear()
        self._bytes = 0

    def lost(self, attempt: _Attempt, problem: str) -> None:
        """The attempt or connection is over; the next one comes after a pause."""
        if attempt is self._attempt:
            self.down()
            attempt.stop_deadline()
            self.missed += not attempt.welcome_seen and attempt.address == self.address
            self._attempt = None
            self._task = None
            if not self._ended:
                if problem not in self._told and len(self._told) < _MAX_TOLD:
                    log.warning("link to node %d: %s", self.node, problem, extra=limited(f"node {self.node}"))
                    self._told.add(problem)
                self._schedule()
        if attempt.welcome_seen:
            attempt.welcome_seen = False
            self._wiring.on_link(self.node, attempt.number, False)

    def _schedule(self) -> None:
        longest = min(MAX_REDIAL, 2 * MIN_REDIAL * 2.0 ** min(self._failures, 10))
        self._failures += 1
        pause = self._wiring.rng.uniform(MIN_REDIAL, longest)
        self._retry = self._wiring.clock.call_later(pause, self._redial)

    def _redial(self) -> None:
        self._retry = None
        self.dial()

    def _stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def peer_started(self, boot: str) -> None:
        """The peer dialled us: it is alive, so do not wait; and a link to its earlier start is dead."""
        if self._retry is not None:
            self.dial()
        elif self.up and self._attempt is not None and self._attempt.boot != boot:
            self._attempt.fail("the peer has restarted")

    def readdress(self, address: str) -> None:
        """Dial ``address`` from now on."""
        if address == self.address:
            return
        self.address = address
        self._failures = self.missed = 0
        self._told.clear()
        if self._attempt is not None:
            self._attempt.fail(f"its address is now {address}")
        else:
            self.dial()

    def end(self) -> asyncio.Task[None] | None:
        """Send what waits, close, never dial again. Returns a task to wait for, if there is one."""
        self.flush()
        self._ended = True
        self._stop_retry()
        attempt, task = self._attempt, self._task
        if attempt is not None:
            if self.up:
                attempt.close()
            else:
                attempt.fail("closed")
        self.down()
        return task

    def cancel_dialling(self) -> bool:
        """Whether a connection attempt without a connection yet was stopped."""
        return self._task is not None and self._task.cancel()

    def send(self, message: Any) -> None:
        """Queue ``message`` if the link is up. Raises like :meth:`raftkv.peer.frames.Encoder.pack`."""
        if not self.up:
            return
        packed = self._wiring.encoder.pack(message)
        if self._packed and self._bytes + len(packed) > FRAME_BYTES and not self.flush():
            return
        if not self._packed:
            self._dirty(self)
        self._packed.append(packed)
        self._bytes += len(packed)

    def flush(self) -> bool:
        """Write what is queued as one frame; False if the link is down."""
        packed = self._packed
        if packed and self._attempt is not None:
            self._packed = []
            self._bytes = 0
            self._attempt.write(packed)
        return self.up

    @property
    def unsent(self) -> int:
        """Bytes that wait to leave, without the messages of this turn."""
        return 0 if self._attempt is None else self._attempt.unsent

    def round_trip(self, now: float) -> float | None:
        """Seconds that the last ping took, or that one has been waiting for its answer; None while the link is down."""
        return self._attempt.round_trip(now) if self.up and self._attempt is not None else None

    def clock(self) -> PeerClock | None:
        """What is known of the peer's clocks; None while the link is down."""
        return self._attempt.clock if self.up and self._attempt is not None else None

    def tick(self, now: float, late: bool) -> None:
        """Ping, or drop a dead link. ``late``: this node itself stood still, which says nothing of the peer."""
        if self.up and self._attempt is not None:
            self._attempt.ping(now, late)


class _Attempt(asyncio.Protocol):
    """One connection to the peer, from the first dialling to its end."""

    def __init__(self, link: DialledLink, wiring: Wiring, address: str) -> None:
        self.address = address
        self.deadline: Timer | None = None
        self.welcome_seen = False
        self.number = 0
        self.boot = ""
        self.clock = PeerClock()
        self._link = link
        self._wiring = wiring
        self._transport: asyncio.Transport | None = None
        self._handshake = Dialling(wiring.identity, link.node, wiring.secret)
        # Only answers and pongs come back on this connection.
        self._decoder = Decoder(MAX_HANDSHAKE_BYTES)
        self._seal: Seal = CHECKSUM
        self._problem = ""
        self._failed = False
        self._unanswered: deque[tuple[int, float]] = deque()
        self._pings = 0
        self._redated = 0
        self._round_trip = 0.0

    def stop_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def fail(self, problem: str) -> None:
        """Give this connection up at once. The link hears of it when the transport is gone."""
        if self._failed:
            return
        self._failed = True
        self._problem = problem
        self._link.down()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._link.cancel_dialling()
            self._link.lost(self, problem)

    def close(self) -> None:
        """Close once all that was written has left."""
        self._failed = True
        self._problem = "closed"
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def unsent(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def write(self, packed: list[bytes]) -> None:
        """Send these messages as one frame."""
        transport = self._transport
        if transport is None or self._failed:
            return
        transport.write(self._wiring.encoder.frame(packed, self._seal))
        waiting = transport.get_write_buffer_size()
        if waiting > limits.MAX_PEER_BUFFER_BYTES:
            self.fail(f"{waiting} bytes wait to be sent, the limit is {limits.MAX_PEER_BUFFER_BYTES}")

    def ping(self, now: float, late: bool) -> None:
        unanswered = self._unanswered
        if late:
            self._unanswered = unanswered = deque((number, now) for number, _ in unanswered)
            self._redated = self._pings
        if unanswered and now - unanswered[0][1] >= PONG_TIMEOUT:
            self.fail(f"no answer to a ping for {PONG_TIMEOUT} s")
            return
        self._pings += 1
        unanswered.append((self._pings, now))
        self._link.send(self._pings)

    def round_trip(self, now: float) -> float:
        waiting = now - self._unanswered[0][1] if self._unanswered else 0.0
        return max(self._round_trip, waiting)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: the transports of uvloop only look like asyncio's.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._wiring.opened(self)
        if self._failed:
            transport.abort()
            return
        problem = self._doubt(transport)
        if problem:
            self.fail(problem)
        else:
            transport.write(self._wiring.encoder.frame_of(self._handshake.hello))

    def _doubt(self, transport: asyncio.Transport) -> str:
        wiring = self._wiring
        if wiring.secret is not None:
            return ""
        return wiring.network.doubt(transport, wiring.identity.cluster_id, self._link.node)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
            if not self.welcome_seen and len(frames) > 1:
                raise ProtocolViolation("it sent more than an answer to the hello")
            for frame in frames:
                if self._failed:
                    return
                if self.welcome_seen:
                    self._pongs(frame)
                else:
                    self._answer(frame)
        except ProtocolViolation as violation:
            self.fail(f"{violation}; connection dropped")
        except Exception as error:  # noqa: BLE001 the supervisor gets it
            self.fail(f"internal error: {error!r}")
            self._wiring.crash(error)

    def _answer(self, frame: list[Any]) -> None:
        try:
            reply = self._handshake.answer(frame)
        except HelloRefused as refusal:
            self.fail(f"refused: {refusal}")
            self._wiring.on_refused(self._link.node, refusal)
            return
        if reply is not None:
            assert self._transport is not None
            self._transport.write(self._wiring.encoder.frame_of(reply))
            return
        self._seal, self._decoder.seal = self._handshake.seals()
        self.boot = self._handshake.boot
        self.stop_deadline()
        self.welcome_seen = True
        self.number = self._link.number + 1
        self._link.welcomed(self)

    def _pongs(self, frame: list[Any]) -> None:
        unanswered = self._unanswered
        arrived = self._wiring.clock.now()
        for pong in frame:
            if not _is_pong(pong):
                raise ProtocolViolation("only pongs may come back on an outgoing link")
            number, now, wall = pong
            while unanswered and unanswered[0][0] <= number:
                sent, at = unanswered.popleft()
                self._round_trip = arrived - at
                if sent == number and sent > self._redated:
                    self.clock.add(Reading(at, arrived, now, wall))

    def connection_lost(self, exc: Exception | None) -> None:
        self._failed = True
        self._wiring.closed(self)
        problem = self._problem or (f"connection lost: {exc}" if exc else "the peer closed the connection")
        try:
            self._link.lost(self, problem)
        except Exception as error:  # noqa: BLE001 the supervisor gets it
            self._wiring.crash(error)


def _is_pong(message: object) -> bool:
    """Whether it is the number of a ping, and what both clocks of the peer showed."""
    if type(message) is not list or len(message) != 3:
        return False
    number, now, wall = message
    return type(number) is int and type(now) is type(wall) is float and isfinite(now) and isfinite(wall)
