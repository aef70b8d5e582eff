"""Where a client can be: not in a process forked with gRPC running, nor among threads that are none.

A client asks with every operation whether it was forked, so that is a number in memory and not a system call.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

from raftkv.errors import UsageError

MADE_BEFORE: Final = (
    "this client was made before a fork: make the first client in the new process, or start it with the method 'spawn'"
)
_GRPC_FORKED: Final = (
    "gRPC was running when this process was forked, and does not come along: close all clients before the fork, "
    "make the first one in the new process, or start it with the method 'spawn'"
)
_POLLER: Final = "_poll_wrapper"
"""In the name of the thread that grpc.aio has while any of its channels or servers exists, whoever made it."""
_NATIVE: Final = ("event_engine", "lifeguard", "grpc_")
"""How the names of gRPC's own threads begin."""
_TRIES: Final = 500
_PAUSE: Final = 0.002

_forks = 0
_grpc_ran = False
"""As the latest fork began."""
_grpc_lost = False
"""gRPC's state in this process is that of a parent, without the threads."""
_settled = True
"""No client has been used since a fork last waited for gRPC's threads."""
_kept: WeakSet[object] = WeakSet()


def forks() -> int:
    """Another number in a child process than in its parent."""
    return _forks


def check_process() -> None:
    """Raises UsageError if no client can work in this process."""
    if _grpc_lost:
        raise UsageError(_GRPC_FORKED)
    patched = _patched()
    if patched:
        raise UsageError(
            f"{patched} replaces Python's threads or sockets, and gRPC needs the real ones: use raftkv in a process "
            "of its own, or do not monkey-patch"
        )


def keep_after_fork(one: object) -> None:
    """Never destroy ``one`` in a child process: it would wait for threads or close what it shares with the parent."""
    global _settled  # noqa: PLW0603
    _settled = False
    _kept.add(one)


def _patched() -> str | None:
    """What replaces threads or sockets in this process. It must have been imported: nothing is imported here."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent and any(gevent.is_module_patched(name) for name in ("threading", "_thread", "socket", "select")):
        return "gevent"
    if eventlet and any(eventlet.is_monkey_patched(name) for name in ("thread", "socket", "select")):
        return "eventlet"
    return None


def _grpc_runs() -> bool:
    """Whether gRPC has threads in this process, whoever made them."""
    if any(_POLLER in thread.name for thread in threading.enumerate()):
        return True
    # After its last channel it ends its own threads, which takes a millisecond. Those of others may stay: wait once.
    global _settled
    tries, _settled = 1 if _settled else _TRIES, True
    for _ in range(tries):
        if not _native_threads():
            return False
        threading.Event().wait(_PAUSE)
    return True


def _native_threads() -> bool:
    names = []
    with suppress(OSError):  # only Linux names threads here; one of them may have ended just now
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return any(name.startswith(_NATIVE) for name in names)


def _before_fork() -> None:
    global _grpc_ran  # noqa: PLW0603 - hooks take and return nothing
    _grpc_ran = "grpc" in sys.modules and _grpc_runs()


def _after_fork() -> None:
    global _forks, _grpc_lost  # noqa: PLW0603
    _forks += 1
    _grpc_lost = _grpc_lost or _grpc_ran
    for one in _kept:
        # A reference that nobody ever gives back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
