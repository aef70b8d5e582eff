"""Metrics and probes: what they say, and that no client of theirs and no mistake of ours hurts the node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

import raftkv
from raftkv.api.status import Role
from raftkv.clock import SystemClock, Timer
from raftkv.commands.ranges import Scan
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.errors import Code, ListenError
from raftkv.frontend.counters import MALFORMED, Counters
from raftkv.frontend.http import metrics
from raftkv.frontend.http.monitor import CONNECTIONS, Monitor
from raftkv.node.stats import MeasuredWorker
from tests.log_lines import written
from tests.rpc_fakes import CLUSTER, MonitoredFake, monitored_replica, started
from tests.waiting import PATIENCE, becomes


class Clock(SystemClock):
    """Hurries all timers; ``frozen`` stops its time."""

    frozen: float | None = None

    def now(self) -> float:
        return super().now() if self.frozen is None else self.frozen

    def move(self, seconds: float) -> None:
        assert self.frozen is not None
        self.frozen += seconds

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return super().call_later(delay / 25, callback)


class World:
    """A monitor that serves ``node``, and a client."""

    def __init__(self, node: MonitoredFake, monitor: Monitor, http: aiohttp.ClientSession) -> None:
        self.node = node
        self.monitor = monitor
        self._http = http

    async def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        async with self._http.request(method, f"http://127.0.0.1:{self.monitor.port}{path}") as response:
            assert response.headers["Connection"] == "close"
            return response.status, await response.text()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.monitor.port)


@contextlib.asynccontextmanager
async def serving(clock: SystemClock | None = None) -> AsyncIterator[World]:
    node = MonitoredFake()
    monitor = Monitor(node, Counters(), "127.0.0.1", 0, clock or SystemClock())
    await monitor.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE)) as http:
            yield World(node, monitor, http)
    finally:
        await monitor.stop()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came before the other side closed the connection, or broke it off."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    except ConnectionError:
        return b""


# -- metrics


def samples(node: MonitoredFake, counters: Counters) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(metrics.registry(node, counters)).decode()
    families = list(parse(text))
    for family in families:
        assert family.name.startswith(("raftkv_", "process_"))
        assert family.documentation
        assert family.type != "unknown"
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def test_the_metrics_say_what_the_node_says() -> None:
    counters = Counters()
    counters.take((Put.number, Cas.number, Put.number))
    counters.failed[Cas.number, Code.CONDITION_FAILED] += 1
    counters.malformed(Code.TOO_LARGE)
    node = MonitoredFake()
    node.writes.observe(0.0005)
    node.writes.observe(0.001)
    node.writes.observe(5.0)
    found = samples(node, counters)

    def one(name: str, **labels: str) -> float:
        return found[f"raftkv_{name}", tuple(sorted(labels.items()))]

    assert one("ready") == 1
    assert one("uptime_seconds") == 12.5
    assert one("map_epoch") == 9
    assert one("problems", kind="lost_entries") == 1
    assert one("disk_full") == 0
    assert one("node_info", node="1", cluster_id=CLUSTER) == 1
    kinds = ("get", "put", "delete", "cas", "scan", "malformed")
    assert [one("operations_total", kind=kind) for kind in kinds] == [0, 2, 0, 1, 0, 1]
    assert one("operations_failed_total", kind="cas", outcome="condition_failed") == 1
    assert one("operations_failed_total", kind="malformed", outcome="too_large") == 1
    assert one("raft_role", group="1", role="leader") == 1
    assert one("raft_role", group="1", role="follower") == 0
    assert one("raft_match_lag_entries", group="1", peer="3") == 30
    assert one("raft_match_lag_entries", group="1", peer="2") == 0
    assert ("raftkv_raft_match_lag_entries", (("group", "0"), ("peer", "3"))) not in found  # it does not lead that
    assert one("raft_leader_known", group="0") == 1
    assert ("raftkv_raft_leader_known", (("group", "2"),)) not in found  # no member of it any more
    assert [one(f"raft_{name}_index", group="0") for name in ("last", "commit", "applied", "snapshot")] == [
        120,
        118,
        117,
        100,
    ]
    assert (one("group_records", group="0"), one("group_record_bytes", group="0")) == (3, 44)
    assert (one("peer_up", peer="2"), one("peer_up", peer="3"), one("peer_connections_total", peer="3")) == (1, 0, 4)
    assert (one("slot_moves_total", outcome="committed"), one("slot_moves_total", outcome="cancelled")) == (3, 1)
    buckets = [one("wal_write_seconds_bucket", le=end) for end in ("0.001", "0.01", "+Inf")]
    assert buckets == [2, 2, 3]
    assert one("wal_write_seconds_count") == 3
    assert one("wal_write_seconds_sum") == pytest.approx(5.0015)


def test_a_code_of_a_newer_version_is_counted_as_internal() -> None:
    counters = Counters()
    counters.failed[Get.number, 99] += 1
    counters.failed[Get.number, Code.INTERNAL] += 1
    found = samples(MonitoredFake(), counters)
    assert found["raftkv_operations_failed_total", (("kind", "get"), ("outcome", "internal"))] == 2


def test_operations_of_clients_are_counted_by_kind_and_outcome() -> None:
    async def main() -> None:
        async with started() as (cluster, kv):
            for number in range(20):
                await kv.put(f"k{number}", b"v")
            await kv.get("k1")
            await kv.get("none")
            await kv.cas("k1", b"other", b"v")
            with pytest.raises(raftkv.ConditionFailed):
                await kv.put("k1", b"v", if_version=raftkv.ABSENT)
            await kv.count()
            counters = cluster.servers[0].resources.counters
            kinds = (Get.number, Put.number, Delete.number, Cas.number, Scan.number, MALFORMED)
            assert [counters.taken[kind] for kind in kinds] == [2, 21, 0, 1, 1, 0]
            assert counters.failed == {(Put.number, Code.CONDITION_FAILED): 1, (Cas.number, Code.CONDITION_FAILED): 1}
            assert sum(counters.latency.counts) > 0
            assert counters.latency.total > 0

    asyncio.run(main())


def test_a_measured_worker_times_its_jobs_and_hands_on_what_they_give() -> None:
    class Direct:
        def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
            try:
                result = work()
            except OSError as error:
                done(None, error)
            else:
                done(result, None)

    clock = Clock()
    clock.frozen = 100.0
    worker = MeasuredWorker(Direct(), clock)
    given: list[object] = []

    def work() -> str:
        clock.move(0.02)
        given.append(worker.busy_for())
        return "done"

    def fail() -> str:
        raise OSError("no disk")

    worker.submit(work, lambda result, failure: given.append((result, failure)))
    worker.submit(fail, lambda result, failure: given.append((result, str(failure))))
    assert given == [pytest.approx(0.02), ("done", None), (None, "no disk")]
    assert worker.busy_for() == 0
    assert sum(worker.durations.counts) == 2
    assert worker.durations.total == pytest.approx(0.02)


# -- over HTTP


def test_scrapes_get_the_format_that_they_ask_for() -> None:
    async def main() -> None:
        async with serving() as world, aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{world.monitor.port}/metrics"
            async with http.get(url) as plain:
                assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                assert {family.name for family in parse(await plain.text())} >= {"raftkv_ready", "raftkv_raft_term"}
            async with http.get(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as modern:
                assert modern.headers["Content-Type"].startswith("application/openmetrics-text")
                families = parse_openmetrics(await modern.text())  # type: ignore[no-untyped-call]
                assert {family.name for family in families} >= {"raftkv_ready", "raftkv_operations"}

    asyncio.run(main())


def test_liveness_depends_on_the_node_alone_and_readiness_says_what_is_missing() -> None:
    async def main() -> None:
        clock = Clock()
        clock.frozen = 1000.0
        async with serving(clock) as world:
            node = world.node
            status, text = await world.get("/readyz")
            assert status == 200
            assert '"groups": [{"group": 0, "role": "follower", "leader": 2, "term": 7, "lag": 1}, {"group": 1' in text
            assert '"group": 2' not in text  # no member of it any more
            node.ready, node.disk_full, node.replicas[0] = False, True, monitored_replica(0, Role.CANDIDATE, 0)
            assert (await world.get("/readyz"))[0] == 200  # asked too often: as of a moment ago
            clock.move(0.2)
            status, text = await world.get("/readyz")
            assert status == 503
            assert '"disk_full": true, "groups": [{"group": 0, "role": "candidate", "leader": null' in text
            assert (await world.get("/livez"))[0] == 200
            node.living, node.ready = False, True
            clock.move(0.2)
            assert [(await world.get(path))[0] for path in ("/livez", "/readyz", "/metrics")] == [503, 503, 200]
            node.living = True
            assert (await world.get("/readyz"))[0] == 200
            world.monitor.stopping()
            assert [(await world.get(path))[0] for path in ("/livez", "/readyz")] == [200, 503]

    asyncio.run(main())


def test_other_paths_and_methods_are_refused() -> None:
    async def main() -> None:
        async with serving() as world:
            assert await world.get("/") == (404, "Not Found\n")
            assert [(await world.get("/metrics", method))[0] for method in ("POST", "DELETE")] == [405, 405]
            assert (await world.get("/livez", "HEAD"))[0] == 200

    asyncio.run(main())


def test_a_broken_scrape_is_said_once_a_minute_and_hurts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving() as world:
            world.node.broken = True
            assert [(await world.get("/metrics"))[0] for _ in range(3)] == [500, 500, 500]
            assert (await world.get("/readyz"))[0] == 500
            assert (await world.get("/livez"))[0] == 200
            world.node.broken = False
            assert (await world.get("/metrics"))[0] == 200

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert written(caplog) == ["/metrics cannot be answered", "/readyz cannot be answered"]


def test_an_address_in_use_is_named() -> None:
    async def main() -> None:
        async with serving() as world:
            second = Monitor(MonitoredFake(), Counters(), "127.0.0.1", world.monitor.port, SystemClock())
            with pytest.raises(ListenError, match=f"cannot listen for metrics on 127.0.0.1:{world.monitor.port}: "):
                await second.start()
            await second.stop()

    asyncio.run(main())


# -- hostile clients


def test_scrapes_beyond_the_limit_are_refused_and_probes_are_not() -> None:
    async def main() -> None:
        clock = Clock()
        clock.frozen = 1000.0
        async with serving(clock) as world:
            world.node.takes = lambda: clock.move(0.03)
            # A tenth of the time: of the second before, 0.1 s may be spent, and 0.03 s a time from then on.
            assert [(await world.get("/metrics"))[0] for _ in range(8)] == [200] * 4 + [429] * 4
            assert [(await world.get(path))[0] for path in ("/livez", "/readyz")] == [200, 200]
            clock.move(0.3)
            assert [(await world.get("/metrics"))[0] for _ in range(3)] == [200, 429, 429]

    asyncio.run(main())


def test_those_who_hold_connections_do_not_shut_out_a_probe() -> None:
    async def main() -> None:
        async with serving() as world:
            held = [await world.connect() for _ in range(3 * CONNECTIONS)]
            for _, writer in held:
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")  # and never the end
            assert (await world.get("/livez"))[0] == 200
            await asyncio.gather(*(ended(reader) for reader, _ in held[:CONNECTIONS]))  # the oldest went
            assert not held[-1][0].at_eof()
            for _, writer in held:
                writer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "begin",
    [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12"],
    ids=["silent", "half a head", "half a body"],
)
def test_a_slow_client_is_dropped_in_time(begin: bytes) -> None:
    async def main() -> None:
        async with serving(Clock()) as world:
            reader, writer = await world.connect()
            writer.write(begin)
            await ended(reader)
            writer.close()
            assert (await world.get("/livez"))[0] == 200

    asyncio.run(main())


def test_a_client_that_reads_nothing_is_dropped_in_time() -> None:
    async def main() -> None:
        async with serving(Clock()) as world:
            world.node.replicas *= 4000  # megabytes, more than buffers between the two take
            _, writer = await world.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            visits = world.monitor._open
            await becomes(lambda: visits)
            await becomes(lambda: not visits)
            writer.transport.abort()

    asyncio.run(main())


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello, TLS?\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(5000)) + b"\r\n",
        b"GET /livez HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["no HTTP", "long header", "long path", "many headers", "smuggled"],
)
def test_what_is_no_decent_request_gets_an_error_and_the_end(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bytes:
        async with serving() as world:
            reader, writer = await world.connect()
            writer.write(sent)
            answer = await ended(reader)
            writer.close()
            assert (await world.get("/livez"))[0] == 200
            return answer

    with caplog.at_level(logging.INFO):
        answer = asyncio.run(main())
    assert answer == b"" or answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert caplog.records == []


def test_one_connection_gets_one_answer() -> None:
    async def main() -> None:
        async with serving() as world:
            reader, writer = await world.connect()
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            assert (await ended(reader)).count(b"HTTP/1.1 200") == 1
            writer.close()

    asyncio.run(main())
