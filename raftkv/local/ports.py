"""Loopback ports for servers that are yet to start."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Final

from raftkv.addresses import parse_listen_address
from raftkv.errors import RaftKVError

_LOW: Final = 15_000
_HIGH: Final = 32_000
"""Below the ports that the system hands out by itself: that of a killed node must not be taken by somebody's outgoing
connection before the node is back."""


class NoFreePort(RaftKVError):
    """There are not as many free ports as were asked for; the message says why."""


def port_problem(address: str) -> str | None:
    """Why nothing can listen at ``address``; None if it is free. Raises BadAddress."""
    host, port = parse_listen_address(address)
    try:
        # IPv4 first, if the name has both.
        family, _, _, _, place = min(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        with socket.socket(family, socket.SOCK_STREAM) as probe_socket:
            # Connections of an ended server linger for a minute; they do not keep a new one from listening.
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe_socket.bind(place)
            probe_socket.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def free_ports(count: int) -> list[int]:
    """``count`` free loopback ports that no other process of this user is given while this one lives.

    Nobody listens at them yet, so that finding them free is not enough where several processes look for ports at once.
    A process that has been given all that there are is given those again that are free. Raises NoFreePort if there are
    not enough, or if the temporary folder cannot be written.
    """
    return _PORTS.take(count)


class _Ports:
    """The ports of this process: for each a lock on one byte of a shared file, which ends with the process."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._file = -1
        # Those of an ended process are not the first to be used again.
        self._next = os.getpid() * 211

    def take(self, count: int) -> list[int]:
        found: list[int] = []
        with self._mutex:
            self._open()
            for _ in range(_LOW, _HIGH):
                if len(found) == count:
                    break
                port = _LOW + self._next % (_HIGH - _LOW)
                self._next += 1
                if self._lock(port) and port_problem(f"127.0.0.1:{port}") is None:
                    found.append(port)
        if len(found) < count:
            raise NoFreePort(f"there are no {count} free ports from {_LOW} to {_HIGH} on this machine")
        return found

    def _open(self) -> None:
        if self._file < 0:
            # Never closed: a process loses all its locks on a file with the first descriptor of it that it closes.
            path = Path(tempfile.gettempdir()) / f"raftkv-ports-{os.getuid()}"
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise NoFreePort(f"{path}: cannot be opened: {error.strerror or error}") from None

    def _lock(self, port: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True


_PORTS: Final = _Ports()
