"""Operating-system processes named so that a reused pid is never taken for the process that had it before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from raftkv.clock import SystemClock
from raftkv.files import write_atomically

_POLL = 0.02
"""Seconds between two looks at a process that is awaited."""


def start_token(pid: int) -> str | None:
    """What tells a living process from any other that had or will have the same ``pid``; None if none lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_token_ps(pid)
    # Fields count from the state (the third of proc(5)); the twentieth is the start time in ticks since boot.
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _start_token_ps(pid: int) -> str | None:
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


@dataclass(frozen=True, slots=True)
class Process:
    """A process and when it started."""

    pid: int
    token: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The living process with this ``pid``, None if there is none."""
        token = start_token(pid)
        return None if token is None else cls(pid, token)

    def alive(self) -> bool:
        """Whether this very process lives."""
        return start_token(self.pid) == self.token

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False if it is gone."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the process to end; whether it did."""
        clock = SystemClock()
        end = clock.now() + timeout
        while self.alive():
            if clock.now() >= end:
                return False
            pause(_POLL)
        return True


def pause(seconds: float) -> None:
    """Block this thread; for command-line code that polls processes, never for the loop of a node."""
    threading.Event().wait(seconds)


class PidFile:
    """Remembers a process across commands."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Process | None:
        """The process written last, living or not; None if there is no (readable) file."""
        try:
            raw = json.loads(self.path.read_text())
            return Process(int(raw["pid"]), str(raw["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, process: Process) -> None:
        write_atomically(self.path, json.dumps({"pid": process.pid, "started": process.token}) + "\n")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
