"""The file-system and worker ports: the real ones and the simulated ones keep the same contract."""

import asyncio
import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from faults.sim.disk import PowerLoss, SimDisk
from faults.sim.worker import SimWorker
from raftkv.errors import DataFolderInUse
from raftkv.storage.fs import FileSystem, OsFileSystem, ThreadWorker
from tests.waiting import PATIENCE


@pytest.fixture(params=["real", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    fs: FileSystem = OsFileSystem() if request.param == "real" else SimDisk().mount()
    folder = f"{tmp_path}/a/b"
    fs.makedirs(folder)
    return fs, folder


def test_a_created_file_is_zeros_and_can_be_overwritten_and_grown(place: tuple[FileSystem, str]) -> None:
    fs, folder = place
    path = f"{folder}/file"
    file = fs.create(path, 3_000_000)
    assert fs.size(path) == 3_000_000
    assert fs.read(path, 0, 4_000_000) == bytes(3_000_000)
    file.write_at(2_999_999, memoryview(b"abc"))
    file.sync()
    file.close()
    file.close()
    assert fs.read(path, 2_999_998, 100) == b"\0abc"
    again = fs.open(path)
    again.write_at(0, b"x")
    again.close()
    assert fs.read(path, 0, 2) == b"x\0"


def test_names_behave_as_in_posix(place: tuple[FileSystem, str]) -> None:
    fs, folder = place
    for name in ("b", "a"):
        fs.create(f"{folder}/{name}", 1).close()
    assert fs.listdir(folder) == ["a", "b"]
    with pytest.raises(FileExistsError):
        fs.create(f"{folder}/a", 1)
    assert fs.size(f"{folder}/a") == 1
    file = fs.open(f"{folder}/a")
    fs.rename(f"{folder}/a", f"{folder}/b")
    file.write_at(0, b"new")
    file.close()
    assert fs.listdir(folder) == ["b"]
    assert fs.read(f"{folder}/b", 0, 9) == b"new"
    fs.remove(f"{folder}/b")
    fs.sync_dir(folder)
    assert not fs.exists(f"{folder}/b")
    assert fs.exists(folder)
    for missing in (lambda: fs.open(f"{folder}/b"), lambda: fs.size(f"{folder}/b"), lambda: fs.listdir(f"{folder}/c")):
        with pytest.raises(FileNotFoundError):
            missing()
    assert fs.free_space(folder) > 0


def test_a_lock_excludes_until_released(place: tuple[FileSystem, str]) -> None:
    fs, folder = place
    lock = fs.lock(f"{folder}/lock")
    with pytest.raises(DataFolderInUse, match="another process"):
        fs.lock(f"{folder}/lock")
    lock.release()
    lock.release()
    fs.lock(f"{folder}/lock").release()


def test_an_io_error_names_the_file(tmp_path: Path) -> None:
    file = OsFileSystem().create(f"{tmp_path}/file", 1)
    file.close()
    with pytest.raises(OSError, match="file") as raised:
        file.write_at(0, b"x")
    assert raised.value.filename == f"{tmp_path}/file"


def test_the_thread_worker_keeps_order_and_answers_in_the_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        worker = ThreadWorker(loop)
        ran: list[int] = []
        answers: list[tuple[object, object, int]] = []
        finished = loop.create_future()

        def work(number: int) -> int:
            assert threading.get_ident() != loop_thread
            ran.append(number)
            if number == 3:
                raise OSError(errno.EIO, "broken")
            return number

        def done(result: int | None, failure: BaseException | None) -> None:
            answers.append((result, failure and type(failure), threading.get_ident()))
            if len(answers) == 10:
                finished.set_result(None)

        loop_thread = threading.get_ident()
        for number in range(10):
            worker.submit(lambda n=number: work(n), done)  # type: ignore[misc]
        await asyncio.wait_for(finished, PATIENCE)
        assert ran == list(range(10))
        assert [a[:2] for a in answers] == [(None, OSError) if n == 3 else (n, None) for n in range(10)]
        assert {a[2] for a in answers} == {loop_thread}
        worker.close()

    asyncio.run(main())


@pytest.mark.parametrize("lacking", [errno.EMFILE, errno.ENFILE])
def test_a_descriptor_that_is_lacking_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    """Nothing was written yet, so nothing is in doubt; the loop's thread does not wait, other errors are told."""
    opened, codes = os.open, [lacking] * 3

    def scarce(*arguments: Any) -> int:
        if codes:
            raise OSError(codes.pop(), "planted")
        return opened(*arguments)

    monkeypatch.setattr(os, "open", scarce)
    monkeypatch.setattr("raftkv.storage.fs._PAUSE", 0.001)
    fs = OsFileSystem()
    fs.create(f"{tmp_path}/file", 10).close()
    assert not codes
    codes[:] = [lacking] * 3
    fs.sync_dir(str(tmp_path))
    assert not codes
    codes[:] = [errno.EACCES, lacking]
    with pytest.raises(PermissionError):
        fs.sync_dir(str(tmp_path))

    async def in_the_loop() -> None:
        codes[:] = [lacking] * 3
        with pytest.raises(OSError, match="planted"):
            fs.open(f"{tmp_path}/file")

    asyncio.run(in_the_loop())


def test_a_descriptor_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def scarce(*_: Any) -> int:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, "planted")

    monkeypatch.setattr("raftkv.storage.fs._PAUSE", 0.001)
    monkeypatch.setattr("raftkv.storage.fs._PATIENCE", 0.01)
    monkeypatch.setattr(os, "open", scarce)
    with pytest.raises(OSError, match="planted"):
        OsFileSystem().open(f"{tmp_path}/file")
    assert tries == 10


def test_closing_the_thread_worker_drains_it() -> None:
    async def main() -> None:
        worker = ThreadWorker(asyncio.get_running_loop())
        ran: list[int] = []
        answers: list[object] = []
        for number in range(50):
            worker.submit(lambda n=number: ran.append(n), lambda *answer: answers.append(answer))  # type: ignore[misc]
        worker.close()
        assert ran == list(range(50))
        await asyncio.sleep(0)
        assert len(answers) == 50
        with pytest.raises(RuntimeError):
            worker.submit(lambda: None, lambda *_: None)

    asyncio.run(main())


def test_the_simulated_disk_loses_what_was_not_synced() -> None:
    disk = SimDisk()
    fs = disk.mount()
    fs.makedirs("d")
    file = fs.create("d/file", 4)
    fs.sync_dir("d")
    file.write_at(0, b"ab")
    file.sync()
    file.write_at(1, b"XYZ12")
    fs.create("d/other", 1)
    assert disk.unsynced_bytes() == 5
    for kept in range(6):
        twin = disk.copy()
        twin.crash_keeping(kept, names=False)
        image = bytearray(b"ab\0\0")
        image[1 : 1 + kept] = b"XYZ12"[:kept]
        assert twin.files() == {"d/file": bytes(image)}
    twin = disk.copy()
    twin.crash_keeping(0)
    assert sorted(twin.files()) == ["d/file", "d/other"]
    disk.crash(random.Random(1))
    with pytest.raises(PowerLoss):
        file.write_at(0, b"late")
    with pytest.raises(PowerLoss):
        fs.exists("d/file")


def test_a_failed_sync_leaves_data_readable_that_is_not_on_disk() -> None:
    disk = SimDisk()
    fs = disk.mount()
    fs.makedirs("d")
    file = fs.create("d/file", 2)
    fs.sync_dir("d")
    file.write_at(0, b"ab")
    disk.fail_syncs("file")
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    disk.before_sync = None
    file.sync()
    assert fs.read("d/file", 0, 2) == b"ab"
    disk.crash_keeping(100)
    assert disk.files() == {"d/file": b"\0\0"}


def interrupted(seed: int) -> bytes:
    """What is on disk of a job of three synced writes that a power loss interrupts."""
    disk = SimDisk()
    fs = disk.mount()
    fs.makedirs("d")
    file = fs.create("d/file", 0)
    fs.sync_dir("d")
    worker = SimWorker(inline=False)
    answers: list[object] = []

    def work() -> None:
        for offset, letter in enumerate((b"a", b"b", b"c")):
            file.write_at(offset, letter)
            file.sync()

    worker.submit(work, lambda *answer: answers.append(answer))
    assert worker.begin()
    assert disk.files()["d/file"] == b""
    rng = random.Random(seed)
    worker.interrupt(disk, rng)
    disk.crash(rng)
    assert not answers
    assert worker.waiting == 0
    return disk.files()["d/file"]


def test_the_simulated_worker_does_half_a_job_when_power_fails() -> None:
    assert {interrupted(seed) for seed in range(40)} == {b"", b"a", b"ab", b"abc"}
