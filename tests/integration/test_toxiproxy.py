"""Toxiproxy as chaos runs use it: a toxic that was laid is there, healing takes all away, and what fails says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.process.toxiproxy import STREAMS, Link, Toxiproxy, ToxiproxyError
from raftkv.clock import SystemClock
from tests import needs
from tests.waiting import PATIENCE

_CLOCK = SystemClock()


class Echo:
    """Sends back what it gets."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        host, port = self._socket.getsockname()
        self.address = f"{host}:{port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while data := one.recv(65536):
                one.sendall(data)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def server() -> str:
    return needs.toxiproxy()


@pytest.fixture(scope="module")
def toxiproxy(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toxiproxy]:
    with Toxiproxy(server, tmp_path_factory.mktemp("toxiproxy") / "log") as running:
        yield running


@pytest.fixture
def link(toxiproxy: Toxiproxy, request: pytest.FixtureRequest) -> Iterator[Link]:
    echo = Echo()
    yield toxiproxy.link(request.node.name, echo.address)
    toxiproxy.heal()
    echo.close()


def dial(link: Link) -> socket.socket:
    host, port = link.listen.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def echoed(connection: socket.socket, data: bytes = b"hello") -> bytes:
    connection.sendall(data)
    found = b""
    while len(found) < len(data) and (part := connection.recv(len(data))):
        found += part
    return found


def test_it_tells_its_version(toxiproxy: Toxiproxy) -> None:
    assert toxiproxy.version()


def test_a_clean_link_passes_bytes_on(link: Link) -> None:
    with dial(link) as connection:
        assert echoed(connection) == b"hello"
    assert link.toxics() == []


@pytest.mark.parametrize("stream", STREAMS)
def test_a_black_hole_swallows_one_direction_of_an_open_connection_and_heals(link: Link, stream: str) -> None:
    with dial(link) as connection:
        assert echoed(connection) == b"hello"
        name = link.add("timeout", stream, timeout=0)
        assert link.toxics() == [name]
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            echoed(connection)
        link.remove(name)
        assert link.toxics() == []
    with dial(link) as connection:
        assert echoed(connection, b"again") == b"again"


def test_a_reset_ends_open_connections(link: Link) -> None:
    with dial(link) as connection:
        assert echoed(connection) == b"hello"
        link.add("reset_peer", "downstream", timeout=0)
        with contextlib.suppress(ConnectionError):
            assert echoed(connection) == b""


def test_latency_delays_by_what_was_said(link: Link) -> None:
    link.add("latency", "downstream", latency=150, jitter=0)
    with dial(link) as connection:
        began = _CLOCK.now()
        assert echoed(connection) == b"hello"
        assert _CLOCK.now() - began >= 0.15


def test_healing_takes_every_toxic_of_every_link(toxiproxy: Toxiproxy, link: Link) -> None:
    for stream in STREAMS:
        link.add("timeout", stream, timeout=0)
        link.add("latency", stream, latency=10)
    assert len(link.toxics()) == 4
    toxiproxy.heal()
    assert link.toxics() == []


def test_what_is_not_there_can_be_taken_away(link: Link) -> None:
    link.remove("timeout_upstream")
    assert link.toxics() == []


def test_a_toxic_that_there_is_not_is_refused(link: Link) -> None:
    with pytest.raises(ToxiproxyError, match="^Toxiproxy refuses: invalid toxic type$"):
        link.add("gremlins", "upstream")
    with pytest.raises(ToxiproxyError, match="^Toxiproxy refuses: stream was invalid"):
        link.add("timeout", "sideways")


def test_a_proxy_says_at_which_port_it_listens(toxiproxy: Toxiproxy, link: Link) -> None:
    second = toxiproxy.link("second", link.upstream)
    assert 0 < int(second.listen.rpartition(":")[2]) != int(link.listen.rpartition(":")[2]) > 0
    with dial(second) as connection:
        assert echoed(connection) == b"hello"


def test_an_error_of_the_server_is_told_in_its_words(toxiproxy: Toxiproxy, link: Link) -> None:
    """What the library makes of an answer without a proxy in it is a KeyError."""
    for problem, listen in (("address already in use", link.listen), ("no port", "127.0.0.1:70000")):
        with pytest.raises(ToxiproxyError, match="^Toxiproxy refuses: listen tcp") as error:
            toxiproxy.post("/proxies", {"name": problem, "listen": listen, "upstream": link.upstream})
        assert "does not answer" not in str(error.value)
    with pytest.raises(ToxiproxyError, match="^Toxiproxy refuses: missing required field: upstream$"):
        toxiproxy.link("nowhere", "")


def test_a_name_in_use_is_an_error(toxiproxy: Toxiproxy, link: Link) -> None:
    with pytest.raises(ToxiproxyError, match="^Toxiproxy refuses: proxy already exists$"):
        toxiproxy.link(link.name, link.upstream)


def test_what_is_no_answer_of_toxiproxy_says_so(toxiproxy: Toxiproxy) -> None:
    with pytest.raises(ToxiproxyError, match="^Toxiproxy refuses: 404 page not found$"):
        toxiproxy.post("/nothing", {})


def test_two_servers_do_not_mix_up_their_links(toxiproxy: Toxiproxy, server: str, tmp_path: Path, link: Link) -> None:
    """toxiproxy-python has one address for all."""
    echo = Echo()
    with Toxiproxy(server, tmp_path / "log") as second:
        other = second.link("other", echo.address)
        link.add("timeout", "upstream", timeout=0)
        assert other.toxics() == []
        second.heal()
        assert link.toxics() == ["timeout_upstream"]
    echo.close()


def test_a_server_that_ended_is_an_error(server: str, tmp_path: Path) -> None:
    with Toxiproxy(server, tmp_path / "log") as running:
        pass
    with pytest.raises(ToxiproxyError, match="^Toxiproxy does not answer: "):
        running.heal()


def test_a_program_that_is_no_server_is_an_error_with_its_words(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("#!/bin/sh\necho I am something else\nexit 3\n")
    wrong.chmod(0o755)
    with pytest.raises(ToxiproxyError, match="something else"):
        Toxiproxy(str(wrong), tmp_path / "log")
