"""What else the machine did during a measurement: a rate of a machine that others used too says so."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raftkv.clock import SystemClock

_PROC: Final = Path("/proc")
MOST: Final = 0.05
"""Share of the machine's processors beyond which a measurement counts as disturbed."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Shares of the time of all processors, from 0 to 1. ``others``: used by processes that this one did not start;
    ``stolen``: that the host of this virtual machine gave to others."""

    others: float = 0.0
    stolen: float = 0.0

    @property
    def disturbed(self) -> bool:
        return self.others + self.stolen > MOST

    def told(self) -> dict[str, float]:
        """As results name it."""
        return {"others": round(self.others, 3), "stolen": round(self.stolen, 3)}


def worst(several: Iterable[Disturbance]) -> Disturbance:
    """The one that took most; none if there are none."""
    return max(several, key=lambda one: one.others + one.stolen, default=Disturbance())


class Watch:
    """Begins when it is made. Processes that this one starts count as its own, also after their end."""

    def __init__(self, proc: Path = _PROC, root: int | None = None, cores: int | None = None) -> None:
        self._proc = proc
        self._root = os.getpid() if root is None else root
        self._cores = cores or os.cpu_count() or 1
        self._clock = SystemClock()
        self._tick = 1 / os.sysconf("SC_CLK_TCK")
        self._began, self._first = self._clock.now(), self._sample()

    def so_far(self, seconds: float | None = None) -> Disturbance:
        """Since the beginning, which was so many seconds ago: None = by the clock."""
        took = (self._clock.now() - self._began if seconds is None else seconds) * self._cores
        used, stolen, mine = (
            (after - before) * self._tick for after, before in zip(self._sample(), self._first, strict=True)
        )
        return Disturbance(max(0.0, used - mine) / took, stolen / took) if took > 0 else Disturbance()

    def _sample(self) -> tuple[int, int, int]:
        """Ticks that all processes have used; that were stolen; that this process and those below it have used."""
        try:
            fields = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return 0, 0, 0
        user, nice, system, _idle, _waiting, _irq, _softirq, stolen, *_ = map(int, fields)
        return user + nice + system, stolen, sum(self._mine())

    def _mine(self) -> Iterator[int]:
        children: dict[int, list[int]] = {}
        used: dict[int, int] = {}
        for path in self._proc.glob("[0-9]*/stat"):
            try:
                # The name of a program, in brackets, may have brackets and spaces in it.
                fields = path.read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(path.parent.name)
            children.setdefault(int(fields[1]), []).append(pid)
            # Its own time and that of children that have ended.
            used[pid] = sum(map(int, fields[11:15]))
        waiting = [self._root]
        while waiting:
            pid = waiting.pop()
            yield used.get(pid, 0)
            waiting += children.get(pid, [])


def remark(what: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """A sentence about measurements that were disturbed, given a name and the two shares of each; "" = none was."""
    several = [(name, Disturbance(one["others"], one["stolen"])) for name, one in what]
    bad = [(name, one) for name, one in several if one.disturbed]
    if not bad:
        return ""
    name, most = max(bad, key=lambda one: one[1].others + one[1].stolen)
    return (
        f"DISTURBED: during {len(bad)} of {len(several)} measurements others used more than {MOST:.0%} of the "
        f"processors; most during {name}: {most.others:.0%} by other processes, {most.stolen:.0%} stolen by the host"
    )
