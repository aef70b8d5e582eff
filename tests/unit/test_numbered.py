"""Guarantee: the checker of transactions and counters passes what some order explains, and nothing else."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from faults.check.history import OPEN_END, History, Kind, Operation, Outcome
from faults.check.linearizability import Verdict
from faults.check.numbered import Asked, check_numbered, effect

READ = [["get", "a", None], ["get", "b", None]]


class Past:
    """A history that a test tells."""

    def __init__(self) -> None:
        self.history = History()

    def incr(self, began: float, ended: float = OPEN_END, found: int | None = None) -> Operation:
        one = self.history.begin("c1", Kind.INCR, "i", began)
        if found is None:
            one.outcome = Outcome.UNKNOWN
        else:
            one.outcome, one.done, one.found, one.ended = Outcome.OK, True, str(found), ended
        return one

    def get(self, began: float, ended: float, found: int | None) -> None:
        one = self.history.begin("c1", Kind.GET, "i", began)
        one.outcome, one.ended, one.found = Outcome.OK, ended, None if found is None else str(found)

    def txn(
        self,
        began: float,
        ended: float,
        steps: list[Any],
        told: list[Any] | None = None,
        number: int | None = None,
        *,
        checks: list[Any] | None = None,
        otherwise: list[Any] | None = None,
        done: bool = True,
    ) -> Operation:
        one = self.history.begin("c1", Kind.TXN, "{x}", began)
        one.steps = Asked(checks or [], steps, otherwise or []).text()
        one.outcome = Outcome.UNKNOWN
        if told is not None:
            one.outcome, one.ended, one.done = Outcome.OK, ended, done
            one.found, one.version = json.dumps(told), number
        return one

    def verdict(self) -> Verdict:
        return check_numbered(self.history.operations).verdict


@pytest.fixture
def past() -> Past:
    return Past()


def test_counts_in_order_pass(past: Past) -> None:
    past.get(0, 1, None)
    past.incr(1, 4, 2)
    past.incr(2, 3, 1)
    past.get(5, 6, 2)
    assert past.verdict() is Verdict.LINEARIZABLE


def test_a_count_that_nobody_can_have_made_is_found(past: Past) -> None:
    past.incr(1, 2, 1)
    past.incr(3, 4, 3)
    assert past.verdict() is Verdict.VIOLATION


def test_a_count_without_an_answer_explains_one_that_is_missing(past: Past) -> None:
    past.incr(1, 2, 1)
    past.incr(2)
    past.incr(3, 4, 3)
    assert past.verdict() is Verdict.LINEARIZABLE
    past.incr(5, 6, 5)
    assert past.verdict() is Verdict.VIOLATION, "only once"


def test_a_count_that_began_later_explains_nothing(past: Past) -> None:
    past.incr(1, 2, 2)
    past.incr(3)
    assert past.verdict() is Verdict.VIOLATION


def test_a_count_that_is_told_twice_is_found(past: Past) -> None:
    past.incr(1, 4, 1)
    past.incr(2, 3, 1)
    assert past.verdict() is Verdict.VIOLATION


def test_an_old_count_is_found(past: Past) -> None:
    past.incr(1, 2, 1)
    past.get(3, 4, 0)
    assert past.verdict() is Verdict.VIOLATION
    assert check_numbered(past.history.operations).stuck is past.history.operations[1]


def test_transactions_are_whole(past: Past) -> None:
    past.txn(0, 1, [["incr", "a", -1], ["incr", "b", 1]], [-1, 1], 2)
    past.txn(2, 3, READ, ["-1", "1"], 2)
    assert past.verdict() is Verdict.LINEARIZABLE
    past.txn(4, 5, READ, ["-1", "2"], 3)
    assert past.verdict() is Verdict.VIOLATION


def test_half_of_an_unanswered_transaction_explains_nothing(past: Past) -> None:
    past.txn(0, OPEN_END, [["incr", "a", -1], ["incr", "b", 1]])
    past.txn(2, 3, READ, ["-1", None], 1)
    assert past.verdict() is Verdict.VIOLATION


def test_two_unanswered_transactions_that_do_not_need_each_other_explain_a_third(past: Past) -> None:
    past.txn(0, OPEN_END, [["put", "a", "1"]])
    past.txn(0, OPEN_END, [["put", "b", "2"]])
    past.txn(2, 3, READ, ["1", "2"], 2)
    assert past.verdict() is Verdict.LINEARIZABLE


def test_an_unanswered_transaction_happens_once(past: Past) -> None:
    past.txn(0, OPEN_END, [["incr", "a", 1]])
    past.txn(2, 3, READ, ["1", None], 1)
    past.txn(4, 5, READ, ["2", None], 2)
    assert past.verdict() is Verdict.VIOLATION


def given_up(past: Past, count: int) -> None:
    """Transactions whose clients had given them up before time 2."""
    for amount in range(1, count + 1):
        past.txn(0, OPEN_END, [["incr", "a", amount], ["incr", "b", 1]]).answered = 1


def test_those_in_flight_explain_a_long_gap_whatever_had_been_given_up_before(past: Past) -> None:
    """Of some seven among a hundred there are more than can be tried: storm 2000006 ran for minutes."""
    given_up(past, 100)
    past.txn(2, 3, READ, [None, None], 0)
    for amount in (7, 70, 700, 7000, 70_000, 700_000, 7_000_000):
        past.txn(2, OPEN_END, [["incr", "a", amount], ["incr", "b", 1]])
    past.txn(4, 5, [["put", "p", "1"]], [None], 15)
    past.txn(6, 7, READ, ["7777777", "7"], 15)
    assert past.verdict() is Verdict.LINEARIZABLE


def test_one_that_had_been_given_up_may_still_happen(past: Past) -> None:
    given_up(past, 3)
    past.txn(2, 3, READ, [None, None], 0)
    past.txn(4, 5, READ, ["3", "1"], 2)
    assert past.verdict() is Verdict.LINEARIZABLE
    past.txn(6, 7, READ, ["4", "2"], 4)
    assert past.verdict() is Verdict.LINEARIZABLE
    past.txn(8, 9, READ, ["8", "3"], 6)
    assert past.verdict() is Verdict.VIOLATION


def test_a_check_decides_which_list_is_done(past: Past) -> None:
    asked: dict[str, Any] = {"checks": [["a", None]], "otherwise": [["delete", "a", None]]}
    past.txn(0, 1, [["put", "a", "1"]], [None], 1, **asked)
    past.txn(2, 3, [["put", "a", "1"]], [True], 2, done=False, **asked)
    past.txn(4, 5, [["put", "a", "1"]], [None], 3, **asked)
    assert past.verdict() is Verdict.LINEARIZABLE
    past.txn(6, 7, [["put", "a", "1"]], [None], 4, **asked)
    assert past.verdict() is Verdict.VIOLATION, "it is there"


def test_another_keys_mutations_take_numbers(past: Past) -> None:
    past.txn(0, 1, [["put", "a", "1"]], [None], 1)
    past.txn(2, 3, [["put", "b", "2"]], [None], 9)
    past.txn(4, 5, READ, ["1", "2"], 12)
    assert past.verdict() is Verdict.LINEARIZABLE


def test_refused_ones_never_happened(past: Past) -> None:
    past.txn(0, 1, [["put", "a", "1"]]).outcome = Outcome.REFUSED
    past.txn(2, 3, READ, ["1", None], 1)
    assert past.verdict() is Verdict.VIOLATION


@pytest.mark.parametrize("seed", range(20))
def test_what_a_store_does_passes_and_a_lie_does_not(seed: int) -> None:
    """Overlapping clients of a real order, some answers lost; then one answer is another."""
    rng, past, records, number = Random(seed), Past(), dict[str, str](), 0
    for at in range(60):
        key = rng.choice("ab")
        steps: list[Any] = rng.choice(
            [READ, [["incr", key, rng.randint(1, 3)], *READ], [["incr", "a", -1], ["incr", "b", 1]]]
        )
        began, took = at - 3 * rng.random(), at + 3 * rng.random()
        if rng.random() < 0.2:
            past.txn(began, OPEN_END, steps)
            if rng.random() < 0.5:
                continue
        done = effect(Asked([], steps, []), records)
        records, number = dict(done.records), number + done.writes
        if past.history.operations and past.history.operations[-1].began == began:
            continue
        past.txn(began, took, steps, done.told, number)
    assert past.verdict() is Verdict.LINEARIZABLE
    reads = [
        one
        for one in past.history.operations
        if one.outcome is Outcome.OK and json.loads(one.steps or "")["steps"] == READ
    ]
    lie = rng.choice([one for one in reads if json.loads(one.found or "[]")[0]])
    lie.found = json.dumps([str(int(json.loads(lie.found or "")[0]) + 1000), None])
    assert past.verdict() is Verdict.VIOLATION


@pytest.mark.parametrize(("last", "verdict"), [(-3071, Verdict.LINEARIZABLE), (2, Verdict.VIOLATION)])
def test_counters_tell_which_of_many_without_an_answer_have_happened(past: Past, last: int, verdict: Verdict) -> None:
    """Two of twelve transfers and six of 24 writes: too many choices to try, but the sums leave few of them."""
    past.txn(0, 1, [["incr", "a", 1], ["incr", "n", 1]], [1, 1], 2)
    for at in range(12):
        past.txn(2, OPEN_END, [["incr", "a", -(2**at)], ["incr", "b", 2**at], ["incr", "n", 1]])
    for at in range(24):
        past.txn(2, OPEN_END, [["put", "p", str(at)], ["incr", "n", 1]])
    told = [str(last), str(1 - last), "9", "7"]
    past.txn(50, 51, [["get", key, None] for key in "abnp"], told, 20)
    assert past.verdict() is verdict
