"""Guarantee: what can be reloaded is, what cannot is named, and a wrong configuration changes nothing."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftkv.cli.serve import read_again
from raftkv.errors import ConfigError
from raftkv.node.config import NodeConfig, parse_config, render
from raftkv.node.reloading import PAUSE, RELOADED, Reloading, flat
from tests.peer_world import ManualClock

UUID = "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e"
OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def config(raft: dict[str, Any] | None = None, dial: dict[str, str] | None = None, **node: Any) -> NodeConfig:
    nodes = [{"id": i, "address": f"127.0.0.1:740{i}", "peer_address": f"127.0.0.1:750{i}"} for i in (1, 2, 3)]
    mine = {"id": 1, "data_dir": "data", **node}
    sections = {"cluster": {"id": UUID}, "node": mine, "raft": raft or {}, "dial": dial or {}, "nodes": nodes}
    return parse_config(sections, "x")


class World:
    """A configuration that is reloaded, and who has taken it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.load: Callable[[], NodeConfig] = config
        self.taken: list[NodeConfig] = []
        self.reloading = Reloading(config(), self._read, (self.taken.append,), self.clock)

    def _read(self) -> NodeConfig:
        return self.load()


def test_what_has_changed_is_taken_and_named(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    new = config(log_level="debug", reads="quorum", dial={"2": "127.0.0.1:9"})
    world.load = lambda: new
    with caplog.at_level("INFO"):
        world.reloading.run()
        world.reloading.run()
    assert world.taken == [new, new]
    assert [record.getMessage() for record in caplog.records] == [
        "configuration reloaded; changed: node.reads, node.log_level, dial",
        "configuration reloaded; changed: nothing",
    ]


def test_what_needs_a_restart_is_named_each_time_until_it_is_as_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.load = lambda: config({"heartbeat": 0.05}, metrics="127.0.0.1:7601")
    with caplog.at_level("WARNING"):
        world.reloading.run()
        world.reloading.run()
        said = "changed keys that need a restart of the node: node.metrics, raft.heartbeat"
        assert [record.getMessage() for record in caplog.records] == [said, said]
        world.load = config
        world.reloading.run()
    assert len(caplog.records) == 2


def test_a_wrong_configuration_is_said_and_the_old_one_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world, path = World(), tmp_path / "node.toml"
    world.load = lambda: read_again(path)
    for content in (None, b"", b"[node", b"\xff\xfe", render(config()).replace("info", "loud").encode(), b"x" * 9999):
        if content is not None:
            path.write_bytes(content)
        world.reloading.run()
    path.unlink()
    path.mkdir()
    world.reloading.run()
    path.rmdir()
    os.mkfifo(path)
    world.reloading.run()
    assert world.taken == []
    assert len(caplog.records) == 8
    assert all(str(path) in record.getMessage() and record.levelname == "WARNING" for record in caplog.records)


@pytest.mark.parametrize("problem", [ConfigError("the log cannot be opened"), RuntimeError("a mistake")])
def test_nothing_that_goes_wrong_ends_the_node(problem: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: NodeConfig) -> None:
        raise problem

    Reloading(config(), config, (fail,), ManualClock()).run()
    assert caplog.records[0].getMessage().startswith("configuration not reloaded")


def test_who_asks_again_and_again_is_heard_at_once_and_after_a_pause() -> None:
    async def scenario(world: World) -> None:
        for _ in range(100):
            world.reloading.ask()
        assert len(world.taken) == 1
        await world.clock.advance(PAUSE)
        assert len(world.taken) == 2, "what was asked for meanwhile is done once"
        await world.clock.advance(PAUSE)
        assert len(world.taken) == 2
        world.reloading.ask()
        assert len(world.taken) == 3

    asyncio.run(scenario(World()))


def test_the_documents_name_the_keys_that_are_reloaded() -> None:
    assert set(RELOADED) <= set(flat(config()))
    text = OPERATIONS.read_text()
    line = text[text.index("| SIGHUP |") :].splitlines()[0]
    assert [key for key in re.findall(r"`([a-z_.]+)`", line) if key in flat(config())] == list(RELOADED)
