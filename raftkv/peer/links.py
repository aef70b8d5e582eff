"""All links of one node: what the node's groups send to and hear from the other nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from raftkv.clock import Clock, Timer
from raftkv.peer.accepted import Acceptor
from raftkv.peer.clocks import PeerClock
from raftkv.peer.dialled import DialledLink
from raftkv.peer.handshake import Secret
from raftkv.peer.hello import Hello, HelloRefused, Identity
from raftkv.peer.network import Listener, Network
from raftkv.peer.wiring import PING_INTERVAL, Wiring, log

CLOSE_TIMEOUT: Final = 0.5
"""Seconds that :meth:`Links.close` waits for unsent bytes before it drops them."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """Both directions between this node and ``node``. Times in seconds.

    ``up``: whether messages to it are sent at present. ``round_trip``: what the last ping to it took, or has been
    waiting for; None while the link is down. ``silence``: since something came from it, to about half a second; None
    without a connection from it.
    """

    node: int
    up: bool
    round_trip: float | None
    silence: float | None


class Links:
    """One outgoing connection per peer for what this node sends, one incoming for what it hears.

    Messages to one node arrive in order and at most once; they are lost with the connection that carries them, and none
    is sent while a link is down. Callbacks run in the loop; one that raises is reported to ``on_crash`` (by default the
    loop's exception handler) and costs the connection it came from.

    ``secret``: what proves that a node is of the cluster; without it, ``network`` must prove who is at the other end of
    a connection. ``admit(hello)`` raises HelloRefused for a dialler that is not welcome. ``on_message(node, message)``:
    ``message`` is any msgpack array, to be checked by the consumer, who raises ``ProtocolViolation`` to have the
    connection dropped and logged. ``on_link(node, link_number, up)``: the outgoing link to ``node`` has come up or gone
    down, also by :meth:`close`. ``on_refused(node, refusal)``: ``node`` does not take this node's messages; it is
    dialled again all the same.
    """

    def __init__(
        self,
        network: Network,
        clock: Clock,
        identity: Identity,
        secret: Secret | None,
        listen_address: str,
        dial: Mapping[int, str],
        admit: Callable[[Hello], None],
        on_message: Callable[[int, list[Any]], None],
        on_link: Callable[[int, int, bool], None],
        on_refused: Callable[[int, HelloRefused], None],
        rng: random.Random,
        on_crash: Callable[[Exception], None] | None = None,
    ) -> None:
        self._wiring = Wiring(network, clock, identity, secret, rng, admit, on_message, on_link, on_refused, on_crash)
        self._listen_address = listen_address
        self._acceptor = Acceptor(self._wiring, self._said_hello)
        self._links: dict[int, DialledLink] = {}
        self._link_numbers: dict[int, int] = {}
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: Timer | None = None
        self._last_tick = 0.0
        self._dirty: list[DialledLink] = []
        self._flush_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        for node in sorted(dial):
            self.add_peer(node, dial[node])

    async def start(self) -> None:
        """Listen, then dial all peers. Raises :class:`raftkv.peer.network.CannotListen` or BadAddress."""
        assert self._loop is None, "started twice"
        self._listener = await self._wiring.network.listen(self._listen_address, self._acceptor.connection)
        self._loop = asyncio.get_running_loop()
        self._last_tick = self._wiring.clock.now()
        self._timer = self._wiring.clock.call_later(PING_INTERVAL, self._tick)
        for link in self._links.values():
            link.dial()

    async def close(self) -> None:
        """Send what waits, close all connections and stop listening; at most about :data:`CLOSE_TIMEOUT` seconds."""
        if self._closed:
            return
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        if self._timer is not None:
            self._timer.cancel()
        for node in list(self._links):
            self._end(self._links.pop(node))
        self._acceptor.end()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._wiring.open:
            timer = self._wiring.clock.call_later(CLOSE_TIMEOUT, self._abort_all)
            await self._wiring.drained.wait()
            timer.cancel()

    def _abort_all(self) -> None:
        for connection in list(self._wiring.open):
            connection.abort()

    @property
    def address(self) -> str:
        """Where this node listens, with the real port."""
        return self._listener.address if self._listener is not None else self._listen_address

    @property
    def peers(self) -> list[int]:
        """The nodes that are dialled, in order."""
        return list(self._links)

    def add_peer(self, node: int, address: str) -> None:
        """Dial ``node`` at ``address`` from now on. Raises ValueError for this node or a present peer."""
        own = self._wiring.identity.node
        if node < 1 or node == own or node in self._links:
            raise ValueError(f"node {node} cannot be added to the peers {self.peers} of node {own}")
        link = DialledLink(self._wiring, node, address, self._link_numbers.get(node, 0), self._dirty_link)
        self._links[node] = link
        # The order of sending follows the ids, not the history of the process.
        self._links = {peer: self._links[peer] for peer in sorted(self._links)}
        if self._loop is not None and not self._closed:
            link.dial()

    def remove_peer(self, node: int) -> None:
        """Close both directions and dial ``node`` no more; ``admit`` decides whether it may come back.

        Nothing happens if it is no peer.
        """
        link = self._links.pop(node, None)
        if link is not None:
            self._end(link)
        self._acceptor.drop_peer(node)

    def set_dial(self, node: int, address: str) -> None:
        """Dial ``node`` at ``address`` instead, dropping an open link elsewhere. Raises KeyError if it is no peer."""
        self._links[node].readdress(address)

    def dialled(self, node: int) -> str:
        """Where ``node`` is dialled. Raises KeyError if it is no peer."""
        return self._links[node].address

    def missed(self, node: int) -> bool:
        """Whether the latest attempt to reach ``node`` where it is dialled has failed, and none was welcomed since."""
        link = self._links.get(node)
        return link is not None and link.missed > 0

    def send_to_all(self, message: list[Any]) -> None:
        """:meth:`send` to each peer."""
        for peer in self.peers:
            self.send(peer, message)

    def send(self, node: int, message: list[Any]) -> None:
        """Queue ``message`` to leave at the end of this turn of the loop; dropped if there is no link to ``node``.

        Raises :class:`raftkv.peer.frames.MessageTooLong`; TypeError, ValueError or OverflowError for what
        msgpack cannot hold.
        """
        link = self._links.get(node)
        if link is not None:
            link.send(message)

    def flush(self) -> None:
        """Let all queued messages leave now: one frame per peer."""
        dirty = self._dirty
        if not dirty:
            return
        self._dirty = []
        if len(dirty) > 1:
            dirty.sort(key=_node_of)
        for link in dirty:
            link.flush()

    def link_number(self, node: int) -> int:
        """Number of the outgoing link to ``node``: 0 = never up, one more with each connection."""
        link = self._links.get(node)
        return link.number if link is not None else self._link_numbers.get(node, 0)

    def up(self, node: int) -> bool:
        """Whether messages to ``node`` are sent at present."""
        link = self._links.get(node)
        return link is not None and link.up

    def unsent(self, node: int) -> int:
        """Bytes that wait to leave for ``node``."""
        link = self._links.get(node)
        return 0 if link is None else link.unsent

    def states(self) -> list[LinkState]:
        """How both directions to each peer are doing."""
        now = self._wiring.clock.now()
        return [
            LinkState(node, link.up, link.round_trip(now), self._acceptor.silence(node, now))
            for node, link in self._links.items()
        ]

    def clocks(self) -> dict[int, PeerClock]:
        """The clocks of the peers to which the link is up."""
        found = ((node, link.clock()) for node, link in self._links.items())
        return {node: clock for node, clock in found if clock is not None}

    def _end(self, link: DialledLink) -> None:
        self._link_numbers[link.node] = link.number
        task = link.end()
        if task is not None and not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _said_hello(self, hello: Hello) -> None:
        link = self._links.get(hello.node)
        if link is not None:
            link.peer_started(hello.boot)

    def _dirty_link(self, link: DialledLink) -> None:
        self._dirty.append(link)
        if not self._flush_scheduled:
            assert self._loop is not None
            self._flush_scheduled = True
            self._loop.call_soon(self._end_of_turn)

    def _end_of_turn(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _tick(self) -> None:
        if self._closed:
            return
        now = self._wiring.clock.now()
        late = now - self._last_tick > 2 * PING_INTERVAL
        if late:
            log.info("this node stalled for %.1f s", now - self._last_tick)
        self._last_tick = now
        self._timer = self._wiring.clock.call_later(PING_INTERVAL, self._tick)
        for link in list(self._links.values()):
            link.tick(now, late)
        self._acceptor.tick(now, late)


def _node_of(link: DialledLink) -> int:
    return link.node
