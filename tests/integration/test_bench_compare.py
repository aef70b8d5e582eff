"""The real peers start, are measured, and leave nothing; skipped where they are not installed."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.peers import comparison, programs
from bench.peers.contestants import CONTESTANTS, Contestant
from bench.progress import ProgressBar
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "bench", "compare"]


def short(name: str) -> Contestant:
    """Without what would have to be built or fetched first."""
    if not (programs.ETCD if name == "etcd" else programs.VALKEY).path().exists():
        pytest.skip(f"{name} is not here: python -m bench compare --only {name} gets it")
    one = CONTESTANTS[name]
    go = programs.GO_CLIENT.path().exists()
    cases = [case for case in one.cases if go or case.way.kind != "go"]
    return dataclasses.replace(one, cases=tuple(cases))


def at_work_in(folder: Path) -> list[int]:
    """Processes that name ``folder`` in their command line or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            named = str(folder) in (process / "cmdline").read_bytes().decode(errors="replace")
            if named or (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", ["etcd", "valkey", "valkey-wait"])
def test_a_peer_is_measured_in_all_its_ways_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    load = comparison.with_workers(comparison.WORKLOADS["shared"], 8)
    options = comparison.ComparisonOptions(seconds=0.1, warmup=0.0, repeat=1, keys=100, data=tmp_path)
    result = comparison.measure([short(name)], [load], options, ProgressBar)
    rows = [row for row in result["rows"] if not row["absent"]]
    assert rows
    for row in rows:
        assert row["problem"] == ""
        assert row["per_second"] > 0
        assert row["errors"] == {}
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"]
    assert result["contestants"][0]["version"].count(".") == 2
    assert list(tmp_path.iterdir()) == []
    assert at_work_in(tmp_path) == []


@pytest.mark.parametrize("name", ["raftkv", "etcd"])
def test_calls_on_several_records_are_measured(name: str, tmp_path: Path) -> None:
    one = CONTESTANTS["raftkv"] if name == "raftkv" else short("etcd")
    loads = [comparison.with_workers(comparison.WORKLOADS[call], 2) for call in comparison.CALLS]
    small = [dataclasses.replace(load, sizes=(3 if load.name == "watch" else 50,)) for load in loads]
    options = comparison.ComparisonOptions(seconds=0.2, warmup=0.0, repeat=1, keys=100, data=tmp_path)
    result = comparison.measure([one], small, options, ProgressBar)
    rows = {row["op"]: row for row in result["rows"] if not row["absent"]}
    assert set(rows) == (
        {"put_many", "txn", "watch", "scan"} if name == "raftkv" or programs.GO_CLIENT.path().exists() else set()
    )
    for row in rows.values():
        assert (row["problem"], row["errors"]) == ("", {})
        assert row["per_second"] > 0
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"]
    assert at_work_in(tmp_path) == []


def test_the_command_writes_its_tables(tmp_path: Path) -> None:
    out = tmp_path / "out"
    times = ["--seconds", "0.1", "--warmup", "0.05", "--repeat", "2"]
    options = ["--only", "echo", "--workload", "shared", *times, "--out", str(out), "-o", "json"]
    done = subprocess.run([*COMMAND, *options], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == json.loads((out / "result.json").read_text())
    assert [(row["op"], row["of_echo"], len(row["runs"])) for row in found["rows"]] == [
        ("get", 1.0, 2), ("set", 1.0, 2), ("get", 1.0, 2), ("set", 1.0, 2),
    ]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["compare-shared.svg", "compare.md", "result.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_what_it_started(number: signal.Signals, tmp_path: Path) -> None:
    short("valkey")
    data = tmp_path / "data"
    data.mkdir()
    options = ["--only", "valkey", "--seconds", "40", "--data", str(data), "--out", str(tmp_path / "out")]
    with subprocess.Popen([*COMMAND, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        # The command and three servers.
        until(lambda: len(at_work_in(data)) >= 4)
        running.send_signal(number)
        _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode not in (0, None)
    assert b"Traceback" not in said
    assert at_work_in(data) == []
    assert list(data.iterdir()) == []
