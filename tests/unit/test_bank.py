"""Guarantee: whatever clients and answers are lost, a bank on a good store keeps its money; a bad store is accused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from typing import cast

import pytest

from faults.check import bank
from faults.check.bank import Account
from faults.check.history import History, Kind, Operation, Outcome
from faults.check.linearizability import Verdict, check
from faults.check.problem import Breach
from faults.check.register import Register
from faults.sim.loop import SimLoop, simulate
from faults.workloads.kinds import Bank
from faults.workloads.recorder import Recorder
from raftkv import AsyncClient
from raftkv.client.types import CasResult, Record
from raftkv.errors import DeadlineExceeded, Unavailable

FIRST, SECOND, *_ = bank.keys(0)


class Store:
    """Stands for AsyncClient: each call takes time, some are refused, and some answers are lost.

    What it does wrong is for heirs to say.
    """

    def __init__(self, seed: int, trouble: float) -> None:
        self.rng = random.Random(seed)
        self.records: dict[str, Record] = {}
        self.versions = 0
        self._trouble = trouble

    async def get(self, key: str, *, consistency: str, timeout: float | None = None) -> Record | None:
        await self._way()
        found = self.read(key)
        await self._way()
        return found

    async def scan(self, *, prefix: str) -> AsyncGenerator[Record, None]:
        await self._way()
        found = await self.page(prefix)
        await self._way()
        for record in found:
            yield record

    async def cas(self, key: str, expected: str | None, value: str, *, ttl: float | None) -> CasResult:
        await self._way()
        chance = self.rng.random()
        if chance < self._trouble:
            raise Unavailable("nobody leads")
        done = chance > 2 * self._trouble and self.swap(key, expected, value)
        there = self.records.get(key)
        if chance < 3 * self._trouble:
            raise DeadlineExceeded("the answer was lost")
        await self._way()
        return CasResult(done, 0 if there is None else there.version)

    async def _way(self) -> None:
        await asyncio.sleep(self.rng.expovariate(500.0))

    def read(self, key: str) -> Record | None:
        return self.records.get(key)

    async def page(self, prefix: str) -> list[Record]:
        return [record for key, record in sorted(self.records.items()) if key.startswith(prefix)]

    def swap(self, key: str, expected: str | None, value: str) -> bool:
        was = self.records.get(key)
        if (None if was is None else was.value.decode()) != expected:
            return False
        self.write(key, value)
        return True

    def write(self, key: str, value: str) -> None:
        self.versions += 1
        self.records[key] = Record(key.encode(), value.encode(), self.versions)


class Forgetful(Store):
    """Acknowledges some writes that never happen."""

    def write(self, key: str, value: str) -> None:
        if self.rng.random() > 0.02:
            super().write(key, value)


class Careless(Store):
    """Writes without looking: the last one wins."""

    def swap(self, key: str, expected: str | None, value: str) -> bool:
        self.write(key, value)
        return True


class Repeating(Store):
    """Executes some writes a second time and answers with what came of that."""

    def swap(self, key: str, expected: str | None, value: str) -> bool:
        done = super().swap(key, expected, value)
        return super().swap(key, expected, value) if self.rng.random() < 0.05 else done


class Torn(Store):
    """Its scans are of no one moment."""

    async def page(self, prefix: str) -> list[Record]:
        found = []
        for record in await super().page(prefix):
            there = self.records[record.key.decode()]
            found.append(there)
            await self._way()
        return found


class Restoring(Store):
    """All of a sudden it is what it was a while ago, as if a snapshot without its log had been loaded."""

    def write(self, key: str, value: str) -> None:
        super().write(key, value)
        if self.versions == 300:
            self._kept = dict(self.records)
        if self.versions == 400:
            self.records = dict(self._kept)


def work(store: Store, clients: int = 6, steps: int = 120) -> History:
    """What that many clients come to who work at the same time."""
    history = History()

    async def one(loop: SimLoop, workload: Bank, name: str) -> None:
        kv = Recorder(cast(AsyncClient, store), name, history, loop.time)
        rng = random.Random(name)
        for _ in range(steps):
            await workload.step(kv, rng)

    async def main(loop: SimLoop) -> None:
        workload = Bank()
        await asyncio.gather(*(one(loop, workload, f"c{number}") for number in range(clients)))

    simulate(main)
    return history


def broken(history: History) -> list[str]:
    """Keys whose own history cannot be explained."""
    return [key for key, one in history.by_key() if check(one, Register()).verdict is not Verdict.LINEARIZABLE]


@pytest.mark.parametrize("trouble", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_a_good_store_is_not_accused_whatever_answers_are_lost(seed: int, trouble: float) -> None:
    store = Store(seed, trouble)
    history = work(store)
    assert Bank().problems(history, store.records) == []
    assert broken(history) == []
    accounts = {key: Account.read(record.value.decode()) for key, record in store.records.items()}
    assert sum(account.sent for account in accounts.values()) > 60
    assert sum(len(account.got) for account in accounts.values()) > 20
    assert len(list(bank._looks(history.operations, bank._banks(history.operations)))) > 60
    assert (history.count(Outcome.UNKNOWN) > 0) is (trouble > 0)


@pytest.mark.parametrize(
    ("bad", "breach", "text"),
    [
        (Forgetful, Breach.LOST, "lost|is gone|have number"),
        (Careless, Breach.LOST, "lost|is gone|have number"),
        (Repeating, Breach.DUPLICATE, "happened, then its condition failed"),
        (Torn, Breach.OTHER, "a scan shows"),
        (Restoring, Breach.LOST, "lost|is gone"),
    ],
)
def test_a_bad_store_is_accused(bad: Callable[[int, float], Store], breach: Breach, text: str) -> None:
    store = bad(1, 0.01)
    found = [problem for problem in Bank().problems(work(store), store.records) if problem.breach is breach]
    assert any(part in problem.text for problem in found for part in text.split("|")), found


def test_a_torn_scan_is_seen_by_the_sum_only() -> None:
    """Each account's own history is fine: one more check is worth having."""
    store = Torn(2, 0.0)
    history = work(store)
    found = Bank().problems(history, store.records)
    assert found
    assert all("a scan shows" in problem.text for problem in found)


