"""Messages to operations and results to messages.

Every bound is checked here, with the checks that the client makes before it sends: what passes there passes here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack

from raftkv.errors import InvalidArgument, TooLarge
from raftkv.limits import (
    MAX_KEY_BYTES,
    MAX_SCAN_PAGE_BYTES,
    MAX_TTL,
    MAX_VALUE_BYTES,
    SCAN_PAGE_BYTES,
)
from raftkv.store.operations import ANY_VERSION, Kind, Mode, Op, Result
from raftkv.v1 import kv_pb2
from shards.slots import slot_of

if TYPE_CHECKING:
    from raftkv.v1.kv_pb2 import OperationResult

CLIENT_ID_BYTES: Final = 16
_MAX_TTL_MS: Final = MAX_TTL * 1000
_GET: Final = int(Kind.GET)
_PUT: Final = int(Kind.PUT)
_DELETE: Final = int(Kind.DELETE)
_CAS: Final = int(Kind.CAS)
_STALE: Final = int(Mode.STALE)
# A third of the time of calling the class: these two run once per operation.
_make_op: Final = cast("Callable[[tuple[Any, ...]], Op]", partial(tuple.__new__, Op))
_make_result: Final = cast("Callable[[tuple[Any, ...]], Result]", partial(tuple.__new__, Result))


def check_key(key: bytes) -> None:
    """Raises InvalidArgument for an empty key, TooLarge for one over MAX_KEY_BYTES."""
    if not key:
        raise InvalidArgument("the key is empty")
    if len(key) > MAX_KEY_BYTES:
        raise TooLarge(f"a key of {len(key)} bytes; at most {MAX_KEY_BYTES} are taken")


def check_value(value: bytes, name: str = "value") -> None:
    """Raises TooLarge for a value over MAX_VALUE_BYTES."""
    if len(value) > MAX_VALUE_BYTES:
        raise TooLarge(f"a {name} of {len(value)} bytes; at most {MAX_VALUE_BYTES} are taken")


def check_ttl(ttl_ms: int) -> None:
    """Raises InvalidArgument for a negative TTL (milliseconds) or one over MAX_TTL."""
    if not 0 <= ttl_ms <= _MAX_TTL_MS:
        raise InvalidArgument(f"a TTL of {ttl_ms} ms; it must be from 0 (for ever) to {_MAX_TTL_MS}")


def check_request_id(client_id: bytes, sequence: int, first_incomplete: int) -> None:
    """Raises InvalidArgument unless the three name a write."""
    if len(client_id) != CLIENT_ID_BYTES:
        raise InvalidArgument(f"a client id of {len(client_id)} bytes; it has {CLIENT_ID_BYTES}")
    if not 1 <= first_incomplete <= sequence:
        raise InvalidArgument(
            f"request {sequence} with first incomplete {first_incomplete}: want 1 <= first <= request"
        )


def operation(message: kv_pb2.Operation, client_id: bytes, first_incomplete: int, slots: int) -> Op:
    """The operation of a Pipeline message. Raises InvalidArgument or TooLarge."""
    kind = message.kind
    key = message.key
    if not 0 < len(key) <= MAX_KEY_BYTES:
        check_key(key)
    if kind == _GET:
        mode = message.consistency
        if not 0 <= mode <= _STALE:
            raise InvalidArgument(f"unknown consistency {mode}")
        return _make_op((_GET, slot_of(key, slots), key, None, ANY_VERSION, None, 0, b"", 0, 0, mode))
    sequence = message.sequence
    client = b""
    first = 0
    if sequence:
        client = client_id
        first = first_incomplete
        if len(client) != CLIENT_ID_BYTES or not 1 <= first <= sequence:
            check_request_id(client, sequence, first)
    if kind == _PUT:
        value = message.value
        if len(value) > MAX_VALUE_BYTES:
            check_value(value)
        ttl = message.ttl_ms
        if ttl > _MAX_TTL_MS:
            check_ttl(ttl)
        expect = message.if_version if message.HasField("if_version") else ANY_VERSION
        return _make_op((_PUT, slot_of(key, slots), key, value, expect, None, ttl, client, sequence, first, 0))
    if kind == _DELETE:
        expect = message.if_version if message.HasField("if_version") else ANY_VERSION
        return Op(_DELETE, slot_of(key, slots), key, None, expect, None, 0, client, sequence, first)
    if kind == _CAS:
        expected = message.expected if message.HasField("expected") else None
        return _cas(key, slots, message.value, expected, message.ttl_ms, client, sequence, first)
    raise InvalidArgument(f"unknown kind of operation {kind}")


def _cas(
    key: bytes, slots: int, value: bytes, expected: bytes | None, ttl: int, client: bytes, sequence: int, first: int
) -> Op:
    check_value(value)
    if expected is not None:
        check_value(expected, "expected value")
    check_ttl(ttl)
    return Op(_CAS, slot_of(key, slots), key, value, ANY_VERSION, expected, ttl, client, sequence, first)


def fill_result(message: OperationResult, result: Result) -> None:
    """Write ``result`` into the empty ``message``, which already has its id."""
    code, version, value, ttl, hint, detail = result
    if code:
        message.code = code
    if version:
        message.version = version
    if value is not None:
        message.value = value
    if ttl >= 0:
        message.ttl_ms = ttl
    if hint:
        message.leader_hint = hint
    if detail:
        message.detail = detail


def result(message: OperationResult) -> Result:
    """The result that :func:`fill_result` wrote."""
    code = message.code
    value: bytes | None = message.value
    if not value and not message.HasField("value"):
        value = None
    ttl = message.ttl_ms
    if not ttl and not message.HasField("ttl_ms"):
        ttl = -1
    return _make_result((code, message.version, value, ttl, message.leader_hint, message.detail if code else ""))


def get_operation(request: kv_pb2.GetRequest, slots: int) -> Op:
    """Raises InvalidArgument or TooLarge, as all conversions of requests do."""
    check_key(request.key)
    return Op(_GET, slot_of(request.key, slots), request.key, mode=_mode(request.consistency))


def put_operation(request: kv_pb2.PutRequest, slots: int) -> Op:
    check_key(request.key)
    check_value(request.value)
    check_ttl(request.ttl_ms)
    expect = request.if_version if request.HasField("if_version") else ANY_VERSION
    slot = slot_of(request.key, slots)
    return Op(_PUT, slot, request.key, request.value, expect, None, request.ttl_ms, *_request_id(request))


def delete_operation(request: kv_pb2.DeleteRequest, slots: int) -> Op:
    check_key(request.key)
    expect = request.if_version if request.HasField("if_version") else ANY_VERSION
    return Op(_DELETE, slot_of(request.key, slots), request.key, None, expect, None, 0, *_request_id(request))


def cas_operation(request: kv_pb2.CompareAndSwapRequest, slots: int) -> Op:
    check_key(request.key)
    expected = request.expected if request.HasField("expected") else None
    return _cas(request.key, slots, request.value, expected, request.ttl_ms, *_request_id(request))


def scan_operation(request: kv_pb2.ScanRequest, slots: int) -> Op:
    if request.slot >= slots:
        raise InvalidArgument(f"no slot {request.slot}: there are {slots}")
    if len(request.after) > MAX_KEY_BYTES:
        check_key(request.after)
    size = min(request.limit_bytes or SCAN_PAGE_BYTES, MAX_SCAN_PAGE_BYTES)
    return Op(int(Kind.SCAN), request.slot, request.after, ttl=size, mode=_mode(request.consistency))


def record(key: bytes, found: Result) -> kv_pb2.Record:
    """The record that a GET of ``key`` found."""
    message = kv_pb2.Record(key=key, value=found.value or b"", version=found.version)
    if found.ttl >= 0:
        message.ttl_ms = found.ttl
    return message


def scan_response(found: Result) -> kv_pb2.ScanResponse:
    """The page that a SCAN found."""
    response = kv_pb2.ScanResponse(more=bool(found.version))
    rows: Sequence[Sequence[Any]] = msgpack.unpackb(found.value) if found.value else ()
    for key, value, version, ttl in rows:
        row = response.records.add(key=key, value=value, version=version)
        if ttl >= 0:
            row.ttl_ms = ttl
    return response


def _mode(consistency: int) -> int:
    if not 0 <= consistency <= _STALE:
        raise InvalidArgument(f"unknown consistency {consistency}")
    return consistency


def _request_id(
    request: kv_pb2.PutRequest | kv_pb2.DeleteRequest | kv_pb2.CompareAndSwapRequest,
) -> tuple[bytes, int, int]:
    if not request.HasField("request_id"):
        return b"", 0, 0
    name = request.request_id
    check_request_id(name.client_id, name.sequence, name.first_incomplete)
    return name.client_id, name.sequence, name.first_incomplete
