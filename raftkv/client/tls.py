"""How a client knows that it speaks to nodes of its cluster, and they who it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from raftkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TLS:
    """Paths of PEM files. They are read when a connection to a node is first wanted.

    ``ca``: the CAs that vouch for the cluster's nodes. ``cert``, ``key``: the client's certificate and its key, where
    nodes ask for one. ``server_name``: what nodes' certificates name, if that is not the host at which they are
    reached, for instance behind a proxy.
    """

    ca: str | Path
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a client's certificate needs its key, and a key its certificate")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ConfigError that names a file which cannot be read."""
        ca = _read(self.ca)
        if self.cert is None or self.key is None:
            return grpc.ssl_channel_credentials(ca)
        return grpc.ssl_channel_credentials(ca, _read(self.key), _read(self.cert))

    def options(self) -> tuple[tuple[str, str], ...]:
        """Those of gRPC's channels."""
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror or error}") from None
