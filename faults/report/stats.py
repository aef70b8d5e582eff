"""The stats of a chaos run: from its folder alone, for terminals, documents and the report. Pure.

Times are seconds, but for latencies and freezes, which are milliseconds as everywhere else.
"""

from __future__ import annotations

import re
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from faults.check.history import Kind, Operation, Outcome
from faults.report.journal import Recorded

WORKLOAD: Final = "workload"
PROBE: Final = "probe"
LAST: Final = "last look"
CLIENT_KINDS: Final = (WORKLOAD, PROBE, LAST)

_PROBE: Final = re.compile(r"p\d+")


def client_kind(client: str) -> str:
    """What a client of that name does: works, probes, or looks at everything at the end."""
    if client == "last":
        return LAST
    return PROBE if _PROBE.fullmatch(client) else WORKLOAD


@dataclass(frozen=True, slots=True)
class Counts:
    """Operations by what the client knows. ``unknown``: also those that never got an answer as the run broke off."""

    ok: int = 0
    refused: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        return self.ok + self.refused + self.unknown

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.ok + other.ok, self.refused + other.refused, self.unknown + other.unknown)

    def __str__(self) -> str:
        return f"{self.ok:,} ok, {self.refused:,} refused, {self.unknown:,} unknown"


@dataclass(frozen=True, slots=True)
class Spread:
    """How values lie. All None if there are none."""

    count: int = 0
    p50: float | None = None
    p99: float | None = None
    worst: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        known = sorted(values)
        if not known:
            return cls()
        cuts = statistics.quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
        return cls(len(known), cuts[49], cuts[98], known[-1])


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which a probe's key took no write: from one acknowledgement to the next.

    At the edges of the history it begins with the first try or ends with the last one.
    """

    key: str
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class RecordedFault:
    """One fault. ``confirmed``: whether its effect was seen, None = nobody looked. ``proof``: what was seen.

    ``healed``, ``recovered``: None = not before the run's end. ``gap``: the longest one that overlaps the time from the
    fault to the recovery; None without probes.
    """

    number: int
    kind: str
    how: str
    targets: tuple[int, ...]
    group: int | None
    began: float
    confirmed: bool | None = None
    proof: str = ""
    healed: float | None = None
    recovered: float | None = None
    healthy: bool = False
    gap: Gap | None = None

    @property
    def unavailability(self) -> float | None:
        return None if self.gap is None else self.gap.seconds

    @property
    def recovery(self) -> float | None:
        """From the end of the fault until the cluster was healthy; None if it did not become so."""
        if self.healed is None or self.recovered is None or not self.healthy:
            return None
        return max(0.0, self.recovered - self.healed)


@dataclass(frozen=True, slots=True)
class KindStats:
    """All faults of one kind. ``skipped``: why it was not injected, each reason once. ``recovery``: of those that the
    cluster recovered from; ``unrecovered``: how many it did not."""

    kind: str
    injected: int
    confirmed: int
    skipped: tuple[str, ...]
    unavailability: Spread
    recovery: Spread
    unrecovered: int

    def cells(self) -> tuple[str, ...]:
        """What stands under :data:`KIND_COLUMNS`."""
        injected = f"{self.injected:,}" if self.injected or not self.skipped else f"skipped: {'; '.join(self.skipped)}"
        return (
            self.kind,
            injected,
            f"{self.confirmed:,}",
            number(self.unavailability.p50),
            number(self.unavailability.worst),
            number(self.recovery.p50),
            f"never ({self.unrecovered:,})" if self.unrecovered else number(self.recovery.worst),
        )


@dataclass(frozen=True, slots=True)
class About:
    """Which run it was and how it ended. ``passed`` None: there is no verdict, as the run broke off."""

    scenario: str = "unnamed"
    what: str = ""
    seed: int | None = None
    commit: str = ""
    started: str = ""
    seconds: float = 0.0
    passed: bool | None = None
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class RunStats:
    """The stats of one run or of several together.

    Counters that only the end of a run tells are None if no run told them: not counted is not 0.
    """

    runs: list[About] = field(default_factory=list)
    operations: dict[str, Counts] = field(default_factory=dict)
    """By kind of client."""
    faults: list[RecordedFault] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Kind and reason."""
    gets_ms: list[float] = field(default_factory=list)
    """Latencies of acknowledged gets."""
    writes_ms: list[float] = field(default_factory=list)
    freezes_ms: list[float] = field(default_factory=list)
    elections: int = 0
    snapshots: int | None = None
    moves_done: int | None = None
    moves_cancelled: int | None = None
    slots_moved: int | None = None
    checked: int | None = None
    undecided: int | None = None
    violations: int | None = None
    lost: int | None = None
    duplicates: int | None = None

    @property
    def passed(self) -> bool:
        """Whether all runs ended, kept their promises and left no key undecided."""
        return bool(self.runs) and all(one.passed for one in self.runs) and not self.undecided

    @property
    def total(self) -> Counts:
        return sum(self.operations.values(), Counts())

    @property
    def worst_unavailability(self) -> str:
        """For people."""
        return seconds(max((one.seconds for fault in self.faults if (one := fault.gap)), default=None))

    @property
    def worst_recovery(self) -> str:
        """For people."""
        if never := sum(one.recovery is None for one in self.faults):
            return f"never ({never:,} faults)"
        return seconds(max((one.recovery or 0.0 for one in self.faults), default=None))

    def kinds(self) -> list[KindStats]:
        """By kind of fault, the kinds sorted."""
        found = []
        for kind in sorted({one.kind for one in self.faults} | {kind for kind, _ in self.skipped}):
            of = [one for one in self.faults if one.kind == kind]
            found.append(
                KindStats(
                    kind,
                    len(of),
                    sum(one.confirmed is True for one in of),
                    tuple(dict.fromkeys(reason for skipped, reason in self.skipped if skipped == kind)),
                    Spread.of(one.unavailability for one in of if one.unavailability is not None),
                    Spread.of(one.recovery for one in of if one.recovery is not None),
                    sum(one.recovery is None for one in of),
                )
            )
        return found

    def rows(self) -> Iterator[tuple[str, str]]:
        """What to show in a table: a name and its stats."""
        if len(self.runs) != 1:
            ends = Counter(one.passed for one in self.runs)
            yield "runs", f"{ends[True]:,} passed, {ends[False]:,} failed, {ends[None]:,} did not end"
        yield "operations", str(self.total)
        for kind in CLIENT_KINDS:
            if kind in self.operations:
                yield f"operations, {kind}", str(self.operations[kind])
        confirmed = sum(one.confirmed is True for one in self.faults)
        yield "faults", f"{len(self.faults):,} injected, {confirmed:,} confirmed effective"
        if self.skipped:
            yield "faults skipped", f"{len(self.skipped):,}"
        yield "elections", f"{self.elections:,}"
        yield "snapshots installed", _count(self.snapshots)
        yield "moves", f"{_count(self.moves_done)} done, {_count(self.moves_cancelled)} cancelled"
        yield "slots moved", _count(self.slots_moved)
        yield "freeze per move", _milliseconds(Spread.of(self.freezes_ms))
        yield "keys checked", _count(self.checked)
        yield "checker time-outs (undecided keys)", _count(self.undecided)
        yield "violations", _count(self.violations)
        yield "acknowledged writes lost", _count(self.lost)
        yield "duplicates", _count(self.duplicates)
        yield "worst unavailability", self.worst_unavailability
        yield "worst recovery", self.worst_recovery
        yield "latency of gets", _milliseconds(Spread.of(self.gets_ms))
        yield "latency of writes", _milliseconds(Spread.of(self.writes_ms))
        yield "length", f"{sum(one.seconds for one in self.runs):,.1f} s"
        yield "seed" if len(self.runs) == 1 else "seeds", _listed(one.seed for one in self.runs)
        yield "commit", _listed(one.commit for one in self.runs)


