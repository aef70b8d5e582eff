"""Guarantee: a command speaks to the cluster that was meant, and a URL says the same to a client."""

from __future__ import annotations

import json
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

import click
import pytest

from raftkv.cli import contexts
from raftkv.cli.admin.main import run as run_admin
from raftkv.cli.common import DEFAULT_ENDPOINTS, Target
from raftkv.cli.contexts import Context
from raftkv.cli.main import run
from raftkv.client.aio import AsyncClient
from raftkv.client.tls import TLS
from raftkv.client.urls import parse_url
from raftkv.errors import ConfigError, InvalidArgument
from raftkv.local.certificates import Authority


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "contexts.json"
    monkeypatch.setenv(contexts.VARIABLE, str(path))
    return path


def chosen(**given: str) -> Target:
    with click.Context(click.Command("get")):
        return Target.chosen(given)


def test_names_are_added_used_shown_and_removed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["context", "list"]) == 0
    assert run(["context", "add", "one", "h:1"]) == 0
    files = ["--tls-ca", "ca.pem", "--tls-cert", "me.pem", "--tls-key", "me.key"]
    assert run(["context", "add", "two", "h:2", *files]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert chosen().endpoints == "h:1"
    assert run(["context", "use", "two"]) == 0
    assert chosen() == Target("h:2", TLS(*(str(Path(name).absolute()) for name in ("ca.pem", "me.pem", "me.key"))))
    capsys.readouterr()
    assert run(["context", "list", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["current"], sorted(listed["contexts"])) == ("two", ["one", "two"])
    assert run(["context", "show"]) == run(["context", "show", "one"]) == run(["context", "list"]) == 0
    assert "with a certificate" in capsys.readouterr().out
    assert run(["context", "remove", "two"]) == 0
    assert chosen() == Target(DEFAULT_ENDPOINTS, None)
    assert run(["context", "use", "two"]) == 1
    assert "there is no context 'two'; there are: one" in capsys.readouterr().err


def test_who_names_endpoints_means_no_context() -> None:
    contexts.save(contexts.Contexts({"one": Context("h:1", "ca.pem", server_name="kv"), "two": Context("h:2")}, "one"))
    assert chosen() == Target("h:1", TLS("ca.pem", server_name="kv"))
    assert chosen(endpoints="h:9") == Target("h:9", None)
    assert chosen(context="two") == Target("h:2", None)
    assert chosen(context="one", endpoints="h:9", tls_ca="new.pem") == Target("h:9", TLS("new.pem", server_name="kv"))
    with pytest.raises(ConfigError, match="there is no context 'three'; there are: one, two"):
        chosen(context="three")


@pytest.mark.parametrize("words", [["raftkv", "get", "k"], ["raftkv-admin", "cluster", "status"]])
@pytest.mark.parametrize(
    ("options", "variables", "wanted"),
    [
        (["--context", "two"], {"RAFTKV_ENDPOINTS": "h:9", "RAFTKV_TLS_CA": "x"}, Target("h:2")),
        (["--context", "two", "--endpoints", "h:8"], {"RAFTKV_ENDPOINTS": "h:9"}, Target("h:8")),
        ([], {"RAFTKV_ENDPOINTS": "h:9"}, Target("h:9")),
        ([], {"RAFTKV_CONTEXT": "two", "RAFTKV_ENDPOINTS": "h:9"}, Target("h:9")),
        ([], {"RAFTKV_CONTEXT": "two"}, Target("h:2")),
        ([], {}, Target("h:1", TLS("ca.pem"))),
    ],
)
def test_an_option_that_names_a_cluster_outdoes_the_environment(
    words: list[str],
    options: list[str],
    variables: dict[str, str],
    wanted: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Variables may be of another cluster, and the command may be one that cannot be undone."""
    contexts.save(contexts.Contexts({"one": Context("h:1", "ca.pem"), "two": Context("h:2")}, "one"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen: list[Target] = []
    choose = Target.chosen

    def chosen(given: Mapping[str, str | None], variables: Collection[str] = ()) -> Target:
        seen.append(choose(given, variables))
        raise ConfigError("enough")

    monkeypatch.setattr(Target, "chosen", chosen)
    program = run if words[0] == "raftkv" else run_admin
    assert program([*words[1:], *options]) == 1
    assert seen == [wanted]


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    """gRPC would only say that no node answers."""
    made = Authority.create(tmp_path / "certs")
    me, other = made.client("me"), made.client("other")
    junk = tmp_path / "junk"
    junk.write_text("no PEM")
    read = TLS(me.ca, me.cert, me.key).read()
    assert read.key == Path(me.key).read_bytes()
    assert "PRIVATE" not in repr(read)
    for tls, told in (
        (TLS(junk), "junk: no certificates of CAs"),
        (TLS(me.ca, junk, me.key), "junk and .*: no certificate and its key"),
        (TLS(me.ca, me.cert, other.key), "key values mismatch"),
        (TLS(me.ca, me.cert, tmp_path / "none"), "none: cannot read it: No such file"),
    ):
        with pytest.raises(ConfigError, match=told):
            AsyncClient("127.0.0.1:1", tls=tls)


def test_tls_by_halves_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="TLS needs --tls-ca"):
        chosen(tls_cert="c", tls_key="k")
    with pytest.raises(ConfigError, match="a client's certificate needs its key"):
        chosen(tls_ca="ca", tls_cert="c")
    assert run(["get", "k", "--tls-ca", "none.pem", "--timeout", "1s"]) == 1
    assert "none.pem: cannot read it: No such file" in capsys.readouterr().err
    assert run_admin(["cluster", "status", "--tls-ca", "none.pem"]) == 1
    assert capsys.readouterr().err.count("none.pem: cannot read it: No such file") == 1
    assert run(["context", "add", "one", "h:1", "--tls-key", "k"]) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "current": "", "contexts": {"a": {"endpoint": "h:1"}}}']
)
def test_a_file_that_is_no_contexts_is_named(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"contexts.json: (damaged|written by another version)"):
        contexts.load()


def test_urls() -> None:
    assert parse_url("raftkv://a:1,b:2") == (("a:1", "b:2"), None, None)
    assert parse_url("raftkvs://[::1]:1/?ca=ca.pem") == (("[::1]:1",), TLS("ca.pem"), None)
    assert parse_url("RAFTKV://a:1,[::1]:2,[::2]:3") == (("a:1", "[::1]:2", "[::2]:3"), None, None)
    url = "raftkvs://a:1?ca=%2Fetc%2Fca.pem&cert=c&key=k&server_name=node-1.x"
    assert parse_url(url) == (("a:1",), TLS("/etc/ca.pem", "c", "k", "node-1.x"), None)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://a:1", "begins with raftkv:// or raftkvs://"),
        ("a:1", "begins with raftkv://"),
        ("raftkv://", "no endpoint is given"),
        ("raftkv://a", "not of the form host:port"),
        ("raftkv://to ken@a:1", "^a token has ASCII letters, digits and signs only$"),
        ("raftkvs://@a:1?ca=x", "a token of 0 characters"),
        ("raftkv://a:1/db", "no path"),
        ("raftkv://a:1?ca=x", "raftkv:// has no TLS"),
        ("raftkvs://a:1", "needs .ca=FILE"),
        ("raftkvs://a:1?ca=", "needs .ca=FILE"),
        ("raftkvs://a:1?ca=x&cb=y", "'cb'"),
        ("raftkvs://a:1?ca=x&ca=y", "once each: 'ca'"),
        ("raftkvs://a:1?ca", "not a URL"),
        ("raftkvs://[a:1", "not of the form host:port"),
        ("raftkv://a:1#x", "no path"),
    ],
)
def test_what_is_no_url_of_a_cluster_is_refused(url: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        parse_url(url)
