"""What clients do to a store while faults come: written once, for simulated and for real clusters.

All of it goes through a :class:`faults.workloads.recorder.Recorder`, so every key's operations are checked for
linearizability, versions and times to live included. A workload adds what only it can know.
"""

from __future__ import annotations

import asyncio
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final

from faults.check import bank, watched
from faults.check.bank import Account
from faults.check.history import History, Kind, Operation, Outcome
from faults.check.numbered import Asked
from faults.check.problem import Breach, CheckProblem
from faults.check.watched import Seen
from faults.workloads.recorder import Recorder
from raftkv.client.cursors import Cursor
from raftkv.client.types import Record

_LONGEST_TTL: Final = 2.5
_SCANNED: Final = 24
"""Keys of scans at a time."""

_MAYBE: Final = (Outcome.UNKNOWN, Outcome.OPEN)


class Workload(ABC):
    """The keys of one kind of work. ``step`` is called again and again by each client that does this work."""

    name: ClassVar[str]
    prefix: ClassVar[str]
    """Of its keys, and of nobody else's."""
    looks_at_end: ClassVar[bool] = True
    """Whether :meth:`problems` needs what is there at the end."""
    settle: ClassVar[float] = 0.0
    """Seconds to wait before the last look."""

    era: int | None = None
    """Long runs count it up: the work goes on with fresh keys, so that no key's history becomes too long to check."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._seen: dict[tuple[str, str], Operation] = {}

    @abstractmethod
    async def step(self, kv: Recorder, rng: random.Random) -> None:
        """One operation or a few that belong together."""

    def problems(self, history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
        """What is wrong besides single keys' histories; ``last``: all records that were there at the end."""
        return []

    def _key(self, name: str) -> str:
        return name if self.era is None else f"{name}.{self.era}"

    def _value(self, kv: Recorder, rng: random.Random) -> str:
        """A value that nobody else writes, mostly short."""
        number = self._numbers[kv.name] = self._numbers.get(kv.name, 0) + 1
        filler = "." * int(rng.paretovariate(0.8)) if rng.random() < 0.5 else ""
        return f"{kv.name}-{self.name}-{number}{filler[:600]}"

    def _last(self, kv: Recorder, key: str) -> tuple[str | None, int]:
        """Value and version of ``key`` as this client knew it last."""
        seen = self._seen.get((kv.name, key))
        if seen is None:
            return None, 0
        return (seen.found, seen.version or 0) if seen.kind is Kind.GET else (seen.value, seen.version or 0)

    def _learn(self, operation: Operation) -> Operation:
        """Remember what a successful get or put showed."""
        told = operation.kind is Kind.GET or (operation.kind is Kind.PUT and operation.done)
        if told and operation.outcome is Outcome.OK and not operation.stale:
            self._seen[operation.client, operation.key] = operation
        return operation


class Registers(Workload):
    """Everything the API offers, by all clients on the same few keys."""

    name = "registers"
    prefix = "r"
    looks_at_end = False

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        key = self._key(f"r{rng.randrange(6)}")
        value, version = self._last(kv, key)
        chance = rng.random()
        if chance < 0.34:
            self._learn(await kv.get(key))
        elif chance < 0.42:
            self._learn(await kv.get(key, "quorum"))
        elif chance < 0.46:
            await kv.get(key, "stale")
        elif chance < 0.50:
            self._learn(await kv.scan(key))
        elif chance < 0.68:
            self._learn(await kv.put(key, self._value(kv, rng)))
        elif chance < 0.80:
            self._learn(await kv.put(key, self._value(kv, rng), expect=version))
        elif chance < 0.91:
            await kv.cas(key, value, self._value(kv, rng))
        else:
            await kv.delete(key, expect=version if version and rng.random() < 0.5 else None)