KIND_COLUMNS: Final = (
    "fault",
    "injected",
    "confirmed",
    "unavailable, median s",
    "unavailable, worst s",
    "recovery, median s",
    "recovery, worst s",
)


def markdown(stats: RunStats) -> str:
    """The table of faults for a document."""
    rows = [KIND_COLUMNS, ("---", *("---:",) * (len(KIND_COLUMNS) - 1)), *(kind.cells() for kind in stats.kinds())]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


def number(value: float | None) -> str:
    """Seconds without their unit."""
    return "–" if value is None else f"{value:.2f}"


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _milliseconds(spread: Spread) -> str:
    if spread.p50 is None or spread.p99 is None or spread.worst is None:
        return "–"
    return f"p50 {spread.p50:,.1f}, p99 {spread.p99:,.1f}, max {spread.worst:,.1f} ms ({spread.count:,})"


def _count(value: int | None) -> str:
    return "not counted" if value is None else f"{value:,}"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, ""))) or "–"


# -- one run


_TOLD: Final = {
    "snapshots": "snapshots installed",
    "moves_done": "moves committed",
    "moves_cancelled": "moves cancelled",
    "slots_moved": "slots moved",
    "checked": "checked keys",
    "undecided": "undecided keys",
    "violations": "violations",
    "lost": "lost",
    "duplicates": "duplicates",
}
"""Fields of :class:`RunStats` and what the event ``figures`` calls them."""


