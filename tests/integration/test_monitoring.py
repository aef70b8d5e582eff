"""Metrics and probes of real nodes: true while clients write, answered without a majority, harmless when abused."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import raftkv
from raftkv.clock import SystemClock
from raftkv.local.node import LocalError
from raftkv.local.process import pause
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE, until

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
        while (answer := get(cluster, node, "/metrics"))[0] == HTTPStatus.TOO_MANY_REQUESTS:
            pause(0.05)  # a node takes its time between two
        status, text = answer
        assert status == HTTPStatus.OK
        self.samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    def all(self, name: str, **labels: str) -> list[float]:
        return [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]

    def one(self, name: str, **labels: str) -> float:
        (value,) = self.all(name, **labels)
        return value


@dataclass(frozen=True)
class Busy:
    """What was seen while a client wrote."""

    commits: list[float]
    written: int
    counted: float
    failed: float
    leaders: list[int]
    scrapes: dict[int, Scrape]


def elections(scrapes: Iterable[Scrape]) -> float:
    return sum(sum(scrape.all("raftkv_raft_elections_won_total")) for scrape in scrapes)


def watched_while_a_client_writes(cluster: LocalCluster) -> Busy:
    """For a while in which no group elects, so that no write is sent twice: that may need some attempts."""
    while True:
        before = {node: Scrape(cluster, node) for node in cluster.nodes}
        commits, written = watched(cluster)
        leaders = [cluster.leader(group) for group in (0, 1, 2)]
        after = {node: Scrape(cluster, node) for node in cluster.nodes}
        if elections(after.values()) == elections(before.values()):
            puts = change("raftkv_operations_total", before, after, kind="put")
            failed = change("raftkv_operations_failed_total", before, after)
            return Busy(commits, written, puts, failed, leaders, after)


def change(name: str, before: dict[int, Scrape], after: dict[int, Scrape], **labels: str) -> float:
    return sum(sum(after[node].all(name, **labels)) - sum(before[node].all(name, **labels)) for node in after)


def watched(cluster: LocalCluster) -> tuple[list[float], int]:
    """The commit indexes that were scraped, and the number of writes."""
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
            while not stop.is_set():
                kv.put(f"k{len(written) % 100}", b"v" * 100)
                written.append(1)

    def committed() -> float:
        return sum(Scrape(cluster, node).one("raftkv_raft_commit_index", group="1") for node in cluster.nodes)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [committed()]
        while len(written) < 500 or len(seen) < 10:
            seen.append(committed())
            pause(0.2)
    finally:
        stop.set()
        writer.join()
    return seen, len(written)


def test_metrics_are_true_while_clients_write(healthy: LocalCluster) -> None:
    busy = watched_while_a_client_writes(healthy)
    assert busy.commits == sorted(busy.commits)
    assert busy.commits[0] < busy.commits[-1]
    assert busy.counted == busy.written
    scrapes = busy.scrapes
    assert busy.failed == 0
    for group, leader in enumerate(busy.leaders):
        led = [node for node, one in scrapes.items() if one.one("raftkv_raft_role", group=str(group), role="leader")]
        assert led == [leader]
        assert len(scrapes[leader].all("raftkv_raft_match_lag_entries", group=str(group))) == 3
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
    assert elections(scrapes.values()) >= 3


def test_without_a_majority_a_node_lives_and_is_not_ready(healthy: LocalCluster) -> None:
    healthy.kill(2)
    healthy.kill(3)
    until(lambda: readiness(healthy, 1)[0] == 503, "node 1 is not ready")
    until(lambda: not any(group["leader"] for group in readiness(healthy, 1)[1]["groups"]), "it knows no leader")
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
    until(lambda: all(readiness(healthy, node)[0] == 200 for node in healthy.nodes), "all are ready")
    assert get(healthy, 1, "/livez")[0] == 200


def test_writes_and_probes_go_on_beside_hostile_clients(healthy: LocalCluster) -> None:
    host, port = healthy.metrics_address(1).split(":")
    held: list[socket.socket] = []
    stop = threading.Event()

    def hold() -> None:
        while not stop.is_set():
            try:
                held.append(socket.create_connection((host, int(port)), timeout=5))
                held[-1].sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            except OSError:
                continue
            if len(held) > 300:
                held.pop(0).close()

    def alive() -> bool:
        try:
            return get(healthy, 1, "/livez")[0] == 200
        except (OSError, http.client.HTTPException):
            return False  # others took its place before it had asked

    attackers = [threading.Thread(target=hold) for _ in range(2)]
    for attacker in attackers:
        attacker.start()
    try:
        with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as kv:
            for number in range(200):
                kv.put(f"beside:{number}", b"v")
            until(alive, "a probe is answered")
            assert kv.get("beside:199") is not None
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join()
        for connection in held:
            connection.close()
    until(lambda: readiness(healthy, 1)[0] == 200)
    assert Scrape(healthy, 1).one("process_open_fds") < 200
    assert healthy.log(1).count("Traceback") == 0


def test_a_node_that_joins_serves_metrics_of_its_own(healthy: LocalCluster) -> None:
    added = healthy.add_node()
    until(lambda: readiness(healthy, added)[0] == 200)
    assert len({healthy.metrics_address(node) for node in healthy.nodes}) == 4
    until(lambda: Scrape(healthy, added).all("raftkv_peer_up") == [1, 1, 1])


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
