"""Guarantee: the linearizability checker accepts what the store promises and names what it forbids: each test is one
promise, kept and broken."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from faults.check.history import OPEN_END, History, Kind, Operation, Outcome
from faults.check.linearizability import BUDGET, Finding, Verdict, check, check_stale
from faults.check.register import Register

NEVER = OPEN_END


class Story:
    """A history of one key in the making. ``ended`` NEVER: nobody learned the outcome."""

    def __init__(self) -> None:
        self._history = History()

    def get(self, began: float, ended: float, found: str | None, version: int = 0, *, stale: bool = False) -> Operation:
        return self._add(Kind.GET, began, ended, found=found, version=version, stale=stale)

    def put(self, began: float, ended: float, value: str, version: int | None = None, **more: Any) -> Operation:
        return self._add(Kind.PUT, began, ended, value=value, version=version, **{"done": True, **more})

    def cas(self, began: float, ended: float, expected: str | None, value: str, **more: Any) -> Operation:
        return self._add(Kind.CAS, began, ended, expected=expected, value=value, **{"done": True, **more})

    def delete(self, began: float, ended: float, **more: Any) -> Operation:
        return self._add(Kind.DELETE, began, ended, **{"done": True, **more})

    def _add(self, kind: Kind, began: float, ended: float, **more: Any) -> Operation:
        one = replace(self._history.begin(f"c{len(self._history.operations)}", kind, "k", began), **more)
        one.ended = one.answered = ended
        one.outcome = Outcome.OK
        if ended == NEVER:
            one.outcome, one.done, one.version = Outcome.UNKNOWN, False, None
        self._history.operations[-1] = one
        return one

    def check(self, fastest: float = 1.0, budget: int = BUDGET) -> Finding:
        return check(self._history.operations, Register(fastest), budget)

    def stale(self) -> list[Operation]:
        return check_stale(self._history.operations)

    def holds(self, fastest: float = 1.0) -> bool:
        """Whether it is linearizable. An order that is claimed is verified."""
        finding, operations = self.check(fastest), self._history.operations
        assert finding.verdict is not Verdict.OUT_OF_BUDGET
        if finding.verdict is Verdict.LINEARIZABLE:
            assert_explains(operations, finding)
            return True
        return False


def assert_explains(operations: Sequence[Operation], finding: Finding) -> None:
    """The order holds every known operation, none twice, and none behind one that began after its end."""
    order = [next(one for one in operations if one.number == number) for number in finding.order]
    assert len(set(finding.order)) == len(order)
    assert {one.number for one in operations if one.outcome is Outcome.OK and not one.stale} <= set(finding.order)
    assert not any(one.outcome is Outcome.REFUSED or one.stale for one in order)
    assert not any(later.ended < one.began for place, one in enumerate(order) for later in order[place:])


@pytest.fixture
def story() -> Story:
    return Story()


# -- reads and acknowledged writes


def test_a_read_after_an_acknowledged_write_is_not_stale(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, 3, "b", 2)
    stale = story.get(4, 5, "a", 1)
    assert not story.holds()
    assert story.check().stuck is stale
    stale.began = 2.5  # It overlaps the second write.
    assert story.holds()


def test_operations_that_touch_at_one_moment_may_come_in_either_order(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.get(1, 2, None)
    assert story.holds()


def test_an_acknowledged_write_is_not_lost(story: Story) -> None:
    story.put(0, 1, "a", 1)
    lost = story.get(2, 3, None)
    assert not story.holds()
    assert story.check().stuck is lost


def test_an_acknowledged_write_is_not_lost_to_a_later_condition(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, 3, "b", 2)
    story.put(4, 5, "c", 3, expect=1)
    assert not story.holds()


def test_nothing_is_read_from_the_future(story: Story) -> None:
    read = story.get(0, 1, "a", 1)
    write = story.put(2, 3, "a", 1)
    assert not story.holds()
    assert story.check().stuck is read
    write.ended, write.outcome, write.done, write.version = NEVER, Outcome.UNKNOWN, False, None
    assert not story.holds()
    write.began = 1
    assert story.holds()


def test_two_clients_never_read_new_and_then_old(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, 20, "b", 2)
    story.get(3, 4, "b", 2)
    old = story.get(5, 6, "a", 1)
    assert not story.holds()
    assert story.check().stuck is old
    old.began = 3.5
    assert story.holds()


def test_a_refused_write_is_never_seen(story: Story) -> None:
    refused = story.put(0, 1, "a")
    refused.outcome, refused.done = Outcome.REFUSED, False
    read = story.get(2, 3, None)
    assert story.holds()
    read.found, read.version = "a", 1
    assert not story.holds()
    assert story.check().stuck is read


# -- each write happens once


def test_a_write_is_not_executed_twice(story: Story) -> None:
    """Another client overwrote it, and then it was there again under a higher version."""
    story.put(0, 1, "a", 1)
    story.put(2, 3, "b", 2)
    again = story.get(4, 5, "a", 3)
    assert not story.holds()
    assert story.check().stuck is again


def test_a_record_has_the_version_that_its_writer_was_told(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.get(2, 3, "a", 2)
    assert not story.holds()


def test_an_unknown_write_is_not_executed_twice(story: Story) -> None:
    story.put(0, NEVER, "a")
    story.get(1, 2, "a", 1)
    story.put(3, 4, "b", 2)
    story.get(5, 6, "a", 3)
    assert not story.holds()


def test_put_if_absent_of_a_key_that_nobody_else_writes_cannot_fail(story: Story) -> None:
    """The server executed it, and the copy that the client sent again found its own record in the way."""
    story.put(0, 1, "a", 1, expect=0, done=False)
    assert not story.holds()


def test_put_if_absent_fails_at_the_version_of_the_record_in_the_way(story: Story) -> None:
    story.put(0, 1, "a", 4)
    failed = story.put(2, 3, "b", 4, expect=0, done=False)
    assert story.holds()
    failed.version = 5
    assert not story.holds()


def test_an_unknown_put_if_absent_does_not_overwrite(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, NEVER, "b", expect=0)
    read = story.get(3, 4, "a", 1)
    assert story.holds()
    read.found, read.version = "b", 2
    assert not story.holds()


def test_an_unknown_delete_may_make_room_for_an_unknown_put_if_absent(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, NEVER, "b", expect=0)
    story.delete(2, NEVER)
    read = story.get(3, 4, "b", 3)
    assert story.holds()
    read.version = 2  # That of the delete.
    assert not story.holds()


# -- versions


def test_two_writes_never_get_one_version(story: Story) -> None:
    story.put(0, 5, "a", 1)
    story.put(0, 5, "b", 1)
    assert not story.holds()


def test_versions_never_go_back(story: Story) -> None:
    story.put(0, 1, "a", 2)
    later = story.put(2, 3, "b", 1)
    assert not story.holds()
    assert story.check().stuck is later
    later.began = 0
    assert story.holds()


def test_the_version_of_a_compare_and_swap_lies_between_those_before_and_after(story: Story) -> None:
    story.put(0, 1, "a", 3)
    story.cas(2, 3, "a", "b")
    read = story.get(4, 5, "b", 7)
    story.put(6, 7, "c", 8)
    assert story.holds()
    for version in (3, 8):
        read.version = version
        assert not story.holds()


def test_a_compare_and_swap_takes_a_version_even_if_nobody_is_told(story: Story) -> None:
    story.put(0, 1, "a", 3)
    story.cas(2, 3, "a", "b")
    last = story.put(4, 5, "c", 5)
    assert story.holds()
    last.version = 4
    assert not story.holds()


def test_a_version_once_told_is_kept(story: Story) -> None:
    story.cas(0, 1, None, "a")
    story.get(2, 3, "a", 5)
    story.get(4, 5, "a", 6)
    assert not story.holds()


def test_a_failed_condition_tells_a_version_that_somebody_wrote(story: Story) -> None:
    story.put(0, 1, "a", 3, expect=2, done=False)
    assert not story.holds()
    story.cas(0, NEVER, None, "b")
    assert story.holds()


def test_a_condition_does_not_fail_at_the_version_asked_for(story: Story) -> None:
    story.cas(0, 1, None, "a")
    story.put(2, 3, "b", 2, expect=2, done=False)
    assert not story.holds()


# -- compare and swap, delete


@pytest.mark.parametrize(("expected", "done"), [("a", True), ("b", False), (None, False)])
def test_compare_and_swap_succeeds_if_the_value_is_the_expected_one(
    story: Story, expected: str | None, done: bool
) -> None:
    story.put(0, 1, "a", 1)
    answer = story.cas(2, 3, expected, "c", done=done)
    assert story.holds()
    answer.done = not done
    assert not story.holds()
    assert story.check().stuck is answer


def test_two_compare_and_swaps_of_one_value_do_not_both_succeed(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.cas(2, 5, "a", "b")
    other = story.cas(2, 5, "a", "c")
    assert not story.holds()
    other.done = False
    assert story.holds()


def test_delete_says_whether_there_was_a_record(story: Story) -> None:
    first = story.delete(0, 1, done=False)
    story.put(2, 3, "a", 1)
    second = story.delete(4, 5)
    story.get(6, 7, None)
    assert story.holds()
    first.done = True
    assert not story.holds()
    first.done, second.done = False, False
    assert not story.holds()
    assert story.check().stuck is second


def test_delete_takes_a_version(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.delete(2, 3)
    later = story.put(4, 5, "b", 3)
    assert story.holds()
    later.version = 2
    assert not story.holds()


def test_delete_of_one_version_leaves_another_alone(story: Story) -> None:
    story.put(0, 1, "a", 3)
    answer = story.delete(2, 3, expect=2, done=False, version=3)
    assert story.holds()
    answer.version = 0
    assert not story.holds()
    answer.done = True
    assert not story.holds()
    answer.expect = 3
    assert story.holds()


def test_delete_if_absent_finds_nothing_to_delete(story: Story) -> None:
    story.delete(0, 1, expect=0, done=False)
    assert story.holds()
    story.put(2, 3, "a", 1)
    story.delete(4, 5, expect=0, done=False)
    assert not story.holds()


# -- unknown outcomes


def test_an_unknown_write_may_be_seen_late_or_never(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, NEVER, "b")
    story.get(3, 4, "a", 1)
    late = story.get(100, 101, "b", 2)
    assert story.holds()
    late.found, late.version = "a", 1
    assert story.holds()


def test_an_open_write_counts_as_unknown(story: Story) -> None:
    story.put(2, NEVER, "b").outcome = Outcome.OPEN
    story.get(3, 4, "b", 1)
    assert story.holds()


def test_an_unknown_write_is_not_seen_and_then_unseen(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, NEVER, "b")
    story.get(3, 4, "b", 2)
    unseen = story.get(5, 6, "a", 1)
    assert not story.holds()
    assert story.check().stuck is unseen


def test_unknown_writes_may_need_one_another(story: Story) -> None:
    for number in (3, 1, 0, 2):
        story.cas(0, NEVER, f"v{number}" if number else None, f"v{number + 1}")
    read = story.get(1, 2, "v4", 4)
    assert story.holds()
    assert story.check().order == (2, 1, 3, 0, 4)
    read.version = 3
    assert not story.holds()


def test_the_version_told_may_be_that_of_an_unknown_write_of_the_same_value(story: Story) -> None:
    """Without it the compare-and-swap had version 2, and nothing that expires could have come before version 3."""
    story.cas(0, 1, None, "a")
    story.put(2, NEVER, "a", ttl=2)
    story.get(3, 4, "a", 2)
    story.get(10, 11, None)
    story.put(12, 13, "b", 3)
    assert story.holds()


def test_reads_without_answer_and_stale_reads_prove_nothing(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.get(2, NEVER, "x", 9)
    story.get(2, 3, None, stale=True)
    assert story.holds()


# -- time to live


def test_a_record_is_not_gone_before_its_time(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=10)
    early = story.get(8, 9.9, None)
    assert not story.holds()
    assert story.check().stuck is early
    early.ended = 10
    assert story.holds()


def test_a_clock_twice_as_fast_halves_the_time_that_is_sure(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=10)
    gone = story.get(4, 5, None)
    assert story.holds(fastest=2.0)
    gone.ended = 4.9
    assert not story.holds(fastest=2.0)
    gone.ended = 5
    assert not story.holds()


def test_a_record_may_outlive_its_time_but_does_not_come_back(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=2)
    story.get(50, 51, "a", 1)
    story.get(52, 53, None)
    assert story.holds()
    story.get(54, 55, "a", 1)
    assert not story.holds()


def test_a_record_without_time_to_live_stays(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=2)
    story.put(1.5, 1.6, "b", 2)
    story.get(1000, 1001, None)
    assert not story.holds()


def test_compare_and_swap_and_put_if_absent_find_nothing_where_a_record_has_expired(story: Story) -> None:
    story.cas(0, 1, None, "a", ttl=2)
    late = story.put(5, 6, "b", 2, expect=0)
    assert story.holds()
    late.began, late.ended = 1.5, 1.9
    assert not story.holds()


def test_an_unknown_write_does_not_make_a_record_expire_early(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=50)
    story.cas(2, NEVER, None, "b")
    read = story.get(3, 4, "b", 2)
    assert not story.holds()
    read.ended = 50
    assert story.holds()


def test_what_comes_behind_an_expiry_did_not_end_before_it(story: Story) -> None:
    """The long read may have come late enough; the short one that follows it may not."""
    story.put(0, 1, "a", 1, ttl=50)
    story.get(2, 100, None)
    early = story.get(3, 4, None)
    assert not story.holds()
    assert story.check().stuck is early


@pytest.mark.parametrize("kind", [Kind.PUT, Kind.CAS, Kind.DELETE])
def test_a_write_does_not_hide_that_an_expiry_came_too_early(story: Story, kind: Kind) -> None:
    story.put(0, 1, "a", 1, ttl=50)
    if kind is Kind.CAS:
        story.cas(2, 100, None, "b")
    else:
        story.put(2, 100, "b", 2, expect=0)
    if kind is Kind.DELETE:
        story.delete(2, 100)
        story.get(3, 4, None)
    else:
        story.get(3, 4, "b", 2)
    assert not story.holds()


def test_a_second_expiry_does_not_hide_that_the_first_came_too_early(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=50)
    story.put(2, 100, "b", 2, expect=0, ttl=3)
    story.get(2, 100, None)
    story.get(3, 6, None)
    assert not story.holds()


def test_an_unknown_delete_explains_an_early_write_that_a_late_expiry_does_not(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=50)
    story.cas(2, 100, None, "b")
    story.get(3, 4, "b", 3)
    assert not story.holds()
    story.delete(2, NEVER)
    assert story.holds()


def test_an_unknown_delete_explains_an_unknown_write_that_a_late_expiry_does_not(story: Story) -> None:
    story.put(0, 1, "a", 1, ttl=50)
    story.cas(2, NEVER, None, "b")
    story.get(3, 4, "b", 3)
    assert not story.holds()
    story.delete(2, NEVER)
    assert story.holds()


# -- stale reads


def test_a_stale_read_may_return_whatever_once_was(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, 3, "b", 2)
    story.cas(4, 5, "b", "c")
    story.put(4, NEVER, "d")
    for found, version in (("a", 1), (None, 0), ("c", 3), ("d", 9)):
        story.get(6, 7, found, version, stale=True)
    assert story.stale() == []
    assert story.holds()


def test_a_stale_read_never_returns_what_nobody_can_have_written(story: Story) -> None:
    story.put(0, 1, "a", 1)
    refused = story.put(2, 3, "b")
    refused.outcome, refused.done = Outcome.REFUSED, False
    story.put(2, 3, "c", 1, expect=0, done=False)
    story.cas(2, 3, "z", "d", done=False)
    story.put(9, 10, "later", 5)
    wrong = [
        story.get(4, 5, found, version, stale=True)
        for found, version in (("x", 1), ("a", 2), ("b", 2), ("c", 1), ("d", 2), ("later", 5))
    ]
    assert story.stale() == wrong


# -- search


def stormy(seed: int) -> tuple[Story, Operation]:
    """200 known operations of three clients, in the middle of them 40 unknown writes, half of which take effect; and a
    read in the second half."""
    rng, story = random.Random(seed), Story()
    value: str | None = None
    version, told, reads = 0, 0, []
    for number in range(240):
        began, ended = number - rng.uniform(0, 1), number + rng.uniform(0, 1)
        unknown = 80 <= number < 160 and number % 2 == 0
        if not unknown and rng.random() < 0.5:
            reads.append(story.get(began, ended, value, version))
            told = version
            continue
        one = story.put(began, NEVER if unknown else ended, f"v{number}")
        if told == version and not unknown and rng.random() < 0.5:
            one.expect = told
        if not unknown or rng.random() < 0.5:
            value, version = one.value, version + 1
            if not unknown:
                one.version = told = version
    return story, next(read for read in reads if read.began > 180)


@pytest.mark.parametrize("seed", range(10))
def test_forty_unknown_writes_are_no_hard_case(seed: int) -> None:
    story, read = stormy(seed)
    finding = story.check()
    assert story.holds()
    assert finding.steps < 5_000
    assert len(finding.order) >= 200
    read.found = "nobody wrote this"
    finding = story.check()
    assert finding.verdict is Verdict.VIOLATION
    assert finding.steps < 12_000
    assert finding.stuck is read


@pytest.mark.parametrize("budget", [0, 1, 10, 100, 1000])
def test_running_out_of_budget_is_no_verdict(story: Story, budget: int) -> None:
    """Ten writes at once whose order shows in no version, and a read that none of them explains."""
    for number in range(10):
        story.cas(0, 10, "x", f"v{number}", done=False)
    story.get(11, 12, "x", 99)
    finding = story.check(budget=budget)
    assert finding.verdict is Verdict.OUT_OF_BUDGET
    assert finding.steps < budget + 50
    assert story.check().verdict is Verdict.VIOLATION


def test_a_small_budget_may_prevent_a_verdict_but_never_changes_it() -> None:
    story, read = stormy(0)
    for found in (read.found, "nobody wrote this"):
        read.found = found
        whole = story.check()
        for part in range(1, 20):
            verdict = story.check(budget=whole.steps * part // 20).verdict
            # A violation is known after a first, shorter search; the second one only tells more of it.
            assert verdict is Verdict.OUT_OF_BUDGET or verdict is whole.verdict is Verdict.VIOLATION
        assert story.check(budget=whole.steps) == whole


def test_many_ways_through_unknown_writes_run_out_of_budget_too(story: Story) -> None:
    """Five unknown writes for each of ten steps from value to value: ten million ways that explain nothing."""
    story.put(0, 1, "v0", 1)
    for number in range(50):
        story.cas(2, NEVER, f"v{number // 5}", f"v{number // 5 + 1}")
    story.get(3, 4, "x", 99)
    finding = story.check(budget=1000)
    assert finding.verdict is Verdict.OUT_OF_BUDGET
    assert finding.steps < 1300


def test_the_finding_holds_the_longest_order_and_the_state_behind_it(story: Story) -> None:
    story.put(0, 1, "a", 1)
    story.put(2, 3, "b", 2)
    guilty = story.get(4, 5, "a", 1)
    story.get(6, 7, "b", 2)
    finding = story.check()
    assert finding.order == (0, 1)
    assert (finding.state.value, finding.state.version) == ("b", 2)
    assert finding.stuck is guilty