class UniqueSet(Workload):
    """Elements that are added once each: no acknowledged one is lost, none is added twice, no refused one is there."""

    name = "unique-set"
    prefix = "s-"

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        element = self._value(kv, rng)
        await kv.put(f"s-{element[:40]}", element, expect=0)

    def problems(self, history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
        found = []
        for one in history.operations:
            if not one.key.startswith(self.prefix) or not one.write:
                continue
            there, said = one.key in last, one.describe()
            if one.outcome is Outcome.OK and not one.done:
                found.append(CheckProblem(Breach.DUPLICATE, f"element added twice: {said}", one.key))
            elif one.outcome is Outcome.OK and not there:
                found.append(CheckProblem(Breach.LOST, f"acknowledged element lost: {said}", one.key))
            elif one.outcome is Outcome.REFUSED and there:
                found.append(CheckProblem(Breach.OTHER, f"element is there although it was refused: {said}", one.key))
        return found


class Counter(Workload):
    """Increments by compare-and-swap: each counts once."""

    name = "counter"
    prefix = "n"
    _keys = ("n0", "n1")

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        key = self._key(rng.choice(self._keys))
        seen = await kv.get(key)
        if seen.outcome is Outcome.OK:
            await kv.cas(key, seen.found, str(int(seen.found or "0") + 1))

    def problems(self, history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
        found = []
        counted = {one.key for one in history.operations if one.key.split(".")[0] in self._keys}
        for key in sorted(counted):
            added = [one for one in history.operations if one.key == key and one.write]
            sure = sum(one.outcome is Outcome.OK and one.done for one in added)
            maybe = sum(one.outcome in _MAYBE for one in added)
            value = last[key].value if key in last else b"0"
            if not value.isdigit():
                found.append(CheckProblem(Breach.OTHER, f"{key} is not a number: {value!r}", key))
                continue
            count = int(value)
            text = f"{key} counts {count}, but {sure} increments were acknowledged and {maybe} are unknown"
            if count < sure:
                found.append(CheckProblem(Breach.LOST, text, key, sure - count))
            elif count > sure + maybe:
                found.append(CheckProblem(Breach.DUPLICATE, text, key, count - sure - maybe))
        return found


class ReadBack(Workload):
    """What a demonstration would do: set a key, and see whether it is there a little later."""

    name = "read-back"
    prefix = "b-"
    looks_at_end = False

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        value = self._value(kv, rng)
        written = await kv.put(f"b-{value[:40]}", value)
        if written.outcome is Outcome.OK:
            await asyncio.sleep(rng.uniform(0.0, 2.0))
            await kv.get(written.key)


class Retry(Workload):
    """Each client alone on its keys, so that it knows what every answer must be; meant for lost replies."""

    name = "retry"
    prefix = "o-"
    looks_at_end = False

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        key = self._key(f"o-{kv.name}-{rng.randrange(2)}")
        seen = await kv.get(key)
        if seen.outcome is not Outcome.OK:
            return
        value, version = seen.found, seen.version or 0
        for _ in range(rng.randint(1, 4)):
            written = await kv.put(key, self._value(kv, rng), expect=version)
            if written.outcome is not Outcome.OK or not written.done:
                return
            value, version = written.value, written.version or 0
        if rng.random() < 0.5:
            swapped = await kv.cas(key, value, self._value(kv, rng))
            if swapped.outcome is not Outcome.OK:
                return
        if rng.random() < 0.4:
            await kv.delete(key)

    def problems(self, history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
        return [
            CheckProblem(self._breach(one), f"nobody else writes this key: {one.describe()}", one.key)
            for one in history.operations
            if one.key.startswith(self.prefix) and one.write and one.outcome is Outcome.OK and not one.done
            if not self._explained(history, one)
        ]

    def _breach(self, failed: Operation) -> Breach:
        """A higher version in its way can only be its own; a lower one is that of a record that should be gone."""
        if failed.version is None or failed.expect is None:
            return Breach.OTHER
        return Breach.DUPLICATE if failed.version > failed.expect else Breach.LOST

    def _explained(self, history: History, failed: Operation) -> bool:
        """Whether an earlier write of the key has an unknown outcome: it may have come in between."""
        earlier = history.operations[: failed.number]
        return any(one.key == failed.key and one.write and one.outcome in _MAYBE for one in earlier)


class Ttl(Workload):
    """Records with a time to live: never gone early, and gone in the end."""

    name = "ttl"
    prefix = "t"
    settle = 2.0 * _LONGEST_TTL

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        key = self._key(f"t{rng.randrange(12)}")
        chance = rng.random()
        if chance < 0.45:
            self._learn(await kv.get(key))
        elif chance < 0.75:
            self._learn(await kv.put(key, self._value(kv, rng), ttl=self._ttl(rng)))
        elif chance < 0.85:
            await kv.cas(key, self._last(kv, key)[0], self._value(kv, rng), ttl=self._ttl(rng))
        elif chance < 0.93:
            await kv.put(key, self._value(kv, rng), ttl=self._ttl(rng), expect=0)
        elif chance < 0.97:
            await kv.delete(key)
        else:
            await asyncio.sleep(rng.uniform(0.0, _LONGEST_TTL))
            await kv.get(key)

    def _ttl(self, rng: random.Random) -> float:
        return round(rng.uniform(0.2, _LONGEST_TTL), 3)

    def problems(self, history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
        return [
            CheckProblem(Breach.OTHER, f"{key} should have expired: {record}", key)
            for key, record in last.items()
            if key.startswith(self.prefix)
        ]


class Scans(Workload):
    """Scans of keys of all slots, which come and go: each is a get of every key in its range at some moment of it, so
    none that stood throughout is missed, and none comes that was not there; the recorder looks at their order."""

    name = "scans"
    prefix = "k"
    looks_at_end = False

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        keys = [self._key(f"k{number:02}") for number in range(_SCANNED)]
        chance = rng.random()
        if chance < 0.4:
            await kv.put(rng.choice(keys), self._value(kv, rng))
        elif chance < 0.6:
            await kv.delete(rng.choice(keys))
        else:
            first, last = sorted(rng.sample(range(_SCANNED), 2)) if rng.random() < 0.5 else (0, _SCANNED - 1)
            await kv.sweep(keys[first : last + 1], reverse=rng.random() < 0.5)


class Bank(Workload):
    """Transfers between accounts, in steps that any client finishes: see :mod:`faults.check.bank`. No money comes or
    goes, also in scans of whole banks, no account is overdrawn, each transfer happens once."""

    name = "bank"
    prefix = bank.PREFIX

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        accounts = bank.keys(rng.randrange(bank.BANKS) + bank.BANKS * (self.era or 0))
        if rng.random() < 0.2:
            await kv.look(accounts)
            return
        source, target = rng.sample(accounts, 2)
        account = await self._open(kv, source)
        if account is not None and account.to is None:
            account = await self._debit(kv, source, account, target, rng.randint(1, 40))
        if account is not None and account.to is not None:
            await self._finish(kv, source, account, account.to)

    async def _open(self, kv: Recorder, key: str) -> Account | None:
        """The account as it is now, None if that is not to be learned."""
        seen = await kv.get(key)
        if seen.outcome is not Outcome.OK:
            return None
        if seen.found is not None:
            return Account.read(seen.found)
        opened = Account(by=self._sign(kv))
        return opened if await self._swap(kv, key, None, opened) else None

    async def _debit(self, kv: Recorder, source: str, account: Account, target: str, amount: int) -> Account | None:
        if amount > account.balance:
            return None
        after = account.debited(self._sign(kv), target, amount)
        return after if await self._swap(kv, source, account, after) else None

    async def _finish(self, kv: Recorder, source: str, account: Account, target: str) -> None:
        there = await self._open(kv, target)
        if there is None:
            return
        if not there.has_got(source, account.sent):
            after = there.credited(self._sign(kv), source, account.sent, account.amount)
            if not await self._swap(kv, target, there, after):
                return
        await self._swap(kv, source, account, account.cleared(self._sign(kv)))

    async def _swap(self, kv: Recorder, key: str, before: Account | None, after: Account) -> bool:
        swapped = await kv.cas(key, None if before is None else before.text, after.text)
        return swapped.outcome is Outcome.OK and swapped.done

    def _sign(self, kv: Recorder) -> str:
        number = self._numbers[kv.name] = self._numbers.get(kv.name, 0) + 1
        return f"{kv.name}-{number}"

    def problems(self, history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
        return bank.audit(history, last)


class Increments(Workload):
    """Counters of the store, by all clients: each increment counts once, and each count is told once."""

    name = "increments"
    prefix = "i"
    looks_at_end = False

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        key = self._key(f"i{rng.randrange(2)}")
        if rng.random() < 0.8:
            await kv.incr(key)
        else:
            await kv.get(key)


class Transactions(Workload):
    """Transactions on the keys of a few slots. Each that writes counts too, so that none can happen twice unseen."""

    name = "transactions"
    prefix = "{x"
    looks_at_end = False

    _READ: ClassVar = [["get", key, None] for key in ("a", "b", "n", "p")]

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, str], str | None] = {}
        """(client, tag) -> the counter as the client knew it last."""

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        tag = f"{{{self._key(f'x{rng.randrange(2)}')}}}"
        chance = rng.random()
        if chance < 0.25:
            done = await kv.transact(tag, Asked([], self._READ, []))
        elif chance < 0.6:
            amount = rng.randint(1, 40)
            checks = [["n", self._counts.get((kv.name, tag))]] if rng.random() < 0.7 else []
            moved = [["incr", "a", -amount], ["incr", "b", amount], ["incr", "n", 1], ["get", "p", None]]
            done = await kv.transact(tag, Asked(checks, moved, [["get", "n", None]]))
        elif chance < 0.8:
            done = await kv.transact(tag, Asked([], [["put", "p", self._value(kv, rng)], ["incr", "n", 1]], []))
        else:
            there = [["put", "p", self._value(kv, rng)], ["incr", "n", 1]]
            gone = [["get", "p", None], ["delete", "p", None], ["incr", "n", 1]]
            done = await kv.transact(tag, Asked([["p", None]], there, gone))
        if done.outcome is Outcome.OK:
            self._learn_count(kv, tag, done)

    def _learn_count(self, kv: Recorder, tag: str, done: Operation) -> None:
        asked = Asked.of(done)
        steps = asked.steps if done.done else asked.otherwise
        for (_, key, _), told in zip(steps, json.loads(done.found or "[]"), strict=True):
            if key == "n":
                self._counts[kv.name, tag] = None if told is None else str(told)


class Watches(Workload):
    """Watches that go on from tokens, and writes to what they watch: each change comes once and in order, and none is
    left out, whatever fails and moves. Two keys are only written to together."""

    name = "watches"
    prefix = "{w"

    _PAIR = ("p", "q")
    _LONGEST = 1.5

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, Seen] = {}
        self._tokens: dict[str, str] = {}
        self._slots: dict[str, int] = {}

    async def step(self, kv: Recorder, rng: random.Random) -> None:
        tag, chance = f"{{{self._key(f'w{rng.randrange(3)}')}}}", rng.random()
        key = f"{tag}{rng.choice('ab')}"
        if chance < 0.15:
            await self._watch(kv, rng.uniform(0.0, self._LONGEST))
        elif chance < 0.3:
            tag = f"{{{self._key('w-pair')}}}"
            value = self._value(kv, rng)
            await kv.transact(tag, Asked([], [["put", name, value] for name in self._PAIR], []))
        elif chance < 0.8:
            await self._note(kv, await kv.put(key, self._value(kv, rng), ttl=0.3 if rng.random() < 0.2 else None))
        else:
            await self._note(kv, await kv.delete(key))

    async def _note(self, kv: Recorder, operation: Operation) -> None:
        if operation.key not in self._slots and operation.outcome is Outcome.OK:
            self._slots[operation.key] = await kv.client.slot_of(operation.key)

    async def _watch(self, kv: Recorder, seconds: float) -> None:
        """Read on where the last watch of this task ended; it begins only once."""
        seen = self._told.setdefault(kv.name, Seen())
        async for event in kv.watch(self.prefix, self._tokens.get(kv.name), seconds):
            cursor = Cursor.of(event.token)
            if kv.name not in self._tokens:
                seen.began = {
                    slot: number for slot in range(cursor.slots) if (number := cursor.number(slot)) is not None
                }
            if event.type != "live":
                value = None if event.value is None else event.value.decode()
                seen.events.append((event.slot, event.version, event.key.decode(), event.type, value, event.more))
            seen.reached = {slot: cursor.number(slot) or 0 for slot in seen.began}
            self._tokens[kv.name] = event.token

    def problems(self, history: History, last: Mapping[str, Record]) -> list[CheckProblem]:
        found = list(watched.problems(self._told, history, self._slots))
        tags = {key[:-1] for seen in self._told.values() for _, _, key, *_ in seen.events if key.startswith("{w-pair")}
        pairs = [(tag + self._PAIR[0], tag + self._PAIR[1]) for tag in sorted(tags)]
        return found + [problem for seen in self._told.values() for problem in watched.whole(pairs, seen)]


MIXED: Final = ("registers", "unique-set", "counter", "retry", "ttl")
"""Those that run side by side, each for some of the clients; seeds of the simulator choose from them."""

WORKLOADS: Final[dict[str, type[Workload]]] = {
    one.name: one
    for one in (Registers, UniqueSet, Counter, Retry, Ttl, ReadBack, Scans, Bank, Increments, Transactions, Watches)
}
