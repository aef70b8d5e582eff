"""`load` refuses damaged files with the line named, and reads back exactly what `dump` wrote."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.cli.records import Format, Item, dump_line, format_of, read_items
from raftkv.errors import InvalidArgument
from raftkv.limits import MAX_KEY_BYTES, MAX_VALUE_BYTES


def read(content: str | bytes, kind: Format, *columns: str) -> list[Item]:
    return list(read_items(BytesIO(content.encode() if isinstance(content, str) else content), "a", kind, *columns))


def test_json_lines_with_text_and_base64() -> None:
    lines = '{"key": "ключ", "value": ""}\n\n{"key_b64": "/w==", "value_b64": "AAE=", "expires_at": 12.5}\n'
    assert read(lines, "jsonl") == [Item(1, "ключ".encode(), b""), Item(3, b"\xff", b"\x00\x01", 12.5)]


def test_csv_with_quotes_newlines_other_columns_and_a_byte_order_mark() -> None:
    items = read('\ufeffid,name,note\r\n1,"a\r\nb",x\r\n2,"say ""hi""",y\r\n', "csv", "id", "name")
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
def test_a_damaged_json_line_is_named(line: bytes, problem: str) -> None:
    with pytest.raises(InvalidArgument, match="line 2: ") as caught:
        read(b'{"key": "good", "value": "x"}\n' + line + b"\n", "jsonl")
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
def test_a_damaged_csv_line_is_named(content: bytes, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(content, "csv")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["key,value\nk,%s\n", 'key,value,other\nk,"%s",' + "o" * (MAX_VALUE_BYTES + 1) + "\n"],
)
def test_csv_takes_values_up_to_the_limit(content: str) -> None:
    """Python's own limit is 131,072 characters, for columns that are not loaded too."""
    for size in (131_073, MAX_VALUE_BYTES):
        assert read(content % ("v" * size), "csv") == [Item(2, b"k", b"v" * size)]
    with pytest.raises(InvalidArgument, match="line 2: the value has 1048577 bytes, the limit is 1048576"):
        read(content % ("v" * (MAX_VALUE_BYTES + 1)), "csv")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_that_never_ends_does_not_fill_the_memory(kind: Format) -> None:
    with pytest.raises(InvalidArgument, match="line 1: longer than"):
        read(bytes(20 * MAX_VALUE_BYTES), kind)


@pytest.mark.parametrize(
    "time", ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "-1e999", "NaN", "-Infinity", "1e300", '"1"', "[]", "false"]
)
def test_an_expiry_that_is_no_time_is_named(time: str) -> None:
    with pytest.raises(InvalidArgument, match="a: line 1: expires_at is not a time in seconds"):
        read(f'{{"key": "a", "value": "", "expires_at": {time}}}', "jsonl")


@pytest.mark.parametrize("time", ["0", "-0", "-0.0", "-1", "1e-400", "1764374684", "1764374684.123456789", "null"])
def test_an_expiry_long_ago_is_a_time(time: str) -> None:
    (item,) = read(f'{{"key": "a", "value": "", "expires_at": {time}}}', "jsonl")
    assert item.expires_at == json.loads(time)


@pytest.mark.parametrize(
    ("content", "kind", "keys"),
    [
        (b"", "jsonl", []),
        (b"\n\r\n \n", "jsonl", []),
        (b"\xef\xbb\xbf", "jsonl", []),
        (b"\xef\xbb\xbf\n", "jsonl", []),
        (b'\xef\xbb\xbf{"key":"a","value":"1"}\r\n{"key":"b","value":"2"}', "jsonl", [b"a", b"b"]),
        (b'{"key":"\\ud83d\\ude00\\u0000","value":"1"}', "jsonl", ["\U0001f600\0".encode()]),
        (b"key,value", "csv", []),
        (b"\xef\xbb\xbfkey,value\n\n", "csv", []),
        (b"key,value\r\na,1\r\n\r\nb,2", "csv", [b"a", b"b"]),
        (b"value,key\n1,a\x00b\n", "csv", [b"a\x00b"]),
        (b"key,value\ra,1\rb,2\r", "csv", [b"a", b"b"]),
    ],
)
def test_unusual_files_are_read(content: bytes, kind: Format, keys: list[bytes]) -> None:
    assert [item.key for item in read(content, kind)] == keys


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"key": "a", "key": "b", "value": ""}', "field 'key' comes more than once"),
        ('{"key": "a", "value_b64": "AP8K\\n"}', "value_b64 is not base64"),
        ('{"key": "a", "value": ' + '{"a":' * 50_000 + "1" + "}" * 50_001, "not a record"),
    ],
)
def test_what_is_ambiguous_or_absurd_is_refused(line: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        read(line, "jsonl")


def test_files_of_no_known_kind() -> None:
    with pytest.raises(InvalidArgument, match="--format"):
        format_of(Path("records.txt"))
    assert (format_of(Path("a.CSV")), format_of(Path("a.ndjson"))) == ("csv", "jsonl")
    assert (format_of(Path("-"), "jsonl"), format_of(Path("pipe.csv"), "jsonl")) == ("jsonl", "csv")


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.binary(max_size=60))))
def test_what_dump_writes_load_reads(records: list[tuple[bytes, bytes]]) -> None:
    lines = b"".join(dump_line(key, value, 7, None) for key, value in records)
    assert [(item.key, item.value) for item in read(lines, "jsonl")] == records


def test_dump_writes_text_as_text() -> None:
    assert json.loads(dump_line(b"k", "é".encode(), 3, 1.23456)) == {
        "key": "k",
        "value": "é",
        "version": 3,
        "expires_at": 1.235,
    }
