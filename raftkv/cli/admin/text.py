"""What operators write and read: lists of slots, sizes, rates, times. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)(/s)?", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_UNITS: Final = ("B", "KB", "MB", "GB", "TB")
MAX_RATE: Final = 2**40


def map_line(report: Mapping[str, Any]) -> str:
    """What a map is, of a report that has its cluster, epoch, slots and what leaders are spread over."""
    what = f"cluster {report['cluster_id']}, map of epoch {report['epoch']}, {report['slots']} slots"
    return f"{what}, leaders spread over {report['leaders_over']}"


def parse_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """``1,5-9`` as first and last numbers. Raises ValueError that says what is wrong."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"{part.strip()!r} is neither a number nor a range like 5-9")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if first > last:
            raise ValueError(f"the range {part.strip()} runs backwards")
        found.append((first, last))
    return tuple(found)


def numbers_of(ranges: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """All numbers of ``ranges``, ascending, each once."""
    return tuple(sorted({number for first, last in ranges for number in range(first, last + 1)}))


def ranges_text(numbers: Iterable[int]) -> str:
    """Numbers as ``parse_ranges`` reads them: ``1,5-9``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def shortened(text: str, length: int = 48) -> str:
    """``text`` that fits a table."""
    return text if len(text) <= length else text[: length - 3] + "..."


def parse_rate(text: str) -> int:
    """Bytes per second: ``10MB``, ``512KiB/s``, ``1000000``; ``unlimited`` is 0. Raises ValueError."""
    if text.strip().lower() in ("unlimited", "0"):
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a rate; write bytes a second as 10MB, 512KiB or 1000000, or unlimited")
    if match[3] and not match[2]:
        raise ValueError(f"{text!r} is not a rate: a unit is missing before the i")
    rate = float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()]
    if not 1 <= rate <= MAX_RATE:
        raise ValueError(f"{text!r} is out of range: 1 B to 1 TiB a second, or unlimited")
    return int(rate)


def size_text(size: float) -> str:
    """Bytes for people, in decimal units."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.5 else f"{value:.1f} {_UNITS[unit]}"


def rate_text(rate: float) -> str:
    """Bytes per second for people; 0 is unlimited."""
    return f"{size_text(rate)}/s" if rate else "unlimited"


def time_text(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def listed(numbers: Iterable[int]) -> str:
    """``1, 2, 3``, or ``-`` for none."""
    return ", ".join(str(number) for number in numbers) or "-"


def counted(count: int, noun: str) -> str:
    """``1 slot``, ``2 slots``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def parse_weights(items: Sequence[str]) -> dict[int, float]:
    """``GROUP=WEIGHT`` items. Raises ValueError."""
    weights: dict[int, float] = {}
    for item in items:
        match = re.fullmatch(r"(\d+)=(\d+(?:\.\d+)?)", item.strip())
        if match is None:
            raise ValueError(f"{item!r} is not of the form GROUP=WEIGHT, like 3=0.5")
        weights[int(match[1])] = float(match[2])
    return weights


def voters_text(voters: Mapping[int, Sequence[int]]) -> str:
    """Voters of groups for people."""
    return "; ".join(f"group {group}: {listed(nodes)}" for group, nodes in sorted(voters.items()))
