"""Recovery of the write-ahead log: a torn tail is cut, damage to anything that was durable refuses to start."""

from pathlib import Path
from zlib import crc32

import msgpack
import pytest

from faults.sim.disk import SimDisk
from faults.sim.worker import SimWorker
from raftkv.errors import CorruptData, StorageError
from raftkv.storage import wal_format
from raftkv.storage.fs import OsFileSystem
from raftkv.storage.wal import GroupState, Wal
from raftkv.storage.wal_recovery import recover

FOLDER = "n/wal"
SEGMENT = 512


def drop(_: BaseException) -> None:
    raise AssertionError("the log failed")


def start(disk: SimDisk, segment_bytes: int = SEGMENT) -> Wal:
    disk.kill()
    return Wal.open(disk.mount(), SimWorker(), FOLDER, drop, identity=b"me", segment_bytes=segment_bytes)


def command(index: int) -> bytes:
    return b"%04d" % index * 10


def written(entries: int, segment_bytes: int = SEGMENT) -> SimDisk:
    """A log of group 1, each entry a batch."""
    disk = SimDisk()
    wal = start(disk, segment_bytes)
    wal.group(1, (1, 2, 3))
    wal.hard_state(1, 3, 2)
    for index in range(1, entries + 1):
        wal.entry(1, index, 1, command(index))
        wal.flush()
    assert wal.durable == wal.appended == entries + 2
    for path in disk.files():
        if path.endswith(".spare"):
            disk.delete(path)
    return disk


def logs(disk: SimDisk) -> list[str]:
    return [path for path in disk.files() if path.endswith(".log")]


def batches(disk: SimDisk, path: str) -> list[wal_format.Batch]:
    data = disk.files()[path]
    salt = int.from_bytes(data[20:28], "little")
    offset = wal_format.SEGMENT_HEADER_BYTES
    found = []
    while (batch := wal_format.read_batch(data, offset, salt)) is not None:
        found.append(batch)
        offset = batch.end
    return found


def indexes(state: GroupState) -> list[int]:
    for data, index, _ in state.entries:
        assert data == command(index)
    return [index for _, index, _ in state.entries]


def refuses(disk: SimDisk, match: str = "") -> CorruptData:
    """The start is refused, says where and what to do, and changes nothing."""
    before = disk.files()
    operations = disk.operations
    with pytest.raises(CorruptData, match=match) as raised:
        start(disk)
    assert disk.operations == operations
    assert disk.files() == before
    assert "replace the node" in str(raised.value)
    assert raised.value.path.startswith(FOLDER)
    return raised.value


def test_a_torn_tail_is_cut_at_every_byte() -> None:
    """The last batch torn at any byte, the rest of it zeros: all earlier batches stay, and the log goes on."""
    disk = written(7, 4096)
    path = logs(disk)[-1]
    last = batches(disk, path)[-1]
    whole = disk.files()[path]
    for cut in range(last.offset, last.end):
        disk.replace(path, whole[:cut] + bytes(len(whole) - cut))
        wal = start(disk, 4096)
        assert indexes(wal.recovered[1]) == list(range(1, 7)), f"cut at {cut}"
        wal.entry(1, 7, 2, command(7))
        wal.flush()
        assert start(disk, 4096).recovered[1].entries[-1] == (command(7), 7, 2)


def test_a_drop_torn_at_any_byte_did_not_happen() -> None:
    """Either all of the group is there or, once the batch is whole, nothing but term, vote and the end of its log."""
    disk = written(6, 4096)
    wal = start(disk, 4096)
    before = wal.recovered[1]
    wal.drop(1, 1, 6)
    wal.group(1, (1, 2, 3))
    wal.flush()
    path = logs(disk)[-1]
    last = batches(disk, path)[-1]
    whole = disk.files()[path]
    for cut in range(last.offset, last.end):
        disk.replace(path, whole[:cut] + bytes(len(whole) - cut))
        assert start(disk, 4096).recovered[1] == before, f"cut at {cut}"
    disk.replace(path, whole)
    assert start(disk, 4096).recovered[1] == GroupState((1, 2, 3), 3, 2, floor=(1, 6))


def test_garbage_after_the_last_batch_is_zeroed_before_anything_is_written() -> None:
    """Bytes of a torn batch must never be read as part of a later one, even if power fails again."""
    disk = written(5, 4096)
    path = logs(disk)[-1]
    last = batches(disk, path)[-1]
    whole = disk.files()[path]
    disk.replace(path, whole[: last.end] + whole[last.offset + 1 : last.end] + whole[2 * last.end - last.offset - 1 :])
    start(disk, 4096)
    disk.crash_keeping(0, names=False)
    assert disk.files()[path] == whole


