"""The one parser of addresses: what is one, in which spelling, and what is refused with the reason."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.addresses import MAX_LENGTH, Address, BadAddress, canonical, parse_address, parse_listen_address
from raftkv.errors import ConfigError

LONGEST_LABEL = "a" * 63


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("h:1", "h", 1),
        ("localhost:65535", "localhost", 65535),
        ("KV-4.Prod.example:7449", "kv-4.prod.example", 7449),
        ("raftkv_node_1:7401", "raftkv_node_1", 7401),
        ("10-0-0-4.pods.local.:1", "10-0-0-4.pods.local.", 1),
        ("node4.4you:1", "node4.4you", 1),
        ("xn--bcher-kva.example:1", "xn--bcher-kva.example", 1),
        (f"{LONGEST_LABEL}.{LONGEST_LABEL}:1", f"{LONGEST_LABEL}.{LONGEST_LABEL}", 1),
        ("127.0.0.1:7401", "127.0.0.1", 7401),
        ("255.0.0.1:80", "255.0.0.1", 80),
        ("[::1]:7501", "::1", 7501),
        ("[2001:DB8:0:0::000A]:1", "2001:db8::a", 1),
    ],
)
def test_an_address_has_one_spelling(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == (host, port)
    assert parse_address(str(address)) == address
    assert canonical(text) == str(address)
    assert not address.wildcard


NO_ADDRESSES = [
    "",
    ":",
    "x",
    "h:",
    ":1",
    "h:x",
    "h:-1",
    "h:+1",
    "h:1 ",
    "h: 1",
    " h:1",
    "h:1\n",
    "h:1/",
    "h:01",
    "h:0x1",
    "h:²",
    "h:٣",
    "h:65536",
    "127.0.0.1:99999",
    "h:" + "1" * 5000,
    "a b:1",
    "a/b:1",
    "a,b:1",
    "a:1;b:1",
    "a@b:1",
    "a\0:1",
    "a\0b:1",
    "http://h:1",
    "dns:///h:1",
    "unix:/tmp/socket",
    "é:1",
    "ｈ:1",
    "\ud800:1",
    "kv-4..prod:7449",
    ".h:1",
    "h..:1",
    ".:1",
    "-h:1",
    "h-.x:1",
    f"{'a' * 64}:1",
    f"{'a.' * 126}aa:1",
    "256.1.1.1:1",
    "1.2.3:1",
    "1.2.3.4.5:1",
    "1.2.3.04:1",
    "127.1:1",
    "0:1",
    "0x7f.1:1",
    "127.0.0.0x1:1",
    "127.0.0.1.:1",
    "4294967295:1",
    "::1:1",
    "::1",
    "[::1]",
    "[::1]1",
    "[]:1",
    "[h]:1",
    "[127.0.0.1]:1",
    "[:::1]:1",
    "[::1:1",
    "::1]:1",
    "[fe80::1%eth0]:1",
    "[::1/128]:1",
]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_refused_and_shown(text: str) -> None:
    for parse in (parse_address, parse_listen_address):
        with pytest.raises(BadAddress) as caught:
            parse(text)
        assert repr(text)[:40].removesuffix("'") in str(caught.value)
        assert len(str(caught.value)) < 300
    assert canonical(text) == text


@pytest.mark.parametrize("value", [None, 7, b"h:1", ["h:1"], ("h", 1), True])
def test_an_address_is_text(value: object) -> None:
    with pytest.raises(BadAddress, match="is not text"):
        parse_address(value)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[::0]", "[0:0:0:0:0:0:0:0]", "[::ffff:0.0.0.0]", "[::0.0.0.0]"])
def test_a_wildcard_is_for_listening_only(host: str) -> None:
    assert parse_listen_address(f"{host}:7401").wildcard
    with pytest.raises(BadAddress, match="not dialable"):
        parse_address(f"{host}:7401")


@pytest.mark.parametrize("text", ["0:7401", "0.0:7401", "000.0.0.0:7401", "0x0:7401", "00000000:7401"])
def test_other_spellings_of_the_wildcard_are_no_addresses(text: str) -> None:
    with pytest.raises(BadAddress, match="is not an IPv4 address"):
        parse_listen_address(text)


def test_port_0_is_for_those_who_take_any_port() -> None:
    assert parse_listen_address("127.0.0.1:0", any_port=True) == ("127.0.0.1", 0)
    for parse in (parse_address, parse_listen_address):
        with pytest.raises(BadAddress, match="has no port from 1 to 65535"):
            parse("127.0.0.1:0")


def test_no_address_is_longer_than_the_shard_map_holds() -> None:
    name = ".".join([LONGEST_LABEL] * 4)[: MAX_LENGTH - 6]
    assert parse_address(f"{name}:65535").host == name
    with pytest.raises(BadAddress):
        parse_address(f"{name}aaa:65535")


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("h:1", "h:1", True),
        ("h:1", "H:1", True),
        ("h:1", "h:2", False),
        ("h:1", "g:1", False),
        ("0.0.0.0:1", "10.0.0.1:1", True),
        ("10.0.0.1:1", "[::]:1", True),
        ("0.0.0.0:1", "10.0.0.1:2", False),
    ],
)
def test_one_machine_cannot_listen_twice_at_one_address(one: str, other: str, overlap: bool) -> None:
    assert parse_listen_address(one).overlaps(parse_listen_address(other)) is overlap
    assert parse_listen_address(other).overlaps(parse_listen_address(one)) is overlap


def test_a_bad_address_is_a_mistake_of_the_configuration_and_a_value_error() -> None:
    error = BadAddress("address 'x' is not of the form host:port")
    assert isinstance(error, ConfigError)
    assert isinstance(error, ValueError)
    again = copy.copy(error)
    assert (type(again), again.args) == (BadAddress, error.args)


@given(st.text(max_size=40), st.integers(-1, 70_000))
def test_any_text_is_parsed_or_refused(host: str, port: int) -> None:
    try:
        address = parse_address(f"{host}:{port}")
    except BadAddress:
        return
    assert parse_address(str(address)) == address
    # What resolvers are given never fails before it is looked up.
    address.host.encode("idna")


def test_addresses_are_formatted() -> None:
    assert str(Address("h", 1)) == "h:1"
    assert str(Address("::1", 1)) == "[::1]:1"
