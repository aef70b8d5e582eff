"""The model of one key: what each operation may do to it. Pure.

A record has a version, which rises with every write and is never reused, and may have a time to live, which never ends
early. What a client was not told (the version of a write without an answer, whether a record has expired by now) stays
open in the state until some answer tells.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from faults.check.history import Kind, Operation, Outcome

UNTOLD: Final = -1
"""A version that exists and that nobody was told."""


class RegisterState(NamedTuple):
    """``value`` None: no record. ``version``: of the record, 0 without one, -1 = not told but at least ``floor``.
    ``floor``: no later write has a lower version, nor this one unless it is the record's. ``expires``: true time before
    which the record surely lives. ``since``: true time that has passed, as a record was seen to have expired by then;
    what ended before it cannot come after."""

    value: str | None
    version: int
    floor: int
    expires: float
    since: float = -math.inf


EMPTY: Final = RegisterState(None, 0, 0, math.inf)


class Register:
    """``fastest``: seconds that a node's clock may show while one true second passes."""

    def __init__(self, fastest: float = 1.0) -> None:
        self._fastest = fastest

    def step(self, state: RegisterState, operation: Operation) -> list[RegisterState]:
        """The states in which ``operation`` may leave a key in ``state``; none if its answer cannot be."""
        if operation.ended < state.since:
            return []
        views = [state]
        if state.value is not None and state.expires < math.inf and operation.ended >= state.expires:
            views.append(RegisterState(None, 0, state.floor, math.inf, max(state.since, state.expires)))
        found: list[RegisterState] = []
        for view in views:
            after = self._apply(view, operation)
            if after is not None and after not in found:
                found.append(after)
        return found

    def _apply(self, state: RegisterState, operation: Operation) -> RegisterState | None:
        if operation.outcome is not Outcome.OK:
            return self._perhaps(state, operation)
        if operation.kind is Kind.GET:
            return _seen(state, operation.found, operation.version or 0)
        if operation.kind is Kind.CAS:
            holds = state.value == operation.expected
            if holds != operation.done:
                return None
            return self._written(state, operation) if operation.done else _met(state, operation.version)
        if not operation.done:
            return self._not_done(state, operation)
        return self._put_or_deleted(state, operation)

    def _not_done(self, state: RegisterState, operation: Operation) -> RegisterState | None:
        """A condition on the version failed, or there was nothing to delete."""
        if operation.expect is None:
            return state if operation.kind is Kind.DELETE and state.value is None else None
        if operation.kind is Kind.DELETE and operation.version is None:
            # No condition failed: it asked for no record, and there was none.
            return state if operation.expect == 0 and state.value is None else None
        version = operation.version or 0
        return None if version == operation.expect else _met(state, version)

    def _perhaps(self, state: RegisterState, operation: Operation) -> RegisterState | None:
        """Nobody knows its answer; here it takes effect now, if it can. (That it never does is the checker's part.)"""
        if operation.kind is Kind.CAS:
            return self._written(state, operation) if state.value == operation.expected else None
        return self._put_or_deleted(state, operation)

    def _put_or_deleted(self, state: RegisterState, operation: Operation) -> RegisterState | None:
        """A put or delete whose condition holds takes effect."""
        met = _meets(state, operation.expect)
        if met is None:
            return None
        if operation.kind is Kind.DELETE:
            return None if met.value is None else _deleted(met)
        return self._written(met, operation)

    def _written(self, state: RegisterState, operation: Operation) -> RegisterState | None:
        expires = math.inf if operation.ttl is None else operation.began + operation.ttl / self._fastest
        if operation.version is None:
            return RegisterState(operation.value, UNTOLD, state.floor + 1, expires, state.since)
        if operation.version <= state.floor:
            return None
        return RegisterState(operation.value, operation.version, operation.version, expires, state.since)


def _seen(state: RegisterState, value: str | None, version: int) -> RegisterState | None:
    """Somebody was told that the record is this one."""
    if state.value is None or value is None:
        return state if state.value is None and value is None else None
    if value != state.value:
        return None
    if state.version == version:
        return state
    if state.version != UNTOLD or version < state.floor:
        return None
    return state._replace(version=version, floor=version)


def _met(state: RegisterState, version: int | None) -> RegisterState | None:
    """Somebody was told that a condition failed at the record of this version; None: was not told."""
    if version is None:
        return state
    if not version or state.value is None:
        return state if not version and state.value is None else None
    return _seen(state, state.value, version)


def _meets(state: RegisterState, expect: int | None) -> RegisterState | None:
    """The state in which the condition on the version holds, or None."""
    if expect is None:
        return state
    if expect == 0 or state.value is None:
        return state if expect == 0 and state.value is None else None
    return _seen(state, state.value, expect)


def _deleted(state: RegisterState) -> RegisterState:
    return RegisterState(None, 0, state.floor + 1, math.inf, state.since)
