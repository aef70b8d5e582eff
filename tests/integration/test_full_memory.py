"""A node whose memory is nearly full: its groups refuse new data and nothing else, and it clears by itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import raftkv
from raftkv.errors import NoSpace
from raftkv.testing import LocalCluster
from tests.admin_world import Admin
from tests.waiting import PATIENCE, until

_MIB = 1024 * 1024
_ROOM = 100 * _MIB
_MANY = 400


def _limit(cluster: LocalCluster, node: int, limit: int) -> None:
    """Have ``node`` take over another ``node.memory`` while it runs."""
    file = cluster.data_dir(node).parent / "node.toml"
    lines = [line for line in file.read_text().splitlines(keepends=True) if not line.startswith("memory =")]
    file.write_text("".join(lines).replace("[node]\n", f"[node]\nmemory = {limit}\n"))
    pid = cluster.pid(node)
    assert pid is not None
    os.kill(pid, signal.SIGHUP)
    until(lambda: "changed: node.memory" in cluster.log(node, 1000), "the limit is taken over")


def _fill(kv: raftkv.Client) -> int:
    """Write until no more is taken; how many values of 1 MiB were."""
    for written in range(_MANY):
        try:
            kv.put(f"large {written}", os.urandom(_MIB))
        except NoSpace:
            return written
    raise AssertionError("all was taken")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_new_data_is_refused_by_the_groups_of_a_node_without_memory_until_enough_is_deleted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalCluster(nodes=3, groups=1) as cluster, raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
        node = next(one for one in cluster.nodes if one != cluster.leader(1))
        taken = int(Path(f"/proc/{cluster.pid(node)}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        _limit(cluster, node, taken + _ROOM)
        kv.put("before", b"1")
        written = _fill(kv)
        with pytest.raises(NoSpace, match=f"the memory of node {node} is nearly full; reads and deletes go on"):
            kv.put("more", b"1")
        with pytest.raises(NoSpace):
            kv.cas("before", b"1", b"2")
        assert kv.get("before") is not None
        admin = Admin(cluster.endpoints, capsys, monkeypatch)
        until(lambda: admin("cluster health") == 5)
        assert "memory" in admin.out
        for number in range(written):
            assert kv.delete(f"large {number}")

        def taken_again() -> bool:
            try:
                kv.put("after", b"1")
            except NoSpace:
                return False
            return True

        until(taken_again, "what was deleted makes room")
        until(lambda: admin("cluster health") == 0, "the problem is over")
