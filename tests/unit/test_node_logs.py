"""Guarantee: a node's log file is bounded, can be opened anew, and is not lost when something is wrong with it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from raftkv.errors import ConfigError
from raftkv.log_limit import WINDOW, limited
from raftkv.node import logs
from raftkv.node.config import NodeSection
from raftkv.node.logs import NodeLog

log = logging.getLogger("raftkv.test")
ADDRESSES = dict.fromkeys(("address", "listen", "peer_address", "peer_listen"), "127.0.0.1:1")


def section(**keys: Any) -> NodeSection:
    return NodeSection(**{"id": 1, "data_dir": "data", **ADDRESSES, **keys})


class Output:
    """A node's log and the clock that limits it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log = NodeLog(7, lambda: self.now)


@pytest.fixture
def output() -> Iterator[Output]:
    level = logging.getLogger().level
    made = Output()
    yield made
    made.log.close()
    logging.getLogger().setLevel(level)


def lines(path: Path) -> list[str]:
    return [line.partition(": ")[2] for line in path.read_text().splitlines()]


def test_without_a_file_it_goes_to_stderr(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    output.log.use(section())
    log.warning("here")
    assert capsys.readouterr().err.endswith(" W node 7 raftkv.test: here\n")


def test_the_file_rotates_and_what_is_kept_is_bounded(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output.log.use(section(log_file=str(path), log_max_bytes=2000, log_backups=2))
    for number in range(500):
        log.info("line %d", number)
    kept = sorted(tmp_path.iterdir())
    assert [one.name for one in kept] == ["node.log", "node.log.1", "node.log.2"]
    assert all(one.stat().st_size <= 2000 for one in kept)
    found = [line for one in reversed(kept) for line in lines(one)]
    assert found == [f"line {number}" for number in range(500 - len(found), 500)]


def test_a_size_of_zero_leaves_rotating_to_others(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output.log.use(section(log_file=str(path), log_max_bytes=0))
    for number in range(500):
        log.info("line %d", number)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_moved_away_is_made_anew(output: Output, tmp_path: Path) -> None:
    """As by logrotate, which sends SIGHUP then."""
    path, moved = tmp_path / "node.log", tmp_path / "node.log-20261129"
    output.log.use(section(log_file=str(path)))
    log.info("before")
    path.rename(moved)
    log.info("meanwhile")
    output.log.use(section(log_file=str(path)))
    log.info("after")
    assert (lines(moved), lines(path)) == (["before", "meanwhile"], ["after"])


def test_level_and_file_can_be_changed(output: Output, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    output.log.use(section(log_file=str(first), log_level="warning"))
    log.info("too quiet")
    output.log.use(section(log_file=str(second), log_level="debug"))
    log.debug("now")
    assert (lines(first), lines(second)) == ([], ["now"])


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output.log.use(section(log_file=str(path), log_level="warning"))
    os.mkfifo(tmp_path / "unread")
    for wrong in (tmp_path, tmp_path / "nowhere" / "node.log", path / "node.log", tmp_path / "unread"):
        with pytest.raises(ConfigError, match=f"^node.log_file: cannot write {wrong}: "):
            output.log.use(section(log_file=str(wrong), log_level="debug"))
    log.info("not at this level")
    log.warning("still there")
    assert lines(path) == ["still there"]


def test_a_file_that_cannot_be_rotated_grows_and_says_so_once(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.log"
    (tmp_path / "node.log.1" / "in the way").mkdir(parents=True)
    output.log.use(section(log_file=str(path), log_max_bytes=1000, log_backups=1))
    for number in range(100):
        log.info("line %d", number)
    found = lines(path)
    assert [line for line in found if line.startswith("line ")] == [f"line {number}" for number in range(100)]
    assert len([line for line in found if line.startswith("the log cannot be rotated")]) == 1
    assert capsys.readouterr().err == ""


def test_a_folder_that_vanishes_costs_lines_only(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "node.log"
    path.parent.mkdir()
    output.log.use(section(log_file=str(path), log_max_bytes=1000))
    shutil.rmtree(path.parent)
    for number in range(100):
        log.info("line %d", number)
    path.parent.mkdir()
    log.info("back")
    assert lines(path)[-1] == "back"


def test_what_is_no_text_is_written_all_the_same(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output.log.use(section(log_file=str(path)))
    log.info("a name on disk: %s", b"\xff".decode(errors="surrogateescape"))
    assert lines(path) == [r"a name on disk: \udcff"]


def test_nobody_can_make_up_lines_or_command_a_terminal(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output.log.use(section(log_file=str(path)))
    log.warning("refused: %s", "x\n2026-11-29 C node 1 main: node stopped\r\x1b[2J\x9b31m\u2028\u202e\U000e0001 é漢")
    said = r"refused: x\n2026-11-29 C node 1 main: node stopped\r\x1b[2J\x9b31m\u2028\u202e\U000e0001 é漢"
    assert path.read_text(encoding="utf-8").partition("raftkv.test: ")[2] == f"{said}\n"


def test_the_log_is_no_file_of_the_nodes_data(output: Output, tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "wal").mkdir(parents=True)
    elsewhere.symlink_to(data)
    wal = data / "wal" / "wal-000000000001.log"
    wal.write_bytes(b"what was promised")
    wrong = (wal, elsewhere / "wal" / wal.name, data / "lock", data / "raftkv.toml", data / "wal" / ".." / "map", data)
    for path in wrong:
        with pytest.raises(ConfigError, match="is in the data folder, where it may only be .*data/NAME.log$"):
            output.log.use(section(log_file=str(path), data_dir=str(data)))
    assert wal.read_bytes() == b"what was promised"
    output.log.use(section(log_file=str(data / "node.log"), data_dir=str(data)))
    output.log.use(section(log_file=str(tmp_path / "data.log"), data_dir=str(data)))


class Disk:
    """A disk that takes nothing while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        disk = self

        class File(FileIO):
            def write(self, data: Any) -> int:
                if disk.full:
                    raise OSError(28, "No space left on device")
                return super().write(data)

        monkeypatch.setattr(logs, "FileIO", File)


def test_a_full_disk_costs_lines_only_and_they_are_counted(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, disk = tmp_path / "node.log", Disk(monkeypatch)
    output.log.use(section(log_file=str(path), log_max_bytes=2000, log_backups=1))
    log.info("before")
    disk.full = True
    for number in range(100):
        log.info("line %d", number)
    disk.full = False
    log.info("after")
    problem = "[Errno 28] No space left on device"
    said = f"lines lost before this one: 100, the log could not be written: {problem}"
    assert lines(path) == ["before", said, "after"]
    for number in range(100):
        log.info("line %d", number)
    assert path.stat().st_size <= 2000, "it is rotated as before"
    assert capsys.readouterr().err == f"raftkv: the log cannot be written: {problem}\n", "once, without a traceback"


def test_with_a_full_disk_the_log_is_opened_anew_and_closed(output: Output, tmp_path: Path) -> None:
    for _ in range(2):
        output.log.use(section(log_file="/dev/full"))
        log.info("lost")
    output.log.use(section(log_file=str(tmp_path / "node.log")))
    log.info("after")
    assert [line[:31] for line in lines(tmp_path / "node.log")] == ["lines lost before this one: 2, ", "after"]
    output.log.use(section(log_file="/dev/full"))
    log.info("lost")
    output.log.close()


def test_it_is_limited_and_says_at_the_end_what_was_left_out(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output.log.use(section(log_file=str(path)))
    for number in range(3):
        log.info("scan %d", number, extra=limited("h"))
    output.now += WINDOW
    output.log.sweep()
    log.info("scan %d", 3, extra=limited("h"))
    output.log.close()
    log.warning("the log is closed")
    said = "more from h in the last minute, the latest: scan"
    assert lines(path) == ["scan 0", f"2 {said} 2", f"1 {said} 3"]


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_json_is_one_object_a_line_with_all_that_is_known(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    output.log.use(section(log_file=str(path), log_format="json"))
    log.warning("link to node %d: %s", 2, "down", extra=limited("node 2", "ab12/7"))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    told, failed = objects(path)
    assert datetime.fromisoformat(told.pop("time")).tzinfo == UTC
    assert told == {
        "level": "warning",
        "node": 7,
        "logger": "raftkv.test",
        "message": "link to node 2: down",
        "request": "ab12/7",
    }
    assert (failed["level"], failed["message"]) == ("error", "it failed")
    assert failed["traceback"].startswith("Traceback (most recent call last):\n")
    assert failed["traceback"].endswith("ValueError: two\nlines")
    assert "request" not in failed


def test_no_text_breaks_a_json_line(output: Output, tmp_path: Path) -> None:
    path, text = tmp_path / "node.log", 'a\n}{"\x00\x1b[2J\x7f\x9b\u2028 \udcff é漢😀'
    output.log.use(section(log_file=str(path), log_format="json"))
    log.warning("refused: %s", text)
    (line,) = path.read_text(encoding="ascii").splitlines()
    assert line.isprintable()
    assert json.loads(line)["message"] == f"refused: {text}"


def test_lines_that_are_left_out_and_lost_are_told_in_json_too(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, disk = tmp_path / "node.log", Disk(monkeypatch)
    output.log.use(section(log_file=str(path), log_format="json"))
    for number in range(3):
        log.info("scan %d", number, extra=limited("h", f"request {number}"))
    output.now += WINDOW
    disk.full = True
    log.info("lost")
    disk.full = False
    log.info("after")
    first, lost, after = objects(path)
    assert (first["message"], first["request"]) == ("scan 0", "request 0")
    assert lost["message"].startswith("lines lost before this one: 2")
    assert after["message"] == "after"


def test_the_format_can_be_changed(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    for kind in ("json", "text"):
        output.log.use(section(log_file=str(path), log_format=kind))
        log.info("as %s", kind)
    first, second = path.read_text().splitlines()
    assert json.loads(first)["message"] == "as json"
    assert second.endswith(" I node 7 raftkv.test: as text")
