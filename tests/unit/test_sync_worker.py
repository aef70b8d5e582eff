"""The worker of the WAL: in the loop while the disk is fast, elsewhere when it is slow; always in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from raftkv.clock import Timer
from raftkv.storage.fs import SyncWorker


class _Clock:
    """Stands still but for what jobs say that they take."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        raise AssertionError("not asked")

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        raise AssertionError("not asked")


def _run(durations: list[float]) -> tuple[list[int], list[int], list[bool]]:
    """Submit a job of each duration, each after the one before. Order of work and results; which ran in the loop."""
    worked: list[int] = []
    ended: list[int] = []
    in_loop: list[bool] = []

    async def main() -> None:
        clock = _Clock()
        worker = SyncWorker(asyncio.get_running_loop(), clock)
        home = threading.get_ident()
        for number, duration in enumerate(durations):
            finished = asyncio.get_running_loop().create_future()

            def work(number: int = number, duration: float = duration) -> int:
                worked.append(number)
                in_loop.append(threading.get_ident() == home)
                clock.time += duration
                return number

            def done(
                result: int | None,
                failure: BaseException | None,
                finished: asyncio.Future[None] = finished,
            ) -> None:
                assert failure is None
                assert threading.get_ident() == home
                ended.append(-1 if result is None else result)
                finished.set_result(None)

            worker.submit(work, done)
            assert len(ended) == number, "done is never called within submit"
            await finished
        worker.close()

    asyncio.run(main())
    return worked, ended, in_loop


def test_a_fast_disk_is_waited_for_in_the_loop() -> None:
    worked, ended, in_loop = _run([0.0002] * 20)
    assert worked == ended == list(range(20))
    assert all(in_loop)


def test_a_slow_disk_is_waited_for_elsewhere_and_a_fast_one_again_in_the_loop() -> None:
    worked, ended, in_loop = _run([0.02] * 5 + [0.0001] * 60)
    assert worked == ended == list(range(65))
    assert in_loop[0], "nothing was known of the disk yet"
    assert not any(in_loop[1:5])
    assert in_loop[-1]


def test_jobs_stay_in_order_while_one_is_handed_over() -> None:
    """A job may not overtake one that waits in the thread."""
    order: list[int] = []

    async def main() -> None:
        clock = _Clock()
        worker = SyncWorker(asyncio.get_running_loop(), clock)
        gate = threading.Event()
        all_done = asyncio.get_running_loop().create_future()

        def slow() -> None:
            clock.time += 1.0

        worker.submit(slow, lambda _result, _failure: None)

        def waits() -> None:
            assert gate.wait(10)
            order.append(1)

        worker.submit(waits, lambda _result, _failure: None)
        worker.submit(lambda: order.append(2), lambda _result, _failure: all_done.set_result(None))
        assert order == []
        gate.set()
        await all_done
        worker.close()

    asyncio.run(main())
    assert order == [1, 2]


def test_a_failure_is_handed_to_the_loop_from_both_places() -> None:
    seen: list[BaseException | None] = []

    async def main() -> None:
        clock = _Clock()
        worker = SyncWorker(asyncio.get_running_loop(), clock)

        def fail() -> None:
            clock.time += 1.0
            raise OSError(5, "planted")

        for _ in range(2):
            ended = asyncio.get_running_loop().create_future()

            def done(_: None, failure: BaseException | None, ended: asyncio.Future[None] = ended) -> None:
                seen.append(failure)
                ended.set_result(None)

            worker.submit(fail, done)
            await ended
        worker.close()

    asyncio.run(main())
    assert [type(failure) for failure in seen] == [OSError, OSError]
