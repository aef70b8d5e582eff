"""The write-ahead log without room for its next segment: it waits, loses nothing, and goes on by itself."""

from __future__ import annotations

import errno

import pytest

from tests.wal_world import SMALL, Node, command, fill


def fill_up(node: Node) -> int:
    """Write until the log waits for room. Returns the index of the last entry, which waits."""
    index = node.wal.promised(1).last_index
    while node.wal.durable == node.wal.appended:
        index += 1
        fill(node.wal, 1, index, index)
    assert isinstance(node.wal.waiting, OSError)
    assert node.wal.waiting.errno == errno.ENOSPC
    return index


def test_a_full_disk_makes_the_log_wait_and_loses_nothing() -> None:
    """Nothing is announced as durable meanwhile; with room it goes on, without a restart, with all that gathered."""
    node = Node(SMALL)
    node.disk.capacity = node.disk.used()
    index = fill_up(node)
    durable = node.wal.durable
    fill(node.wal, 1, index + 1, index + 30)
    node.wal.hard_state(1, 7, 2)
    node.wal.flush()
    node.wal.retry()
    assert (node.wal.durable, len(node.segments())) == (durable, 1)
    node.disk.capacity += 8 * SMALL
    node.wal.retry()
    assert node.wal.durable == node.wal.appended
    assert node.wal.waiting is None
    assert node.failures == []
    state = node.restart()[1]
    assert (state.last_index, state.term, state.vote) == (index + 30, 7, 2)


def test_a_log_that_waits_for_room_keeps_what_it_had_announced_over_a_crash() -> None:
    node = Node(SMALL)
    node.disk.capacity = node.disk.used()
    index = fill_up(node)
    fill(node.wal, 1, index + 1, index + 30)
    assert node.restart()[1].last_index == index - 1
    assert node.failures == []


@pytest.mark.parametrize("lacking", [errno.EDQUOT, errno.EMFILE, errno.ENFILE])
def test_a_segment_that_cannot_be_made_for_now_is_made_later(monkeypatch: pytest.MonkeyPatch, lacking: int) -> None:
    node = Node(SMALL)
    create = node.wal._fs.create

    def fail(path: str, size: int) -> object:
        raise OSError(lacking, "planted", path)

    monkeypatch.setattr(node.wal._fs, "create", fail)
    fill(node.wal, 1, 1, 20)
    assert node.wal.waiting is not None
    assert node.wal.waiting.errno == lacking
    monkeypatch.setattr(node.wal._fs, "create", create)
    node.wal.retry()
    assert node.wal.durable == node.wal.appended
    assert node.failures == []


def test_a_segment_that_cannot_be_made_at_all_ends_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(SMALL)

    def fail(path: str, size: int) -> object:
        raise OSError(errno.EIO, "planted", path)

    monkeypatch.setattr(node.wal._fs, "create", fail)
    fill(node.wal, 1, 1, 20)
    assert [failure.errno for failure in node.failures if isinstance(failure, OSError)] == [errno.EIO]


def test_a_log_at_its_limit_waits_until_it_may_grow_or_has_shrunk() -> None:
    """Whoever sets the limit sees that something waits for it; a disk with room is no reason to go on."""
    node = Node(SMALL)
    node.wal.limit(3 * SMALL)
    fill(node.wal, 1, 1, 40)
    assert len(node.segments()) == 3
    assert node.wal.limited
    assert node.wal.waiting is None
    durable = node.wal.durable
    node.wal.snapshot(1, durable, 1)
    node.wal.collect()
    node.wal.limit(1 << 20)
    assert not node.wal.limited
    assert node.wal.durable == node.wal.appended
    assert node.restart()[1].last_index == 40


def test_what_gathered_beyond_the_size_of_a_segment_is_seen_to_wait_for_the_limit() -> None:
    """As after a stall of the network: one batch of a turn that needs more than there is room for (seed 1000115)."""
    node = Node(SMALL)
    fill(node.wal, 1, 1, 8)
    assert len(node.segments()) == 2
    node.wal.limit(3 * SMALL)
    for index in range(9, 30):
        node.wal.entry(1, index, 1, command(index, 100))
    node.wal.flush()
    assert node.wal.durable == 8
    assert node.wal.limited
    node.wal.limit(1 << 20)
    assert not node.wal.limited
    assert node.wal.durable == node.wal.appended
    assert node.restart()[1].last_index == 29
