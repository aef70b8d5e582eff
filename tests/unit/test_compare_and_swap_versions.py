"""Guarantee: the checker believes the version that a compare-and-swap was told only where it can be."""

from __future__ import annotations

import pytest

from faults.check.history import Kind, Operation, Outcome
from faults.check.linearizability import Verdict, check
from faults.check.register import Register

BUDGET = 10_000


def linearizable(*answers: tuple[Kind, str | None, str | None, bool, int | None]) -> bool:
    """Whether that is possible one after the other: kind, value expected or found, value written, done, version."""
    history = [
        Operation(
            number,
            "c",
            kind,
            "k",
            began=2.0 * number,
            ended=2.0 * number + 1,
            answered=2.0 * number + 1,
            outcome=Outcome.OK,
            done=done,
            version=version,
            value=written,
            expected=value if kind is Kind.CAS else None,
            found=value if kind is Kind.GET else None,
        )
        for number, (kind, value, written, done, version) in enumerate(answers)
    ]
    return check(history, Register(), BUDGET).verdict is Verdict.LINEARIZABLE


@pytest.mark.parametrize(
    ("told", "read", "possible"), [(5, 5, True), (5, 6, False), (None, 5, True), (3, 3, False), (2, 2, False)]
)
def test_one_that_was_done_tells_the_version_that_it_gave(told: int | None, read: int, possible: bool) -> None:
    put = (Kind.PUT, None, "a", True, 3)
    assert linearizable(put, (Kind.CAS, "a", "b", True, told), (Kind.GET, "b", None, False, read)) is possible


@pytest.mark.parametrize(("told", "possible"), [(3, True), (None, True), (2, False), (4, False), (0, False)])
def test_one_that_was_not_done_tells_the_version_in_its_way(told: int | None, possible: bool) -> None:
    assert linearizable((Kind.PUT, None, "a", True, 3), (Kind.CAS, "z", "b", False, told)) is possible


@pytest.mark.parametrize(("told", "possible"), [(0, True), (None, True), (3, False)])
def test_where_there_is_no_record_there_is_no_version(told: int | None, possible: bool) -> None:
    assert linearizable((Kind.CAS, "a", "b", False, told)) is possible


def test_a_version_that_comes_later_is_not_told_before() -> None:
    first, second = (Kind.CAS, None, "a", True, 7), (Kind.CAS, "a", "b", True, 5)
    assert not linearizable(first, second)
    assert linearizable((*first[:4], 4), second)
