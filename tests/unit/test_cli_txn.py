"""Guarantee: counters, appends, times to live and transactions by the command line do what they say, or say why not."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raftkv.cli.main import run
from raftkv.cli.script import fill
from raftkv.client.arguments import encode_value
from raftkv.client.transaction import TransactionBuilder
from raftkv.commands.transactions import Check, GetStep, PutStep
from raftkv.errors import InvalidArgument
from tests.admin_world import World, world_of


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of(nodes=1, groups=1) as running:
        yield running


@pytest.fixture
def said(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAFTKV_ENDPOINTS", world.endpoints)
    capsys.readouterr()

    def ask(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return ask


def test_counters_appends_and_times_to_live(said: Any) -> None:
    assert said("incr", "n") == (0, "1\n", "")
    assert said("incr", "n", "--by", "-5") == (0, "-4\n", "")
    assert said("append", "n", "x") == (0, "length 3, version 3\n", "")
    code, out, err = said("incr", "n")
    assert (code, out) == (1, "")
    assert "key 'n': the value is not a signed 64-bit integer as decimal text" in err
    assert said("touch", "n", "1h", "--if-version", "3") == (0, "touched\n", "")
    assert said("persist", "n") == (0, "persistent\n", "")
    assert said("touch", "n", "1h", "--if-version", "4")[0] == 4
    assert said("persist", "none") == (4, "", "raftkv: no such key\n")
    assert said("delete", "n", "--if-value", "y")[0] == 4
    assert said("get", "n", "--delete")[:2] == (0, "-4x")
    assert said("get", "n")[0] == 4
    assert said("get", "n", "--delete", "--consistency", "stale")[0] == 2
    assert said("delete", "n", "--if-value", "y", "--if-version", "4")[0] == 2


def test_transactions(said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = said(
        "txn", "check {t}a absent", "put {t}a '1 2'  # two words", "incr {t}b 5 ttl 1h", "get {t}a", "delete {t}c"
    )
    assert put == (
        0,
        "put {t}a: version 1\nincr {t}b: value 5\nget {t}a: value 1 2, version 1\ndelete {t}c: no such key\n",
        "",
    )
    failed = said("txn", "check {t}a value x", "put {t}a no", "otherwise", "get {t}b", "delete {t}a", "get {t}a")
    assert failed == (
        4,
        "get {t}b: value 5, version 2\ndelete {t}a: deleted\nget {t}a: no such key\n",
        "raftkv: a check did not hold\n",
    )
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps({"checks": [{"key": "{t}b", "version": 2}], "operations": [{"incr": "{t}b", "delta": -1}]})
    )
    code, out, _ = said("txn", "-f", str(script), "-o", "json")
    assert (code, json.loads(out)) == (0, {"succeeded": True, "number": 4, "results": [{"incr": "{t}b", "value": 4}]})
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"get {t}b\n")))
    assert said("txn") == (0, "get {t}b: value 4, version 4\n", "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["txn", "put a 1", "put b 2"], "'a' (slot "),
        (["txn", "get a", "jump b"], "line 2: 'jump b' is not understood"),
        (["txn", "put 'a 1"], "line 1: No closing quotation"),
        (["txn", "incr a many"], "line 1: 'many' is not a number"),
        (["txn", "put a 1", "put a 2"], "writes key 'a' twice"),
        (["txn", "# nothing"], "the transaction is empty"),
        (["txn", "otherwise", "check a absent"], "line 2: checks stand before otherwise()"),
        (["txn", "put a 1 ttl soon"], "line 1: 'soon' is not a duration"),
        (["txn", "-f", "/no/such/file"], "/no/such/file: No such file"),
        (["txn", "get a", "-f", "-"], "mutually exclusive"),
        (["incr", "a", "--by", str(2**63)], "is not a signed 64-bit integer"),
    ],
)
def test_what_is_wrong_is_told(said: Any, arguments: list[str], why: str) -> None:
    code, out, err = said(*arguments)
    assert code in (1, 2)
    assert out == ""
    assert why in " ".join(err.split())


def test_only_line_ends_end_lines() -> None:
    txn = TransactionBuilder(encode_value)
    fill(txn, "put a '1\u2028\x0c2'\r\nget a\n\n")
    assert txn.steps == [PutStep(b"a", "1\u2028\x0c2".encode()), GetStep(b"a")]


def test_json_has_bytes_of_any_kind() -> None:
    txn = TransactionBuilder(encode_value)
    fill(
        txn,
        '{"checks": [{"key_b64": "/w==", "value_b64": "AA=="}],'
        ' "otherwise": [{"put_b64": "/w==", "value": "x", "ttl": 2.5}]}',
    )
    assert (txn.checks, txn.steps) == ([Check(b"\xff", value=b"\0")], [])
    assert txn.instead == [PutStep(b"\xff", b"x", 2500)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ('{"steps": []}', "has the lists checks, operations and otherwise"),
        ('{"checks": [1]}', "check 1: it must be an object"),
        ('{"checks": [{"key": "a"}]}', "check 1: a check names a version, a value or absent"),
        ('{"checks": [{"key": "a", "version": "1"}]}', "check 1: version is '1': it must be of type int"),
        ('{"operations": [{"get": "a"}, {"get": "a", "put": "b"}]}', "operation 2: it must have one of get, put"),
        ('{"operations": [{"get": "a", "ttl": 1}]}', "operation 1: unknown fields: ttl"),
        ('{"otherwise": [{"put": "a"}]}', "operation 1 of otherwise: value must be text"),
        ('{"operations": [{"put": "a", "value": "1", "ttl": -1}]}', "operation 1: a TTL of -1 s"),
    ],
)
def test_json_that_is_wrong_is_told(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        fill(TransactionBuilder(encode_value), text)
    assert why in str(caught.value)
