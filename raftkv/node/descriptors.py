"""File descriptors of the process: its limit, and how many of them clients may take."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from raftkv import limits
from raftkv.api.status import Problem
from raftkv.peer.network import MAX_HANDSHAKES
from raftkv.peer.wiring import MAX_STRANGERS

_ENOUGH: Final = 1 << 20
"""A higher limit is of no use, and some systems offer the largest number that there is."""

_OF_NODE: Final = 80
"""Log and snapshot files, folders while they are synced, listeners, standard files, connections over HTTP, what
libraries keep open."""

_OF_ITSELF: Final = 16
"""What a node has open at least."""

_PER_PEER: Final = 4
"""A link each way, and the one that takes its place."""

_LEAST: Final = 16
"""Connections of clients that are allowed however low the limit is."""

_OPEN: Final = Path("/dev/fd")


def raise_limit() -> int:
    """Let the process open as many files as its hard limit allows. Returns how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft  # some systems have a lower bound than the hard limit
        return wanted
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


class Descriptors:
    """``limit``: of the process. ``peers``: number of the other nodes. ``tls``: connections have a handshake first."""

    def __init__(self, limit: int, peers: int, *, tls: bool = False) -> None:
        self._limit = limit
        self._reserve = _OF_NODE + _PER_PEER * peers + MAX_STRANGERS + (MAX_HANDSHAKES if tls else 0)
        self.clients = max(_LEAST, min(limits.MAX_CONNECTIONS, limit - self._reserve))
        """Connections of clients that are taken at a time."""

    def __str__(self) -> str:
        return f"{self._limit} file descriptors, {self.clients} of them for connections of clients"

    def problems(self) -> Iterator[Problem]:
        """``descriptors`` if clients have taken all that they may, or the node has too few for itself."""
        used = in_use()
        if self._reserve + _LEAST > self._limit:
            text = f"only {self._limit} file descriptors are allowed, {self._reserve + _LEAST} are needed"
        elif used >= self.clients + _OF_ITSELF:
            text = f"{used} of {self._limit} file descriptors are in use, clients can hardly connect any more"
        else:
            return
        yield Problem("descriptors", text)


def in_use() -> int:
    """File descriptors that this process has open."""
    # Linux tells their number as the folder's size since 6.2, which is quicker than to list them.
    return _OPEN.stat().st_size or len(list(_OPEN.iterdir()))
