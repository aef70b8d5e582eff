"""`load` and `dump` with pipes, links, devices, interruptions and locales, as a user or a script meets them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raftkv
from raftkv.cli.loading import ProgressFile
from raftkv.cli.sources import Source
from raftkv.local.process import pause
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, "-m", "raftkv.cli.main"]
NOTED = """
import os, sys
from raftkv.cli.main import main
def note(event, arguments):
    if event == "open" and str(arguments[0]) == sys.argv[-1]:
        os.write(2, b"opening\\n")
sys.addaudithook(note)
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1, groups=2) as running:
        yield running


Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def environment(cluster: LocalCluster) -> dict[str, str]:
    return {**os.environ, "RAFTKV_ENDPOINTS": cluster.endpoints, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    def call(
        *arguments: str | bytes, stdin: bytes = b"", main: list[str] = MAIN, **more: str
    ) -> subprocess.CompletedProcess[bytes]:
        result = subprocess.run(
            [*main, *arguments],
            cwd=tmp_path,
            env={**environment, **more},
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert b"Traceback" not in result.stderr, result.stderr
        return result

    return call


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[raftkv.Client]:
    """Of a cluster that is empty."""
    with raftkv.Client(cluster.endpoints) as made:
        empty(made)
        yield made


def empty(client: raftkv.Client) -> None:
    for record in list(client.scan()):
        client.delete(record.key)


def everything(client: raftkv.Client) -> dict[str, str]:
    return {record.key.decode(): record.value.decode() for record in client.scan()}


def lines(records: dict[str, str]) -> bytes:
    return b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in records.items())


RECORDS = {f"k{i:03}": f"v{i}" for i in range(40)}


# Interrupted loads


def interrupted(client: raftkv.Client, path: Path, done: int = 20) -> Path:
    """A load of ``path`` that ended after ``done`` records."""
    source = Source(str(path), None, "key", "value")
    for item in list(source.items())[:done]:
        client.put(item.key, item.value)
    (node,) = client.status()
    assert node.status is not None
    about = {"content": source.digest, "format": source.kind, "key column": "key", "value column": "value"}
    progress = ProgressFile(path, {**about, "cluster": node.status.cluster_id})
    progress.write(done)
    return progress.path


def load(run: Run, *arguments: str) -> tuple[dict[str, Any], str]:
    result = run("load", *arguments, "-o", "json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr.decode()


def test_an_interrupted_load_goes_on_where_it_was(run: Run, client: raftkv.Client, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(RECORDS))
    progress = interrupted(client, path)
    counts, said = load(run, "a.jsonl")
    assert (counts["written"], counts["skipped"]) == (20, 20)
    assert "resuming after the 20 records" in said
    assert everything(client) == RECORDS
    assert not progress.exists()
    interrupted(client, path)
    assert load(run, "a.jsonl", "--restart")[0]["skipped"] == 0


def test_an_interrupted_load_of_a_file_that_was_edited_begins_anew(
    run: Run, client: raftkv.Client, tmp_path: Path
) -> None:
    """The same size, one record in the middle."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(RECORDS))
    interrupted(client, path)
    path.write_bytes(lines({**RECORDS, "k030": "V30"}))
    counts, said = load(run, "a.jsonl")
    assert (counts["skipped"], "is of another content: starting over" in said) == (0, True)
    assert everything(client) == {**RECORDS, "k030": "V30"}


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--value-column=other", {f"k{i:03}": f"o{i}" for i in range(40)}),
        ("--key-column=other", {f"o{i}": f"v{i}" for i in range(40)}),
    ],
)
def test_an_interrupted_load_with_other_columns_begins_anew(
    run: Run, client: raftkv.Client, tmp_path: Path, option: str, wanted: dict[str, str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("key,value,other\n" + "".join(f"k{i:03},v{i},o{i}\n" for i in range(40)))
    interrupted(client, path)
    counts, said = load(run, "a.csv", option)
    assert (counts["skipped"], " column: starting over" in said) == (0, True)
    assert wanted.items() <= everything(client).items()


def test_an_interrupted_load_into_a_cluster_that_was_emptied_begins_anew(
    run: Run, client: raftkv.Client, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(RECORDS))
    interrupted(client, path)
    empty(client)
    counts, said = load(run, "a.jsonl")
    assert (counts["skipped"], "are still there unchanged: starting over" in said) == (0, True)
    assert everything(client) == RECORDS


# Pipes and devices


def test_stdin_and_pipes_are_loaded(run: Run, client: raftkv.Client, tmp_path: Path) -> None:
    program = " ".join(MAIN)
    (tmp_path / "a.jsonl").write_bytes(lines(RECORDS))
    for command in (
        f"{program} load - < a.jsonl",
        f"{program} load <(cat a.jsonl)",
        f"{program} load /dev/stdin < a.jsonl",
        f"mkfifo f; (cat a.jsonl > f) & {program} load f",
        f"{program} load --format csv - <<< $'key,value\\nk,v'",
    ):
        empty(client)
        result = run(command, main=["bash", "-c"])
        assert result.returncode == 0, (command, result.stderr)
        assert everything(client) == ({"k": "v"} if "csv" in command else RECORDS), command
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "f"]


def test_what_is_piped_is_checked_before_it_is_written(run: Run, client: raftkv.Client) -> None:
    refused = run("load", "-", stdin=lines({"good": "1"}) + b"{}\n")
    assert (refused.returncode, everything(client)) == (1, {})
    assert b"raftkv: stdin: line 2: needs either key or key_b64" in refused.stderr


def test_what_is_dumped_to_a_pipe_is_loaded_from_it(run: Run, client: raftkv.Client) -> None:
    assert run("load", "-", stdin=lines(RECORDS)).returncode == 0
    dumped = run("dump", "--out", "-")
    assert (dumped.returncode, dumped.stderr) == (0, b"40 records\n".join([b"raftkv: ", b""]))
    empty(client)
    assert run("load", "-", stdin=dumped.stdout).returncode == 0
    assert everything(client) == RECORDS


def test_dump_leaves_pipes_links_devices_and_modes(run: Run, client: raftkv.Client, tmp_path: Path) -> None:
    client.put("k", "v")
    wanted = run("dump").stdout
    assert wanted.startswith(b'{"key": "k", "value": "v"')

    private = tmp_path / "private"
    private.touch(0o600)
    (tmp_path / "link").symlink_to(private)
    assert run("dump", "--out", "link").returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (private.read_bytes(), stat.S_IMODE(private.stat().st_mode)) == (wanted, 0o600)

    program = " ".join(MAIN)
    piped = run("-c", f"mkfifo f; cat f & {program} dump --out f; wait", main=["bash"])
    assert (piped.returncode, piped.stdout) == (0, wanted)
    assert (tmp_path / "f").is_fifo()
    appended = run("-c", f"echo before > a; {program} dump --out /dev/stdout >> a; cat a", main=["bash"])
    assert appended.stdout == b"before\n" + wanted
    if os.geteuid() == 0:
        # A copy: the real ones are never tried.
        made = run("-c", "mknod null c 1 3; mknod full c 1 7 && echo > null", main=["bash"])
        if made.returncode == 0:
            assert run("dump", "--out", "null").returncode == 0
            full = run("dump", "--out", "full")
            assert (full.returncode, b"full: cannot write it: No space left" in full.stderr) == (1, True)
            assert (tmp_path / "null").is_char_device()
            assert (tmp_path / "full").is_char_device()
    assert {path.name for path in tmp_path.iterdir()} <= {"private", "link", "f", "a", "null", "full"}


@pytest.mark.parametrize("command", [["load"], ["dump", "--out"]])
def test_ctrl_c_ends_the_waiting_for_the_other_end_of_a_pipe(
    environment: dict[str, str], tmp_path: Path, command: list[str]
) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    waiting = subprocess.Popen(
        [sys.executable, "-c", NOTED, *command, str(pipe)], env=environment, stderr=subprocess.PIPE
    )
    assert waiting.stderr is not None
    with waiting.stderr as stderr:
        assert stderr.readline() == b"opening\n"
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(60) == 130
        assert stderr.read().strip() == b"raftkv: interrupted"
    assert pipe.is_fifo()


def test_ctrl_c_ends_a_dump_whose_reader_sleeps(environment: dict[str, str], client: raftkv.Client) -> None:
    for number in range(4):
        client.put(f"k{number}", bytes(200_000))
    dumping = subprocess.Popen([*MAIN, "dump"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert dumping.stdout is not None
    size = fcntl.fcntl(dumping.stdout, fcntl.F_GETPIPE_SZ)
    held = 0
    while held < size:
        pause(0.01)
        held = int.from_bytes(fcntl.ioctl(dumping.stdout, termios.FIONREAD, bytes(4)), sys.byteorder)
    dumping.send_signal(signal.SIGINT)
    assert dumping.wait(60) == 130
    assert b"Traceback" not in dumping.communicate()[1]


# Locales

ODD = "ü€\U0001f600"


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"},
    ],
    ids=lambda locale: ",".join(f"{name}={value}" for name, value in locale.items()),
)
def test_json_is_utf_8_and_arguments_are_bytes_whatever_the_locale(
    run: Run, client: raftkv.Client, tmp_path: Path, locale: dict[str, str]
) -> None:
    if "ISO" in locale.get("LC_ALL", ""):
        name = tmp_path / "locales" / locale["LC_ALL"]
        name.parent.mkdir()
        localedef = shutil.which("localedef")
        made = localedef and subprocess.run(
            [localedef, "-i", "de_DE", "-f", "ISO-8859-1", str(name)],
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        if not made or made.returncode:
            pytest.skip("localedef cannot make a Latin-1 locale here")
        locale = {**locale, "LOCPATH": str(name.parent)}
    key, other = ODD.encode(), b"\xff\xfe"
    assert run("put", key, key, **locale).returncode == 0
    client.put(other, other)
    assert {bytes(record.key): bytes(record.value) for record in client.scan()} == {key: key, other: other}
    got = json.loads(run("get", key, "-o", "json", **locale).stdout.decode())
    assert (got["key"], got["value"]) == (ODD, ODD)
    assert run("get", other, **locale).stdout == other
    dumped = run("dump", **locale)
    shown = [json.loads(line) for line in dumped.stdout.decode().splitlines()]
    assert {line.get("key", line.get("key_b64")) for line in shown} == {ODD, "//4="}

    (tmp_path / f"{ODD}.jsonl").write_bytes(lines({"k": ODD}) + b'{"' + key + b'": 1}\n')
    refused = run("load", f"{ODD}.jsonl".encode(), **locale)
    assert (refused.returncode, b"line 2: unknown field" in refused.stderr) == (1, True)
    assert run("get", b"none" + key, **locale).returncode == 4
    assert run("status", "--data-dir", key, **locale).returncode == 1
