"""A node as a process: real ports, signals, logging."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import sys
from typing import TYPE_CHECKING, Final

import uvloop

from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.node.config import NodeConfig, split_address
from raftkv.node.node import RaftNode
from raftkv.peer.network import TcpNetwork
from raftkv.rpc.server import RpcServer
from raftkv.storage.fs import OsFileSystem, ThreadWorker

if TYPE_CHECKING:
    from raftkv.clock import Clock
    from raftkv.rpc.monitor import Monitor

log = logging.getLogger(__name__)

_HAND_OVER: Final = 2.0
"""Seconds for giving leaderships away at the end."""

_GRACE: Final = 3.0
"""Seconds for answering what is in flight at the end."""

_GC_THRESHOLDS: Final = (50_000, 20, 50)
"""New containers per collection of the youngest generation, and collections per collection of the next one."""

_SWITCH_INTERVAL: Final = 0.0005
"""Seconds: the worker thread must get the interpreter soon after a sync, also while the loop is busy."""


def serve(config: NodeConfig) -> int:
    """Run one node until SIGTERM or SIGINT. Returns the process's exit code.

    Raises RaftKVError (with a message for people) if the node cannot start.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=config.node.log_level.upper(),
        format=f"%(asctime)s %(levelname).1s node {config.node.id} %(name)s: %(message)s",
    )
    sys.setswitchinterval(_SWITCH_INTERVAL)
    return uvloop.run(_serve(config))


async def _serve(config: NodeConfig) -> int:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[BaseException | None] = loop.create_future()

    def finish(problem: BaseException | None) -> None:
        if not stop.done():
            stop.set_result(problem)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, finish, None)
    clock = SystemClock()
    worker, background = ThreadWorker(loop, "raftkv-wal"), ThreadWorker(loop, "raftkv-files")
    node = RaftNode(
        config,
        fs=OsFileSystem(),
        worker=worker,
        background=background,
        network=TcpNetwork(),
        clock=clock,
        rng=random.Random(),
        on_fatal=finish,
    )
    server = RpcServer(node, config.node.listen, clock)
    monitor = _monitor(node, server, clock, config.node.metrics)
    try:
        if monitor is not None:
            await monitor.start()
        await node.start()
        await server.start()
        # What exists now lives as long as the process, and records are no garbage: look at both rarely.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        log.info("serving clients at %s, nodes at %s", config.node.listen, config.node.peer_listen)
        if monitor is not None:
            log.info("serving metrics and probes at %s", config.node.metrics)
        problem = await stop
        if monitor is not None:
            monitor.stopping()
        if problem is None:
            log.info("stopping: handing leaderships over")
            await node.hand_over(_HAND_OVER)
            await server.stop(_GRACE)
        else:
            await server.stop(0)
    finally:
        if monitor is not None:
            await monitor.stop()
        await node.close()
        worker.close()
        background.close()
    if problem is None:
        log.info("stopped")
        return 0
    if isinstance(problem, RaftKVError):
        log.critical("node stopped: %s", problem)
    else:
        log.critical("node stopped: %r", problem, exc_info=problem)
    return 1


def _monitor(node: RaftNode, server: RpcServer, clock: Clock, address: str | None) -> Monitor | None:
    if address is None:
        return None
    # Its libraries take time and memory, for nothing where nobody asked for it.
    from raftkv.rpc.monitor import Monitor

    return Monitor(node, server.tally, *split_address(address), clock)
