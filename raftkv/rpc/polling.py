"""How gRPC waits for its sockets: a choice of the process, made before its first channel or server."""

from __future__ import annotations

import os
from typing import Final

_VARIABLE: Final = "GRPC_EXPERIMENTS"
_CHOICE: Final = "-event_engine_listener,-event_engine_client"


def poll_directly() -> None:
    """Let gRPC's own pollers wait instead of its event engine, unless the environment already chooses.

    The event engine passes each event from thread to thread, which takes a third of a stream's round trips per second
    away. Child processes inherit the choice.
    """
    os.environ.setdefault(_VARIABLE, _CHOICE)
