"""What a node proves itself with, and whether it may be reached as it is configured."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from raftkv.addresses import parse_listen_address
from raftkv.errors import ConfigError
from raftkv.peer.handshake import MIN_SECRET_BYTES, Secret

if TYPE_CHECKING:
    from raftkv.node.config import NodeConfig

log = logging.getLogger(__name__)

VARIABLE: Final = "RAFTKV_PEER_SECRET"
FILE_VARIABLE: Final = "RAFTKV_PEER_SECRET_FILE"
"""Variables with the cluster's secret, and with the path of a file that has it."""


def peer_secret(config: NodeConfig) -> Secret:
    """The secret of the node's cluster. Raises ConfigError that says where one is looked for."""
    path = config.security.secret_file or os.environ.get(FILE_VARIABLE)
    if path:
        source = f"security.secret_file: {path}" if config.security.secret_file else f"{FILE_VARIABLE}: {path}"
        try:
            key = Path(path).read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"{source}: cannot read it: {error.strerror or error}") from None
    elif VARIABLE in os.environ:
        source, key = VARIABLE, os.fsencode(os.environ[VARIABLE]).strip()
    else:
        raise ConfigError(
            "security.secret_file is missing: nodes prove to each other that they know the cluster's secret, which is "
            f"in that file or in the variables {FILE_VARIABLE} or {VARIABLE}; the same on all nodes"
        )
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigError(f"{source}: the secret has {len(key)} bytes, the least is {MIN_SECRET_BYTES}")
    return Secret(key, SystemRandom())


def check_exposure(config: NodeConfig) -> None:
    """Raises ConfigError if other machines could reach the node and nobody has said that this is meant."""
    node = config.node
    named = {"listen": node.listen, "peer_listen": node.peer_listen, "metrics": node.metrics}
    exposed = {name: at for name, at in named.items() if at is not None and not parse_listen_address(at).loopback}
    if not exposed:
        return
    if not config.security.insecure:
        name, address = next(iter(exposed.items()))
        raise ConfigError(
            f"node.{name}: {address} may be reached from other machines, and nothing is encrypted: listen at a "
            "loopback address, or say that this is meant with security.insecure = true or --insecure"
        )
    log.warning("insecure: nothing is encrypted, and other machines may reach %s", ", ".join(exposed.values()))
