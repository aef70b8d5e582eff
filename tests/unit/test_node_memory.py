"""A memory that is nearly full is noticed, told and clears with hysteresis; what was freed is given back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest

from raftkv.clock import Clock
from raftkv.node.memory import Memory
from raftkv.node.room import Full, Room
from raftkv.node.system_memory import SystemMemory, _cgroup_limits
from raftkv.raft import RaftGroup

_MIB = 1024 * 1024


class Process:
    def __init__(self) -> None:
        self.time = 0.0
        self.taken = 0
        self.kept = 0
        """Of what is taken: freed, and not given back."""
        self.released = 0
        self.takes = 0.0

    def now(self) -> float:
        return self.time

    def total(self) -> int:
        return 1000

    def used(self) -> int:
        return self.taken

    def release(self) -> None:
        self.released += 1
        self.time += self.takes
        self.taken -= self.kept
        self.kept = 0


def _memory(limit: int | None = None) -> tuple[Process, Memory]:
    process = Process()
    return process, Memory(process, cast(Clock, process), limit)


def test_full_from_the_limit_on_and_free_again_below_nine_tenths_of_it() -> None:
    process, memory = _memory()
    assert memory.limit == 500
    for taken, full in [(499, False), (500, True), (499, True), (450, True), (449, False), (499, False), (501, True)]:
        process.taken = taken
        memory.look()
        assert (memory.full, memory.used) == (full, taken), taken
    (problem,) = memory.problems()
    assert (problem.kind, problem.node, problem.group) == ("memory", None, None)
    assert "501" in problem.text
    assert "500" in problem.text


def test_the_limit_may_be_given_and_changed_and_may_be_none() -> None:
    process, memory = _memory(0)
    process.taken = 10**9
    memory.look()
    assert not memory.full
    assert not list(memory.problems())
    memory.configure(10**9)
    memory.look()
    assert memory.full
    memory.configure(2 * 10**9)
    memory.look()
    assert not memory.full


def test_an_unknown_memory_is_never_full() -> None:
    process, memory = _memory(10)
    process.taken = 0
    memory.look()
    assert not memory.full


def test_what_was_freed_is_given_back_when_the_process_has_grown_and_every_few_seconds() -> None:
    process, memory = _memory(0)
    process.taken = 50 * _MIB
    memory.look()
    assert memory.used == process.taken, "too little to be worth it"
    process.taken, process.kept = 200 * _MIB, 50 * _MIB
    memory.look()
    assert (process.released, memory.used) == (1, 150 * _MIB)
    process.taken = 160 * _MIB
    memory.look()
    assert process.released == 1
    process.taken = 170 * _MIB
    memory.look()
    assert process.released == 2
    process.kept = 70 * _MIB
    process.time += 5.0
    memory.look()
    assert (process.released, memory.used) == (3, 100 * _MIB)


def test_giving_back_takes_a_hundredth_of_the_time_at_most() -> None:
    process, memory = _memory(0)
    process.takes = 0.1
    for taken in (200, 400):
        process.taken = taken * _MIB
        memory.look()
    assert process.released == 1
    process.time += 10.0
    memory.look()
    assert process.released == 2


class Group:
    voters = (1, 2, 3)

    def answers(self, _: int) -> bool:
        return True


class Silent(Group):
    def answers(self, _: int) -> bool:
        return False


def test_one_full_memory_among_the_voters_is_enough_and_is_named() -> None:
    """A leader judges for all replicas: the node would be ended, and again after each start."""
    told: list[tuple[int, list[Any]]] = []
    room = Room(1, lambda: [2, 3, 4], lambda node, message: told.append((node, message)))
    group = cast(RaftGroup, Group())
    room.hear(4, Full(memory=True))
    assert room.refusal(group) == ""
    room.hear(2, Full(memory=True))
    assert room.refusal(group) == "the memory of node 2 is nearly full; reads and deletes go on"
    room.look(Full(memory=True))
    assert told == [(node, ["room", False, True]) for node in (2, 3, 4)]
    assert "node 1, 2" in room.refusal(group)
    room.look(Full())
    room.hear(2, Full())
    assert room.refusal(cast(RaftGroup, Silent())) == ""
    room.hear(2, Full(disk=True))
    assert room.refusal(group) == ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_limits_of_all_cgroups_around_the_process_count(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    assert list(_cgroup_limits(own, root)) == []
    _write(own, "0::/system/raftkv\n")
    assert list(_cgroup_limits(own, root)) == []
    _write(root / "system" / "raftkv" / "memory.max", "max\n")
    _write(root / "system" / "memory.max", "2000\n")
    _write(root / "memory.max", "3000\n")
    assert sorted(_cgroup_limits(own, root)) == [2000, 3000]


def test_cgroups_of_version_1_and_those_of_a_container_are_found(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    _write(own, "12:cpu,cpuacct:/docker/1\n9:memory:/docker/1\n1:name=systemd:/docker/1\n")
    _write(root / "memory" / "memory.limit_in_bytes", "4000\n")
    assert list(_cgroup_limits(own, root)) == [4000]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_this_process_is_known_and_given_back() -> None:
    memory = SystemMemory()
    before = memory.used()
    block = bytearray(64 * _MIB)
    block[::4096] = b"x" * len(block[::4096])
    assert memory.used() >= before + 60 * _MIB
    assert memory.total() > memory.used()
    del block
    memory.release()
    assert memory.used() < before + 60 * _MIB
