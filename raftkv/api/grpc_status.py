"""Results to gRPC statuses and back.

A failed unary RPC carries ErrorDetail in ``grpc-status-details-bin``, where gRPC's libraries of all languages look, and
gRPC's own RetryInfo if the node says when to come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from raftkv.api.failures import known_code
from raftkv.commands.results import Result
from raftkv.errors import NO_USER, OUTCOMES, Code
from raftkv.v1 import error_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message
    from grpc import aio

DETAILS_KEY: Final = "grpc-status-details-bin"
CLUSTER_KEY: Final = "raftkv-cluster-id"
"""Initial metadata of a Pipeline: the cluster that the node belongs to."""
NODE_KEY: Final = "raftkv-node-id"
"""Initial metadata of a Pipeline: the node that answers."""

_STATUSES: Final = {code: grpc.StatusCode[outcome.grpc_status] for code, outcome in OUTCOMES.items()}
_REFUSALS: Final = {_STATUSES[code]: code for code in NO_USER}
"""Statuses that only a refusal can have, of a node or of what stands before it."""
_TRANSIENT: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)


def grpc_status_of(result: Result) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Status code, message and trailing metadata for a failed ``result``."""
    code = known_code(result.code)
    status = _STATUSES[code]
    text = result.detail or code.name.lower().replace("_", " ")
    detail = error_pb2.ErrorDetail(
        code=error_pb2.Code.ValueType(int(code)),
        definite=OUTCOMES[code].definite,
        version=result.version,
        leader_hint=result.hint,
        new_id_ms=result.new_id_ms,
    )
    details = [_packed(detail)]
    if result.retry_ms >= 0:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(result.retry_ms)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    carried = status_pb2.Status(code=status.value[0], message=text, details=details)
    return status, text, ((DETAILS_KEY, carried.SerializeToString()),)


def result_of(error: aio.AioRpcError) -> Result:
    """The result that a failed RPC stands for.

    Without our detail the failure comes from the
    transport: nothing is promised unless the status is one that only a refusal can have.
    """
    text = error.details() or error.code().name
    trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            found = _detail(value, text)
            if found is not None:
                return found
    if error.code() in _TRANSIENT:
        return Result(int(Code.UNKNOWN), detail=text)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Result(int(Code.INVALID_ARGUMENT), detail=f"the endpoint is not a raftkv node: {text}")
    return Result(int(_REFUSALS.get(error.code(), Code.INTERNAL)), detail=text)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _detail(data: bytes, text: str) -> Result | None:
    """The result in a status's details, if they are ours."""
    found, retry = error_pb2.ErrorDetail(), error_details_pb2.RetryInfo()
    known, retry_ms = False, -1
    try:
        for packed in status_pb2.Status.FromString(data).details:
            if packed.Unpack(found):
                known = True
            elif packed.Unpack(retry):
                retry_ms = max(0, retry.retry_delay.ToMilliseconds())
    except ValueError:  # DecodeError is one
        return None
    if not known:
        return None
    code = int(known_code(found.code))
    return Result(
        code, found.version, hint=found.leader_hint, detail=text, retry_ms=retry_ms, new_id_ms=found.new_id_ms
    )
