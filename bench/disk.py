"""The ceiling of writes: how often a second the disk makes a small write durable."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench import histogram
from raftkv.clock import SystemClock

_FILE_BYTES = 4 * 1024 * 1024
_WRITE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Durable writes one after the other: how many per second, and milliseconds of one."""

    per_second: float
    p50_ms: float
    p99_ms: float


def measure(folder: Path, seconds: float) -> DiskSpeed:
    """Write to a preallocated file in ``folder`` and sync its data each time, for ``seconds``. Raises OSError."""
    clock, path = SystemClock(), folder / "bench.disk"
    took: list[float] = []
    with path.open("wb", buffering=0) as file:
        try:
            file.write(bytes(_FILE_BYTES))
            os.fsync(file.fileno())
            began = last = clock.now()
            while last < began + seconds:
                os.pwrite(file.fileno(), b"x" * _WRITE_BYTES, len(took) * _WRITE_BYTES % _FILE_BYTES)
                os.fdatasync(file.fileno())
                now = clock.now()
                took.append(now - last)
                last = now
        finally:
            path.unlink()
    p50, p99 = histogram.percentiles(histogram.of(took), (50, 99)).values()
    return DiskSpeed(len(took) / (last - began), p50 or 0.0, p99 or 0.0)
