"""Addresses of clusters as URLs: ``raftkv://token@host:port,host:port``, and ``raftkvs://`` for TLS."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, unquote

from raftkv.api.credentials import check_credentials
from raftkv.client.routing import parse_endpoints
from raftkv.client.tls import TLS
from raftkv.errors import InvalidArgument
from raftkv.text import shown

_PLAIN: Final = "raftkv"
_ENCRYPTED: Final = "raftkvs"
_FILES: Final = ("ca", "cert", "key", "server_name")


def parse_url(url: str) -> tuple[tuple[str, ...], TLS | None, str | None]:
    """Endpoints, TLS and token of ``url``.

    Before the endpoints may stand ``TOKEN@`` or ``NAME:PASSWORD@``, percent-encoded. ``raftkvs://`` needs ``?ca=FILE``,
    and may have ``cert``, ``key`` and ``server_name``, as :class:`TLS` has them. Raises InvalidArgument, or ConfigError
    for a certificate without its key.
    """
    # Not urlsplit: some versions of it know at most one host, and no IPv6 address but the first.
    if not isinstance(url, str) or "://" not in url:
        raise InvalidArgument(f"a cluster's URL begins with {_PLAIN}:// or {_ENCRYPTED}://, unlike {_told(url)}")
    place, _, query = url.partition("?")
    scheme, _, hosts = place.partition("://")
    if scheme.lower() not in (_PLAIN, _ENCRYPTED):
        raise InvalidArgument(f"a cluster's URL begins with {_PLAIN}:// or {_ENCRYPTED}://, unlike {_told(url)}")
    user, at, hosts = hosts.rpartition("@")
    hosts = hosts.removesuffix("/")
    if "/" in hosts or "#" in url:
        raise InvalidArgument(f"a cluster's URL has no path: {_told(url)}")
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise InvalidArgument(f"{_told(url)} is not a URL") from None
    endpoints = parse_endpoints(hosts)
    token = check_credentials(unquote(user)) if at else None
    names = [name for name, _ in given]
    for name in names:
        if name not in _FILES or names.count(name) > 1:
            raise InvalidArgument(f"a cluster's URL has {', '.join(_FILES)}, once each: {shown(name)}")
    values = {name: value for name, value in given if value}
    if scheme.lower() == _PLAIN:
        if given:
            raise InvalidArgument(f"{_PLAIN}:// has no TLS: {_ENCRYPTED}:// takes {', '.join(_FILES)}")
        return endpoints, None, token
    if "ca" not in values:
        raise InvalidArgument(f"{_ENCRYPTED}:// needs ?ca=FILE, the CAs that vouch for the nodes")
    tls = TLS(values["ca"], values.get("cert"), values.get("key"), values.get("server_name"))
    return endpoints, tls, token


def _told(url: object) -> str:
    """What may be said of ``url``: without all that stands before an @, which may be a secret."""
    return shown(url.rpartition("@")[2] if isinstance(url, str) else url)
