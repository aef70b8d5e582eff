"""`load` refuses damaged files with the line named, and reads back exactly what `dump` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.cli.records import Item, dump_line, format_of, read_items
from raftkv.errors import InvalidArgument
from raftkv.limits import MAX_KEY_BYTES, MAX_VALUE_BYTES


def test_json_lines_with_text_and_base64(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "ключ", "value": ""}\n\n{"key_b64": "/w==", "value_b64": "AAE=", "expires_at": 12.5}\n')
    assert list(read_items(path, "jsonl")) == [Item(1, "ключ".encode(), b""), Item(3, b"\xff", b"\x00\x01", 12.5)]


def test_csv_with_quotes_newlines_other_columns_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffid,name,note\r\n1,"a\r\nb",x\r\n2,"say ""hi""",y\r\n'.encode())
    items = list(read_items(path, "csv", "id", "name"))
    assert items == [Item(2, b"1", b"a\r\nb"), Item(4, b"2", b'say "hi"')]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"key": "a"}', "needs either value or value_b64"),
        (b'{"key": "a", "key_b64": "YQ==", "value": ""}', "needs either key or key_b64"),
        (b'{"key": 1, "value": ""}', "key is not a string"),
        (b'{"key": "a", "value": null}', "value is not a string"),
        (b'{"key": "a", "value_b64": "?"}', "value_b64 is not base64"),
        (b'{"key": "\\ud800", "value": ""}', "key is not valid Unicode"),
        (b'{"key": "a", "value": "", "vlaue": ""}', "unknown field 'vlaue'"),
        (b'{"key": "a", "value": "", "expires_at": true}', "expires_at is not a time"),
        (b'{"key": "a", "value": "", "expires_at": NaN}', "expires_at is not a time"),
        (b'{"key": "", "value": ""}', "the key is empty"),
        (b'{"key": "a\xff", "value": ""}', "not UTF-8"),
        (b'{"key": "a", "value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not a record"),
        (b'{"key": "a", "value": "", "version": ' + b"9" * 5000 + b"}", "not a record"),
        (json.dumps({"key": "k" * (MAX_KEY_BYTES + 1), "value": ""}).encode(), "the limit is 8192"),
        (json.dumps({"key": "k", "value": "v" * (MAX_VALUE_BYTES + 1)}).encode(), "the limit is 1048576"),
    ],
)
def test_a_damaged_json_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"key": "good", "value": "x"}\n' + line + b"\n")
    with pytest.raises(InvalidArgument, match="line 2: ") as caught:
        list(read_items(path, "jsonl"))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "line 1: needs exactly one column named 'key'"),
        (b"key,key,value\n", "line 1: needs exactly one column named 'key'"),
        (b"key,val\n", "line 1: needs exactly one column named 'value'"),
        (b'key,value\n"a\nb",c\nd\n', "line 4: 1 fields, the header has 2"),
        (b'key,value\na,"b\n', "line 2: "),
        (b"key,value\na,b\n,c\n", "line 3: the key is empty"),
        (b"key,value\na,\xff\n", "not UTF-8"),
    ],
)
def test_a_damaged_csv_line_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        list(read_items(path, "csv"))
    assert problem in str(caught.value)


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot read it"):
        list(read_items(tmp_path / "none.csv", "csv"))
    with pytest.raises(InvalidArgument, match="--format"):
        format_of(tmp_path / "records.txt")
    assert (format_of(Path("a.CSV")), format_of(Path("a.ndjson"))) == ("csv", "jsonl")


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.binary(max_size=60))))
def test_what_dump_writes_load_reads(records: list[tuple[bytes, bytes]]) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(b"".join(dump_line(key, value, 7, None) for key, value in records))
        file.flush()
        assert [(item.key, item.value) for item in read_items(Path(file.name), "jsonl")] == records


def test_dump_writes_text_as_text() -> None:
    assert json.loads(dump_line(b"k", "é".encode(), 3, 1.23456)) == {
        "key": "k",
        "value": "é",
        "version": 3,
        "expires_at": 1.235,
    }
