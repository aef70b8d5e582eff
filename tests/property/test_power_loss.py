"""Power loss at every moment: nothing that the log announced as durable is ever lost, and nothing is invented."""

import random
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from faults.sim.disk import PowerLoss, SimDisk
from faults.sim.worker import SimWorker
from raftkv.storage.wal import Wal

FOLDER = "n/wal"
SEGMENT = 1024
GROUPS = (1, 2, 3)


@dataclass(frozen=True)
class Model:
    """What a group's recovered state must be after some record."""

    term: int = 0
    vote: int = 0
    snapshot: int = 0
    entries: tuple[tuple[bytes, int, int], ...] = ()  # after the snapshot
    founders: tuple[int, ...] = ()
    floor: tuple[int, int] = (0, 0)

    @property
    def last(self) -> int:
        return self.snapshot + len(self.entries)


@dataclass
class History:
    """The states of all groups after each record, by LSN; what follows a crash goes on from the state recovered."""

    states: list[dict[int, Model]] = field(default_factory=lambda: [{}])
    announced: int = 0


def step(rng: random.Random, wal: Wal, history: History) -> None:
    """Append one random record."""
    group = rng.choice(GROUPS)
    now = history.states[-1].get(group, Model())
    kind = rng.choice(["entry"] * 8 + ["hard state", "truncate", "snapshot", "install", "group or drop"])
    if kind == "entry":
        # A batch may outgrow a segment.
        data = rng.randbytes(rng.choice((0, 1, 40, 200, 200, 3 * SEGMENT if rng.random() < 0.05 else 100)))
        wal.entry(group, now.last + 1, now.term, data)
        now = replace(now, entries=(*now.entries, (data, now.last + 1, now.term)))
    elif kind == "hard state":
        now = replace(now, term=now.term + 1, vote=rng.randrange(4))
        wal.hard_state(group, now.term, now.vote)
    elif kind == "truncate" and now.entries:
        first = rng.randint(now.snapshot + 1, now.last)
        wal.truncate(group, first)
        now = replace(now, entries=now.entries[: first - now.snapshot - 1])
    elif kind == "snapshot" and now.entries:
        index = rng.randint(now.snapshot + 1, now.last)
        wal.snapshot(group, index, now.entries[index - now.snapshot - 1][2])
        now = replace(now, snapshot=index, entries=now.entries[index - now.snapshot :])
    elif kind == "install" and rng.random() < 0.2:
        index = now.last + rng.randint(1, 5)
        wal.snapshot(group, index, now.term)
        now = replace(now, snapshot=index, entries=())
    elif kind == "group or drop" and not now.founders:
        now = replace(now, founders=(1, group))
        wal.group(group, now.founders)
    elif kind == "group or drop":
        now = Model(now.term, now.vote, floor=max(now.floor, (now.term, now.last)))
        wal.drop(group, now.term, history.states[-1][group].last)
    else:
        return
    history.states.append({**history.states[-1], group: now})
    assert wal.appended == len(history.states) - 1


def recovered(wal: Wal) -> dict[int, Model]:
    return {
        group: Model(state.term, state.vote, state.snapshot_index, tuple(state.entries), state.founders, state.floor)
        for group, state in wal.recovered.items()
    }


def start(disk: SimDisk, history: History, inline: bool = True) -> tuple[Wal, SimWorker, SimWorker]:
    """Start and check: what is found is the state after some record, at or after the last one announced."""
    worker, background = SimWorker(inline), SimWorker(inline)

    def fail(problem: BaseException) -> None:
        raise AssertionError(f"the log failed: {problem}")

    wal = Wal.open(disk.mount(), worker, FOLDER, fail, background=background, identity=b"me", segment_bytes=SEGMENT)
    assert history.announced <= wal.durable < len(history.states)
    assert recovered(wal) == history.states[wal.durable]
    del history.states[wal.durable + 1 :]
    history.announced = wal.durable

    def announced(lsn: int) -> None:
        assert history.announced < lsn <= wal.appended
        history.announced = lsn

    wal.on_durable.append(announced)
    return wal, worker, background


def scenario(seed: int, disk: SimDisk, history: History, steps: int = 60) -> None:
    """A fixed sequence of appends, flushes and collections for each seed."""
    rng = random.Random(seed)
    wal, _, _ = start(disk, history)
    for _ in range(steps):
        for _ in range(rng.choice((1, 1, 2, 5))):
            step(rng, wal, history)
        wal.flush()
        if rng.random() < 0.2:
            wal.collect()


def test_power_loss_at_every_operation() -> None:
    """For each changing operation of a run (write, sync, create, rename, remove): power fails just there."""
    operations = 0
    while True:
        disk, history = SimDisk(), History()
        disk.power_off_after(operations)
        try:
            scenario(7, disk, history, steps=40)
            break
        except PowerLoss:
            pass
        for fate in range(4):
            twin = disk.copy()
            if fate < 2:
                twin.crash_keeping(0 if fate == 0 else 1 << 30, names=fate == 1)
            else:
                twin.crash(random.Random(operations * 10 + fate))
            after = History(list(history.states), history.announced)
            wal, _, _ = start(twin, after)
            rng = random.Random(operations)
            for _ in range(5):
                step(rng, wal, after)
            wal.flush()
            twin.crash_keeping(0, names=False)
            start(twin, after)
        operations += 1
    assert operations > 100


def test_the_last_batch_torn_at_every_byte() -> None:
    """Every length of the last, unsynced batch survives: it is there whole or not at all, what was announced stays."""
    outcomes = set()
    for steps in (1, 2, 9):
        disk, history = SimDisk(), History()
        scenario(steps, disk, history, steps)
        wal, worker, background = restarted(disk, history)
        rng = random.Random(steps)
        for _ in range(6):
            step(rng, wal, history)
        assert wal.appended > wal.durable
        wal.flush()
        while not worker.waiting:
            background.complete()  # the segment that the batch needs
        disk.power_off_after(1)  # the write is done, the sync is not
        try:
            worker.complete()
        except PowerLoss:
            pass
        for kept in range(disk.unsynced_bytes() + 1):
            twin = disk.copy()
            twin.crash_keeping(kept)
            after = History(list(history.states), history.announced)
            start(twin, after)
            outcomes.add(len(after.states) == len(history.states))
            assert len(after.states) - 1 in (history.announced, wal.appended)
    assert outcomes == {False, True}


def restarted(disk: SimDisk, history: History) -> tuple[Wal, SimWorker, SimWorker]:
    disk.kill()
    return start(disk, history, inline=False)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(seed=st.integers(0, 1 << 32))
def test_many_crashes_in_a_row(seed: int) -> None:
    """Random appends, slow syncs, kills and power losses, again and again on one disk."""
    rng = random.Random(seed)
    disk, history = SimDisk(), History()
    for _ in range(6):
        wal, worker, background = start(disk, history, inline=False)
        for _ in range(rng.randrange(60)):
            action = rng.random()
            if action < 0.5:
                step(rng, wal, history)
            elif action < 0.7:
                wal.flush()
            elif action < 0.75:
                wal.collect()
            elif action < 0.9 and worker.waiting:
                worker.complete()
            elif background.waiting:
                background.complete()
        if rng.random() < 0.3:
            disk.kill()
            continue
        for busy in rng.sample((worker, background), 2):
            busy.begin()
            busy.interrupt(disk, rng)
        disk.crash(rng)
    start(disk, history)
