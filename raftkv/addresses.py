"""Addresses of nodes, ``host:port``: the one parser and the one formatter. Pure: no name is looked up.

A host is an IPv4 address, an IPv6 address in brackets without a zone, or a name: labels of 1 to 63 ASCII letters,
digits, hyphens and underscores with dots between them, none with a hyphen at an end, 253 characters at most; one dot
may follow. A name whose last label is a number must be an IPv4 address of four numbers: resolvers take ``0``,
``127.1`` and ``0x7f.1`` for addresses. An international name is written in its ASCII form, ``xn--...``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple, TypeVar

from raftkv.errors import ConfigError
from raftkv.text import shown

T = TypeVar("T")

MAX_LENGTH: Final = 255
"""Characters of an address: the shard map holds no longer text."""

_MAX_NAME: Final = 253
_MAX_PORT: Final = 65535
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class BadAddress(ConfigError, ValueError):
    """Text is not an address, or not one for this purpose; the message shows it and says what is wrong."""


class Address(NamedTuple):
    """A host, without brackets, and a port. Names are in lower case and IPv6 addresses in their shortest form."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def wildcard(self) -> bool:
        """Whether this is every address of a machine, at which one can listen and which nobody can dial."""
        if ":" in self.host:
            address = IPv6Address(self.host)
            return (address.ipv4_mapped or address).is_unspecified
        return self.host == "0.0.0.0"

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it, as far as its text tells."""
        if self.is_name:
            return self.host == "localhost" or self.host.endswith(".localhost")
        address = ip_address(self.host)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return (mapped or address).is_loopback

    @property
    def is_name(self) -> bool:
        """Whether the host has to be looked up."""
        return ":" not in self.host and _NUMBER.fullmatch(self.host.rpartition(".")[2]) is None

    def overlaps(self, other: Address) -> bool:
        """Whether one machine cannot listen at both, as far as their text tells."""
        return self.port == other.port and (self.host == other.host or self.wildcard or other.wildcard)


def parse_address(text: object) -> Address:
    """The address ``text`` at which somebody is to be reached: a host that is no wildcard, a port from 1 to 65535.

    Raises BadAddress.
    """
    address = parse_listen_address(text)
    if address.wildcard:
        raise BadAddress(f"address {shown(text)}: not dialable; give the host at which it is reached")
    return address


def parse_listen_address(text: object, *, any_port: bool = False) -> Address:
    """The address ``text`` to listen at: wildcards too, and with ``any_port`` port 0 for a free one.

    Raises BadAddress.
    """
    if not isinstance(text, str):
        raise BadAddress(f"address {shown(text)} is not text")
    if len(text) > MAX_LENGTH:
        raise BadAddress(f"address {shown(text)} has more than {MAX_LENGTH} characters")
    host, _, digits = text.rpartition(":")
    if not host or not _PORT.fullmatch(digits):
        raise BadAddress(f"address {shown(text)} is not of the form host:port")
    port = int(digits)
    if port > _MAX_PORT or not (port or any_port):
        raise BadAddress(f"address {shown(text)} has no port from 1 to {_MAX_PORT}")
    try:
        return Address(_host(host), port)
    except ValueError as error:
        raise BadAddress(f"address {shown(text)} is not of the form host:port: {error}") from None


def crowded(connections: Mapping[T, str]) -> T:
    """Of connections and their hosts, oldest first: the oldest of the host that has most."""
    counts = Counter(connections.values())
    most = max(counts.values())
    return next(connection for connection, host in connections.items() if counts[host] == most)


def canonical(text: str) -> str:
    """One spelling for all of an address; what is no address stays as it is."""
    try:
        return str(parse_listen_address(text))
    except BadAddress:
        return text


def _host(host: str) -> str:
    """In its one spelling. Raises ValueError that says what is wrong."""
    if host.startswith("[") and host.endswith("]"):
        return str(_ipv6(host[1:-1]))
    if ":" in host:
        try:
            _ipv6(host)
        except ValueError:
            raise ValueError(f"{shown(host)} is not a host name") from None
        raise ValueError("write an IPv6 host in brackets, as in [::1]:7501")
    name = host.removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise ValueError(f"{host!r} is not an IPv4 address") from None
    if len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{shown(host)} is not a host name")
    return host.lower()


def _ipv6(host: str) -> IPv6Address:
    if "%" in host:
        raise ValueError("a zone means nothing on another machine")
    try:
        return IPv6Address(host)
    except AddressValueError:
        raise ValueError(f"{host!r} is not an IPv6 address") from None
