"""Disks that are slow or full: what the library does to a process, to its folder only while it is told so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.disks import NoSickDisks, SickDisk, library
from tests.needs import need
from tests.waiting import PATIENCE

_WORK = """
import errno, json, os, shutil, sys, time
fd = os.open("data", os.O_CREAT | os.O_RDWR)
for _ in sys.stdin:
    told = {}
    for name, act in {
        "append": lambda: os.pwrite(fd, b"x" * 100, os.fstat(fd).st_size),
        "overwrite": lambda: os.pwrite(fd, b"y" * 10, 0),
        "vector": lambda: os.pwritev(fd, [b"z" * 100], os.fstat(fd).st_size),
        "synced at once": lambda: os.pwritev(fd, [b"z" * 100], os.fstat(fd).st_size, os.RWF_DSYNC),
        "pipe": lambda: os.write(os.pipe()[1], b"p"),
    }.items():
        try:
            act()
            told[name] = ""
        except OSError as problem:
            told[name] = errno.errorcode[problem.errno]
    began = time.monotonic()
    os.fsync(fd)
    os.fdatasync(fd)
    told["synced"] = time.monotonic() - began
    told["free"] = shutil.disk_usage(".").free
    print(json.dumps(told), flush=True)
"""


GROWING = "append", "vector", "synced at once"
WRITES = *GROWING, "overwrite", "pipe"
"""The calls by which raftkv.storage writes, and a pipe."""


class Worker:
    def __init__(self, folder: Path, preloaded: Path) -> None:
        self.disk = SickDisk(folder)
        self._child = subprocess.Popen(
            [sys.executable, "-c", _WORK],
            cwd=folder,
            env={**os.environ, "LD_PRELOAD": str(preloaded)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def work(self) -> dict[str, object]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("go\n")
        self._child.stdin.flush()
        found: dict[str, object] = json.loads(self._child.stdout.readline())
        return found

    def close(self) -> None:
        self._child.communicate(timeout=PATIENCE)
        self.disk.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    try:
        preloaded = library()
    except NoSickDisks as problem:
        need(False, str(problem))
        raise
    one = Worker(tmp_path, preloaded)
    yield one
    one.close()


def test_a_disk_of_which_nothing_is_told_is_well(worker: Worker) -> None:
    told = worker.work()
    assert {told[name] for name in WRITES} == {""}
    assert (worker.disk.delayed, worker.disk.refused) == (0, 0)


def test_a_slow_disk_delays_each_sync_and_counts_them(worker: Worker) -> None:
    worker.disk.tell(delay=0.1)
    told = worker.work()
    assert isinstance(told["synced"], float)
    assert told["synced"] >= 0.2
    assert worker.disk.delayed == 3, "of a write that is synced at once, too"
    assert told["append"] == ""
    worker.disk.tell()
    worker.work()
    assert worker.disk.delayed == 0


def test_a_full_disk_has_no_room_for_more_but_keeps_what_it_has(worker: Worker) -> None:
    worker.work()
    worker.disk.tell(full=True)
    told = worker.work()
    assert {told[name] for name in GROWING} == {"ENOSPC"}
    assert (told["overwrite"], told["pipe"], told["free"]) == ("", "", 0)
    assert worker.disk.refused >= 4
    worker.disk.tell()
    told = worker.work()
    assert {told[name] for name in WRITES} == {""}
    assert told["free"] != 0


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("faults.disks._CACHE", tmp_path / "nothing here")
    with pytest.raises(NoSickDisks, match=r"compiler|Linux"):
        library()
