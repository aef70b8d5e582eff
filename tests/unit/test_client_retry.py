"""Guarantee: an error says truthfully whether the operation surely did not take effect or may have."""

from __future__ import annotations

from random import Random

import pytest

from raftkv.client.call import Call
from raftkv.client.retry import Attempts, NextStep, RetryPolicy, attempt_span, attempt_timeout, first_span
from raftkv.client.session import MAX_RENEWALS
from raftkv.commands.records import Delete
from raftkv.commands.results import Result
from raftkv.errors import (
    OUTCOMES,
    SETTLED,
    Code,
    ConditionFailed,
    DeadlineExceeded,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    RaftKVError,
    SessionExpired,
    Unavailable,
    UsageError,
    WrongCluster,
)
from raftkv.v1 import kv_pb2

CALL = Call(kv_pb2.KIND_PUT, b"k")
FAILURES = [code for code in Code if code is not Code.OK]


def result(code: Code, hint: int = 0, version: int = 0) -> Result:
    return Result(int(code), version, None, -1, hint, "why")


@pytest.mark.parametrize("code", FAILURES)
def test_only_indefinite_codes_make_a_write_unknown(code: Code) -> None:
    progress = Attempts(write=True)
    progress.judge(result(code))
    assert progress.maybe == (not OUTCOMES[code].definite)


@pytest.mark.parametrize("code", FAILURES)
def test_reads_never_end_in_an_unknown_outcome(code: Code) -> None:
    progress = Attempts(write=False)
    progress.judge(result(code))
    assert isinstance(progress.final_error(CALL, result(code)), NotApplied)
    assert isinstance(progress.deadline_error(1.0, 1.0), NotApplied)


@pytest.mark.parametrize("code", FAILURES)
def test_after_an_unknown_attempt_no_error_promises_that_nothing_happened(code: Code) -> None:
    progress = Attempts(write=True)
    assert progress.judge(result(Code.UNKNOWN)) is NextStep.RETRY
    progress.judge(result(code))
    assert isinstance(progress.deadline_error(1.0, 1.0), DeadlineExceeded)
    error = progress.final_error(CALL, result(code))
    if code in SETTLED:
        # The store answers a retry from the record of its first execution: the answer is the true one.
        assert type(error) is OUTCOMES[code].error
    else:
        assert isinstance(error, OutcomeUnknown)


@pytest.mark.parametrize(
    "code", [code for code in FAILURES if OUTCOMES[code].definite and code is not Code.SESSION_EXPIRED]
)
def test_definite_codes_alone_raise_not_applied(code: Code) -> None:
    progress = Attempts(write=True)
    progress.judge(result(code))
    assert isinstance(progress.final_error(CALL, result(code)), NotApplied)
    assert isinstance(progress.deadline_error(1.0, 1.0), NotApplied)


def test_a_spent_node_budget_is_retried_and_counts_as_unknown() -> None:
    progress = Attempts(write=True)
    assert progress.judge(result(Code.DEADLINE_EXCEEDED)) is NextStep.RETRY
    assert progress.maybe


def test_what_cannot_succeed_is_not_retried() -> None:
    for code in (Code.INVALID_ARGUMENT, Code.TOO_LARGE, Code.CONDITION_FAILED, Code.WRONG_CLUSTER, Code.NO_SPACE):
        assert Attempts(write=True).judge(result(code)) is NextStep.RAISE
    assert isinstance(Attempts(write=True).final_error(CALL, result(Code.WRONG_CLUSTER)), WrongCluster)


@pytest.mark.parametrize(
    ("key", "expected", "version", "text"),
    [
        (b"user:1", 5, 7, "key 'user:1': expected version 5, found version 7"),
        (b"user:1", 0, 7, "key 'user:1': expected no record, found version 7"),
        (b"\xff\x00", 5, 0, "key b'\\xff\\x00': expected version 5, found no record"),
        (b"k" * 8192, 1, 2, f"key '{'k' * 80}'...: expected version 1, found version 2"),
    ],
)
def test_condition_failed_says_key_expected_and_actual_version(
    key: bytes, expected: int, version: int, text: str
) -> None:
    call = Call.of(Delete(0, key, expected))
    error = Attempts(write=True).final_error(call, result(Code.CONDITION_FAILED, version=version))
    assert isinstance(error, ConditionFailed)
    assert (error.key, error.expected, error.version) == (key, expected, version)
    assert str(error) == text


