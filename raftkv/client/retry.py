"""What to do after an attempt: a table of decisions, and the error that is true when no attempt is left. Pure."""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Final

from raftkv.api.failures import error_of, known_code
from raftkv.api.patience import LEAST, MOST
from raftkv.client.session import MAX_RENEWALS
from raftkv.commands.updates import CompareAndDelete
from raftkv.errors import (
    OUTCOMES,
    SETTLED,
    Code,
    ConditionFailed,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    RaftKVError,
    SessionExpired,
    Unavailable,
    UsageError,
)
from raftkv.text import shown

if TYPE_CHECKING:
    from raftkv.client.call import Call
    from raftkv.commands.results import Result

ATTEMPT_TIMEOUT: Final = LEAST
"""Seconds that the first attempt gets before another node is asked; doubled with each attempt that was not enough."""
MAX_ATTEMPT_TIMEOUT: Final = MOST
MIN_ATTEMPT_TIMEOUT: Final = 0.05
_SLACK: Final = 0.25
"""Seconds by which the client waits longer for an attempt than the node takes for it: the node's answer says more."""
_NODE_SHARE: Final = 0.9
_FIRST_DELAY: Final = 0.01
_MAX_DELAY: Final = 0.25
_PATIENT_AFTER: Final = 12
_PATIENT_DELAY: Final = 1.0
"""A call that has failed so often, for about two seconds, is no longer tried four times a second: a group without a
majority refuses at once, and thousands of such calls would keep its nodes busy."""
_OVERLOAD_DELAY: Final = 0.05
_FREE_REDIRECTS: Final = 3


class NextStep(Enum):
    """What follows an attempt."""

    RAISE = auto()
    RETRY = auto()
    RETRY_AT_ONCE = auto()
    RENEW = auto()


def attempt_timeout(timeout: float, remaining: float, short: int, patience: float = 0.0) -> float:
    """Seconds for the next attempt of a call with a total budget of ``timeout`` after ``short`` ones without outcome.

    ``patience``: what its group has lately needed, as :class:`raftkv.api.patience.Patience` says.
    """
    share = ATTEMPT_TIMEOUT if timeout > 3 * ATTEMPT_TIMEOUT else max(timeout / 3, MIN_ATTEMPT_TIMEOUT)
    if short:
        share = min(share * 2.0 ** min(short, 10), MAX_ATTEMPT_TIMEOUT)
    return min(max(share, patience), remaining)


def attempt_span(timeout: float, remaining: float, short: int, patience: float = 0.0) -> tuple[float, float]:
    """Seconds that the node is given for the next attempt, and seconds after which the client gives it up.

    The arguments are those of :func:`attempt_timeout`.
    """
    attempt = attempt_timeout(timeout, remaining, short, patience)
    # The node's own answer says more than the client's giving up: let it come first.
    return attempt if attempt < remaining else remaining * _NODE_SHARE, min(attempt + _SLACK, remaining)


@lru_cache(maxsize=64)
def first_span(timeout: float) -> tuple[float, float]:
    """:func:`attempt_span` of the first attempt: nearly all calls have the same few timeouts."""
    return attempt_span(timeout, timeout, 0)


