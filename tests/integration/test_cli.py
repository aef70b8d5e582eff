"""The command line against real nodes, as a user or a script calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkv.local.ports import free_ports
from raftkv.local.process import pause
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]


def raftkv(*arguments: str, endpoints: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "RAFTKV_ENDPOINTS": endpoints} if endpoints else dict(os.environ)
    command = [sys.executable, "-m", "raftkv.cli.main", *arguments]
    if endpoints:
        command += ["--timeout", str(PATIENCE)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, input=stdin, capture_output=True, timeout=PATIENCE, check=False
    )


def first_port() -> int:
    """A port such that those that `up` derives from it for three nodes are free too."""
    ours = set(free_ports(500))
    return next(port for port in ours if ours.issuperset(port + offset for offset in (0, 1, 2, 100, 101, 102)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=3) as running:
        yield running


@pytest.fixture
def at(cluster: LocalCluster) -> str:
    return cluster.endpoints


def test_put_get_delete_and_their_exit_codes(at: str) -> None:
    assert raftkv("get", "cli:a", endpoints=at).returncode == 4
    put = raftkv("put", "cli:a", "-", "--if-absent", "-o", "json", endpoints=at, stdin=b"\x00\xff\n")
    assert put.returncode == 0
    version = json.loads(put.stdout)["version"]
    got = raftkv("get", "cli:a", endpoints=at)
    assert (got.returncode, got.stdout, got.stderr) == (0, b"\x00\xff\n", b"")
    assert json.loads(raftkv("get", "cli:a", "-o", "json", endpoints=at).stdout) == {
        "key": "cli:a",
        "value_b64": "AP8K",
        "version": version,
        "expires_at": None,
    }
    refused = raftkv("put", "cli:a", "x", "--if-absent", endpoints=at)
    assert (refused.returncode, refused.stdout) == (4, b"")
    assert raftkv("put", "cli:a", "x", "--if-version", str(version + 1000), endpoints=at).returncode == 4
    assert raftkv("put", "cli:a", "x", "--if-version", str(version), "--ttl", "100", endpoints=at).returncode == 0
    assert json.loads(raftkv("get", "cli:a", "-o", "json", endpoints=at).stdout)["expires_at"] > 0
    assert raftkv("delete", "cli:a", endpoints=at).returncode == 0
    assert raftkv("delete", "cli:a", endpoints=at).returncode == 4


def test_bad_input_gets_a_clear_error_and_harms_nothing(at: str) -> None:
    for arguments in (["put", "", "x"], ["put", "k" * 8193, "x"], ["get", ""]):
        refused = raftkv(*arguments, endpoints=at)
        assert refused.returncode == 1, arguments
        assert refused.stderr.startswith(b"raftkv: ")
        assert b"Traceback" not in refused.stderr
    assert raftkv("put", "k", "-", endpoints=at, stdin=b"v" * (1024 * 1024 + 1)).returncode == 1
    assert raftkv("get", "k", "--endpoints", "nonsense").returncode == 2
    assert raftkv("put", "k", "fine", endpoints=at).returncode == 0
    assert raftkv("get", "k", endpoints=at).stdout == b"fine"


def test_what_is_loaded_is_dumped_exactly_once(cluster: LocalCluster, at: str, tmp_path: Path) -> None:
    """Also when a leader is killed in the middle, and when the load itself is killed and started again."""
    source = tmp_path / "many.jsonl"
    wanted = {f"load:{i:06}": f"value {i}" for i in range(5_000)}
    source.write_text("".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in wanted.items()))
    progress = tmp_path / "many.jsonl.progress"

    command = [sys.executable, "-m", "raftkv.cli.main", "load", str(source), "--endpoints", at, "--in-flight", "50"]
    killed = False
    while not killed:  # if it was over before, it begins anew: nothing has been noted
        first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while first.poll() is None and not progress.exists():
            pause(0.01)
        first.kill()
        first.communicate()
        killed = first.returncode == -signal.SIGKILL

    cluster.kill(cluster.leader(1))
    second = raftkv("load", str(source), "-o", "json", endpoints=at)
    assert second.returncode == 0, second.stderr
    counts = json.loads(second.stdout)
    assert counts["complete"]
    assert counts["skipped"] > 0
    assert counts["written"] + counts["skipped"] == counts["total"] == len(wanted)
    assert not progress.exists()
    cluster.start()

    out = tmp_path / "dump.jsonl"
    assert raftkv("dump", "--out", str(out), endpoints=at).returncode == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    loaded = [(record["key"], record["value"]) for record in records if record["key"].startswith("load:")]
    assert len(loaded) == len(wanted)
    assert dict(loaded) == wanted
    assert raftkv("load", str(out), endpoints=at).returncode == 0


def test_a_damaged_file_is_refused_before_anything_is_written(at: str, tmp_path: Path) -> None:
    source = tmp_path / "bad.csv"
    source.write_text("key,value\nbad:1,x\nbad:2\n")
    refused = raftkv("load", str(source), endpoints=at)
    assert refused.returncode == 1
    assert b"bad.csv: line 3: " in refused.stderr
    assert raftkv("get", "bad:1", endpoints=at).returncode == 4


def test_nobody_there_is_exit_code_3() -> None:
    for arguments in (["get", "k"], ["put", "k", "v"], ["dump"]):
        result = raftkv(*arguments, "--timeout", "0.5", "--endpoints", "127.0.0.1:1")
        assert result.returncode == 3, arguments
        assert result.stdout == b""


def test_up_status_down(tmp_path: Path) -> None:
    """Up starts what is missing, down stops it, and the next up finds the data again."""
    data = ["--data-dir", str(tmp_path / "data")]
    port = first_port()
    try:
        up = raftkv("up", "--nodes", "3", "--groups", "2", "--port", str(port), *data)
        assert up.returncode == 0, up.stderr
        shown = up.stdout.decode()
        endpoints = ",".join(f"127.0.0.1:{port + i}" for i in range(3))
        assert endpoints in shown
        assert str(tmp_path / "data") in shown
        assert "node.log" in shown
        assert "put hello world" in shown
        assert raftkv("put", "hello", "world", endpoints=endpoints).returncode == 0

        before = status(*data)
        os.kill(before["nodes"][1]["pid"], signal.SIGKILL)
        until(lambda: status(*data)["nodes"][1]["state"] == "died")
        again = raftkv("up", "-o", "json", *data)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["started"] == [2]
        after = status(*data)
        assert [a["pid"] == b["pid"] for a, b in zip(before["nodes"], after["nodes"], strict=True)] == [
            True,
            False,
            True,
        ]

        down = raftkv("down", *data)
        assert (down.returncode, down.stdout, down.stderr) == (0, b"stopped 3 nodes\n", b"")
        stopped = raftkv("status", "-o", "json", *data)
        assert stopped.returncode == 3
        assert [node["state"] for node in json.loads(stopped.stdout)["nodes"]] == ["stopped"] * 3
        assert raftkv("down", *data).stdout == b"no node was running\n"

        assert raftkv("up", *data).returncode == 0
        assert raftkv("get", "hello", endpoints=endpoints).stdout == b"world"
    finally:
        raftkv("down", "--timeout", "5", *data)


def test_up_on_a_port_in_use_starts_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    port = cluster.address(1).rpartition(":")[2]
    data = ["--data-dir", str(tmp_path / "data")]
    up = raftkv("up", "--nodes", "1", "--port", port, *data)
    assert up.returncode == 1
    assert f"cannot listen at 127.0.0.1:{port}".encode() in up.stderr
    assert not list(tmp_path.glob("data/node-*/node.log"))


def status(*data: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(raftkv("status", "-o", "json", *data).stdout)
    return parsed


@pytest.mark.parametrize("name", ["quickstart.py", "quickstart_sync.py"])
def test_the_examples_run(name: str, at: str) -> None:
    example = [sys.executable, "-W", "error", str(ROOT / "examples" / name), at]
    result = subprocess.run(example, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


@pytest.mark.parametrize(
    ("api", "op"),
    [("pipeline", "get"), ("pipeline", "set"), ("pipeline", "ycsb-e"), ("unary", "get"), ("unary", "set")],
)
def test_the_load_generator_measures(api: str, op: str, at: str) -> None:
    command = [sys.executable, "-m", "bench", "load", "--endpoints", at, "--api", api, "--op", op, "-o", "json"]
    options = ["--workers", "8", "--clients", "2", "--keys", "200", "--seconds", "0.3", "--warmup", "0"]
    result = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["operations"] > 0
    assert summary["errors"] == {}
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"] <= summary["latency_ms"]["max"]
