"""Results of a Pipeline to messages and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkv.commands.results import Result, TransactionAnswer
from raftkv.commands.transactions import fill_transaction, read_transaction

if TYPE_CHECKING:
    from raftkv.v1.kv_pb2 import OperationResult


def fill_result(message: OperationResult, result: Result) -> None:
    """Write ``result`` into the empty ``message``, which already has its id."""
    if result.version:
        message.version = result.version
    if result.value is not None:
        message.value = result.value
    if result.ttl >= 0:
        message.ttl_ms = result.ttl
    if result.hint:
        message.leader_hint = result.hint
    if result.number:
        message.number = result.number
    if result.answer is not None:
        # No other command of a Pipeline has one.
        assert isinstance(result.answer, TransactionAnswer)
        fill_transaction(message.transaction, result.answer)
    if result.code:
        message.code = result.code
        message.detail = result.detail
        if result.retry_ms >= 0:
            message.retry_ms = result.retry_ms
        if result.new_id_ms:
            message.new_id_ms = result.new_id_ms


def read_result(message: OperationResult) -> Result:
    """The result that :func:`fill_result` wrote."""
    value: bytes | None = message.value
    if not value and not message.HasField("value"):
        value = None
    ttl = message.ttl_ms
    if not ttl and not message.HasField("ttl_ms"):
        ttl = -1
    if not message.code:
        answer = read_transaction(message.transaction) if message.HasField("transaction") else None
        return Result(0, message.version, value, ttl, message.leader_hint, number=message.number, answer=answer)
    return Result(
        message.code,
        message.version,
        value,
        ttl,
        message.leader_hint,
        message.detail,
        message.retry_ms if message.HasField("retry_ms") else -1,
        message.new_id_ms,
    )
