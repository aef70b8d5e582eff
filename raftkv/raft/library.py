"""PySyncObj 0.3.17, and exactly what of it we use.

The module is loaded a second time under no name, so that replacing its clock, log storage and poller touches nobody
else's PySyncObj. Nothing outside this package knows the library.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any, Final

from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from raftkv.clock import Clock
from raftkv.errors import RaftKVError

WANTED_VERSION: Final = "0.3.17"

PRIVATE_STATE: Final = (
    "otherNodes",
    "raftState",
    "raftCurrentTerm",
    "raftLeader",
    "raftElectionDeadline",
    "raftCommitIndex",
    "raftLastApplied",
    "raftNextIndex",
    "raftMatchIndex",
    "noopIDx",
)
"""Attributes ``_SyncObj__<name>`` that the adapter reads or sets."""

PRIVATE_CALLED: Final = ("onMessageReceived", "setCurrentTerm", "setState", "onBecomeLeader")
"""Methods ``_SyncObj__<name>`` that the adapter calls."""

PRIVATE_OVERRIDDEN: Final = (
    "generateRaftTimeout",
    "applyLogEntries",
    "sendAppendEntries",
    "onBecomeLeader",
    "tryLogCompaction",
    "loadDumpFile",
    "doApplyCommand",
    "parseChangeClusterRequest",
)
"""Methods ``_SyncObj__<name>`` that the adapter replaces; the library looks them up on the instance."""

__all__ = ["Journal", "Node", "SyncObj", "SyncObjConf", "Transport", "set_clock"]

if VERSION != WANTED_VERSION:
    raise RaftKVError(f"raftkv needs pysyncobj {WANTED_VERSION}, found {VERSION}")


class _Poller:
    """The library polls its sockets here; we have given it none."""

    def poll(self, timeout: float) -> None:
        pass


_clock: Clock | None = None


def set_clock(clock: Clock) -> None:
    """Make ``clock`` the time of the library until the next call. Set at each entry into a core."""
    global _clock
    _clock = clock


def _now() -> float:
    if _clock is None:
        raise RaftKVError("the library was entered without a clock")
    return _clock.now()


def _load() -> ModuleType:
    spec = importlib.util.find_spec("pysyncobj.syncobj")
    if spec is None or spec.loader is None:
        raise RaftKVError("pysyncobj cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.monotonicTime = _now  # type: ignore[attr-defined]
    module.createJournal = lambda journal: journal  # type: ignore[attr-defined]
    module.createPoller = lambda _: _Poller()  # type: ignore[attr-defined]
    return module


_module: Any = _load()
SyncObj: Any = _module.SyncObj
SyncObjConf: Any = _module.SyncObjConf
