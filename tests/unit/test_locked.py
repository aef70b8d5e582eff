"""Guarantee: the checker of locks sees two holders and tokens that do not rise, and nothing where there is nothing."""

from __future__ import annotations

from faults.check.locked import Holding, problems


def held(holder: str, token: int, since: float, until: float, lock: str = "l") -> Holding:
    return Holding(lock, holder, token, since, until)


def texts(*holdings: Holding) -> list[str]:
    return [problem.text.split(":")[0] for problem in problems(holdings)]


def test_one_after_the_other_is_right() -> None:
    assert texts(held("b", 9, 3.0, 3.0), held("a", 4, 1.0, 2.0), held("a", 12, 3.5, 4.0)) == []
    assert texts(held("a", 4, 1.0, 2.0), held("b", 3, 1.5, 2.0, lock="m")) == []


def test_two_holders_are_seen_also_behind_a_third() -> None:
    assert texts(held("a", 4, 1.0, 2.0), held("b", 5, 1.9, 3.0)) == ["lock l has two holders"]
    found = texts(held("a", 4, 1.0, 9.0), held("b", 5, 2.0, 3.0), held("c", 6, 4.0, 5.0))
    assert found == ["lock l has two holders"] * 2


def test_tokens_rise() -> None:
    assert texts(held("a", 4, 1.0, 2.0), held("b", 4, 2.0, 3.0)) == ["lock l"]
    assert texts(held("a", 4, 1.0, 2.0), held("b", 3, 2.5, 3.0)) == ["lock l"]