class Attempts:
    """What the attempts of one call have shown so far."""

    __slots__ = ("attempts", "failed", "last", "maybe", "redirects", "renewals", "short", "write")

    def __init__(self, write: bool) -> None:
        self.write = write
        self.attempts = 0
        self.short = 0
        """Attempts that had no outcome in the time that they got."""
        self.redirects = 0
        self.renewals = 0
        self.maybe = False
        """An attempt may have taken effect; never true of a read."""
        self.last: Result | None = None
        self.failed: list[str] = []
        """Addresses where an attempt has failed, the latest last."""

    def fail(self, address: str) -> None:
        """An attempt at ``address`` has failed: the others come first now."""
        if address in self.failed:
            self.failed.remove(address)
        self.failed.append(address)

    def judge(self, result: Result) -> NextStep:
        """What follows an attempt that ended in ``result``, which is not OK."""
        code = known_code(result.code)
        self.attempts += 1
        self.last = result
        if code is Code.SESSION_EXPIRED and self.write:
            if self.maybe or self.renewals >= MAX_RENEWALS:
                return NextStep.RAISE
            self.renewals += 1
            return NextStep.RENEW
        if code is Code.DEADLINE_EXCEEDED or not OUTCOMES[code].definite:
            self.maybe = self.write
        if code is Code.NOT_LEADER and result.hint and self.redirects < _FREE_REDIRECTS:
            self.redirects += 1
            return NextStep.RETRY_AT_ONCE
        # The server's budget for one attempt ran out: the call's own goes on.
        if code is Code.DEADLINE_EXCEEDED or OUTCOMES[code].retry:
            return NextStep.RETRY
        return NextStep.RAISE

    def delay(self, rng: Random) -> float:
        """Seconds to wait before the next attempt: exponential with jitter, and what an overloaded node asks for."""
        base, asked = _FIRST_DELAY, 0.0
        if self.last is not None and self.last.code == Code.OVERLOADED:
            base = _OVERLOAD_DELAY
            # Not all at the same moment, and none before it is asked to come back.
            asked = max(self.last.retry_ms, 0) / 1000 * rng.uniform(1.0, 1.5)
        longest = _MAX_DELAY if self.attempts <= _PATIENT_AFTER else _PATIENT_DELAY
        delay = min(base * 2.0 ** min(self.attempts - 1, 10), longest) * rng.uniform(0.5, 1.0)
        return float(max(delay, asked))

    def final_error(self, call: Call, result: Result) -> RaftKVError:
        """The error for a ``result`` of ``call`` after which no attempt follows."""
        # What settles a request is true even if an earlier attempt's outcome was unknown: the store answers a retry
        # from its record.
        if result.code == Code.CONDITION_FAILED:
            return _condition_failed(call, result.version)
        error = error_of(result)
        if result.code in SETTLED:
            return error
        if result.code == Code.SESSION_EXPIRED:
            return SessionExpired(str(error)) if self.maybe else Unavailable(f"no session was accepted: {error}")
        if self.maybe and not isinstance(error, OutcomeUnknown):
            return OutcomeUnknown(f"an earlier attempt may have taken effect; the last one: {error}")
        if not self.write and isinstance(error, OutcomeUnknown):
            return Unavailable(str(error))
        return error

    def deadline_error(self, spent: float, timeout: float) -> RaftKVError:
        """The error, a TimeoutError, for a call that ends after ``spent`` of its ``timeout`` seconds.

        That may be a little early: where the next attempt would begin too late.
        """
        if self.last is None:
            return Unavailable(f"no result after {spent:.3g} s (timeout {timeout:g} s): no node was reached")
        attempts = f"{self.attempts} attempt{'s' if self.attempts > 1 else ''}"
        last = self.last.detail or known_code(self.last.code).name
        text = f"no result after {spent:.3g} s (timeout {timeout:g} s, {attempts}); the last one: {last}"
        if self.maybe:
            return DeadlineExceeded(text)
        if self.last.code == Code.OVERLOADED:
            return Overloaded(text)
        return Unavailable(text)

    def closed_error(self) -> RaftKVError:
        """The error for a call under way whose client is closed."""
        if self.maybe:
            return OutcomeUnknown("the client was closed; an attempt may have taken effect")
        return UsageError("the client was closed")


def _condition_failed(call: Call, version: int) -> ConditionFailed:
    found, wanted = (f"version {one}" if one else "no record" for one in (version, call.expect))
    if isinstance(call.asked, CompareAndDelete):
        text = f"key {shown(call.key)}: expected the value {shown(call.asked.expected)}, found {found}"
        return ConditionFailed(text, version, key=call.key)
    text = f"key {shown(call.key)}: expected {wanted}, found {found}"
    return ConditionFailed(text, version, key=call.key, expected=call.expect)
