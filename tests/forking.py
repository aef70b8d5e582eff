"""Node processes of tests are forked from one that has imported already what a node needs, which takes longer than
everything else that a node does until it serves.

They are processes as those that :func:`raftkv.local.node.spawn` starts: with a session, a folder, variables, standard
files and an exit code of their own. This file is also the program of the process that forks them.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from raftkv.local import node
from raftkv.local.node import Launch

fresh: Final = node.spawn
"""Starts a node as users do, for tests of how it starts."""

IMPORTED: Final = ("raftkv.cli.main", "raftkv.cli.serve", "raftkv.node.main", "raftkv.frontend.http.monitor")
_MESSAGE: Final = 1 << 20
_POLL: Final = 0.02
"""Seconds between two looks at a process that is awaited."""


class Forked:
    """What :class:`subprocess.Popen` tells of a child, as far as those who start nodes ask."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises subprocess.TimeoutExpired after ``timeout`` seconds."""
        left = timeout
        while (code := self.poll()) is None:
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            threading.Event().wait(_POLL)
            left = None if left is None else left - _POLL
        return code

    def send_signal(self, number: int) -> None:
        """It is a zombie until :meth:`poll` has told its end, so that its id is of nobody else."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Forks:
    """The process that forks nodes, once there is need of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._started_with: dict[str, str] = {}

    def spawn(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: int) -> Any:
        """In the place of :func:`raftkv.local.node.spawn`, which starts those that have to be told something before
        they import anything."""
        with self._lock:
            if self._process is None:
                self._begin()
        if command[:3] != [sys.executable, "-P", "-m"] or _before_imports(environment) != self._started_with:
            return fresh(command, folder, environment, log)
        asked = {"main": command[3], "arguments": command[4:], "folder": str(folder), "environment": dict(environment)}
        return Forked(self, self.ask(asked, log))

    def ask(self, question: Mapping[str, Any], *files: int) -> Any:
        """Ask the process that forks, and wait for its answer."""
        assert self._socket is not None
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(question).encode()], files)
            return json.loads(self._socket.recv(_MESSAGE))

    def close(self) -> None:
        """End it; nodes that were forked live on."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()

    def _begin(self) -> None:
        variables = Launch().variables()
        self._started_with = _before_imports(variables)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                env=variables,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )


def _before_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that the interpreter, libraries or the choice of a source tree may depend on."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("RAFTKV_", "PYTEST_")) or name == "RAFTKV_ABUSE_PRODUCT"
    }


def _serve(asking: socket.socket) -> dict[str, Any] | None:
    """Fork what is asked for. Returns in each process that was forked, with what it is to do, and at the end."""
    codes: dict[int, int] = {}
    while True:
        message, files, *_ = socket.recv_fds(asking, _MESSAGE, 1)
        if not message:
            return None
        asked: dict[str, Any] = json.loads(message)
        if "pid" in asked:
            pid = asked["pid"]
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG)) != (0, 0):
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
            asking.send(json.dumps(codes.get(pid)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            asking.close()
            _settle(asked, *files)
            return asked
        for file in files:
            os.close(file)
        codes.pop(pid, None)
        asking.send(json.dumps(pid).encode())


def _settle(asked: Mapping[str, Any], log: int) -> None:
    """Become what a process that was just started is."""
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for file in (1, 2):
        os.dup2(log, file)
    os.close(log)


def main() -> None:
    """Import what nodes need, and fork them."""
    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        asked = _serve(asking)
    if asked is not None:
        sys.argv = [asked["main"], *asked["arguments"]]
        runpy.run_module(asked["main"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
