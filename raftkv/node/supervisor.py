"""What a node tells systemd, or whoever else has started it with ``NOTIFY_SOCKET``: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def tell(state: str) -> None:
    """Send ``state``, say ``READY=1``; nothing happens if nobody wants to hear it. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # Linux writes the NUL at the beginning of an abstract address as @.
    address = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.setblocking(False)
            notify.sendto(state.encode(), address)
    except OSError as problem:
        log.warning("the supervisor cannot be told %s: %s", state, problem)
