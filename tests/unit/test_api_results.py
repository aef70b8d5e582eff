"""Guarantee: what arrives is checked against the limits, and operations and results survive the wire."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.api.failures import error_of, failure_of, known_code
from raftkv.api.pipeline import Batch, request_of
from raftkv.api.results import fill_result, read_result
from raftkv.api.status import Role
from raftkv.commands.bounds import Mode
from raftkv.commands.ranges import Scan
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.commands.registry import PIPED, Piped
from raftkv.commands.results import Result, ScanPage, TransactionAnswer
from raftkv.errors import OUTCOMES, Code, InvalidArgument, RaftKVError, TooLarge
from raftkv.limits import (
    MAX_BATCH_BYTES,
    MAX_BATCH_OPS,
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SCAN_PAGE_BYTES,
    MAX_TTL,
    MAX_VALUE_BYTES,
    SCAN_PAGE_BYTES,
)
from raftkv.v1 import admin_pb2, error_pb2, kv_pb2
from shards.slots import slot_of

CLIENT = b"c" * 16
SLOT = slot_of(b"k")


def test_the_numbers_on_the_wire_are_those_of_the_program() -> None:
    for code in Code:
        assert int(error_pb2.Code.Value(f"CODE_{code.name}")) == int(code)
    for mode in Mode:
        assert int(kv_pb2.Consistency.Value(f"CONSISTENCY_{mode.name}")) == int(mode)
    for name, kind in (("GET", Get), ("PUT", Put), ("DELETE", Delete), ("COMPARE_AND_SWAP", Cas)):
        assert int(kv_pb2.Kind.Value(f"KIND_{name}")) == kind.number
    for role in Role:
        assert int(admin_pb2.Role.Value(f"ROLE_{role.name}")) == int(role)


def operation(message: kv_pb2.Operation, client: bytes, first: int, slots: int) -> Any:
    return PIPED[message.kind].decode(message, client, first, slots)


def test_every_kind_of_operation_arrives_whole() -> None:
    get = kv_pb2.Operation(id=1, key=b"k", consistency=kv_pb2.CONSISTENCY_STALE)
    assert operation(get, b"", 0, 1024) == Get(SLOT, b"k", mode=Mode.STALE)
    put = kv_pb2.Operation(id=2, kind=kv_pb2.KIND_PUT, key=b"k", value=b"v", if_version=0, ttl_ms=9, sequence=7)
    assert operation(put, CLIENT, 3, 1024) == Put(SLOT, b"k", b"v", expect=0, ttl=9, client=CLIENT, seq=7, first=3)
    delete = kv_pb2.Operation(id=3, kind=kv_pb2.KIND_DELETE, key=b"k", sequence=8)
    assert operation(delete, CLIENT, 3, 1024) == Delete(SLOT, b"k", client=CLIENT, seq=8, first=3)
    cas = kv_pb2.Operation(id=4, kind=kv_pb2.KIND_COMPARE_AND_SWAP, key=b"k", value=b"v", expected=b"")
    assert operation(cas, CLIENT, 3, 1024) == Cas(SLOT, b"k", b"v", expected=b"")


def test_absent_and_empty_expectations_differ() -> None:
    absent = kv_pb2.Operation(kind=kv_pb2.KIND_COMPARE_AND_SWAP, key=b"k", value=b"v")
    assert operation(absent, b"", 0, 1024).expected is None


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"key": b""}, InvalidArgument),
        ({"key": b"k" * (MAX_KEY_BYTES + 1)}, TooLarge),
        ({"key": b"k", "consistency": 3}, InvalidArgument),
        ({"key": b"k", "kind": 1, "value": b"v" * (MAX_VALUE_BYTES + 1)}, TooLarge),
        ({"key": b"k", "kind": 1, "ttl_ms": MAX_TTL * 1000 + 1}, InvalidArgument),
        ({"key": b"k", "kind": 3, "ttl_ms": MAX_TTL * 1000 + 1}, InvalidArgument),
        ({"key": b"k", "kind": 3, "expected": b"v" * (MAX_VALUE_BYTES + 1)}, TooLarge),
        ({"key": b"k", "kind": 1, "sequence": 2}, InvalidArgument),
        ({"key": b"k", "kind": 1, "sequence": 2**62 + 1}, InvalidArgument),
        ({"key": b"k", "kind": 2, "sequence": 2**62 + 1}, InvalidArgument),
        ({"key": b"k", "kind": 1, "if_version": 2**63}, InvalidArgument),
        ({"key": b"k", "kind": 2, "if_version": 2**64 - 1}, InvalidArgument),
    ],
)
def test_bad_operations_are_refused(fields: dict[str, Any], error: type[RaftKVError]) -> None:
    message = kv_pb2.Operation(**fields)
    with pytest.raises(error):
        operation(message, CLIENT, 3, 1024)


def test_a_request_id_needs_a_whole_client_id() -> None:
    message = kv_pb2.Operation(kind=kv_pb2.KIND_PUT, key=b"k", sequence=1)
    for client, first in ((b"", 1), (b"c" * 15, 1), (b"c" * 17, 1), (CLIENT, 0)):
        with pytest.raises(InvalidArgument):
            operation(message, client, first, 1024)


@pytest.mark.parametrize(
    "result",
    [
        Result(0),
        Result(0, 5, b"", 0),
        Result(0, 5, b"value", 1234),
        Result(int(Code.CONDITION_FAILED), 7),
        Result(int(Code.NOT_LEADER), 0, None, -1, 3, "not here"),
        Result(int(Code.OVERLOADED), retry_ms=0),
        Result(int(Code.OVERLOADED), retry_ms=7),
        Result(int(Code.SESSION_EXPIRED), new_id_ms=7),
        Result(0, number=8),
        Result(0, answer=TransactionAnswer(True, ((3, None, -1), (2, b"5", -1), (0, None, -1), (1, b"", 7)), 9)),
        Result(0, answer=TransactionAnswer(False, (), 0)),
    ],
)
def test_results_survive_the_wire(result: Result) -> None:
    message = kv_pb2.OperationResult(id=9)
    fill_result(message, result)
    assert read_result(kv_pb2.OperationResult.FromString(message.SerializeToString())) == result


@pytest.mark.parametrize("packed", [True, False])
def test_the_framing_of_the_largest_batch_fits_its_message(packed: bool) -> None:
    most, value = 2**62, b"v" * (MAX_BATCH_BYTES // MAX_BATCH_OPS - 1)
    ops: list[Piped] = [Put(65535, b"k", value, most, MAX_TTL * 1000, client=CLIENT, seq=most, first=most)]
    batch = Batch([most] * MAX_BATCH_OPS, ops * MAX_BATCH_OPS, 2**32 - 1)
    assert MAX_BATCH_BYTES < request_of(batch, packed=packed).ByteSize() < MAX_MESSAGE_BYTES


def test_unary_requests_become_the_same_operations() -> None:
    request_id = kv_pb2.RequestId(client_id=CLIENT, sequence=7, first_incomplete=3)
    put = kv_pb2.PutRequest(key=b"k", value=b"v", if_version=0, ttl_ms=9, request_id=request_id)
    assert Put.from_request(put, 1024) == Put(SLOT, b"k", b"v", expect=0, ttl=9, client=CLIENT, seq=7, first=3)
    assert Put.from_request(kv_pb2.PutRequest(key=b"k"), 1024) == Put(SLOT, b"k", b"")
    delete = kv_pb2.DeleteRequest(key=b"k", if_version=4)
    assert Delete.from_request(delete, 1024) == Delete(SLOT, b"k", expect=4)
    cas = kv_pb2.CompareAndSwapRequest(key=b"k", value=b"v")
    assert Cas.from_request(cas, 1024) == Cas(SLOT, b"k", b"v")
    with pytest.raises(InvalidArgument):
        Put.from_request(kv_pb2.PutRequest(key=b"k", request_id=kv_pb2.RequestId(client_id=b"short", sequence=1)), 1024)


def test_scan_pages_are_bounded() -> None:
    assert Scan.from_request(kv_pb2.ScanRequest(slot=3), 1024).limit_bytes == SCAN_PAGE_BYTES
    assert Scan.from_request(kv_pb2.ScanRequest(slot=3, limit_bytes=1 << 31), 1024).limit_bytes == MAX_SCAN_PAGE_BYTES
    with pytest.raises(InvalidArgument):
        Scan.from_request(kv_pb2.ScanRequest(slot=256), slots=256)
    all_slots = b"\xff" * 32
    asked = kv_pb2.ScanRequest(slot=3, start=b"a", end=b"c", limit=7, reverse=True, content=kv_pb2.SCAN_CONTENT_KEYS)
    op = Scan.from_request(asked, 256)
    assert op == Scan(3, b"a", b"c", all_slots, 7, SCAN_PAGE_BYTES, reverse=True, content=1)
    long = b"k" * (MAX_KEY_BYTES + 2)
    for wrong in (kv_pb2.ScanRequest(slots=b"\xff" * 31), kv_pb2.ScanRequest(start=long), kv_pb2.ScanRequest(end=long)):
        with pytest.raises(InvalidArgument):
            Scan.from_request(wrong, slots=256)
    page = kv_pb2.ScanResponse()
    found = ScanPage(((b"a", b"1", 4, -1), (b"b", b"2", 5, 77)), all_slots, b"b\0", 9)
    op.respond(Result(0, answer=found), page)
    assert (page.next, page.slots, page.count) == (b"b\0", all_slots, 9)
    assert [(row.key, row.value, row.version) for row in page.records] == [(b"a", b"1", 4), (b"b", b"2", 5)]
    assert [row.HasField("ttl_ms") for row in page.records] == [False, True]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_code_has_its_exception_and_comes_back(code: Code) -> None:
    error = error_of(Result(int(code), 5, detail="why"))
    assert type(error) is OUTCOMES[code].error
    assert str(error) == "why"
    assert failure_of(error).code == error.code
    assert known_code(1000) is Code.INTERNAL