def stats_of(recorded: Recorded) -> RunStats:
    """The stats of a run, or of as much of it as there is."""
    told = merged_events(recorded, "figures")
    operations = recorded.history.operations
    end = end_of(recorded)
    found = RunStats([_about(recorded, end)], _counts(operations))
    for name, event in _TOLD.items():
        setattr(found, name, _int(told.get(event)))
    elections = _int(told.get("elections"))
    leaders = sum(bool(one.get("node")) for one in recorded.of("leader"))
    found.elections = leaders if elections is None else elections
    found.freezes_ms = [float(one) for one in told.get("freeze ms", ())]
    found.skipped = [(str(one.get("kind", "")), str(one.get("reason", ""))) for one in recorded.of("skipped")]
    for one in operations:
        if one.outcome is Outcome.OK:
            into = found.gets_ms if one.kind is Kind.GET else found.writes_ms
            into.append((one.answered - one.began) * 1000)
    found.faults = _faults(recorded, gaps_of(recorded), end)
    return found


def merged(several: Iterable[RunStats]) -> RunStats:
    """The sum of the stats of several runs."""
    found = RunStats()
    for one in several:
        for name in ("runs", "faults", "skipped", "gets_ms", "writes_ms", "freezes_ms"):
            getattr(found, name).extend(getattr(one, name))
        for kind, counts in one.operations.items():
            found.operations[kind] = found.operations.get(kind, Counts()) + counts
        found.elections += one.elections
        for name in _TOLD:
            if (value := getattr(one, name)) is not None:
                setattr(found, name, (getattr(found, name) or 0) + value)
    return found


def merged_events(recorded: Recorded, event: str) -> dict[str, Any]:
    """All fields of the events of that name; a later one replaces what an earlier one said."""
    return {name: value for one in recorded.of(event) for name, value in one.items()}


def end_of(recorded: Recorded) -> float:
    """The last moment that the folder tells of."""
    times = [float(one["t"]) for one in recorded.events]
    for one in recorded.history.operations:
        times.append(one.began if one.outcome is Outcome.OPEN else one.answered)
    return max(times, default=0.0)


def gaps_of(recorded: Recorded) -> dict[str, list[Gap]]:
    """By probe key, the times between acknowledged writes, in their order."""
    keys = set(merged_events(recorded, "run").get("probes") or ())
    tries: dict[str, list[Operation]] = {}
    for one in recorded.history.operations:
        if one.write and (one.key in keys if keys else client_kind(one.client) == PROBE):
            tries.setdefault(one.key, []).append(one)
    end = end_of(recorded)
    found = {}
    for key, of in sorted(tries.items()):
        acknowledged = sorted(one.answered for one in of if one.outcome is Outcome.OK)
        until = max(end if one.outcome is Outcome.OPEN else one.answered for one in of)
        moments = [min(one.began for one in of), *acknowledged, until]
        found[key] = [Gap(key, *pair) for pair in pairwise(moments) if pair[0] < pair[1]]
    return found


def _about(recorded: Recorded, end: float) -> About:
    run, verdict = merged_events(recorded, "run"), merged_events(recorded, "verdict")
    return About(
        str(run.get("scenario", "unnamed")),
        str(run.get("what", "")),
        _int(run.get("seed")),
        str(run.get("commit") or ""),
        str(run.get("started") or ""),
        end,
        verdict.get("passed") is True if verdict else None,
        tuple(str(one) for one in verdict.get("problems") or ()),
    )


def _counts(operations: Iterable[Operation]) -> dict[str, Counts]:
    counted = Counter((client_kind(one.client), one.outcome) for one in operations)
    return {
        kind: Counts(
            counted[kind, Outcome.OK],
            counted[kind, Outcome.REFUSED],
            counted[kind, Outcome.UNKNOWN] + counted[kind, Outcome.OPEN],
        )
        for kind in CLIENT_KINDS
        if any(kind == other for other, _ in counted)
    }


def _faults(recorded: Recorded, gaps: Mapping[str, Sequence[Gap]], end: float) -> list[RecordedFault]:
    effects, healed, recovered = (
        {one.get("id"): one for one in recorded.of(event)} for event in ("effect", "healed", "recovered")
    )
    found: list[RecordedFault] = []
    for one in recorded.of("fault"):
        name, began = one.get("id"), float(one["t"])
        effect, back = effects.get(name, {}), recovered.get(name)
        found.append(
            RecordedFault(
                len(found) + 1,
                str(one.get("kind", "")),
                str(one.get("how", "")),
                tuple(int(node) for node in one.get("targets") or ()),
                one.get("group"),
                began,
                effect.get("confirmed"),
                str(effect.get("proof", "")),
                float(healed[name]["t"]) if name in healed else None,
                None if back is None else float(back["t"]),
                back is not None and back.get("healthy") is True,
                _longest(gaps, began, end if back is None else float(back["t"])),
            )
        )
    return found


def _longest(gaps: Mapping[str, Sequence[Gap]], began: float, ended: float) -> Gap | None:
    """The longest gap that overlaps that time."""
    longest = None
    for of in gaps.values():
        for at in range(bisect_right(of, began, key=lambda gap: gap.ended), len(of)):
            if of[at].began >= ended:
                break
            if longest is None or of[at].seconds > longest.seconds:
                longest = of[at]
    return longest


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
