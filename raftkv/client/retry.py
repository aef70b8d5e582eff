"""What to do after an attempt: a table of decisions, and the error that is true when no attempt is left. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any, Final

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
    InvalidArgument,
    NoSpace,
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
_PATIENT_AFTER: Final = 12
_SOONER: Final = 0.25
"""Of the longest delay, until a call has failed so often. With the default that takes about two seconds, and then it is
no longer tried four times a second: a group without a majority refuses at once, and thousands of such calls would keep
its nodes busy."""
_LONGEST_DELAY: Final = 60.0
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


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a client tries a call again that has failed and may succeed later; a call's timeout always ends it.

    ``attempts``: at most so many, None = as many as there is time for; being sent on to a leader does not count.
    ``first_delay``, ``max_delay``: seconds before the second attempt, doubled before each further one, and at most; a
    quarter of the latter before the first dozen. All are shortened at random by up to a half. A node that is
    overloaded may ask for more. ``errors``: those after which a call is tried again: some of Unavailable, Overloaded,
    OutcomeUnknown and NoSpace. A write never takes effect twice, whatever is tried again. Raises InvalidArgument.

    >>> eager = raftkv.RetryPolicy(attempts=100, max_delay=0.1)
    >>> async with raftkv.AsyncClient(endpoints, timeout=60.0, retry=eager) as kv:
    ...     await kv.put("a", "1")
    WriteResult(version=1)
    """

    attempts: int | None = None
    first_delay: float = 0.01
    max_delay: float = 1.0
    errors: tuple[type[RaftKVError], ...] = (Unavailable, Overloaded, OutcomeUnknown)

    def __post_init__(self) -> None:
        if self.attempts is not None and not (_is_number(self.attempts, int) and self.attempts >= 1):
            raise InvalidArgument(f"attempts {shown(self.attempts)}; it must be 1 or more, or None")
        if not (
            all(_is_number(one, int | float) for one in (self.first_delay, self.max_delay))
            and 0 < self.first_delay <= self.max_delay <= _LONGEST_DELAY
        ):
            text = f"delays of {shown(self.first_delay)} s up to {shown(self.max_delay)} s"
            raise InvalidArgument(f"{text}; they must be over 0, in this order, and at most {_LONGEST_DELAY:g}")
        if not isinstance(self.errors, tuple) or not set(self.errors) <= _MAY_PASS:
            known = ", ".join(sorted(one.__name__ for one in _MAY_PASS))
            raise InvalidArgument(f"errors {shown(self.errors)}; it must be a tuple with some of {known}")


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_MAY_PASS: Final = frozenset({Unavailable, Overloaded, OutcomeUnknown, NoSpace})
DEFAULT_POLICY: Final = RetryPolicy()


class Attempts:
    """What the attempts of one call have shown so far.

    ``resolve``: a write whose outcome is unknown is tried on, whatever refuses it: its record says what became of it.
    """

    __slots__ = (
        "_policy",
        "_resolve",
        "attempts",
        "failed",
        "last",
        "maybe",
        "redirects",
        "renewals",
        "short",
        "write",
    )

    def __init__(self, write: bool, policy: RetryPolicy = DEFAULT_POLICY, *, resolve: bool = False) -> None:
        self._policy = policy
        self._resolve = resolve
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
        if self.maybe and self._resolve and code not in SETTLED:
            return NextStep.RETRY
        return NextStep.RAISE if self.over(code) else NextStep.RETRY

    def over(self, code: Code) -> bool:
        """Whether no attempt follows one that ended in ``code``."""
        # The server's budget for one attempt ran out: the call's own goes on.
        if code not in (Code.DEADLINE_EXCEEDED, Code.NO_SPACE) and not OUTCOMES[code].retry:
            return True
        error, policy = OUTCOMES[code].error, self._policy
        if not self.write and issubclass(error, OutcomeUnknown):
            error = Unavailable
        tried = self.attempts - self.redirects - self.renewals
        return not issubclass(error, policy.errors) or (policy.attempts is not None and tried >= policy.attempts)

    def delay(self, rng: Random) -> float:
        """Seconds to wait before the next attempt: exponential with jitter, and what an overloaded node asks for."""
        policy = self._policy
        base, asked = policy.first_delay, 0.0
        if self.last is not None and self.last.code == Code.OVERLOADED:
            base = max(base, _OVERLOAD_DELAY)
            # Not all at the same moment, and none before it is asked to come back.
            asked = max(self.last.retry_ms, 0) / 1000 * rng.uniform(1.0, 1.5)
        longest = policy.max_delay * _SOONER if self.attempts <= _PATIENT_AFTER else policy.max_delay
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
