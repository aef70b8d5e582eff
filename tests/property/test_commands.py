"""Guarantee: what a front end takes, every replica can decode, and decodes to the same: a leader proposes no poison."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.commands.base import Write
from raftkv.commands.registry import CLIENT_COMMANDS, PIPED, Piped
from raftkv.commands.transactions import Transact
from raftkv.errors import InvalidArgument
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.v1 import kv_pb2
from tests.store_helpers import again

numbers = st.sampled_from([0, 1, 2, 2**31, 2**62, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
texts = st.sampled_from([b"", b"k", b"c" * 16, b"c" * 17]) | st.binary(max_size=20)
signed = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)])
checks = st.builds(
    kv_pb2.Check,
    key=st.sampled_from([b"{k}a", b"{k}b", b"other", b""]),
    version=st.none() | numbers,
    value=st.none() | texts,
)
steps = st.builds(
    kv_pb2.Step,
    kind=st.sampled_from([*kv_pb2.Kind.values(), 99]),
    key=st.sampled_from([b"{k}a", b"{k}b", b"{k}c", b"other"]),
    value=texts,
    ttl_ms=numbers,
    delta=signed,
)
transactions = st.builds(
    kv_pb2.Transaction,
    checks=st.lists(checks, max_size=2),
    steps=st.lists(steps, max_size=3),
    otherwise=st.lists(steps, max_size=2),
)
fields = st.fixed_dictionaries(
    {"kind": st.sampled_from(kv_pb2.Kind.values()), "key": texts},
    optional={
        "value": texts,
        "expected": texts,
        "if_version": numbers,
        "ttl_ms": numbers,
        "sequence": numbers,
        "delta": signed,
        "consistency": st.integers(-1, 4),
    },
)
ids = st.sampled_from([b"", b"c" * 16, b"short"])


def filled(op: Piped, client: bytes, first: int) -> Piped:
    """``op`` after its way through a Pipeline's message."""
    message = kv_pb2.Operation(kind=kv_pb2.Kind.ValueType(op.number))
    op.fill(message)
    return PIPED[op.number].decode(message, client, first, 1024)  # type: ignore[no-any-return]


@settings(derandomize=True, max_examples=600, deadline=None)
@given(fields, ids, numbers)
def test_operations_of_pipelines(asked: dict[str, Any], client: bytes, first: int) -> None:
    try:
        op = PIPED[asked["kind"]].decode(kv_pb2.Operation(**asked), client, first, 1024)
    except InvalidArgument:
        return
    assert op.refusal() is None
    assert op.placed(1024)
    assert filled(op, client, first) == op
    assert messages.operations(messages.ask(1, 1, Origin(1), [op])) == (1, 1, Origin(1), [op])
    if isinstance(op, Write):
        assert again([op]) == [op]


@settings(derandomize=True, max_examples=600, deadline=None)
@given(fields, ids, numbers, numbers)
def test_requests(asked: dict[str, Any], client: bytes, sequence: int, first: int) -> None:
    kind = CLIENT_COMMANDS[asked["kind"]]
    if not kind.rpc:
        return
    made = getattr(kv_pb2, f"{kind.rpc}Request")
    known = {name: value for name, value in asked.items() if name in made.DESCRIPTOR.fields_by_name}
    if client and issubclass(kind, Write):
        known["request_id"] = kv_pb2.RequestId(client_id=client, sequence=sequence, first_incomplete=first)
    try:
        op = kind.from_request(made(**known), 1024)
    except InvalidArgument:
        return
    assert op.refusal() is None
    assert messages.operations(messages.ask(1, 1, Origin(1), [op])) == (1, 1, Origin(1), [op])
    if isinstance(op, Write):
        assert again([op]) == [op]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(transactions)
def test_transactions(asked: kv_pb2.Transaction) -> None:
    try:
        op = Transact.of(kv_pb2.TransactRequest(transaction=asked), 1024, b"c" * 16, 5, 2)
    except InvalidArgument:
        return
    assert op.refusal() is None
    assert op.placed(1024)
    assert filled(op, op.client, op.first) == op
    assert messages.operations(messages.ask(1, 1, Origin(1), [op])) == (1, 1, Origin(1), [op])
    assert again([op]) == [op]