def test_a_file_cut_short_in_the_last_batch_is_a_torn_tail() -> None:
    """A last segment that lost its end is filled up again."""
    disk = written(5, 4096)
    path = logs(disk)[-1]
    last = batches(disk, path)[-1]
    whole = disk.files()[path]
    disk.replace(path, whole[: last.end - 1])
    assert indexes(start(disk, 4096).recovered[1]) == [1, 2, 3, 4]
    assert disk.files()[path] == whole[: last.offset] + bytes(len(whole) - last.offset)


def test_a_flipped_bit_in_any_byte_that_was_durable_refuses() -> None:
    """Every byte of closed segments, and of all batches but the last, is covered."""
    disk = written(14)
    paths = logs(disk)
    assert len(paths) >= 3
    assert len(batches(disk, paths[-1])) >= 2
    recovered = recover(disk.mount(), FOLDER, b"me")
    assert recovered is not None
    for path in paths:
        end = len(disk.files()[path]) if path != paths[-1] else batches(disk, path)[-1].offset
        for offset in range(end):
            disk.flip(path, offset, 1 << offset % 8)
            with pytest.raises((CorruptData, StorageError)) as raised:
                recover(disk.mount(), FOLDER, b"me")
            assert isinstance(raised.value, CorruptData), f"{path} at {offset}"
            assert raised.value.path == path
            assert raised.value.offset <= offset
            disk.flip(path, offset, 1 << offset % 8)
    assert recover(disk.mount(), FOLDER, b"me") == recovered


def test_damage_in_the_middle_refuses_and_changes_nothing() -> None:
    """The message names the file, the offset and what to do."""
    disk = written(14)
    path = logs(disk)[1]
    batch = batches(disk, path)[1]
    disk.flip(path, batch.end - 1)
    problem = refuses(disk, "no valid batch")
    assert (problem.path, problem.offset) == (path, batch.offset)


def test_zeros_in_place_of_a_durable_batch_refuse() -> None:
    """A block that was lost and reads as zeros is damage, not the end of the log."""
    disk = written(14)
    path = logs(disk)[-1]
    data = disk.files()[path]
    victim = batches(disk, path)[-2]
    disk.replace(path, data[: victim.offset] + bytes(victim.end - victim.offset) + data[victim.end :])
    refuses(disk, "after it was durable")


def test_the_last_batch_of_a_closed_segment_may_not_vanish() -> None:
    """Zeros over it look like the segment's end; the next segment tells that records are missing."""
    disk = written(14)
    path = logs(disk)[0]
    data = disk.files()[path]
    victim = batches(disk, path)[-1]
    disk.replace(path, data[: victim.offset] + bytes(len(data) - victim.offset))
    refuses(disk, "are missing")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_segment_refuses(missing: int) -> None:
    """The first, one in the middle, and one to which a prepared spare testifies."""
    disk = written(14)
    disk.delete(logs(disk)[missing])
    if missing > 0:
        for path in logs(disk)[missing:]:
            disk.delete(path)
        disk.replace(f"{FOLDER}/{wal_format.spare_name(missing + 2)}", bytes(SEGMENT))
    refuses(disk, "missing")


def test_a_hole_between_segments_refuses() -> None:
    disk = written(14)
    disk.delete(logs(disk)[1])
    problem = refuses(disk, "this segment is missing")
    assert problem.path == f"{FOLDER}/{wal_format.segment_name(2)}"


def test_a_segment_under_another_name_refuses() -> None:
    """Swapped or renamed files are noticed."""
    disk = written(14)
    first, second, *_ = logs(disk)
    contents = disk.files()
    disk.replace(first, contents[second])
    disk.replace(second, contents[first])
    refuses(disk, "of another place or node")


def test_h14g_stale_bytes_of_another_segment_never_parse() -> None:
    """A batch copied from another segment, at the right place and with the right number, is not taken for one's own."""
    disk = written(5, 4096)
    other = SimDisk()
    wal = Wal.open(other.mount(), SimWorker(), FOLDER, drop, identity=b"old", segment_bytes=4096)
    wal.group(1, (1, 2, 3))
    wal.hard_state(1, 3, 2)
    for index in range(1, 10):
        wal.entry(1, index, 1, command(index))
        wal.flush()
    path = logs(disk)[-1]
    mine, stale = disk.files()[path], other.files()[path]
    end = batches(disk, path)[-1].end
    assert batches(other, path)[6].offset == end
    disk.replace(path, mine[:end] + stale[end:])
    assert indexes(start(disk, 4096).recovered[1]) == [1, 2, 3, 4, 5]
    assert disk.files()[path] == mine


