"""Guarantee: with OpenTelemetry, each operation is a span and a measurement that tell how it went and name no key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from raftkv import AsyncClient, Client, ConditionFailed, OutcomeUnknown, RetryPolicy
from raftkv.clock import SystemClock
from raftkv.commands.results import Result
from raftkv.errors import BatchError, Code
from raftkv.otel import Telemetry
from raftkv.testing import FakeCluster
from tests.waiting import PATIENCE


class Seen:
    """What was told of operations."""

    def __init__(self) -> None:
        self._spans, self._metrics = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.telemetry = Telemetry(self.provider, MeterProvider([self._metrics], shutdown_on_exit=False))

    def spans(self) -> list[ReadableSpan]:
        found = list(self._spans.get_finished_spans())
        self._spans.clear()
        return found

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        return [(span.name, dict(span.attributes or {})) for span in self.spans()]

    def points(self, name: str) -> list[Any]:
        data = self._metrics.get_metrics_data()
        metrics = [one for part in (data.resource_metrics if data else ()) for one in part.scope_metrics[0].metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


class Flaky(FakeCluster):
    """Answers its next commands with these failures instead; ``applied``: and does what it was asked for."""

    applied = False

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Result] = []

    def execute(self, command: Any) -> Result:
        if not self.failures:
            return super().execute(command)
        if self.applied:
            super().execute(command)
        return self.failures.pop(0)


class Still(SystemClock):
    """No attempt takes too long, however slow the machine is."""

    def now(self) -> float:
        return 0.0


def ask(seen: Seen, cluster: FakeCluster, **options: Any) -> AsyncClient:
    return AsyncClient(
        "127.0.0.1:1", timeout=PATIENCE, transport=cluster, telemetry=seen.telemetry, clock=Still(), **options
    )


def test_an_operation_is_a_span_and_a_measurement() -> None:
    seen = Seen()

    async def main() -> None:
        async with ask(seen, FakeCluster()) as kv:
            await kv.put("secret", "hidden")
            await kv.incr("n")
            await kv.put_many({"a": "1", "b": "2"})
            assert [record.key async for record in kv.scan()] == [b"a", b"b", b"n", b"secret"]
            assert await kv.get_many([]) == []

    asyncio.run(main())
    spans = seen.spans()
    assert [span.name for span in spans] == ["put", "increment", "BATCH put", "scan"]
    assert {span.kind for span in spans} == {SpanKind.CLIENT}
    assert spans[0].attributes == {
        "db.system.name": "raftkv",
        "db.operation.name": "put",
        "server.address": "127.0.0.1",
        "server.port": 1,
        "raftkv.attempts": 1,
        "raftkv.hints": 0,
    }
    assert (spans[2].attributes or {})["db.operation.batch.size"] == 2
    assert not any("secret" in str(span.attributes) or "hidden" in str(span.attributes) for span in spans)
    points = seen.points("db.client.operation.duration")
    assert sorted(point.attributes["db.operation.name"] for point in points) == sorted(span.name for span in spans)
    assert {point.count for point in points} == {1}
    assert seen.points("raftkv.client.retries") == []


@pytest.mark.parametrize(
    ("failures", "applied", "told"),
    [
        ([], False, {"error.type": "ConditionFailed", "db.response.status_code": "CONDITION_FAILED"}),
        ([Code.UNAVAILABLE], False, {"error.type": "Unavailable", "db.response.status_code": "UNAVAILABLE"}),
        ([Code.UNKNOWN], True, {"error.type": "OutcomeUnknown", "db.response.status_code": "UNKNOWN"}),
    ],
    ids=["refused", "not reached", "unknown"],
)
def test_a_failure_tells_whether_it_may_have_taken_effect(
    failures: list[Code], applied: bool, told: dict[str, str]
) -> None:
    seen, cluster = Seen(), Flaky()

    async def main() -> None:
        async with ask(seen, cluster, retry=RetryPolicy(attempts=1)) as kv:
            await kv.put("k", "v")
            cluster.failures, cluster.applied = [Result(int(code)) for code in failures], applied
            with pytest.raises((ConditionFailed, ConnectionError, OutcomeUnknown)):
                await kv.put("k", "w", if_version=7)
            cluster.failures = [Result(int(code)) for code in failures]
            if failures:
                with pytest.raises(BatchError):
                    await kv.put_many({"k": "w"})

    asyncio.run(main())
    for span in seen.spans()[1:]:
        attributes = dict(span.attributes or {})
        assert told.items() <= attributes.items()
        assert attributes["raftkv.applied"] == ("unknown" if applied else "no")
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None), "it may name a key"
    errors = [point.attributes.get("error.type") for point in seen.points("db.client.operation.duration")]
    assert set(errors) == {None, told["error.type"]}


def test_attempts_and_hints_are_counted() -> None:
    seen, cluster = Seen(), Flaky()

    async def main() -> None:
        async with ask(seen, cluster, retry=RetryPolicy(first_delay=0.001, max_delay=0.001)) as kv:
            await kv.put("k", "v")
            cluster.failures = [Result(int(Code.NOT_LEADER), hint=1), Result(int(Code.UNAVAILABLE))]
            await kv.put("k", "w")
            cluster.failures = [Result(int(Code.UNAVAILABLE))]
            assert await kv.count() == 1

    asyncio.run(main())
    told = seen.told()
    assert [(name, one["raftkv.attempts"], one["raftkv.hints"]) for name, one in told] == [
        ("put", 1, 0),
        ("put", 3, 1),
        ("scan", 2, 0),
    ]
    assert {point.attributes["db.operation.name"]: point.value for point in seen.points("raftkv.client.retries")} == {
        "put": 2,
        "scan": 1,
    }
    assert [point.value for point in seen.points("raftkv.client.hints")] == [1]


def test_a_write_that_was_cancelled_may_have_taken_effect() -> None:
    seen = Seen()

    async def main() -> None:
        async with ask(seen, FakeCluster()) as kv:
            for call in (kv.put("k", "v"), kv.get("k")):
                task = asyncio.create_task(call)
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert [(one["error.type"], one["raftkv.applied"]) for _, one in seen.told()] == [
        ("CancelledError", "unknown"),
        ("CancelledError", "no"),
    ]


def test_spans_are_children_of_the_callers_also_from_another_thread() -> None:
    seen = Seen()
    with (
        Client("127.0.0.1:1", transport=FakeCluster(), telemetry=seen.telemetry) as kv,
        seen.provider.get_tracer("test").start_as_current_span("request") as parent,
    ):
        kv.put("k", "v")
    (span,) = (span for span in seen.spans() if span.name == "put")
    assert span.parent is not None
    assert span.parent.span_id == parent.get_span_context().span_id