def test_an_error_says_how_long_it_took_and_how_often_it_was_tried() -> None:
    progress = Attempts(write=True)
    assert (
        str(progress.deadline_error(0.0123, 0.01)) == "no result after 0.0123 s (timeout 0.01 s): no node was reached"
    )
    progress.judge(result(Code.UNAVAILABLE))
    assert (
        str(progress.deadline_error(0.128, 2.0))
        == "no result after 0.128 s (timeout 2 s, 1 attempt); the last one: why"
    )
    progress.judge(Result(int(Code.UNKNOWN)))
    assert str(progress.deadline_error(1.9648, 2.0)) == (
        "no result after 1.96 s (timeout 2 s, 2 attempts); the last one: UNKNOWN"
    )


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("code", [None, *FAILURES])
def test_whatever_ends_for_its_deadline_is_a_timeout(code: Code | None, write: bool) -> None:
    progress = Attempts(write)
    if code is not None:
        progress.judge(result(code))
    assert isinstance(progress.deadline_error(1.0, 1.0), TimeoutError)


def test_a_closed_client_is_no_deadline() -> None:
    write = Attempts(write=True)
    assert isinstance(write.closed_error(), UsageError)
    write.judge(result(Code.UNKNOWN))
    maybe_applied = write.closed_error()
    assert isinstance(maybe_applied, OutcomeUnknown)
    assert not isinstance(maybe_applied, TimeoutError)
    assert "the client was closed" in str(maybe_applied)


def test_codes_of_a_newer_version_promise_nothing() -> None:
    progress = Attempts(write=True)
    unknown = Result(99, detail="from the future")
    assert progress.judge(unknown) is NextStep.RAISE
    assert isinstance(progress.final_error(CALL, unknown), OutcomeUnknown)


def test_a_hint_is_followed_at_once_but_not_for_ever() -> None:
    progress = Attempts(write=False)
    steps = [progress.judge(result(Code.NOT_LEADER, hint=2)) for _ in range(5)]
    assert steps == [NextStep.RETRY_AT_ONCE] * 3 + [NextStep.RETRY] * 2
    assert Attempts(write=False).judge(result(Code.NOT_LEADER)) is NextStep.RETRY


def test_an_expired_session_is_renewed_only_if_nothing_may_have_happened() -> None:
    fresh = Attempts(write=True)
    steps = [fresh.judge(result(Code.SESSION_EXPIRED)) for _ in range(MAX_RENEWALS + 1)]
    assert steps == [NextStep.RENEW] * MAX_RENEWALS + [NextStep.RAISE]
    assert isinstance(fresh.final_error(CALL, result(Code.SESSION_EXPIRED)), Unavailable)

    maybe_applied = Attempts(write=True)
    maybe_applied.judge(result(Code.UNKNOWN))
    assert maybe_applied.judge(result(Code.SESSION_EXPIRED)) is NextStep.RAISE
    assert isinstance(maybe_applied.final_error(CALL, result(Code.SESSION_EXPIRED)), SessionExpired)


def test_delays_grow_and_are_bounded() -> None:
    rng = Random(5)
    progress = Attempts(write=False)
    delays = []
    for _ in range(30):
        progress.judge(result(Code.UNAVAILABLE))
        delays.append(progress.delay(rng))
    assert delays[0] <= 0.01
    assert max(delays[:12]) <= 0.25
    assert min(delays[6:]) >= 0.125
    assert 0.5 <= min(delays[12:]) <= max(delays) <= 1.0
    busy = Attempts(write=False)
    busy.judge(result(Code.OVERLOADED))
    assert busy.delay(rng) >= 0.025
    assert isinstance(busy.deadline_error(1.0, 1.0), Overloaded)


