"""What commands write replaces regular files only, whole or not at all; modes, links, pipes and devices stay."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from raftkv.cli.files import output_file
from raftkv.files import replacing, write_atomically


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, text: str = "new") -> None:
    with output_file(str(path)) as file:
        file.write(text.encode())


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o644, 0o666, 0o755, 0o444])
def test_the_mode_of_a_file_stays(tmp_path: Path, permissions: int) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(permissions)
    write(path)
    assert (path.read_text(), mode(path)) == ("new", permissions)
    write_atomically(path, "newer")
    assert mode(path) == permissions
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o640


def test_a_file_is_as_private_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch(0o600)
    with replacing(path) as file:
        file.write(b"x")
        (part,) = set(tmp_path.iterdir()) - {path}
        assert mode(part) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_of_a_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    os.chown(path, 1234, 5678)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real"
    target.write_text("old")
    target.chmod(0o600)
    for name, points_to in (("link", target), ("link to link", tmp_path / "link"), ("dangling", tmp_path / "new")):
        link = tmp_path / name
        link.symlink_to(points_to)
        write(link, name)
        assert link.is_symlink()
        assert points_to.read_text() == link.read_text() == name
    assert mode(target) == 0o600
    assert not (tmp_path / "new").is_symlink()


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "a"
    link.symlink_to(link)
    with pytest.raises(OSError, match="Not a regular file"):
        write(link)
    assert link.is_symlink()


def test_other_names_of_a_file_keep_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "a")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "old")


def test_a_file_stays_as_it_was_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def interrupted() -> None:
        with output_file(str(path)) as file:
            file.write(b"half")
            file.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join()
    assert (got, pipe.is_fifo()) == (["new"], True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
@pytest.mark.parametrize("linked", [False, True])
def test_a_device_is_written_through(tmp_path: Path, linked: bool) -> None:
    """Such as /dev/null, which is never used here: a copy of it is, in case it goes wrong."""
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.open("wb").close()
    except PermissionError:
        pytest.skip("no devices can be made here")
    path = device
    if linked:
        path = tmp_path / "link"
        path.symlink_to(device)
    write(path)
    with pytest.raises(OSError, match="Not a regular file"):
        write_atomically(path, "x")
    assert device.is_char_device()
    assert {one.name for one in tmp_path.iterdir()} <= {"null", "link"}


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "a", Path("/dev/fd/987654")):
        with pytest.raises(OSError, match=r"."):
            write(path)
    assert list(tmp_path.iterdir()) == []


def test_a_dash_and_names_of_open_files_are_no_files(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with output_file("-") as file:
        file.write(b"one\n")
    with output_file("/dev/stdout") as file:
        file.write(b"two\n")
    with output_file("/dev/stderr") as file:
        file.write(b"three\n")
    assert capfdbinary.readouterr() == (b"one\ntwo\n", b"three\n")
    with (tmp_path / "a").open("ab") as opened:
        opened.write(b"before\n")
        opened.flush()
        with output_file(f"/dev/fd/{opened.fileno()}") as file:
            file.write(b"after\n")
    assert (tmp_path / "a").read_bytes() == b"before\nafter\n"


def test_a_link_to_an_open_file_is_that_file(tmp_path: Path) -> None:
    """Such as a log that is a link to ``/dev/stdout``, while a shell's ``>>`` has stdout append to a file."""
    with (tmp_path / "a").open("ab") as opened:
        opened.write(b"before\n")
        opened.flush()
        (tmp_path / "near").symlink_to(f"/dev/fd/{opened.fileno()}")
        (tmp_path / "far").symlink_to("near")
        write(tmp_path / "far", "after\n")
    assert (tmp_path / "a").read_bytes() == b"before\nafter\n"


def test_a_file_named_dash_has_a_folder_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with output_file("./-") as file:
        file.write(b"x")
    assert (tmp_path / "-").read_bytes() == b"x"