def test_a_newer_format_is_told_from_damage() -> None:
    disk = written(1)
    path = logs(disk)[0]
    data = bytearray(disk.files()[path])
    data[8] = 9
    size = wal_format.SEGMENT_HEADER_BYTES
    crc = crc32(bytes(data[: size - 4]))
    data[size - 4 : size] = crc.to_bytes(4, "little")
    disk.replace(path, bytes(data))
    disk.kill()
    with pytest.raises(StorageError, match="format 9, this version of raftkv"):
        start(disk)


def forge(records: list[object], count: int) -> SimDisk:
    disk = written(2, 4096)
    path = logs(disk)[0]
    data = disk.files()[path]
    last = batches(disk, path)[-1]
    packed = [msgpack.packb(record) for record in records]
    batch = wal_format.pack_batch(wal_format.segment_salt(b"me", 1), last.first + 1, count, last.first, packed)
    disk.replace(path, data[: last.end] + batch + data[last.end + len(batch) :])
    return disk


@pytest.mark.parametrize(
    ("records", "count", "problem"),
    [
        ([(99, 1)], 1, "unknown kind"),
        ([(wal_format.ENTRY, 1, 9, 1, b"")], 1, "entries 3 to 8 are missing"),
        ([(wal_format.ENTRY, 1)], 1, "malformed record"),
        ([(wal_format.ENTRY, 1, 3, 1, 7)], 1, "malformed record"),
        ([(wal_format.ENTRY, 1, 3, 1, "text")], 1, "malformed record"),
        ([(wal_format.ENTRY, 1, "3", 1, b"")], 1, "malformed record"),
        ([(wal_format.ENTRY, [1], 3, 1, b"")], 1, "malformed record"),
        ([(wal_format.HARD_STATE, 1, True, 1)], 1, "malformed record"),
        ([(wal_format.HARD_STATE, 1, 1, -1)], 1, "malformed record"),
        ([(wal_format.TRUNCATE, 1, 1.5)], 1, "malformed record"),
        ([(wal_format.SNAPSHOT, 1, None, 1)], 1, "malformed record"),
        ([(wal_format.GROUP, 1, "abc")], 1, "malformed founders"),
        ([(wal_format.GROUP, 1, [1, "2"])], 1, "malformed founders"),
        ([(wal_format.DROP, 1, 1)], 1, "malformed record"),
        ([(wal_format.OPENING, 5)], 0, "malformed record"),
        ([(wal_format.OPENING, [5])], 0, "malformed opening"),
        ([(wal_format.OPENING, [(1, (1,), 3, 2, 0, 0, "7")])], 0, "malformed opening"),
        ([(wal_format.OPENING, [(1, (1,), 3, 2, 0, 0, 2, 9)])], 0, "malformed opening"),
        ([("1", 1)], 1, "unknown kind"),
        ([{}], 1, "unknown kind"),
        ([5], 1, "unknown kind"),
        ([(wal_format.HARD_STATE, 1, 1, 1)], 2, "1 records, 2 announced"),
        ([(wal_format.OPENING, [(1, (1,), 3, 2, 0, 0, 7)])], 0, "ends at 2, it should end at 7"),
    ],
)
def test_a_valid_batch_of_nonsense_refuses(records: list[object], count: int, problem: str) -> None:
    """A checksum alone is not trusted: a batch that this version cannot have written stops the start."""
    refuses(forge(records, count), problem)


def test_unused_files_of_a_crash_are_removed() -> None:
    """Half-made segments have no name yet and go."""
    disk = written(14)
    disk.replace(f"{FOLDER}/{wal_format.TEMPORARY}", b"half")
    disk.replace(f"{FOLDER}/{wal_format.spare_name(len(logs(disk)) + 1)}", b"half")
    before = logs(disk)
    start(disk)
    disk.crash_keeping(0, names=False)
    assert list(disk.files()) == before


def test_damage_in_real_files_refuses(tmp_path: Path) -> None:
    """The same through the operating system: torn tail starts, damage before it does not."""
    folder = f"{tmp_path}/wal"

    def open_real() -> Wal:
        return Wal.open(OsFileSystem(), SimWorker(), folder, drop, segment_bytes=4096)

    wal = open_real()
    for index in range(1, 6):
        wal.entry(1, index, 1, command(index))
        wal.flush()
    wal.close()
    path = Path(f"{folder}/{wal_format.segment_name(1)}")
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    path.write_bytes(data[: end - 3] + bytes(len(data) - end + 3))
    wal = open_real()
    assert indexes(wal.recovered[1]) == [1, 2, 3, 4]
    wal.close()
    data = path.read_bytes()
    middle = data.index(command(2))
    path.write_bytes(data[:middle] + b"!" + data[middle + 1 :])
    with pytest.raises(CorruptData, match=r"wal-000000000001\.log: damaged at byte \d+"):
        open_real()
