"""A measurement says what else the machine did: other processes, and the host of a virtual machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import disturbance
from bench.disturbance import Disturbance, Watch, worst
from bench.machine import build

TICK = os.sysconf("SC_CLK_TCK")


class Proc:
    """Files as the kernel has them, of processes that this test makes up; times in seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self, user: float, system: float = 0.0, stolen: float = 0.0, softirq: float = 0.0) -> None:
        fields = (user, 0, system, 1e6, 5, 0, softirq, stolen, 0, 0)
        (self.folder / "stat").write_text(f"cpu  {' '.join(str(round(one * TICK)) for one in fields)}\ncpu0 1 2 3\n")

    def process(self, pid: int, parent: int, user: float, ended_children: float = 0.0) -> None:
        times = " ".join(str(round(one * TICK)) for one in (user, 0, ended_children, 0))
        folder = self.folder / str(pid)
        folder.mkdir(exist_ok=True)
        # A name as a program may have chosen it.
        (folder / "stat").write_text(f"{pid} (a) b) S {parent} 1 1 0 -1 4194560 1 2 3 4 {times} 20 0 1 0 100")


def test_what_is_not_below_this_process_is_others(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.all(user=100.0)
    proc.process(7, 1, 1.0)
    proc.process(8, 7, 2.0)
    proc.process(9, 8, 3.0)
    proc.process(50, 1, 40.0)
    watch = Watch(tmp_path, root=7, cores=2)
    # Ten seconds of two cores: 6 s its own, of which 3 of a child's child that has ended since; 4 s of others.
    proc.all(user=109.0, system=1.0, stolen=0.5, softirq=3.0)
    proc.process(7, 1, 2.0)
    proc.process(8, 7, 4.0, ended_children=6.0)
    (tmp_path / "9" / "stat").unlink()
    found = watch.so_far(seconds=10.0)
    assert found.others == pytest.approx(0.2)
    assert found.stolen == pytest.approx(0.025)
    assert found.disturbed
    assert found.told() == {"others": 0.2, "stolen": 0.025}


def test_nothing_else_is_no_disturbance_and_no_kernel_tells_nothing(tmp_path: Path) -> None:
    assert Watch(tmp_path, root=7).so_far(seconds=1.0) == Disturbance()
    assert not Disturbance(0.03, 0.01).disturbed
    assert worst([Disturbance(0.1, 0.0), Disturbance(0.0, 0.2)]) == Disturbance(0.0, 0.2)
    assert worst([]) == Disturbance()
    assert disturbance.remark([("calm", {"others": 0.01, "stolen": 0.0})]) == ""


def test_the_real_machine_is_asked() -> None:
    found = Watch().so_far()
    assert found.others >= 0
    assert found.stolen >= 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CONFIG_ARGS": "'--enable-shared'", "PY_CFLAGS": "-g -O3 -Wall"}, "-O3, without PGO, without LTO"),
        ({"CONFIG_ARGS": "'--enable-optimizations' '--with-lto'"}, "no -O, with PGO, with LTO"),
        (
            {"CONFIG_ARGS": "x", "PY_CFLAGS": "-O1 -O2", "PY_CORE_CFLAGS": "-fprofile-use", "LDFLAGS": "-flto=auto"},
            "-O2, with PGO, with LTO",
        ),
        ({}, "not known"),
    ],
)
def test_it_is_said_how_the_interpreter_was_built(variables: dict[str, str], said: str) -> None:
    assert build(variables.get) == said
