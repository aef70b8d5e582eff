"""A measurement as numbers for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench import histogram
from bench.histogram import Histogram
from bench.load import LoadPlan, Measured
from bench.workload import MIXES

PERCENTILES: Final = (50.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class LoadStats:
    """What was measured, with latencies as histograms: small enough to be sent, and several of them make one.

    ``longest``: seconds by kind of operation, which a histogram would round. ``began``: by :func:`time.perf_counter`,
    which all processes of a machine share; ``computed``: seconds of processor time of the generators since then.
    """

    latencies: dict[str, Histogram]
    longest: dict[str, float]
    seconds: float
    errors: Counter[str] = field(default_factory=Counter)
    waited: int = 0
    scanned: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    computed: float = 0.0

    def packed(self) -> dict[str, Any]:
        """For :meth:`unpacked` of another process, as JSON."""
        return {
            "latencies": {kind: histogram.encoded(one) for kind, one in self.latencies.items()},
            "longest": self.longest,
            "seconds": self.seconds,
            "errors": self.errors,
            "waited": self.waited,
            "scanned": self.scanned,
            "began": self.began,
            "computed": self.computed,
        }

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> LoadStats:
        return cls(
            {kind: histogram.decoded(text) for kind, text in packed["latencies"].items()},
            packed["longest"],
            packed["seconds"],
            Counter(packed["errors"]),
            packed["waited"],
            Counter(packed["scanned"]),
            packed["began"],
            packed["computed"],
        )

    def all_latencies(self) -> Histogram:
        """Of all kinds of operations together."""
        return histogram.merged(self.latencies.values())


def stats_of(plan: LoadPlan, measured: Measured) -> LoadStats:
    """The measurement of one process."""
    by_kind = measured.by_kind or {str(plan.op): measured.latencies}
    return LoadStats(
        {kind: histogram.of(some) for kind, some in by_kind.items()},
        {kind: max(some, default=0.0) for kind, some in by_kind.items()},
        measured.seconds,
        measured.errors,
        measured.waited,
        measured.scanned,
        measured.began,
        measured.computed,
    )


def together(several: Sequence[LoadStats], seconds: float) -> LoadStats:
    """Several as one, which took ``seconds`` in all."""
    return LoadStats(
        {kind: histogram.merged(one.latencies[kind] for one in several) for kind in several[0].latencies},
        {kind: max(one.longest[kind] for one in several) for kind in several[0].longest},
        seconds,
        sum((one.errors for one in several), Counter()),
        sum(one.waited for one in several),
        sum((one.scanned for one in several), Counter()),
        max(one.began for one in several),
        sum(one.computed for one in several),
    )


def summarize(plan: LoadPlan, measured: Measured) -> dict[str, Any]:
    """Rate in operations per second, latencies in milliseconds (precise to 0.1%)."""
    return summary_of(plan, stats_of(plan, measured))


def summary_of(plan: LoadPlan, stats: LoadStats) -> dict[str, Any]:
    """As :func:`summarize`; ``plan`` is that of all processes together.

    Of an open loop there are also ``rate``, what was to arrive per second, and ``waited``, operations that found all
    workers busy; of a mix, ``kinds``, each kind of operation by itself; of scans, ``records_per_scan``.
    """
    everything = stats.all_latencies()
    count = everything.get_total_count()
    summary: dict[str, Any] = {
        "op": plan.op,
        "api": plan.api,
        "workers": plan.workers,
        # Processes cannot share one.
        "clients": max(plan.clients, plan.parts),
        "processes": plan.parts,
        "key_size": plan.key_size,
        "value_size": plan.value_size,
        "keys": plan.keys,
        "distribution": plan.distribution or MIXES[plan.op].distribution,
        "seconds": round(stats.seconds, 3),
        "operations": count,
        "per_second": round(count / stats.seconds, 1) if stats.seconds > 0 else 0.0,
        "latency_ms": _latency_ms(everything, max(stats.longest.values(), default=0.0)),
        "errors": dict(sorted(stats.errors.items())),
    }
    if plan.rate:
        summary.update(rate=plan.rate, spacing=plan.spacing, waited=stats.waited)
    if len(stats.latencies) > 1:
        summary["kinds"] = {
            kind: {"operations": one.get_total_count(), "latency_ms": _latency_ms(one, stats.longest[kind])}
            for kind, one in stats.latencies.items()
        }
    if stats.scanned["scans"]:
        summary["records_per_scan"] = round(stats.scanned["records"] / stats.scanned["scans"], 1)
    return summary


def _latency_ms(latencies: Histogram, longest: float) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for one, value in histogram.percentiles(latencies, PERCENTILES).items():
        # A percentile is the upper end of its bucket, which may lie over the longest latency there was.
        found[f"p{one:g}"] = None if value is None else round(min(value, longest * 1000), 3)
    found["max"] = round(longest * 1000, 3) if latencies.get_total_count() else None
    return found


def as_text(summary: dict[str, Any]) -> str:
    """One line of a table, with its errors below it if there were any."""
    latency = "  ".join(
        f"{name} {'-' if value is None else f'{value:.2f}'} ms" for name, value in summary["latency_ms"].items()
    )
    what = f"{summary['op'].upper()} {summary['api']}, {summary['workers']} workers, {summary['clients']} client(s)"
    line = f"{what}: {summary['per_second']:,.0f}/s  {latency}"
    if "nodes_us" in summary:
        line += f"\nprocessor time of an operation: client {summary['client_us']:.1f} us, "
        line += f"nodes {summary['nodes_us']:.1f} us, the busiest {summary['busiest_us']:.1f} us"
    if summary.get("rate"):
        line += f"\narriving: {summary['rate']:,.0f}/s, {summary['waited']:,} found all workers busy"
    if summary["errors"]:
        line += "\nerrors: " + ", ".join(f"{count} {kind}" for kind, count in summary["errors"].items())
    return line
