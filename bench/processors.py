"""What processes computed in a moment that is over: whether a stall was work of their own, or waiting for others."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import clock_gettime, perf_counter  # noqa: TID251 - not to tell the time
from typing import Final, Protocol, Self

_PERIOD: Final = 0.005
"""Seconds between two samples."""

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_STAT: Final = Path("/proc/stat")


class Nodes(Protocol):
    """A cluster of processes on this machine."""

    @property
    def nodes(self) -> list[int]: ...

    def pid(self, node: int) -> int | None: ...


def pids_of(cluster: Nodes) -> list[int]:
    """Of the nodes that run."""
    return [pid for node in cluster.nodes if (pid := cluster.pid(node)) is not None]


def used(pid: int) -> float:
    """Seconds of processor time that a process has used, to the nanosecond. Raises OSError if there is none."""
    # The kernel's number for the clock of another process (clock_getcpuclockid, which Python does not offer).
    return clock_gettime(~pid << 3 | 2)


def _machine() -> float:
    """Seconds of processor time that everything on this machine has used, to a tick of the kernel's (10 ms)."""
    user, nice, system, _idle, _waiting, *rest = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) * _TICK


@dataclass(frozen=True, slots=True)
class Computed:
    """Seconds of processor time. ``others``: of all that is neither one of the processes nor this one."""

    processes: tuple[float, ...]
    others: float


def per_operation(computed: Computed, generators: float, operations: int) -> dict[str, float]:
    """Microseconds of processor time.

    ``nodes_us``: of all ``computed`` processes; ``busiest_us``: of the one that used most; ``client_us``: of the
    generators, which used so many seconds.
    """
    share = 1e6 / max(1, operations)
    return {
        "nodes_us": round(sum(computed.processes) * share, 2),
        "busiest_us": round(max(computed.processes, default=0.0) * share, 2),
        "client_us": round(generators * share, 2),
    }


class Processors:
    """Samples the processor time of processes while it is entered, every ``period`` seconds."""

    def __init__(self, pids: Sequence[int], period: float = _PERIOD) -> None:
        self._period = period
        self._pids = (*pids, os.getpid())
        self._times: list[float] = []
        self._used: list[tuple[float, ...]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="processors", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def between(self, start: float, end: float) -> Computed:
        """What was computed from ``start`` to ``end`` (:func:`time.perf_counter`), or a little longer: between the
        samples around them."""
        first = max(0, bisect_right(self._times, start) - 1)
        last = min(len(self._times) - 1, bisect_left(self._times, end))
        machine, *mine = (after - before for before, after in zip(self._used[first], self._used[last], strict=True))
        return Computed(tuple(mine[:-1]), max(0.0, machine - sum(mine)))

    def _sample(self) -> None:
        while True:
            self._used.append((_machine(), *(used(pid) for pid in self._pids)))
            self._times.append(perf_counter())
            if self._over.wait(self._period):
                return
