"""Promises 1 and 3 on real processes: kill -9 while clients write loses no acknowledged write and repeats none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import raftkv
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE, becomes


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=3) as running:
        yield running


def _names(count: int) -> dict[str, str]:
    """Real text: the names of Unicode's characters."""
    found: dict[str, str] = {}
    for code in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code), None)
        if name is not None:
            found[f"U+{code:04X}"] = name
            if len(found) == count:
                break
    return found


def _cli(
    *arguments: str, cluster: LocalCluster, run: Sequence[str] = ("-m", "raftkv.cli.main")
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *run, *arguments, "--endpoints", cluster.endpoints],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1"},
    )


def _dump(cluster: LocalCluster) -> list[tuple[str, str]]:
    dumped = _cli("dump", cluster=cluster)
    out, err = dumped.communicate(timeout=PATIENCE)
    assert dumped.returncode == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    return [(row["key"], row["value"]) for row in rows]


HALTING = """
import os, signal
from raftkv.cli import main
from raftkv.cli.loading import Loader

advance = Loader._advance

def advance_and_halt(loader, number):
    before = loader.done
    advance(loader, number)
    if before < 1000 <= loader.done:
        os.kill(os.getpid(), signal.SIGSTOP)

Loader._advance = advance_and_halt
main.main()
"""
"""The command, which stands still once with 1,000 records written and others in flight."""


def test_a_load_survives_the_death_of_a_leader_and_every_record_is_there_once(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    records = _names(3000)
    source = tmp_path / "names.jsonl"
    source.write_text("".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in records.items()))
    load = _cli("load", str(source), "--in-flight", "64", cluster=cluster, run=("-c", HALTING))
    try:
        _, status = os.waitpid(load.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the load ended before the kill"
        victim = cluster.leader(1)
        cluster.kill(victim)
        load.send_signal(signal.SIGCONT)
        cluster.restart(victim)
        out, err = load.communicate(timeout=PATIENCE)
    finally:
        load.kill()
    assert load.returncode == 0, err
    assert b"3000" in out + err
    dumped = _dump(cluster)
    assert len(dumped) == len(records)
    assert dict(dumped) == records


def test_kill_9_of_all_nodes_while_writing_loses_no_acknowledged_write(cluster: LocalCluster) -> None:
    acknowledged: dict[bytes, bytes] = {}
    attempted: dict[bytes, bytes] = {}

    async def write(worker: int, client: raftkv.AsyncClient, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            key, value = b"w%d:%d" % (worker, number), b"%d" % number
            attempted[key] = value
            number += 1
            try:
                await client.put(key, value)
            except raftkv.RaftKVError:
                continue
            acknowledged[key] = value

    async def storm() -> None:
        stop = asyncio.Event()
        async with raftkv.AsyncClient(cluster.endpoints, timeout=1.0) as client:
            workers = [asyncio.create_task(write(worker, client, stop)) for worker in range(50)]
            await becomes(lambda: len(acknowledged) >= 3000)
            cluster.kill_all()
            stop.set()
            await asyncio.gather(*workers)

    asyncio.run(storm())
    for node in cluster.nodes:
        cluster.restart(node, wait=False)
    cluster.wait_ready(PATIENCE)
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        found = {record.key: record.value for record in client.scan()}
    lost = [key for key, value in acknowledged.items() if found.get(key) != value]
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged writes lost, first {lost[:3]}"
    assert all(attempted.get(key) == value for key, value in found.items())


def test_increments_by_cas_across_leader_kills_count_exactly_once(cluster: LocalCluster) -> None:
    """A cas that was retried after an unknown outcome must not be executed twice: the counter tells."""

    counted = 0

    async def increment(client: raftkv.AsyncClient, times: int) -> int:
        nonlocal counted
        done = 0
        for _ in range(times):
            while True:
                record = await client.get("counter")
                old = None if record is None else record.value
                if await client.cas("counter", expected=old, value=b"%d" % (int(old or b"0") + 1)):
                    done += 1
                    counted += 1
                    break
        return done

    async def run() -> int:
        group = 1
        shard_owner = cluster.leader(group)
        async with raftkv.AsyncClient(cluster.endpoints, timeout=PATIENCE) as client:
            workers = [asyncio.create_task(increment(client, 40)) for _ in range(5)]
            await becomes(lambda: counted > 20)
            await asyncio.to_thread(cluster.kill, shard_owner)
            await asyncio.to_thread(cluster.restart, shard_owner)
            total = sum(await asyncio.gather(*workers))
            record = await client.get("counter")
            assert record is not None
            assert int(record.value) == total
            assert record.version == total
            return total

    assert asyncio.run(run()) == 200


def test_a_stopped_cluster_comes_back_with_its_data(cluster: LocalCluster) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        versions = {key: client.put(key, key.upper()).version for key in ("a", "b", "c", "{tag}1", "{tag}2")}
    clean = cluster.stop(PATIENCE)
    assert all(clean.values()), "a node had to be killed at SIGTERM"
    cluster.start()
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        for key, version in versions.items():
            record = client.get(key)
            assert record is not None
            assert (record.value, record.version) == (key.upper().encode(), version)


def test_a_node_with_a_wiped_disk_is_refused_and_says_why(cluster: LocalCluster) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        client.put("kept", "value")
    cluster.kill(3)
    for path in sorted(cluster.data_dir(3).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(raftkv.RaftKVError):
        cluster.restart(3, timeout=PATIENCE)
    assert "replaced data folder" in cluster.log(3)
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        record = client.get("kept")
        assert record is not None
        assert record.value == b"value"
