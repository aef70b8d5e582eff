"""The sockets of a process by the addresses at their other ends, for what gRPC's server cannot do: end a connection."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection, Iterator
from typing import Final
from urllib.parse import unquote

_FILES: Final = "/proc/self/fd"


def shut_down(peers: Collection[str]) -> int:
    """End the connections to ``peers``, as gRPC names them (``ipv4:127.0.0.1:4711``, ``ipv6:%5B::1%5D:4711``).

    Returns how many were found; none where the system does not tell a process its files.
    """
    wanted = {unquote(peer) for peer in peers}
    return sum(_end(number, wanted) for number in _descriptors())


def _descriptors() -> Iterator[int]:
    try:
        names = os.listdir(_FILES)
    except OSError:
        return
    yield from (int(name) for name in names)


def _end(number: int, peers: Collection[str]) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return False
        # A copy: closing it leaves the connection to its owner, who sees its end.
        with socket.socket(fileno=os.dup(number)) as copy:
            if _name(copy.getpeername()) not in peers:
                return False
            copy.shutdown(socket.SHUT_RDWR)
    except OSError:  # closed just now, or no connection
        return False
    return True


def _name(address: object) -> str:
    if not isinstance(address, tuple) or len(address) < 2:
        return ""
    host, port = str(address[0]), address[1]
    # gRPC listens for both families with one socket, and names IPv4 addresses as what they are.
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
