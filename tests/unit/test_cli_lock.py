"""Guarantee: ``raftkv lock`` runs a command only while it holds the lock, and ends as the command does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftkv
from raftkv.cli.main import run
from tests.admin_world import World, world_of
from tests.waiting import PATIENCE

PRINTS = 'echo "$0 token $RAFTKV_LOCK_TOKEN"'


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of(nodes=1, groups=1) as running:
        yield running


@pytest.fixture
def said(world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAFTKV_ENDPOINTS", world.endpoints)
    capfd.readouterr()

    def ask(*arguments: str) -> tuple[int, str, str]:
        code = run(["lock", "--timeout", f"{PATIENCE}", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return ask


def places(world: World) -> list[bytes]:
    return [key for key in world.records() if b"queue:" in key]


def test_it_ends_as_the_command_does(said: Any, world: World) -> None:
    code, out, err = said("job", "--ttl", "60s", "--", "sh", "-c", PRINTS, "my")
    assert (code, err) == (0, "")
    token = int(out.removeprefix("my token "))
    code, out, _ = said("job", "--", "sh", "-c", PRINTS)
    assert int(out.removeprefix("sh token ")) > token
    assert said("job", "--", "sh", "-c", "exit 7")[0] == 7
    assert said("job", "--", "sh", "-c", "kill -KILL $$")[0] == 128 + 9
    code, _, err = said("job", "no such program")
    assert (code, err) == (127, "raftkv: cannot run no such program: No such file or directory\n")
    assert said("job", "/")[0] == 126
    assert places(world) == []


def test_what_is_refused(said: Any) -> None:
    assert said("job")[0] == 2
    assert said("job", "sh", "-c", "true")[0] == 2, "options of the command follow --"
    assert said("job", "--ttl", "1ms", "--", "true")[0] == 2
    code, _, err = said("a}b", "true")
    assert code == 1
    assert "closing brace" in err


def test_others_may_hold_it(said: Any, world: World) -> None:
    with raftkv.Client(world.endpoints, timeout=PATIENCE) as kv, kv.lock("job", ttl=300, holder="me"):
        assert said("job", "--wait", "0", "--", "echo", "never") == (4, "", "raftkv: others hold the lock job\n")
        assert len(places(world)) == 1, "who only tried is gone"
        assert said("other", "--wait", "0", "--holder", "me", "--", "echo", "here")[:2] == (0, "here\n")


def test_a_signal_is_passed_on(said: Any) -> None:
    script = 'trap "exit 9" TERM; kill -TERM $PPID; while :; do sleep 0.05; done'
    assert said("job", "--", "sh", "-c", script)[0] == 9


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_command_ends_when_the_lock_is_lost(said: Any, world: World, tmp_path: Path, stubborn: bool) -> None:
    running = tmp_path / "running"

    def remove() -> None:
        for _ in range(int(PATIENCE / 0.05)):
            if running.exists():
                break
            threading.Event().wait(0.05)
        with raftkv.Client(world.endpoints, timeout=PATIENCE) as kv:
            kv.delete_prefix("{lock:job}queue:")

    thread = threading.Thread(target=remove)
    thread.start()
    script = 'trap "" TERM; ' * stubborn + f"touch {running}; while :; do sleep 0.05; done"
    code, _, err = said("job", "--ttl", "2s", "--grace", "300ms", "--", "sh", "-c", script)
    thread.join()
    assert code == 1
    assert "lock 'job' was lost" in err or "lock 'job' is lost" in err
    assert "the command was ended" in err
