"""What is loaded is what was checked, be it a file or a pipe."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftkv.cli.sources import Source
from raftkv.errors import InvalidArgument

LINES = "".join(f'{{"key":"k{i}","value":"v{i}"}}\n' for i in range(1000))


Open = Callable[[Path | str], Source]


@pytest.fixture
def source() -> Iterator[Open]:
    made: list[Source] = []

    def make(path: Path | str) -> Source:
        made.append(Source(str(path), None, "key", "value"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def keys(loaded: Source) -> list[str]:
    return [item.key.decode() for item in loaded.items()]


def test_a_file_is_read_again_and_known_by_all_its_bytes(tmp_path: Path, source: Open) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    first = source(path)
    assert (first.lasts, first.digest) == (True, "")
    assert keys(first) == keys(first) == [f"k{i}" for i in range(1000)]
    # The same size, and another byte in the middle of many.
    path.write_text(LINES.replace("v500", "w500"))
    second = source(path)
    assert len(keys(second)) == 1000
    assert second.digest not in ("", first.digest)


@pytest.mark.parametrize(
    "after",
    [LINES.replace("v500", "w500"), LINES + LINES, LINES[: len(LINES) // 2], LINES[:-1], "", LINES.replace("k7", "")],
)
def test_a_file_that_changes_while_it_is_loaded_is_told(tmp_path: Path, after: str, source: Open) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    loaded = source(path)
    keys(loaded)
    path.write_text(after)
    with pytest.raises(InvalidArgument, match=r"a\.jsonl: changed while it was loaded"):
        keys(loaded)
    path.unlink()
    with pytest.raises(InvalidArgument, match="cannot read it: No such file"):
        keys(loaded)


def test_a_pipe_is_read_once_and_its_copy_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Open
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[LINES])
    writer.start()
    loaded = source(pipe)
    assert (loaded.lasts, loaded.kind) == (False, "jsonl")
    assert keys(loaded) == keys(loaded) == keys(loaded) == [f"k{i}" for i in range(1000)]
    writer.join()
    assert list(tmp_path.iterdir()) == [pipe]


def test_names_of_open_files_are_read_from_where_they_stand(source: Open) -> None:
    reading, writing = os.pipe()
    os.write(writing, LINES.encode())
    os.close(writing)
    loaded = source(f"/dev/fd/{reading}")
    assert (loaded.lasts, len(keys(loaded)), len(keys(loaded))) == (False, 1000, 1000)
    os.close(reading)


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="needs /dev/zero")
def test_an_endless_device_does_not_fill_the_disk(source: Open) -> None:
    with pytest.raises(InvalidArgument, match="/dev/zero: line 1: longer than"):
        keys(source("/dev/zero"))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Open) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full.open("wb", buffering=0))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=["x"])
    writer.start()
    with pytest.raises(InvalidArgument, match=r"cannot keep a copy of it in .* \(TMPDIR names another folder\)"):
        keys(source(pipe))
    writer.join()


def test_what_cannot_be_read_is_told(tmp_path: Path, source: Open) -> None:
    for path, problem in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path, "Is a directory"),
        ("/dev/fd/987654", "Bad file descriptor"),
    ):
        with pytest.raises(InvalidArgument, match=f"cannot read it: {problem}"):
            keys(source(path))
