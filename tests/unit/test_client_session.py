"""Guarantee: a write has one name for all its attempts, and a refused session is replaced by a later one."""

from __future__ import annotations

from random import Random

from raftkv.client.session import MAX_RENEWALS, ClientSession, Sessions
from raftkv.commands.client_ids import TAIL_BYTES, client_id, drawn_at


def test_client_id_begins_with_its_time_so_that_ids_are_ordered() -> None:
    early, late = (client_id(1_700_000_000_000 + ms, Random(ms).randbytes(TAIL_BYTES)) for ms in (0, 1))
    assert len(early) == 16
    assert int.from_bytes(early[:6], "big") == drawn_at(early) == 1_700_000_000_000
    assert early < late


def test_client_id_survives_clocks_out_of_range() -> None:
    assert client_id(-5, bytes(10))[:6] == bytes(6)
    assert client_id(1 << 60, bytes(10))[:6] == b"\xff" * 6


def test_first_incomplete_never_passes_a_number_still_waited_for() -> None:
    session = ClientSession(b"c" * 16)
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
    session = ClientSession(b"c" * 16)
    number = session.begin()
    session.end(number)
    session.end(number)
    assert session.first_incomplete() == 2


class Slot:
    """Takes clients whose ids are above a floor and at most ``ahead`` beyond the later of floor and ``now``."""

    def __init__(self, now: int, floor: int = 0, ahead: int = 60_000) -> None:
        self.now = now
        self.floor = floor
        self.ahead = ahead
        self.met: set[bytes] = set()

    def told(self, session: ClientSession) -> int | None:
        """None if the session is taken, else the time of the refusal."""
        since = max(self.now, self.floor + 1)
        if session.id in self.met or self.floor < session.time <= since + self.ahead:
            self.met.add(session.id)
            return None
        return since


def refusals(sessions: Sessions, slot: Slot) -> int:
    """How often a write to ``slot`` is refused before a session is taken."""
    session = sessions.current
    for count in range(MAX_RENEWALS + 1):
        told = slot.told(session)
        if told is None:
            return count
        session = sessions.renew(session, told, count)
    raise AssertionError("no session was taken")


NOW = 1_700_000_000_000
HOUR = 3_600_000


def test_a_client_with_a_wrong_clock_draws_its_id_from_the_time_that_a_refusal_tells() -> None:
    for off in (-240 * HOUR, -HOUR, 30 * HOUR, 47 * HOUR, 10**12):
        sessions = Sessions(NOW + off, Random(1))
        assert refusals(sessions, Slot(NOW, floor=NOW - HOUR // 2)) == 1
        assert sessions.current.time == NOW
        assert refusals(sessions, Slot(NOW, floor=NOW - HOUR)) == 0, "and stays with it"


def test_a_right_client_gets_past_a_floor_that_is_days_ahead() -> None:
    sessions = Sessions(NOW, Random(1))
    assert refusals(sessions, Slot(NOW, floor=NOW + 47 * HOUR)) == 1


def test_slots_that_refuse_each_others_clients_do_not_make_a_session_for_each_write() -> None:
    sessions = Sessions(NOW, Random(1))
    slots = [Slot(NOW), Slot(NOW, floor=NOW + 47 * HOUR), Slot(NOW, floor=NOW + 20 * HOUR)]
    for _ in range(20):
        for slot in slots:
            assert refusals(sessions, slot) <= 2
    assert max(len(slot.met) for slot in slots) <= 3


def test_a_refusal_without_a_time_gives_a_later_id() -> None:
    sessions = Sessions(NOW, Random(3))
    refused = sessions.current
    renewed = sessions.renew(refused, 0, 0)
    assert renewed is sessions.current
    assert renewed.id[:6] > refused.id[:6]


def test_writes_refused_together_share_the_new_session() -> None:
    for time in (NOW - HOUR, NOW + HOUR):
        sessions = Sessions(NOW, Random(1))
        refused = sessions.current
        first = sessions.renew(refused, time, 0)
        assert sessions.renew(refused, time, 0) is first
