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
    "gRPC was running when this process was forked, and does not survive a fork: close all clients before the fork, "
    "make the first one in the new process, or start it with the method 'spawn'"
)
_POLLER: Final = "_poll_wrapper"
"""In the name of the thread that grpc.aio has while any of its channels or servers exists, whoever made it."""
_NATIVE: Final = ("event_engine", "lifeguard", "grpc_")
"""How the names of gRPC's own threads begin."""
_TASKS: Final = Path("/proc/self/task")
"""Where Linux tells of all threads of this process."""
_TRIES: Final = 1000
_PAUSE: Final = 0.002

_forks = 0
_grpc_ran = False
"""As the latest fork began."""
_grpc_lost = False
"""gRPC's state in this process is that of a parent, without the threads."""
_staying: frozenset[int | None] = frozenset()
"""The native ids of threads for which an earlier fork waited in vain."""
_kept: WeakSet[object] = WeakSet()
_channels: WeakSet[object] = WeakSet()


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


def keep_after_fork(one: object, *, channel: bool = False) -> None:
    """Never destroy ``one`` in a child process: it would wait for threads or close what it shares with the parent.

    gRPC runs at least as long as any ``channel`` exists.
    """
    _kept.add(one)
    if channel:
        _channels.add(one)


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
    global _staying  # noqa: PLW0603
    if len(_channels):
        return True
    # After its last channel gRPC ends its own threads, which takes a moment. Any thread may hold a lock until it is
    # gone, also one that has no name yet, or one of Python's at its very end. Those that stay are others': each is
    # waited for once.
    threads = _foreign_threads()
    for _ in range(_TRIES):
        if threads.keys() <= _staying:
            break
        threading.Event().wait(_PAUSE)
        threads = _foreign_threads()
    _staying = frozenset(threads)
    return any(name.startswith(_NATIVE) or _POLLER in name for name in threads.values())


def _foreign_threads() -> dict[int | None, str]:
    """The names of the other threads that Python did not start, or grpc.aio did, by native id."""
    threads: dict[int | None, str] = {}
    if _TASKS.is_dir():
        for _ in range(2):  # one that ends meanwhile can hide those after it
            threads |= {int(task.name): _name(task) for task in _TASKS.iterdir()}
    for thread in threading.enumerate():
        if _POLLER in thread.name:
            threads[thread.native_id] = thread.name
        elif not isinstance(thread, threading._DummyThread):  # noqa: SLF001 - that is any thread that called Python
            threads.pop(thread.native_id, None)
    threads.pop(threading.get_native_id(), None)
    return threads


def _name(task: Path) -> str:
    with suppress(OSError):  # it has ended
        return (task / "comm").read_text()
    return ""


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
