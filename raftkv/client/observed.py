"""An engine whose operations are told to somebody: traces and metrics. A client without an observer has none of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from raftkv.client.call import Call
from raftkv.client.engine import Engine
from raftkv.commands.registry import CLIENT_COMMANDS
from raftkv.errors import RaftKVError
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.commands.results import Result


class Ended(NamedTuple):
    """How an operation went. ``attempts``: of the call that needed most. ``hints``: how often a node named another one
    as the leader. ``address``: of the node that was asked last, "" = none was. ``errors``: of the calls that failed."""

    attempts: int
    hints: int
    address: str
    errors: Sequence[BaseException]


class Operation(Protocol):
    """One that goes on."""

    def end(self, ended: Ended) -> None:
        """It is over."""


class Telemetry(Protocol):
    """Hears of operations, in the client's loop and in the context of its caller."""

    def begin(self, name: str, size: int, *, writes: bool) -> Operation:
        """An operation of ``size`` calls begins, of the command ``name``."""


class ObservedEngine(Engine):
    """See :class:`raftkv.client.engine.Engine`."""

    def __init__(self, *arguments: Any, telemetry: Telemetry) -> None:
        super().__init__(*arguments)
        self._telemetry = telemetry

    async def run(self, call: Call, timeout: float, accept: int = 0) -> Result:
        operation = self._begin_telling([call])
        try:
            result = await super().run(call, timeout, accept)
        except BaseException as error:
            operation.end(_ended([call], [error]))
            raise
        operation.end(_ended([call], []))
        return result

    async def run_many(self, calls: Sequence[Call], timeout: float) -> list[Result | RaftKVError]:
        if not calls:
            return await super().run_many(calls, timeout)
        operation = self._begin_telling(calls)
        try:
            results = await super().run_many(calls, timeout)
        except BaseException as error:
            operation.end(_ended(calls, [error]))
            raise
        operation.end(_ended(calls, [one for one in results if isinstance(one, RaftKVError)]))
        return results

    async def page(self, request: kv_pb2.ScanRequest, timeout: float, call: Call | None = None) -> kv_pb2.ScanResponse:
        call = call or Call(kv_pb2.KIND_GET, request.start, request.consistency)
        operation = self._telemetry.begin("scan", 1, writes=False)
        try:
            page = await super().page(request, timeout, call)
        except BaseException as error:
            operation.end(_ended([call], [error]))
            raise
        operation.end(_ended([call], []))
        return page

    def _begin_telling(self, calls: Sequence[Call]) -> Operation:
        kind = CLIENT_COMMANDS[int(calls[0].kind)]
        return self._telemetry.begin(kind.name, len(calls), writes=not kind.reads)


def _ended(calls: Sequence[Call], errors: Sequence[BaseException]) -> Ended:
    return Ended(max(call.attempts for call in calls), sum(call.hints for call in calls), calls[-1].address, errors)
