"""Guarantee: records leave the expiry queue in order, none is lost and stale items stay few, also while it is swept."""

from random import Random

from raftkv.store.expiry import Due, ExpiryQueue


def test_queue_against_a_plain_dict() -> None:
    random = Random(11)
    live: dict[bytes, Due] = {}
    queue = ExpiryQueue(lambda due: live.get(due[2]) == due)
    swept, now = 0, 0
    for version in range(30_000):
        key = b"%d" % random.randrange(50)
        if key in live:
            queue.live -= 1
        live[key] = (now + random.randrange(1, 5000), 0, key, version)
        queue.push(live[key])
        assert queue.live == len(live)
        assert len(queue) < 2000
        swept += bool(queue._old)
        if version % 7 == 0:
            now += random.randrange(20)
            while (due := queue.pop_due(now)) is not None:
                assert due == min(live.values())
                del live[due[2]]
                queue.live -= 1
            assert queue.first() == min((due[0] for due in live.values()), default=None)
            assert all(due[0] > now for due in live.values())
    assert swept > 1000


def test_many_at_once_and_what_is_given_back() -> None:
    queue = ExpiryQueue(lambda due: True)
    queue.restart([(at, 0, b"a", 1) for at in range(0, 1000, 2)])
    for count in (1, 500):
        queue.extend([(at, count, b"b", 1) for at in range(1, 2 * count, 2)])
    assert queue.live == len(queue) == 1001
    first = [queue.pop_due(2000) for _ in range(600)]
    queue.give_back([due for due in first if due])
    assert queue.live == 1001
    popped = [queue.pop_due(2000) for _ in range(1001)]
    assert popped[:600] == first
    assert popped == sorted(due for due in popped if due)
    assert queue.pop_due(2000) is None