# -- by hand


class Past:
    """Transfers of an account to another, one step after the other."""

    def __init__(self) -> None:
        self.history = History()
        self.last: dict[str, Record] = {}
        self.accounts = {key: Account(by="opening") for key in (FIRST, SECOND)}

    def step(self, key: str, after: Account, outcome: Outcome = Outcome.OK, *, done: bool = True) -> Operation:
        before = self.accounts[key]
        one = self.history.begin("c1", Kind.CAS, key, 2.0 * len(self.history.operations))
        one.expected, one.value, one.outcome, one.done = (
            before.text,
            after.text,
            outcome,
            done and outcome is Outcome.OK,
        )
        self.accounts[key] = after
        return one

    def transfer(self, amount: int = 10, outcome: Outcome = Outcome.OK) -> tuple[Operation, Operation, Operation]:
        by = f"c1-{len(self.history.operations)}"
        sent = self.accounts[FIRST].debited(by, SECOND, amount)
        debit = self.step(FIRST, sent, outcome)
        credit = self.step(SECOND, self.accounts[SECOND].credited(by, FIRST, sent.sent, amount), outcome)
        return debit, credit, self.step(FIRST, sent.cleared(by + "c"), outcome)

    def problems(self, **accounts: Account) -> list[tuple[Breach, str]]:
        """With these accounts, by a0 and a1, in the place of those that should be there."""
        there = {**self.accounts, **{key.replace("a", "{bank0}a"): one for key, one in accounts.items()}}
        last = {key: Record(key.encode(), one.text.encode(), 1) for key, one in there.items()}
        return [(problem.breach, problem.text) for problem in bank.audit(self.history, last)]


