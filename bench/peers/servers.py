"""The peers' servers: three processes each on free loopback ports, their data in a folder that the caller removes.

Each ends by its process id when the block is left, whatever the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import requests

from bench.peers.programs import ETCD, VALKEY
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.local.ports import free_ports
from raftkv.local.process import pause

_HOST: Final = "127.0.0.1"
_MEMBERS: Final = 3
_START_TIMEOUT: Final = 30.0
_STOP_TIMEOUT: Final = 3.0
"""Seconds to end in order, which no data need: they are thrown away."""
_POLL: Final = 0.05
_ANSWER: Final = 2.0
"""Seconds for one answer of a server that is asked how it is."""


class PeerError(RaftKVError):
    """A peer's server or tool does not start, does not answer, or ends with an error."""


class Etcd:
    """An etcd of three nodes that sync every write (their default)."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)

    @property
    def endpoints(self) -> str:
        """The leader's address, which answers fastest. Raises PeerError if there is no leader."""
        for address in self.addresses:
            status = _status(address)
            if status and status.get("leader", "0") == status["header"]["member_id"]:
                return address
        raise PeerError("etcd has no leader")


def _status(address: str) -> dict[str, Any] | None:
    try:
        answer = requests.post(f"http://{address}/v3/maintenance/status", json={}, timeout=_ANSWER)
        return dict(answer.json()) if answer.ok else None
    except requests.RequestException:
        return None


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[Etcd]:
    """Raises PeerError if it does not start."""
    ports = free_ports(2 * _MEMBERS)
    members = [
        (f"n{number}", f"http://{_HOST}:{client}", f"http://{_HOST}:{peer}")
        for number, (client, peer) in enumerate(zip(ports[::2], ports[1::2], strict=True), 1)
    ]
    commands = {
        name: [
            str(ETCD.path()),
            f"--name={name}",
            f"--data-dir={folder / name}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={','.join(f'{name}={peer}' for name, _, peer in members)}",
            "--initial-cluster-state=new",
            "--logger=zap",
            "--log-level=warn",
        ]
        for name, url, peer in members
    }
    made = Etcd([url.removeprefix("http://") for _, url, _ in members])

    def ready() -> bool:
        found = [_status(address) for address in made.addresses]
        return all(one is not None and one.get("leader", "0") != "0" for one in found)

    with running(folder, commands, ready):
        yield made


class Valkey:
    """A primary with two replicas."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoints = f"{_HOST}:{port}"


@contextlib.contextmanager
def valkey(folder: Path, fsync: str) -> Iterator[Valkey]:
    """``fsync``: when the log of writes is synced, as Valkey names it. Raises PeerError if it does not start."""
    ports = free_ports(_MEMBERS)
    commands = {}
    for number, port in enumerate(ports):
        name = f"replica{number}" if number else "primary"
        (folder / name).mkdir()
        commands[name] = [
            *(
                str(VALKEY.path()),
                "--port",
                str(port),
                "--bind",
                _HOST,
                "--dir",
                str(folder / name),
                "--daemonize",
                "no",
            ),
            *("--save", "", "--appendonly", "yes", "--appendfsync", fsync, "--repl-diskless-sync-delay", "0"),
            *(("--replicaof", _HOST, str(ports[0])) if number else ()),
        ]

    def ready() -> bool:
        try:
            with socket.create_connection((_HOST, ports[0]), _ANSWER) as asked:
                asked.sendall(b"info replication\r\nquit\r\n")
                said = b"".join(iter(lambda: asked.recv(4096), b""))
        except OSError:
            return False
        return said.count(b"state=online") == _MEMBERS - 1

    with running(folder, commands, ready):
        yield Valkey(ports[0])


@contextlib.contextmanager
def running(folder: Path, commands: Mapping[str, Sequence[str]], ready: Callable[[], bool]) -> Iterator[None]:
    """Processes by name, started and ``ready``; what they say goes to files in ``folder``. Raises PeerError."""
    with contextlib.ExitStack() as stack:
        processes: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(_stop, processes)
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            # In a session of its own: Ctrl-C reaches the one who ends them in order, and not them.
            processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(),
            )
        clock = SystemClock()
        until = clock.now() + _START_TIMEOUT
        while not ready():
            for name, process in processes.items():
                if process.poll() is not None:
                    raise PeerError(f"{commands[name][0]} ended with {process.returncode}: {_end(folder, name)}")
            if clock.now() > until:
                raise PeerError(f"{', '.join(commands)} are not ready after {_START_TIMEOUT:g} s: {_end(folder, name)}")
            pause(_POLL)
        yield


def environment() -> dict[str, str]:
    """That of this process without what configures etcd."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}


def absent(programs: Mapping[str, str]) -> str:
    """How to get the first of ``programs`` that is not there, given the packages that have them; "" = all are."""
    for program, package in programs.items():
        if shutil.which(program) is None:
            return f"not found: apt-get install {package}"
    return ""


def _stop(processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """All at once, as a primary waits for replicas that lag."""
    for process in processes.values():
        process.terminate()
    for process in processes.values():
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            # With its children, which are in the session that was made for it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end(folder: Path, name: str) -> str:
    lines = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " / ".join(lines[-3:])[-1000:] or "it said nothing"
