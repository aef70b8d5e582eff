"""Metrics and probes of real nodes: true while clients write, answered without a majority, harmless when abused."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import raftkv
from raftkv.cli.local import LocalError
from raftkv.cli.process import pause
from raftkv.clock import SystemClock
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE

_CLOCK = SystemClock()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2, metrics=True) as running:
        yield running


@pytest.fixture
def healthy(cluster: LocalCluster) -> LocalCluster:
    """The module's cluster with all nodes up, whatever the test before has done to it."""
    cluster.start()
    return cluster


def get(cluster: LocalCluster, node: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(cluster.metrics_address(node), timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def readiness(cluster: LocalCluster, node: int) -> tuple[int, dict[str, Any]]:
    status, text = get(cluster, node, "/readyz")
    return status, json.loads(text)


class Scrape:
    """The samples of one node."""

    def __init__(self, cluster: LocalCluster, node: int) -> None:
        status, text = get(cluster, node, "/metrics")
        assert status == 200
        self.samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    def all(self, name: str, **labels: str) -> list[float]:
        return [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]

    def one(self, name: str, **labels: str) -> float:
        (value,) = self.all(name, **labels)
        return value


def wait_for(what: str, condition: Any, seconds: float = 20.0) -> None:
    end = _CLOCK.now() + seconds
    while not condition():
        assert _CLOCK.now() < end, f"not within {seconds:g} s: {what}"
        pause(0.05)


def test_metrics_are_true_while_clients_write(healthy: LocalCluster) -> None:
    nodes = healthy.nodes
    before = sum(Scrape(healthy, node).one("raftkv_operations_total", kind="put") for node in nodes)
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as kv:
            while not stop.is_set():
                kv.put(f"k{len(written) % 100}", b"v" * 100)
                written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [sum(Scrape(healthy, node).one("raftkv_raft_commit_index", group="1") for node in nodes)]
        while len(written) < 500 or len(seen) < 10:
            seen.append(sum(Scrape(healthy, node).one("raftkv_raft_commit_index", group="1") for node in nodes))
            pause(0.2)
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]
    scrapes = {node: Scrape(healthy, node) for node in nodes}
    put = sum(scrape.one("raftkv_operations_total", kind="put") for scrape in scrapes.values())
    assert put - before == len(written)
    assert not any(scrape.all("raftkv_operations_failed_total") for scrape in scrapes.values())
    for group in ("0", "1", "2"):
        led = [node for node in nodes if scrapes[node].one("raftkv_raft_role", group=group, role="leader")]
        assert led == [healthy.leader(int(group))]
        assert len(scrapes[led[0]].all("raftkv_raft_match_lag_entries", group=group)) == 3
    for node, scrape in scrapes.items():
        assert scrape.one("raftkv_ready") == 1
        assert scrape.all("raftkv_peer_up") == [1, 1]
        assert scrape.one("raftkv_node_info", node=str(node), cluster_id=healthy.cluster_id) == 1
        assert scrape.one("raftkv_wal_write_seconds_count") > 100
        assert scrape.one("raftkv_disk_free_bytes") > 0
        assert scrape.one("raftkv_disk_full") == 0
        assert sum(scrape.all("raftkv_group_records")) == 100
        assert sum(scrape.all("raftkv_group_slots")) == 1024
    assert sum(scrape.one("raftkv_operation_seconds_count") for scrape in scrapes.values()) > 0
    assert sum(sum(scrape.all("raftkv_raft_elections_won_total")) for scrape in scrapes.values()) >= 3


def test_without_a_majority_a_node_lives_and_is_not_ready(healthy: LocalCluster) -> None:
    healthy.kill(2)
    healthy.kill(3)
    wait_for("node 1 is not ready", lambda: readiness(healthy, 1)[0] == 503)
    wait_for("it knows no leader", lambda: not any(group["leader"] for group in readiness(healthy, 1)[1]["groups"]))
    status, answer = readiness(healthy, 1)
    assert (status, answer["ready"], answer["node"]) == (503, False, 1)
    assert [group["group"] for group in answer["groups"]] == [0, 1, 2]
    assert {group["role"] for group in answer["groups"]} <= {"follower", "candidate"}
    assert get(healthy, 1, "/livez") == (200, '{"alive": true}')
    scrape = Scrape(healthy, 1)
    assert scrape.one("raftkv_ready") == 0
    assert scrape.all("raftkv_raft_leader_known") == [0, 0, 0]
    assert scrape.all("raftkv_peer_up") == [0, 0]
    healthy.start()
    wait_for("all are ready", lambda: all(readiness(healthy, node)[0] == 200 for node in healthy.nodes))
    assert get(healthy, 1, "/livez")[0] == 200


def test_writes_and_probes_go_on_beside_hostile_clients(healthy: LocalCluster) -> None:
    host, port = healthy.metrics_address(1).split(":")
    held: list[socket.socket] = []
    stop = threading.Event()

    def hold() -> None:
        while not stop.is_set():
            try:
                held.append(socket.create_connection((host, int(port)), timeout=PATIENCE))
                held[-1].sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            except OSError:
                continue
            if len(held) > 300:
                held.pop(0).close()

    attackers = [threading.Thread(target=hold) for _ in range(2)]
    for attacker in attackers:
        attacker.start()
    try:
        with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as kv:
            for number in range(200):
                kv.put(f"beside:{number}", b"v")
            answered = 0
            for _ in range(20):
                try:
                    answered += get(healthy, 1, "/livez")[0] == 200
                except (OSError, http.client.HTTPException):
                    continue  # others took its place before it had asked
            assert kv.get("beside:199") is not None
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join()
        for connection in held:
            connection.close()
    assert answered > 0
    assert readiness(healthy, 1)[0] == 200
    assert Scrape(healthy, 1).one("process_open_fds") < 200
    assert healthy.log(1).count("Traceback") == 0


def test_a_node_that_joins_serves_metrics_of_its_own(healthy: LocalCluster) -> None:
    added = healthy.add_node()
    assert readiness(healthy, added)[0] == 200
    assert len({healthy.metrics_address(node) for node in healthy.nodes}) == 4
    assert Scrape(healthy, added).all("raftkv_peer_up") == [1, 1, 1]


def test_metrics_are_off_unless_asked_for() -> None:
    cluster = LocalCluster(nodes=1)
    try:
        with pytest.raises(LocalError, match="node 1 serves no metrics"):
            cluster.metrics_address(1)
    finally:
        cluster.close()


def test_an_address_that_is_taken_stops_the_start_with_its_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cluster = LocalCluster(nodes=1, node={"metrics": address})
        try:
            with pytest.raises(LocalError, match=f"cannot listen for metrics on {address}"):
                cluster.start()
        finally:
            cluster.close()
