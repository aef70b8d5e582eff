"""A measurement as numbers for people and programs."""

from __future__ import annotations

from typing import Any, Final

from hdrh.histogram import HdrHistogram

from bench.load import Measured, Plan

_LONGEST_US: Final = 600_000_000
_DIGITS: Final = 3
_PERCENTILES: Final = (50.0, 95.0, 99.0)


def summarize(plan: Plan, measured: Measured) -> dict[str, Any]:
    """Rate in operations per second, latencies in milliseconds (precise to 0.1%)."""
    histogram = HdrHistogram(1, _LONGEST_US, _DIGITS)
    for latency in measured.latencies:
        histogram.record_value(max(1, round(latency * 1e6)))
    count = len(measured.latencies)
    longest = max(measured.latencies, default=0.0) * 1000
    # A percentile is the upper end of its bucket, which may lie over the longest latency there was.
    latency_ms: dict[str, float | None] = {
        f"p{p:g}": min(histogram.get_value_at_percentile(p) / 1000, longest) if count else None for p in _PERCENTILES
    }
    latency_ms["max"] = longest if count else None
    return {
        "op": plan.op,
        "api": plan.api,
        "workers": plan.workers,
        "clients": plan.clients,
        "key_size": plan.key_size,
        "value_size": plan.value_size,
        "keys": plan.keys,
        "seconds": round(measured.seconds, 3),
        "operations": count,
        "per_second": round(count / measured.seconds, 1) if measured.seconds > 0 else 0.0,
        "latency_ms": {name: None if value is None else round(value, 3) for name, value in latency_ms.items()},
        "errors": dict(sorted(measured.errors.items())),
    }


def as_text(summary: dict[str, Any]) -> str:
    """One line of a table, with its errors below it if there were any."""
    latency = "  ".join(
        f"{name} {'-' if value is None else f'{value:.2f}'} ms" for name, value in summary["latency_ms"].items()
    )
    what = f"{summary['op'].upper()} {summary['api']}, {summary['workers']} workers, {summary['clients']} client(s)"
    line = f"{what}: {summary['per_second']:,.0f}/s  {latency}"
    if summary["errors"]:
        line += "\nerrors: " + ", ".join(f"{count} {kind}" for kind, count in summary["errors"].items())
    return line
