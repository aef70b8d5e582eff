"""What the calls on several keys return. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from raftkv.commands.results import Result
from raftkv.errors import BatchError, CodecError, RaftKVError
from raftkv.text import shown

T = TypeVar("T")

_SHOWN: Final = 3
"""Errors that a message tells."""


def results_of(
    keys: Sequence[bytes], results: Sequence[Result | RaftKVError], made: Callable[[bytes, Result], T]
) -> list[T]:
    """What ``made`` makes of the results, in the order of the keys. Raises BatchError if some are errors."""
    told: list[T | RaftKVError] = []
    errors: dict[bytes, RaftKVError] = {}
    for key, result in zip(keys, results, strict=True):
        if isinstance(result, Result):
            try:
                told.append(made(key, result))
                continue
            except CodecError as error:
                failure: RaftKVError = error
        else:
            failure = result
        told.append(failure)
        errors[key] = failure
    if errors:
        first = [f"{shown(key)}: {type(error).__name__}: {error}" for key, error in list(errors.items())[:_SHOWN]]
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise BatchError(f"{len(errors)} of {len(keys)} operations failed: {'; '.join(first)}{more}", told, errors)
    return told  # type: ignore[return-value]  # no error is among them
