"""What was measured on: a rate means little without it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sysconfig
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import raftkv

_ROOT: Final = Path(__file__).resolve().parents[1]
_LIBRARIES: Final = ("grpcio", "protobuf", "uvloop", "pysyncobj")


def facts() -> dict[str, Any]:
    """Machine, how its Python was built, versions, date, and commit.

    "+": with changes that are not committed; "" outside of a repository.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "raftkv": raftkv.__version__,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "python_build": build(),
        **{name: version(name) for name in _LIBRARIES},
    }


def build(variable: Callable[[str], Any] = sysconfig.get_config_var) -> str:
    """How the interpreter was optimised: its code needs a tenth less of a processor's time with a profile."""
    configured, flags = (
        " ".join(str(variable(name) or "") for name in names)
        for names in (("CONFIG_ARGS",), ("PY_CFLAGS", "PY_CORE_CFLAGS", "PY_CORE_LDFLAGS", "LDFLAGS"))
    )
    if not configured:
        return "not known"
    level = re.findall(r"(?<!\S)-O(\w+)", flags)
    profiled = "--enable-optimizations" in configured or "-fprofile-use" in flags
    linked = "--with-lto" in configured or "-flto" in flags
    return ", ".join(
        (
            f"-O{level[-1]}" if level else "no -O",
            f"{'with' if profiled else 'without'} PGO",
            f"{'with' if linked else 'without'} LTO",
        )
    )


def line(told: Mapping[str, Any]) -> str:
    """What counts of :func:`facts`, in a line."""
    return (
        f"{told['cores']} cores, {told['processor']}, Python {told['python']} ({told['python_build']}), "
        f"commit {told['commit']}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=_ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.decode().strip() + ("+" if changed.stdout.strip() else "")
