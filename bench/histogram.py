"""Latencies as HdrHistograms: microseconds up to ten minutes, precise to 0.1%, which can be sent and added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from hdrh.histogram import HdrHistogram

Histogram: TypeAlias = Any
"""An HdrHistogram; the library has no types."""

_LONGEST_US: Final = 600_000_000
_DIGITS: Final = 3
_NINES: Final = 6
"""The curve ends at 99.9999%, or where one operation stands for the rest."""


def empty() -> Histogram:
    return HdrHistogram(1, _LONGEST_US, _DIGITS)


def of(latencies: Iterable[float]) -> Histogram:
    """A histogram of ``latencies`` in seconds."""
    # Most latencies of a run are the same microsecond as some other: recording each of them takes ten times as long.
    return of_counts(Counter(round(latency * 1e6) for latency in latencies))


def of_counts(counts: Mapping[int, int]) -> Histogram:
    """A histogram of how many operations took each number of microseconds."""
    histogram = empty()
    for microseconds, count in counts.items():
        histogram.record_value(min(max(1, microseconds), _LONGEST_US), count)
    return histogram


def encoded(histogram: Histogram) -> str:
    """The histogram in the format that all HdrHistogram libraries read, V2, in base64."""
    text: bytes | str = histogram.encode()
    return text.decode() if isinstance(text, bytes) else text


def decoded(text: str) -> Histogram:
    return HdrHistogram.decode(text)


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of everything in ``histograms``, which are left as they are."""
    total = empty()
    for one in histograms:
        if one.get_total_count():
            total.add(one)
    return total


def percentiles(histogram: Histogram, wanted: Sequence[float]) -> dict[float, float | None]:
    """Milliseconds at each of the percentiles ``wanted``, in their order; None where there is nothing."""
    if not histogram.get_total_count():
        return dict.fromkeys(wanted)
    found = histogram.get_percentile_to_value_dict(list(wanted))
    return {one: found[one] / 1000 for one in wanted}


def curve(histogram: Histogram) -> list[tuple[float, float]]:
    """(percentile, milliseconds), as many points from 90 to 99 as from 99 to 99.9, to be drawn on a log axis."""
    count = histogram.get_total_count()
    if not count:
        return []
    steps = [10.0 ** -(step / 10) for step in range(_NINES * 10 + 1)]
    wanted = [100 * (1 - left) for left in steps if left * count >= 1]
    return [(one, value) for one, value in percentiles(histogram, wanted).items() if value is not None]
