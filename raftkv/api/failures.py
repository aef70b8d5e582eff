"""Failures as results and as exceptions: the one place where the two vocabularies meet."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from raftkv.commands.results import Result
from raftkv.errors import OUTCOMES, Code, ConditionFailed, RaftKVError

RETRY_MS: Final = 100
"""Milliseconds after which a client whose share is used up is told to come back: some answers have left by then."""


def known_code(code: int) -> Code:
    """``code`` as Code; a code of a newer version is INTERNAL, which promises nothing."""
    try:
        return Code(code)
    except ValueError:
        return Code.INTERNAL


def overloaded(detail: str, retry_ms: int = RETRY_MS) -> Result:
    """The refusal of an operation that surely was not executed; worth asking again in ``retry_ms`` milliseconds."""
    return Result(int(Code.OVERLOADED), detail=detail, retry_ms=retry_ms)


def with_retry(result: Result) -> Result:
    """``result``, saying when to come back if it is a refusal for overload."""
    return replace(result, retry_ms=RETRY_MS) if result.code == Code.OVERLOADED and result.retry_ms < 0 else result


def failure_of(error: RaftKVError) -> Result:
    """The result that says what ``error`` says."""
    version = error.version if isinstance(error, ConditionFailed) else 0
    return Result(int(error.code), version, detail=str(error))


def error_of(result: Result) -> RaftKVError:
    """The exception for a failed ``result``, as :data:`raftkv.errors.OUTCOMES` has it."""
    code = known_code(result.code)
    kind = OUTCOMES[code].error
    text = result.detail or code.name.lower().replace("_", " ")
    if kind is ConditionFailed:
        return ConditionFailed(text, result.version)
    return kind(text)
