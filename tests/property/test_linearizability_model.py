"""Guarantee: the linearizability checker is neither too lenient nor too strict: for any small history of one key it
says what two brute forces say, and it accepts what a real register with lost replies and a clock may have answered.

The brute forces try all orders of the known operations with open writes anywhere between, without memory and without
normalisation. The first shares :meth:`Register.step` with the checker, so it judges the search. The second shares
nothing: it guesses each version, each moment and each expiry, so it judges the register's model too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from faults.check.history import OPEN_END, History, Kind, Operation, Outcome
from faults.check.linearizability import Finding, Verdict, check
from faults.check.register import EMPTY, Register

T = TypeVar("T")
S = TypeVar("S", bound=Hashable)
Pick = Callable[[Sequence[T]], T]
"""Makes one choice: Hypothesis in the suite, a random number generator in a long run by hand."""

VALUES = ["a", "b"]
MOST = 6
FASTEST = 2.0


# -- histories


def asked(pick: Pick[int], history: History, point: float) -> Operation:
    """Some operation whose effect, if any, comes at ``point``."""
    before, kind = pick([0, 1, 1, 2, 5]), pick([0, 1, 2, 3, 0, 1, 3])
    one = history.begin(f"c{pick([1, 2, 3])}", list(Kind)[kind], "k", point - before)
    one.ended = one.answered = point + pick([0, 0, 1, 2, 5])
    if one.kind in (Kind.PUT, Kind.CAS):
        one.value = VALUES[pick([0, 1])]
        one.ttl = [None, None, 2.0, 6.0][pick([0, 1, 2, 3])]
    if one.kind is Kind.CAS:
        one.expected = [None, *VALUES][pick([0, 1, 2])]
    elif one.kind is not Kind.GET:
        one.expect = [None, None, 0, 1, 2, 3][pick([0, 1, 2, 3, 4, 5])]
    return one


class Real:
    """A register as a store has it: a counter of mutations, and a clock that may go slower than the fastest."""

    def __init__(self, pick: Pick[int]) -> None:
        self._pick = pick
        self._value: str | None = None
        self._version = 0
        self._counter = 0
        self._expires = math.inf

    def apply(self, one: Operation, point: float) -> None:
        """``one`` takes effect, and its answer is noted."""
        if self._expires <= point and self._pick([0, 1, 1]):
            self._gone()
        if one.kind is Kind.GET:
            one.found, one.version = self._value, self._version
        elif one.kind is Kind.CAS:
            one.done = self._value == one.expected
            if not one.done and self._pick([0, 0, 1]):
                one.version = self._version
        else:
            one.done = one.expect in (None, self._version)
            one.version = None if one.done else self._version
            if one.kind is Kind.DELETE and one.done:
                one.done = self._value is not None
        if one.done and one.kind is Kind.DELETE:
            self._counter += 1
            self._gone()
        elif one.done:
            self._write(one, point)

    def _write(self, one: Operation, point: float) -> None:
        self._value = one.value
        self._counter = self._version = self._counter + self._pick([1, 1, 2])
        self._expires = math.inf
        if one.ttl is not None:
            stamp = max(one.began, point - self._pick([0, 1, 2]))
            self._expires = stamp + one.ttl / (FASTEST if self._pick([0, 1]) else 1.0)
        if one.kind is Kind.PUT or self._pick([0, 0, 1]):
            one.version = self._version

    def _gone(self) -> None:
        self._value, self._version, self._expires = None, 0, math.inf


def real_history(pick: Pick[int]) -> list[Operation]:
    """What clients of a real register may have seen, some replies lost and some operations refused."""
    history, real, point = History(), Real(pick), 0.0
    fates = [Outcome.OK, Outcome.UNKNOWN, Outcome.REFUSED, Outcome.OPEN]
    odds = [[0, 0, 0, 0, 0, 0, 1, 2, 3], [0, 1, 0, 1, 3]][pick([0, 1])]
    for _ in range(pick(range(2, MOST + 1))):
        point += pick([0, 1, 1, 2])
        one = asked(pick, history, point)
        one.outcome = fates[pick(odds)]
        if one.outcome is Outcome.OK:
            real.apply(one, point)
        elif one.outcome is not Outcome.REFUSED:
            if pick([0, 1, 1]):
                real.apply(one, point)
            one.done, one.found, one.version, one.ended = False, None, None, OPEN_END
    return history.operations


def answer_anything(pick: Pick[int], one: Operation) -> None:
    """Some answer of the right form, true or not."""
    version = pick([0, 1, 2, 3, 4])
    one.done, one.found, one.version = False, None, None
    if one.kind is Kind.GET:
        one.version = version
        one.found = VALUES[pick([0, 1])] if version else None
        return
    one.done = bool(pick([0, 1, 1]))
    if one.kind is Kind.PUT:
        one.done = one.done or one.expect is None
        one.version = max(version, 1) if one.done else version
    elif one.kind is Kind.DELETE and not one.done and one.expect is not None:
        one.version = [version, None][pick([0, 0, 1])]
    elif one.kind is Kind.CAS:
        one.version = [None, max(version, 1) if one.done else version][pick([0, 0, 1])]


def doubtful_history(pick: Pick[int]) -> list[Operation]:
    """What may be true or not: one or all answers are replaced, or one operation is moved, or another fate is told."""
    operations = real_history(pick)
    known = [one for one in operations if one.outcome is Outcome.OK]
    if not known:
        return operations
    one, change = known[pick(range(len(known)))], pick([0, 0, 0, 1, 2, 3, 4, 5])
    if change == 0:
        answer_anything(pick, one)
    elif change == 1:
        for each in known:
            answer_anything(pick, each)
    elif change == 2:
        one.outcome = Outcome.REFUSED
    elif change == 3:
        moved = pick([-3, -1, 1, 3])
        one.began, one.ended = one.began + moved, one.ended + moved
    elif change == 4:
        one.began = one.ended = [one.began, one.ended][pick([0, 1])]
    elif one.version:
        one.version += pick([-1, 1])
    return operations


# -- brute forces


def orders(states: frozenset[S], step: Callable[[S, Operation], Iterable[S]], left: Sequence[Operation]) -> bool:
    """Whether some order of all known operations and some open ones is possible from one of ``states``."""
    if all(one.outcome is not Outcome.OK for one in left):
        return True
    for one in left:
        if any(other.ended < one.began for other in left):
            continue
        after = frozenset(changed for state in states for changed in step(state, one))
        if after and orders(after, step, [other for other in left if other is not one]):
            return True
    return False


def taking_part(operations: Sequence[Operation]) -> list[Operation]:
    return [
        one
        for one in operations
        if one.outcome is Outcome.OK or (one.write and one.outcome in (Outcome.UNKNOWN, Outcome.OPEN))
    ]


class Guess(NamedTuple):
    """A register at one moment, nothing left open."""

    value: str | None = None
    version: int = 0
    counter: int = 0
    expires: float = math.inf
    now: float = -math.inf


def guesser(operations: Sequence[Operation]) -> Callable[[Guess, Operation], Iterable[Guess]]:
    """Steps from guess to guess. Versions above all that were told need no more room than one for each write."""
    top = max([one.version or 0 for one in operations] + [one.expect or 0 for one in operations]) + len(operations)

    def step(before: Guess, one: Operation) -> Iterable[Guess]:
        here = before._replace(now=max(before.now, one.began))
        views = [here]
        if here.expires < math.inf:
            views.append(Guess(None, 0, here.counter, math.inf, max(here.now, here.expires)))
        return [after for view in views if view.now <= one.ended for after in effects(view, one)]

    def effects(view: Guess, one: Operation) -> Iterable[Guess]:
        known = one.outcome is Outcome.OK
        if one.kind is Kind.GET:
            return [view] if (view.value, view.version) == (one.found, one.version) else []
        held = view.value == one.expected if one.kind is Kind.CAS else one.expect in (None, view.version)
        changes = held and (one.kind is not Kind.DELETE or view.value is not None)
        if known and changes != one.done:
            return []
        if not changes:
            # A failed condition tells the version in the way; of an open write, this is as if it never took effect.
            told = None if held else view.version
            silent = one.kind is Kind.CAS and one.version is None
            return [view] if known and (silent or told == one.version) else []
        versions = range(view.counter + 1, top + 1)
        if one.kind is Kind.DELETE:
            return [Guess(None, 0, version, math.inf, view.now) for version in versions]
        expires = math.inf if one.ttl is None else one.began + one.ttl / FASTEST
        return [
            Guess(one.value, version, version, expires, view.now)
            for version in versions
            if one.version in (None, version)
        ]

    return step


# -- verdicts


def explains(operations: Sequence[Operation], finding: Finding) -> bool:
    """Whether the order found holds all known operations, each once and none too late, and leads to the state found."""
    by_number = {one.number: one for one in operations}
    order = [by_number[number] for number in finding.order]
    known = {one.number for one in operations if one.outcome is Outcome.OK}
    late = any(b.ended < a.began for place, a in enumerate(order) for b in order[place + 1 :])
    states, model = {EMPTY}, Register(FASTEST)
    for one in order:
        states = {after for state in states for after in model.step(state, one)}
    once = len(set(finding.order)) == len(order) and known <= set(finding.order)
    return once and not late and all(one in taking_part(operations) for one in order) and finding.state in states


def judge(operations: list[Operation]) -> Verdict:
    """The checker's verdict, after both brute forces have agreed with it."""
    asked_for = [replace(one) for one in operations]
    finding = check(operations, Register(FASTEST))
    assert operations == asked_for
    told = "\n".join(one.describe() for one in operations)
    left = taking_part(operations)
    possible = orders(frozenset([EMPTY]), Register(FASTEST).step, left)
    assert (finding.verdict is Verdict.LINEARIZABLE) is possible, f"search: {finding.verdict}\n{told}"
    guessed = orders(frozenset([Guess()]), guesser(operations), left)
    assert guessed is possible, f"model: {possible}, all guesses: {guessed}\n{told}"
    if possible:
        assert explains(operations, finding), f"{finding.order}\n{told}"
    else:
        assert finding.verdict is Verdict.VIOLATION
        assert finding.stuck in left
        assert finding.stuck.number not in finding.order
    return finding.verdict


@st.composite
def histories(draw: st.DrawFn, make: Callable[[Pick[int]], list[Operation]]) -> list[Operation]:
    return make(lambda options: draw(st.sampled_from(options)))


SETTINGS = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])


@SETTINGS
@given(histories(real_history))
def test_what_a_real_register_answers_is_linearizable(operations: list[Operation]) -> None:
    assert judge(operations) is Verdict.LINEARIZABLE


@SETTINGS
@given(histories(doubtful_history))
def test_any_history_gets_the_verdict_of_brute_force(operations: list[Operation]) -> None:
    event(judge(operations))


def test_thousands_of_random_histories_get_the_verdict_of_brute_force() -> None:
    """Many more than Hypothesis has time for; what it finds, the tests above make small."""
    for seed in range(10_000):
        rng = random.Random(seed)
        assert judge(real_history(rng.choice)) is Verdict.LINEARIZABLE
        judge(doubtful_history(rng.choice))
