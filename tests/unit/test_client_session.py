"""Guarantee: a write has one name for all its attempts, and a refused session is replaced by a later one."""

from __future__ import annotations

from random import Random

from raftkv.client.session import JUMPS_MS, Session, Sessions, client_id


def test_client_id_begins_with_its_time_so_that_ids_are_ordered() -> None:
    early, late = client_id(1_700_000_000_000, Random(1)), client_id(1_700_000_000_001, Random(2))
    assert len(early) == 16
    assert int.from_bytes(early[:6], "big") == 1_700_000_000_000
    assert early < late


def test_client_id_survives_clocks_out_of_range() -> None:
    assert client_id(-5, Random(1))[:6] == bytes(6)
    assert client_id(1 << 60, Random(1))[:6] == b"\xff" * 6


def test_first_incomplete_never_passes_a_number_still_waited_for() -> None:
    session = Session(b"c" * 16)
    numbers = [session.begin() for _ in range(4)]
    assert numbers == [1, 2, 3, 4]
    session.end(2)
    session.end(3)
    assert session.first_incomplete() == 1
    session.end(1)
    assert session.first_incomplete() == 4
    session.end(4)
    assert session.first_incomplete() == 5
    assert session.begin() == 5
    assert session.first_incomplete() == 5


def test_ending_a_number_twice_changes_nothing() -> None:
    session = Session(b"c" * 16)
    number = session.begin()
    session.end(number)
    session.end(number)
    assert session.first_incomplete() == 2


def test_renewed_id_is_later_than_the_refused_one_even_if_the_clock_went_back() -> None:
    sessions = Sessions(5_000_000_000_000, Random(3))
    refused = sessions.current
    renewed = sessions.renew(refused, wall_ms=1_000, renewals=0)
    assert renewed is sessions.current
    assert renewed.id[:6] > refused.id[:6]


def test_each_further_refusal_jumps_further() -> None:
    sessions = Sessions(1_000, Random(3))
    previous = 1_000
    for renewals, jump in enumerate(JUMPS_MS):
        renewed = sessions.renew(sessions.current, wall_ms=0, renewals=renewals)
        time = int.from_bytes(renewed.id[:6], "big")
        assert time == previous + jump
        previous = time


def test_writes_refused_together_share_the_new_session() -> None:
    sessions = Sessions(1_000, Random(3))
    refused = sessions.current
    first = sessions.renew(refused, 2_000, 0)
    assert sessions.renew(refused, 2_000, 0) is first