@pytest.fixture
def past() -> Past:
    return Past()


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.UNKNOWN, Outcome.OPEN])
def test_transfers_that_happened_once_are_no_problem(past: Past, outcome: Outcome) -> None:
    past.transfer(outcome=outcome)
    past.transfer(outcome=outcome)
    assert past.accounts[SECOND].balance == 120
    assert past.problems() == []
    assert ([] if outcome is Outcome.OK else past.problems(a0=Account(by="o"), a1=Account(by="o"))) == []


def test_a_transfer_on_the_way_is_part_of_the_sum(past: Past) -> None:
    past.step(FIRST, past.accounts[FIRST].debited("c1-1", SECOND, 30))
    assert past.problems() == []
    past.step(SECOND, past.accounts[SECOND].credited("c1-2", FIRST, 1, 30))
    assert past.problems() == []


def test_an_acknowledged_transfer_that_is_gone_is_lost(past: Past) -> None:
    past.transfer()
    kept = dict(past.accounts)
    debit, credit, _ = past.transfer()
    assert past.problems(a0=kept[FIRST], a1=kept[SECOND]) == [
        (Breach.LOST, f"acknowledged transfer lost, 1 are left: {debit.describe()}"),
        (Breach.LOST, f"arrived, and is gone: {credit.describe()}"),
    ]
    assert past.problems(a1=kept[SECOND]) == [
        (Breach.OTHER, "bank 0 holds 490 in the end, not 500"),
        (Breach.LOST, f"arrived, and is gone: {credit.describe()}"),
    ]


def test_two_acknowledged_transfers_of_one_number_are_a_lost_update(past: Past) -> None:
    before = past.accounts[FIRST]
    past.step(FIRST, before.debited("c1-1", SECOND, 30))
    past.accounts[FIRST] = before
    past.step(FIRST, before.debited("c2-1", SECOND, 20))
    assert past.problems() == [(Breach.LOST, f"2 acknowledged transfers of {FIRST} have number 1")]


def test_a_transfer_that_arrived_twice_is_a_duplicate(past: Past) -> None:
    past.transfer()
    twice = Account(by="x", balance=past.accounts[SECOND].balance)
    past.accounts[SECOND] = twice
    past.step(SECOND, twice.credited("c2-1", FIRST, 1, 10))
    assert past.problems() == [
        (Breach.OTHER, "bank 0 holds 510 in the end, not 500"),
        (Breach.DUPLICATE, f"transfer 1 of {FIRST} arrived 2 times"),
    ]


def test_a_refused_transfer_must_not_happen(past: Past) -> None:
    past.step(FIRST, past.accounts[FIRST].debited("c1-1", SECOND, 30), Outcome.REFUSED)
    text = f"transfer 1 of {FIRST} happened, though all who tried were refused"
    assert past.problems() == [(Breach.OTHER, text)]
    assert past.problems(a0=Account(by="o")) == []


def test_debts_are_named(past: Past) -> None:
    past.transfer(amount=130)
    assert past.problems() == [(Breach.OTHER, f"{FIRST} has -30 in the end")]


def test_keys_of_others_are_none_of_its_business(past: Past) -> None:
    for key in ("{bank", "{bankrupt}a0", "{bank0}", "{bank0}b1", "{bank0}a0x"):
        past.history.begin("c1", Kind.PUT, key, 1.0).value = "x"
    assert bank.audit(past.history, {"{bank": Record(b"{bank", b"\xff", 1)}) == []


def test_what_is_no_account_is_named(past: Past) -> None:
    past.transfer()
    for text in ("", "7", '{"by":"x","balance":"many"}'):
        (problem,) = bank.audit(past.history, {FIRST: Record(FIRST.encode(), text.encode(), 1)})
        assert problem.text == f"{FIRST} is not an account: {text!r}"
