"""Accounts between which money moves though no operation changes two records: the pure part.

A bank is some accounts whose keys share a hash tag, so they lie in one slot. A transfer is three compare-and-swaps:

1. *debit*: the source's record loses the amount and says that its transfer number n is on the way, to whom, how much;
2. *credit*: the target's record gains the amount and notes n as the last of the source's transfers that arrived;
3. *clear*: the source's record says no more that it is on the way.

An account has one transfer on the way at most, so the last number that arrived tells whether it is there already. No
step can be done twice, so whoever sees a transfer on the way finishes it: the one who began it may be dead, or may not
know what became of a step. At every moment the balances and what is on the way and has not arrived make the sum that
the bank began with, also in a scan of its slot, which shows one moment. Every value names its writer and is written by
nobody else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Final

from msgspec import DecodeError, Struct, json
from msgspec.structs import replace

from faults.check.history import History, Kind, Operation, Outcome
from faults.check.problem import Breach, CheckProblem
from raftkv.client.types import Record

PREFIX: Final = "{bank"
BANKS: Final = 3
_KEY: Final = re.compile(r"\{bank(\d+)\}a\d")
_ACCOUNTS: Final = 5
_OPENING: Final = 100
"""Of each account, whether somebody has opened it yet or not."""

_SUM: Final = _ACCOUNTS * _OPENING


@cache
def keys(bank: int) -> tuple[str, ...]:
    """The accounts of a bank, sorted; BANKS of them are in use at a time."""
    return tuple(f"{PREFIX}{bank}}}a{number}" for number in range(_ACCOUNTS))


class Account(Struct, frozen=True, forbid_unknown_fields=True):
    """``by``: who wrote it. ``sent``: number of its last transfer; ``to`` and ``amount``: of that, while it is on the
    way. ``got``: source -> number of its last transfer that arrived here."""

    by: str
    balance: int = _OPENING
    sent: int = 0
    to: str | None = None
    amount: int = 0
    got: dict[str, int] = {}

    @classmethod
    def read(cls, text: str) -> Account:
        """Raises ValueError."""
        try:
            return _ACCOUNT.decode(text)
        except (DecodeError, UnicodeError, RecursionError) as error:
            raise ValueError(str(error)) from None

    @property
    def text(self) -> str:
        """What is stored; reading and writing it again gives the same."""
        return json.encode(self).decode()

    def debited(self, by: str, to: str, amount: int) -> Account:
        return replace(self, by=by, balance=self.balance - amount, sent=self.sent + 1, to=to, amount=amount)

    def credited(self, by: str, source: str, number: int, amount: int) -> Account:
        got = {**self.got, source: number}
        return replace(self, by=by, balance=self.balance + amount, got=got)

    def cleared(self, by: str) -> Account:
        return replace(self, by=by, to=None, amount=0)

    def has_got(self, source: str, number: int) -> bool:
        """Whether the transfer of that number has arrived."""
        return self.got.get(source, 0) >= number


_ACCOUNT: Final = json.Decoder(Account)
_UNOPENED: Final = Account(by="nobody")


def audit(history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
    """What is wrong with the banks; ``last``: the records that were there at the end."""
    operations = [one for one in history.operations if _KEY.fullmatch(one.key)]
    there = {key: record.value.decode(errors="replace") for key, record in last.items() if _KEY.fullmatch(key)}
    problems = list(_nonsense(operations, there))
    if problems:
        return problems
    final = {key: Account.read(text) for key, text in there.items()}
    problems += _sums(operations, final)
    problems += _overdrawn(operations, final)
    problems += _not_told(operations)
    for key, steps in sorted(_steps(operations).items()):
        problems += _transfers(key, steps, final)
    return problems


def _nonsense(operations: Sequence[Operation], last: Mapping[str, str]) -> Iterator[CheckProblem]:
    texts = {(one.key, text) for one in operations for text in (one.value, one.expected, one.found) if text is not None}
    for key, text in sorted(texts | set(last.items())):
        try:
            Account.read(text)
        except ValueError:
            yield CheckProblem(Breach.OTHER, f"{key} is not an account: {text!r}", key)


# -- the sum, and no debts


def _sums(operations: Sequence[Operation], final: Mapping[str, Account]) -> Iterator[CheckProblem]:
    banks = _banks(operations)
    for bank in banks:
        there = {key: final[key] for key in keys(bank) if key in final}
        if _sum_of(there) != _SUM:
            yield CheckProblem(
                Breach.OTHER, f"bank {bank} holds {_sum_of(there)} in the end, not {_SUM}", keys(bank)[0]
            )
    for first, seen in _looks(operations, banks):
        if _sum_of(seen) != _SUM:
            text = f"a scan shows {_sum_of(seen)} in a bank of {_SUM}: {first.describe()}"
            yield CheckProblem(Breach.OTHER, text, first.key)


def _banks(operations: Sequence[Operation]) -> list[int]:
    """Those that somebody has worked with."""
    found = {_KEY.fullmatch(one.key) for one in operations}
    return sorted({int(key[1]) for key in found if key is not None})


def _sum_of(accounts: Mapping[str, Account]) -> int:
    """Of all balances of a bank and of what is on the way and has not arrived."""
    found = (_ACCOUNTS - len(accounts)) * _OPENING
    for key, account in accounts.items():
        found += account.balance
        if account.to is not None and not accounts.get(account.to, _UNOPENED).has_got(key, account.sent):
            found += account.amount
    return found


def _looks(operations: Sequence[Operation], banks: Sequence[int]) -> Iterator[tuple[Operation, dict[str, Account]]]:
    """What scans saw of whole banks: gets of all accounts that one client began at one moment."""
    reads = [one for one in operations if one.kind is Kind.GET and one.outcome is Outcome.OK and not one.stale]
    whole = {keys(bank) for bank in banks}
    for _, together in groupby(reads, key=lambda one: (one.client, one.began)):
        group = list(together)
        if tuple(one.key for one in group) in whole:
            yield group[0], {one.key: Account.read(one.found) for one in group if one.found is not None}


def _overdrawn(operations: Sequence[Operation], final: Mapping[str, Account]) -> Iterator[CheckProblem]:
    for key, account in final.items():
        if account.balance < 0:
            yield CheckProblem(Breach.OTHER, f"{key} has {account.balance} in the end", key)
    for one in operations:
        if one.found is not None and Account.read(one.found).balance < 0:
            yield CheckProblem(Breach.OTHER, f"below zero: {one.describe()}", one.key)


# -- each transfer once


def _not_told(operations: Sequence[Operation]) -> Iterator[CheckProblem]:
    """Writes that took effect, as somebody saw, though their client was told otherwise."""
    writers = {(one.key, one.value): one for one in operations if one.write and one.outcome is Outcome.OK}
    seen = {(one.key, one.found) for one in operations if one.found is not None}
    for what, one in writers.items():
        if what in seen and not one.done:
            yield CheckProblem(Breach.DUPLICATE, f"happened, then its condition failed: {one.describe()}", one.key)


@dataclass(frozen=True, slots=True)
class _Step:
    """A debit (of the source) or credit (of another account) for the source's transfer of that number."""

    operation: Operation
    number: int
    debit: bool

    @property
    def sure(self) -> bool:
        return self.operation.outcome is Outcome.OK and self.operation.done

    @property
    def maybe(self) -> bool:
        return self.operation.outcome in (Outcome.UNKNOWN, Outcome.OPEN)


