"""Where abuse takes place: a cluster of real processes, what is measured of it, and the bounds of what was found."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import raftkv
from faults.abuse.child import Child
from faults.keys import PREFIX, one_key_per_group
from raftkv.cli.admin.health import cluster_report
from raftkv.cli.admin.survey import survey
from raftkv.client.admin import AdminClient
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster
from shards.map import ShardMap

MB: Final = 1_000_000
MEMORY: Final = 300.0
"""MB of a node that has no data, whatever its clients ask."""

PROMPT: Final = 250.0
"""Milliseconds that a well-behaved client waits at most."""

_LOOK: Final = 0.1
_READY: Final = 60.0
_SETTLED: Final = 60.0
_HEALTH: Final = 60.0
_AFTERWARDS: Final = 30.0
_BEFORE: Final = 1.0
"""Seconds for which the well-behaved client is alone."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing that was measured. ``most``, ``least``: its bounds, None = it is only told.

    ``timed``: it says as much about the machine as about the product, and nothing where the machine is busy.
    """

    name: str
    value: float | str
    unit: str = ""
    most: float | None = None
    least: float | None = None
    timed: bool = False

    @property
    def passed(self) -> bool:
        if isinstance(self.value, str):
            return True
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def bound(self) -> str:
        """For people."""
        if self.most is not None and self.most == self.least:
            return f"{self.most:,g}"
        parts = [f"at most {self.most:,g}"] if self.most is not None else []
        parts += [f"at least {self.least:,g}"] if self.least is not None else []
        return " and ".join(parts)

    @property
    def text(self) -> str:
        """The value with its unit."""
        if isinstance(self.value, str):
            return self.value
        places = 0 if self.value >= 100 or self.value == round(self.value) else 2
        return f"{self.value:,.{places}f} {self.unit}".strip()


@dataclass(slots=True)
class Found:
    """What one scenario came to."""

    name: str
    what: str
    figures: list[Measurement] = field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""
    """Why it broke off, if it did."""

    @property
    def passed(self) -> bool:
        return not self.problem and all(one.passed for one in self.figures)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Found:
        figures = [Measurement(**one) for one in raw["figures"]]
        return cls(raw["name"], raw["what"], figures, raw["seconds"], raw["problem"])


class AbuseScenario(ABC):
    """One way of abuse. ``memory``: MB that a node may take, None = it holds data. ``live``: nodes left to live in the
    end, None = all."""

    name: ClassVar[str]
    what: ClassVar[str]
    nodes: ClassVar[int] = 3
    groups: ClassVar[int] = 3
    slots: ClassVar[int] = 1024
    memory: ClassVar[float | None] = MEMORY
    live: ClassVar[int | None] = None
    descriptors: ClassVar[int | None] = None
    wall: ClassVar[Mapping[int, float]] = {}
    sick_disks: ClassVar[bool] = False
    slow_links: ClassVar[bool] = False

    def __init__(self, short: bool) -> None:
        self.short = short

    def size(self, full: int, short: int) -> int:
        """Of what is done."""
        return short if self.short else full

    @abstractmethod
    async def run(self, stage: Stage) -> None:
        """Abuse the cluster, and note what was seen."""


class Stage:
    """The cluster under abuse, and what was found."""

    def __init__(self, cluster: LocalCluster, found: Found) -> None:
        self.cluster = cluster
        self.found = found
        self.extra: dict[str, Any] = {}
        """What a scenario needs besides: disks, links."""
        self._peaks: dict[int, int] = {}
        self._disk = 0
        self.idle = 0.0
        """MB that a node took before the abuse, the largest of all."""

    # -- what is found

    def note(
        self,
        name: str,
        value: float | str,
        unit: str = "",
        *,
        most: float | None = None,
        least: float | None = None,
        timed: bool = False,
    ) -> None:
        """A measurement; :class:`Measurement` tells what the arguments are."""
        value = value if isinstance(value, str) else round(float(value), 3)
        self.found.figures.append(Measurement(name, value, unit, most, least, timed))

    # -- memory and disk

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Memory and disk are looked at meanwhile."""
        for node in self.cluster.nodes:
            with contextlib.suppress(OSError):
                self._forget_peak(node)
        self._look()
        self.idle = self.peak
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._look()

    def _forget_peak(self, node: int) -> None:
        Path(f"/proc/{self.cluster.pid(node)}/clear_refs").write_text("5")

    async def _watch(self) -> None:
        while True:
            self._look()
            self._disk = max(self._disk, await asyncio.to_thread(self.disk_now))
            await asyncio.sleep(_LOOK)

    def _look(self) -> None:
        for node in self.cluster.nodes:
            self._peaks[node] = max(self._peaks.get(node, 0), self._status(node, "VmHWM"))

    def _status(self, node: int, field_name: str) -> int:
        pid = self.cluster.pid(node)
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{field_name}:")), 0)

    @property
    def peak(self) -> float:
        """MB that a node has taken at most, as the kernel counts, of the node that took most."""
        return max(self._peaks.values(), default=0) / MB

    @property
    def peak_of_all(self) -> float:
        """MB of all nodes together, each at its peak."""
        return sum(self._peaks.values()) / MB

    @property
    def memory_now(self) -> float:
        """MB that a node takes, of the node that takes most."""
        return max((self._status(node, "VmRSS") for node in self.cluster.nodes), default=0) / MB

    @property
    def disk_peak(self) -> float:
        """MB of a node's data folder, at most."""
        return self._disk / MB

    def disk_now(self) -> int:
        """Bytes that the largest data folder takes of its disk."""
        return max(_on_disk(self.cluster.data_dir(node)) for node in self.cluster.nodes)

    # -- who is there

    def alive(self) -> int:
        """Nodes that run."""
        return sum(self.cluster.pid(node) is not None for node in self.cluster.nodes)

    def addresses(self) -> list[str]:
        """Of all nodes, for clients."""
        return [self.cluster.address(node) for node in self.cluster.nodes]

    async def leader(self, group: int) -> int:
        """The node that leads ``group``."""
        return await asyncio.to_thread(self.cluster.leader, group)

    async def settled(self, group: int) -> int:
        """The node that leads ``group`` and goes on to: its first voter, to which any other leader hands over."""
        first = (await self.map()).group(group).voters[0]
        end = asyncio.get_running_loop().time() + _SETTLED
        while await self.leader(group) != first:
            if asyncio.get_running_loop().time() > end:
                raise RaftKVError(f"node {first} does not lead group {group} within {_SETTLED:g} s")
            await asyncio.sleep(_LOOK)
        return first

    async def map(self) -> ShardMap:
        """As the meta group knows it."""
        async with AdminClient(self.cluster.endpoints, timeout=_READY) as admin:
            return (await admin.state()).map

    async def tags(self, prefix: str = "tag") -> dict[int, str]:
        """Group -> a tag whose keys it owns."""
        return one_key_per_group(await self.map(), prefix)

    def logged(self, text: str) -> int:
        """How often the nodes' logs hold it."""
        logs = [self.cluster.data_dir(node).parent / "node.log" for node in self.cluster.nodes]
        return sum(log.read_text(errors="replace").count(text) for log in logs if log.exists())

    # -- who is beside

    @contextlib.asynccontextmanager
    async def abused(self, act: str, **arguments: Any) -> AsyncIterator[Child]:
        """Another process does ``act`` meanwhile."""
        child = await Child.start(act, **arguments)
        try:
            yield child
        finally:
            await child.end()

    @contextlib.asynccontextmanager
    async def beside(
        self,
        *,
        tags: Sequence[str] | None = None,
        through: str = "",
        name: str = "client",
        p99: float | None = PROMPT,
        failed: float | None = 0,
        period: float = 0.05,
    ) -> AsyncIterator[Child]:
        """A well-behaved client in another process, whose waits are noted. ``p99``: milliseconds; it and ``failed`` are
        bounds."""
        keys = list((await self.tags()).values()) if tags is None else list(tags)
        child = await Child.start(
            "behave", endpoints=self.cluster.endpoints, tags=keys, name=name, through=through, period=period
        )
        try:
            if not await child.until(lambda counts: counts.get("ready"), _READY):
                raise RaftKVError("the well-behaved client is not served before the abuse")
            await asyncio.sleep(_BEFORE)
            yield child
        finally:
            counts = await child.end()
        self.note(f"{name}: p50", 1000 * counts["p50"], "ms", timed=True)
        self.note(f"{name}: p99", 1000 * counts["p99"], "ms", most=p99, timed=True)
        self.note(f"{name}: longest wait", 1000 * counts.get("max", 0.0), "ms", timed=True)
        self.note(f"{name}: failed", sum(counts["failed"].values()), most=failed)
        self.note(f"{name}: acknowledged writes", counts["writes"], least=1)
        self.note(f"{name}: acknowledged and lost", counts["lost"], most=0)

    # -- judgements

    async def health(self) -> list[str]:
        """The kinds of problems that ``raftkv-admin cluster health`` tells. In this process: to start a command takes
        as much of the machine as some abuse."""
        try:
            async with AdminClient(self.cluster.endpoints, timeout=_HEALTH) as admin:
                report = cluster_report(await survey(admin))
        except RaftKVError as problem:
            return [f"no answer ({type(problem).__name__})"]
        return sorted({str(problem["kind"]) for problem in report["problems"]})

    async def note_health(self, when: str, kind: str | None = None) -> None:
        """What health says ``when``; ``kind``: that must be among it."""
        kinds = await self.health()
        self.note(f"health {when}", ", ".join(kinds) or "healthy")
        if kind is not None:
            self.note(f"health {when} tells {kind}", int(kind in kinds), least=1)

    async def served(self, keys: Sequence[str] = (f"{PREFIX}afterwards",)) -> bool:
        """Whether a new client writes and reads ``keys``."""
        if not self.alive():
            return False
        try:
            async with raftkv.AsyncClient(self.cluster.endpoints, timeout=_AFTERWARDS) as client:
                for key in keys:
                    await client.put(key, "x")
                    await client.get(key)
        except RaftKVError as problem:
            self.note("a new client was told", type(problem).__name__)
            return False
        return True

    async def conclude(self, scenario: AbuseScenario) -> None:
        """What is asked after every abuse."""
        served = await self.served()
        self.note("peak memory of a node", self.peak, "MB", most=scenario.memory)
        living = len(self.cluster.nodes) if scenario.live is None else scenario.live
        self.note("nodes that live", self.alive(), least=living)
        self.note("a new client is served", int(served), least=1)
        self.note("tracebacks in logs", self.logged("Traceback (most recent call last)"), most=0)
        if not scenario.short:
            await self.note_health("afterwards")


def _on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += 512 * path.stat().st_blocks
    return total