def test_attempts_fit_into_the_budget_and_grow_when_unanswered() -> None:
    assert attempt_timeout(5.0, 5.0, 0) == 1.0
    assert attempt_timeout(0.9, 0.9, 0) == pytest.approx(0.3)
    assert attempt_timeout(0.03, 0.03, 0) == pytest.approx(0.03)
    assert attempt_timeout(60.0, 60.0, 2) == 4.0
    assert attempt_timeout(60.0, 60.0, 9) == 8.0
    assert attempt_timeout(60.0, 0.5, 9) == 0.5


def test_an_attempt_gets_what_its_group_has_lately_needed() -> None:
    assert attempt_timeout(5.0, 5.0, 0, patience=2.4) == 2.4
    assert attempt_timeout(5.0, 5.0, 2, patience=2.4) == 4.0
    assert attempt_timeout(1.5, 1.5, 0, patience=2.4) == 1.5


def test_a_node_answers_before_the_client_gives_up_and_never_after_the_deadline() -> None:
    for timeout, remaining, silent in ((5.0, 5.0, 0), (0.9, 0.9, 0), (0.03, 0.03, 0), (60.0, 0.5, 9), (60.0, 60.0, 2)):
        budget, patience = attempt_span(timeout, remaining, silent)
        assert 0 < budget < patience <= remaining
    assert first_span(5.0) == attempt_span(5.0, 5.0, 0) == (1.0, 1.25)


def test_a_policy_bounds_delays_and_attempts_and_sending_on_counts_for_none() -> None:
    progress = Attempts(False, RetryPolicy(attempts=2, first_delay=0.2, max_delay=0.4))
    assert progress.judge(result(Code.NOT_LEADER, hint=2)) is NextStep.RETRY_AT_ONCE
    assert progress.judge(result(Code.UNAVAILABLE)) is NextStep.RETRY
    assert 0.05 <= progress.delay(Random(5)) <= 0.1, "a quarter of the longest"
    assert progress.judge(result(Code.UNAVAILABLE)) is NextStep.RAISE


@pytest.mark.parametrize("code", FAILURES)
def test_an_unknown_write_that_is_to_be_resolved_ends_only_with_what_is_true(code: Code) -> None:
    progress = Attempts(True, RetryPolicy(attempts=1), resolve=True)
    assert progress.judge(result(Code.UNKNOWN)) is NextStep.RETRY
    ends = {NextStep.RAISE} if code in {*SETTLED, Code.SESSION_EXPIRED} else {NextStep.RETRY, NextStep.RETRY_AT_ONCE}
    assert progress.judge(result(code)) in ends


@pytest.mark.parametrize(
    ("errors", "code", "write", "step"),
    [
        ((Unavailable,), Code.OVERLOADED, True, NextStep.RAISE),
        ((Overloaded,), Code.SLOT_MOVING, True, NextStep.RAISE),
        ((Unavailable, Overloaded), Code.UNKNOWN, True, NextStep.RAISE),
        ((Unavailable, Overloaded), Code.UNKNOWN, False, NextStep.RETRY),
        ((Unavailable, Overloaded), Code.DEADLINE_EXCEEDED, True, NextStep.RAISE),
        ((OutcomeUnknown,), Code.DEADLINE_EXCEEDED, True, NextStep.RETRY),
        ((OutcomeUnknown,), Code.INTERNAL, True, NextStep.RAISE),
        ((Unavailable, NoSpace), Code.NO_SPACE, True, NextStep.RETRY),
        ((), Code.UNAVAILABLE, True, NextStep.RAISE),
    ],
)
def test_only_what_the_policy_names_is_tried_again(
    errors: tuple[type[RaftKVError], ...], code: Code, write: bool, step: NextStep
) -> None:
    progress = Attempts(write, RetryPolicy(errors=errors))
    assert progress.judge(result(code)) is step
    assert isinstance(progress.final_error(CALL, result(code)), OutcomeUnknown if progress.maybe else NotApplied)
