"""One node of this machine: its folder and its process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import raftkv
from raftkv.errors import RaftKVError
from raftkv.local.ports import port_problem
from raftkv.local.process import PidFile, Process
from raftkv.local.shape import Place
from raftkv.node.config import load_config

MAIN: Final = "raftkv"
STOP_TIMEOUT: Final = 15.0
"""Seconds that a node gets to hand over its leaderships and finish what is in flight, before it is killed."""


class LocalError(RaftKVError):
    """The local cluster cannot be made, started or stopped; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How node processes are started. ``main``: the module that is run as the command ``raftkv``. ``environment``:
    variables besides those of this process."""

    main: str = MAIN
    environment: Mapping[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """All that a node's process has."""
        package_root = str(Path(raftkv.__file__).resolve().parent.parent)
        found = {**os.environ, **self.environment}
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, found.get("PYTHONPATH")]))
        found["PYTHONUNBUFFERED"] = "1"
        return found


def spawn(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: int) -> subprocess.Popen[bytes]:
    """A process of its own session; what it prints goes to the file ``log``."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


class LocalNode:
    """One node's folder and its process."""

    def __init__(self, folder: Path, place: Place, launch: Launch) -> None:
        self.id = place.id
        self.address = place.address
        self.peer_address = place.peer_address
        self.folder = folder
        self.config = folder / "node.toml"
        self.log = folder / "node.log"
        self.data = folder / "data"
        self.pid_file = PidFile(folder / "node.pid")
        self._launch = launch
        self._child: subprocess.Popen[bytes] | None = None

    def metrics(self) -> str | None:
        """Where the node serves metrics and probes, None if nowhere. Raises ConfigError."""
        return load_config(self.config).node.metrics

    def process(self) -> Process | None:
        """The node's living process."""
        self._reap()
        process = self.pid_file.read()
        return process if process is not None and process.alive() else None

    def died(self) -> bool:
        """Whether the node was started, has ended, and nobody asked it to."""
        return self.pid_file.read() is not None and self.process() is None

    def start(self) -> Process:
        """Start the process, detached from this one's terminal. Raises LocalError if it cannot be started."""
        command = [sys.executable, "-P", "-m", self._launch.main, "serve", "--config", str(self.config)]
        # What is not logged goes to the same file, and follows the node when that rotates.
        command += ["--log-file", str(self.log)]
        with self.log.open("ab") as log:
            self._child = spawn(command, self.folder, self._launch.variables(), log.fileno())
        process = Process.of(self._child.pid)
        if process is None:
            raise LocalError(f"node {self.id} ended at once:\n{self.log_tail()}")
        self.pid_file.write(process)
        return process

    def stop(self, timeout: float = STOP_TIMEOUT) -> bool:
        """Ask the node to end, wait, and kill it after ``timeout`` seconds. Whether it ended by itself."""
        self.ask_to_stop()
        return self.finish(timeout)

    def ask_to_stop(self) -> None:
        """SIGTERM; a paused process is continued, else it would not hear it."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def finish(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for a node that was asked to stop, then kill it; True if it had ended."""
        process = self.process()
        by_itself = process is None or process.wait(timeout)
        if not by_itself:
            self.kill()
        self._reap(block=True)
        self.pid_file.remove()
        return by_itself

    def kill(self) -> None:
        """SIGKILL: what was not on disk is lost, as in a crash. Waits until the process is gone.

        The pid file stays: the node died.
        """
        process = self.process()
        if process is not None:
            process.signal(signal.SIGKILL)
            process.wait(STOP_TIMEOUT)
        self._reap(block=True)

    def pause(self) -> None:
        """SIGSTOP: the process stands still, its connections stay open."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after :meth:`pause`."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the node's process, if it lives."""
        process = self.process()
        if process is not None:
            process.signal(number)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the node's log, at most 64 KiB of it and of the file before."""
        found: list[str] = []
        for path in (self.log.with_name(f"{self.log.name}.1"), self.log):
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 64 * 1024))
                found += file.read().decode(errors="replace").splitlines()
        return "\n".join(found[-lines:])

    def _reap(self, *, block: bool = False) -> None:
        """A child that ended stays a zombie until its parent has asked for its exit code."""
        if self._child is None:
            return
        process = self.pid_file.read()
        ours = process is not None and process.pid == self._child.pid
        ended = self._child.poll() is not None
        if block and ours and not ended:
            self._child.wait(STOP_TIMEOUT)


def check_ports(nodes: Sequence[LocalNode | Place]) -> None:
    """Raises LocalError if one of ``nodes`` could not listen."""
    for node in nodes:
        for address in (node.address, node.peer_address):
            problem = port_problem(address)
            if problem:
                raise LocalError(f"node {node.id} cannot listen at {address}: {problem}")
