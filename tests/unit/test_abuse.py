"""Abuse, without a cluster: bounds of figures, files and tables of them, frames by hand, and the process beside."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from typing import Any

import click
import pytest
from click.testing import CliRunner

from faults import cli
from faults.abuse import command, http2, neighbour, node, peer
from faults.abuse.catalogue import SCENARIOS
from faults.abuse.child import Child
from faults.abuse.stage import Found, Measurement
from faults.keys import PREFIX
from raftkv.errors import Overloaded
from raftkv.limits import MAX_FRAME_BYTES
from raftkv.node.messages import operations
from raftkv.peer.frames import Decoder, framed
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("measured", "passed", "bound", "text"),
    [
        (Measurement("memory", 299.5, "MB", most=300), True, "at most 300", "300 MB"),
        (Measurement("memory", 300.1, "MB", most=300), False, "at most 300", "300 MB"),
        (Measurement("served", 1199, "gets", least=1200), False, "at least 1,200", "1,199 gets"),
        (Measurement("lost", 0, most=0), True, "at most 0", "0"),
        (Measurement("told", 2.345, "s"), True, "", "2.35 s"),
        (Measurement("health", "healthy"), True, "", "healthy"),
    ],
)
def test_a_measurement_is_judged_by_its_bounds(measured: Measurement, passed: bool, bound: str, text: str) -> None:
    assert (measured.passed, measured.bound, measured.text) == (passed, bound, text)


def test_what_broke_off_has_not_passed() -> None:
    found = Found("checks", "it asks", [Measurement("lost", 0, most=0)])
    assert found.passed
    found.problem = "TimeoutError"
    assert not found.passed
    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found


def written(path: Path, *found: Found) -> Path:
    path.write_text(json.dumps({"format": 1, "scenarios": [one.to_json() for one in found]}))
    return path


def test_two_files_make_a_table_of_what_has_changed(tmp_path: Path) -> None:
    memory = [Measurement("peak memory of a node", value, "MB", most=300) for value in (1588.0, 180.0)]
    same = Measurement("nodes that live", 3, least=3)
    wait = Measurement("client: p50", 3.0, "ms", timed=True)
    files = [
        written(tmp_path / f"{at}.json", Found("pipeline-gets", "", [one, same, wait])) for at, one in enumerate(memory)
    ]
    done = CliRunner().invoke(cli.main, ["abuse", "--table", *map(str, files)])
    assert done.exit_code == 0
    head, _, what, *rows = done.output.splitlines()
    assert head == "| scenario | number | bound | before | after |"
    assert SCENARIOS["pipeline-gets"].what in what
    assert rows == ["| | peak memory of a node | at most 300 | **1,588 MB** | 180 MB |"]


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"format": 7}')
    with pytest.raises(click.ClickException, match=r"a\.json: not what --out has written"):
        command.load(tmp_path / "a.json")


def test_what_there_is_is_listed_and_nothing_else_is_run() -> None:
    listed = CliRunner().invoke(cli.main, ["abuse", "--list"])
    assert listed.exit_code == 0
    assert [name for name in SCENARIOS if name not in listed.output] == []
    refused = CliRunner().invoke(cli.main, ["abuse", "earthquake"])
    assert refused.exit_code == command.NOT_RUN
    assert "there is no scenario earthquake" in refused.output


def test_the_page_tells_of_every_scenario() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text[text.index("## Limits under abuse") :].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE) == list(SCENARIOS)


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while data:
        size = int.from_bytes(data[:3], "big")
        kind, flags, stream = unpack(">BBI", data[3:9])
        yield kind, flags, stream, data[9 : 9 + size]
        data = data[9 + size :]


def test_frames_of_http2_are_such() -> None:
    opening = http2.opening()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert opening.startswith(preface)
    assert [kind for kind, *_ in frames(opening.removeprefix(preface))] == [4, 8]
    (headers, data) = frames(http2.call(3, b"/raftkv.v1.KV/Get", b"abc"))
    assert headers[:3] == (1, 4, 3)
    assert b"/raftkv.v1.KV/Get" in headers[3]
    assert data == (0, 1, 3, b"\0\0\0\0\x03abc")
    assert list(frames(http2.reset(3))) == [(3, 0, 3, b"\0\0\0\x08")]


@pytest.mark.parametrize("count", [1, 4])
def test_a_forged_forward_is_a_frame_as_long_as_can_be(count: int) -> None:
    body = peer.operations_body(7, b"k", count)
    assert len(body) == MAX_FRAME_BYTES
    ((message,),) = Decoder().feed(framed(body))
    assert (message[0], len(operations(message)[3])) == ("op", count)


def test_empty_maps_are_as_many_as_the_frame_has_bytes() -> None:
    body = peer.empty_maps_body(3000)
    assert body.count(b"\x80") >= 3000
    assert 3000 < len(body) < 3100


def test_nodes_are_told_what_is_different() -> None:
    assert node.environment() == {}
    told = node.environment(ROOT, 256, {2: -60.0})
    assert set(told.values()) == {str(ROOT), "256", '{"node-2": -60.0}'}


class FakeStore:
    """Answers at once, refuses every third write, and forgets what it has taken if it ``forgets``."""

    def __init__(self, forgets: bool) -> None:
        self.records: dict[str, Any] = {}
        self.writes = 0
        self.forgets = forgets

    async def put(self, key: str, value: str) -> None:
        self.writes += 1
        if self.writes % 3 == 0:
            raise Overloaded("later")
        if not (self.forgets and self.writes > 4):
            self.records[key] = type("Record", (), {"value": value.encode()})

    async def get(self, key: str) -> Any:
        return self.records.get(key)

    async def close(self) -> None:
        return


@pytest.mark.parametrize("forgets", [False, True])
def test_the_well_behaved_client_counts_what_it_was_told(forgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(forgets)
    monkeypatch.setattr(neighbour, "Through", lambda address, timeout: store)

    async def check() -> dict[str, Any]:
        counts: dict[str, Any] = {}
        over = asyncio.Event()
        behaving = asyncio.create_task(
            neighbour.behave(counts, over, endpoints="", tags=["a", "b"], through="x", period=0.001)
        )
        while store.writes < 30 or not counts.get("ready"):
            await asyncio.sleep(0.01)
        over.set()
        await behaving
        return counts

    counts = asyncio.run(check())
    assert all(key.startswith(PREFIX) for key in store.records)
    assert counts["failed"] == {"Overloaded": store.writes // 3}
    assert counts["writes"] == store.writes - store.writes // 3
    assert bool(counts["lost"]) == forgets
    assert counts["p50"] <= counts["p99"] <= counts["max"]


def test_a_process_beside_tells_its_counts_and_ends_when_it_is_let_go() -> None:
    async def check() -> None:
        # Nobody listens there: the abuser goes on, and says so.
        child = await Child.start("idle sockets", addresses=["127.0.0.1:1"], connections=3)
        assert await child.until(lambda counts: counts.get("refused") == 3, PATIENCE)
        assert not await child.until(lambda counts: counts.get("open"), 0.0)
        assert (await child.end())["refused"] == 3

    asyncio.run(check())
