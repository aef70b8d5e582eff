"""OpenTelemetry for clients: spans and metrics of their operations. Needs ``raftkv[otel]``.

    from raftkv.otel import Telemetry

    with raftkv.Client("127.0.0.1:7401", telemetry=Telemetry()) as kv:
        kv.put("user:1", "Ada")

Names are those of OpenTelemetry's conventions for databases. Neither keys nor values are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from raftkv.addresses import BadAddress, parse_address
from raftkv.clock import SystemClock
from raftkv.errors import Code, NotApplied, RaftKVError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.metrics import Counter, Histogram, MeterProvider
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from raftkv.client.observed import Ended

_SYSTEM: Final = "raftkv"
_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Seconds, as the conventions have them."""


class Telemetry:
    """For ``telemetry=`` of clients, one for any number of them.

    Each call on keys, each batch of ``get_many``, ``put_many`` and ``delete_many`` and each page of a scan is a span of
    kind CLIENT, as a child of the caller's, with ``raftkv.attempts`` and ``raftkv.hints``; one that failed has
    ``error.type``, ``db.response.status_code`` and ``raftkv.applied``, "no" or "unknown". Metrics:
    ``db.client.operation.duration``, and the counters ``raftkv.client.retries`` and ``raftkv.client.hints``.
    ``tracer_provider``, ``meter_provider``: others than the global ones.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer("raftkv", tracer_provider=tracer_provider)
        meter = metrics.get_meter("raftkv", meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._retries = meter.create_counter(
            "raftkv.client.retries", unit="{attempt}", description="Attempts of operations beyond their first ones."
        )
        self._hints = meter.create_counter(
            "raftkv.client.hints", unit="{hint}", description="Answers that named another node as the leader."
        )

    def begin(self, name: str, size: int, *, writes: bool) -> _Operation:
        """An operation begins."""
        labels: dict[str, AttributeValue] = {
            "db.system.name": _SYSTEM,
            "db.operation.name": name if size == 1 else f"BATCH {name}",
        }
        more: dict[str, AttributeValue] = {} if size == 1 else {"db.operation.batch.size": size}
        span = self._tracer.start_span(
            str(labels["db.operation.name"]), kind=SpanKind.CLIENT, attributes={**labels, **more}
        )
        return _Operation(span, labels, self._duration, self._retries, self._hints, writes=writes)


class _Operation:
    def __init__(
        self,
        span: Span,
        labels: dict[str, AttributeValue],
        duration: Histogram,
        retries: Counter,
        hints: Counter,
        *,
        writes: bool,
    ) -> None:
        self._span = span
        self._labels = labels
        self._duration = duration
        self._retries = retries
        self._hints = hints
        self._writes = writes
        self._clock = SystemClock()
        self._began = self._clock.now()

    def end(self, ended: Ended) -> None:
        took = self._clock.now() - self._began
        span, labels = self._span, self._labels
        span.set_attributes({"raftkv.attempts": ended.attempts, "raftkv.hints": ended.hints})
        try:
            host, port = parse_address(ended.address)
            span.set_attributes({"server.address": host, "server.port": port})
        except BadAddress:
            pass  # no node was asked
        if ended.errors:
            first = ended.errors[0]
            labels = {**labels, "error.type": type(first).__name__}
            span.set_attributes({"error.type": type(first).__name__, "raftkv.applied": self._applied(ended.errors)})
            if isinstance(first, RaftKVError):
                span.set_attribute("db.response.status_code", Code(first.code).name)
            # Without the message, which may name a key.
            span.set_status(Status(StatusCode.ERROR))
        span.end()
        self._duration.record(took, labels)
        if ended.attempts > 1:
            self._retries.add(ended.attempts - 1, self._labels)
        if ended.hints:
            self._hints.add(ended.hints, self._labels)

    def _applied(self, errors: Sequence[BaseException]) -> str:
        """Whether what failed may have taken effect; a write that was cancelled may have."""
        surely_not = not self._writes or all(isinstance(error, NotApplied) for error in errors)
        return "no" if surely_not else "unknown"