def _steps(operations: Sequence[Operation]) -> dict[str, list[_Step]]:
    """The debits and credits of each source."""
    found: dict[str, list[_Step]] = {}
    for one in operations:
        if one.kind is Kind.CAS and one.value is not None and one.expected is not None:
            before, after = Account.read(one.expected), Account.read(one.value)
            if after.sent > before.sent:
                found.setdefault(one.key, []).append(_Step(one, after.sent, debit=True))
            for source, number in after.got.items():
                if not before.has_got(source, number):
                    found.setdefault(source, []).append(_Step(one, number, debit=False))
    return found


def _transfers(key: str, steps: Sequence[_Step], final: Mapping[str, Account]) -> Iterator[CheckProblem]:
    """The transfers of ``key``: they have the numbers from 1 on, each once, and what arrived stays."""
    sent = final.get(key, _UNOPENED).sent
    debits = Counter(step.number for step in steps if step.debit and step.sure)
    credits_ = Counter(step.number for step in steps if not step.debit and step.sure)
    for step in steps:
        one = step.operation
        if step.sure and step.debit and step.number > sent:
            yield CheckProblem(Breach.LOST, f"acknowledged transfer lost, {sent} are left: {one.describe()}", key)
        if step.sure and not step.debit and not final.get(one.key, _UNOPENED).has_got(key, step.number):
            yield CheckProblem(Breach.LOST, f"arrived, and is gone: {one.describe()}", one.key)
    for number, count in sorted(debits.items()):
        if count > 1:
            text = f"{count} acknowledged transfers of {key} have number {number}"
            yield CheckProblem(Breach.LOST, text, key, count - 1)
    for number, count in sorted(credits_.items()):
        if count > 1:
            yield CheckProblem(Breach.DUPLICATE, f"transfer {number} of {key} arrived {count} times", key, count - 1)
    known = {step.number for step in steps if step.debit and (step.sure or step.maybe)}
    for number in sorted(set(range(1, sent + 1)) - known):
        yield CheckProblem(Breach.OTHER, f"transfer {number} of {key} happened, though all who tried were refused", key)
