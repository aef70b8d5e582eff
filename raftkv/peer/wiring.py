"""What both directions of a node's links share: ports, identity, callbacks, times."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from raftkv.addresses import Address
from raftkv.clock import Clock
from raftkv.peer.frames import Encoder
from raftkv.peer.handshake import Secret
from raftkv.peer.hello import Hello, HelloRefused, Identity
from raftkv.peer.network import Network

PING_INTERVAL: Final = 0.5
"""Seconds between two pings on an outgoing link, and between two looks at all connections."""

PONG_TIMEOUT: Final = 2.0
"""A link whose ping is not answered for so many seconds is dropped and dialled anew."""

SILENCE_TIMEOUT: Final = 5.0
"""An accepted connection that brings nothing for so many seconds is dropped: its dialler pings all the time."""

HANDSHAKE_TIMEOUT: Final = 2.0
"""Seconds for connecting and shaking hands."""

MIN_REDIAL: Final = 0.05
MAX_REDIAL: Final = 0.5
"""Bounds in seconds of the pause before a link is dialled anew. Short: a node that restarts is missed by its groups."""

MAX_STRANGERS: Final = 64
"""Accepted connections that have not said hello; beyond it the oldest goes."""

log: Final = logging.getLogger("raftkv.peer")


class Closable(Protocol):
    """A connection as the one who ends the node sees it."""

    def close(self) -> None: ...

    def abort(self) -> None: ...


@dataclass(slots=True)
class Wiring:
    """Ports and callbacks of a node's links."""

    network: Network
    clock: Clock
    identity: Identity
    secret: Secret | None
    rng: random.Random
    admit: Callable[[Hello], None]
    on_message: Callable[[int, list[Any]], None]
    on_link: Callable[[int, int, bool], None]
    on_refused: Callable[[int, HelloRefused], None]
    on_crash: Callable[[Exception], None] | None
    encoder: Encoder = field(default_factory=Encoder)
    open: dict[Closable, None] = field(default_factory=dict)
    """Connections between connection_made and connection_lost, of both directions, in the order of their making."""
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no connection is open."""

    def opened(self, connection: Closable) -> None:
        self.open[connection] = None
        self.drained.clear()

    def closed(self, connection: Closable) -> None:
        self.open.pop(connection, None)
        if not self.open:
            self.drained.set()

    def crash(self, error: Exception) -> None:
        """A callback of the consumer failed: a bug, which the node's supervisor must hear of."""
        if self.on_crash is not None:
            self.on_crash(error)
            return
        context = {"message": "a callback of the links between nodes failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The other end's address, for the log."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple) and len(name) >= 2:
        return str(Address(*name[:2]))
    return str(name)
