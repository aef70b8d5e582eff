"""A node as a process: real ports, signals, logging."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import random
import signal
import sys
from typing import TYPE_CHECKING, Final

import uvloop

from raftkv.addresses import parse_listen_address
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.frontend.grpc.server import GrpcServer
from raftkv.frontend.resources import Resources
from raftkv.node import signals, supervisor, variables
from raftkv.node.access import Access
from raftkv.node.audit import Audit
from raftkv.node.config import NodeConfig
from raftkv.node.credentials import Certificates, certificates, check_exposure, peer_secret
from raftkv.node.descriptors import Descriptors, raise_limit
from raftkv.node.logs import NodeLog
from raftkv.node.node import RaftNode
from raftkv.node.reloading import Reloading
from raftkv.node.system_memory import SystemMemory
from raftkv.peer.network import TcpNetwork
from raftkv.storage.fs import OsFileSystem, ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftkv.clock import Clock
    from raftkv.frontend.http.monitor import Monitor
    from raftkv.frontend.port import Door
    from raftkv.peer.handshake import Secret

log = logging.getLogger(__name__)

_HAND_OVER: Final = 2.0
"""Seconds for giving leaderships away at the end."""

_GRACE: Final = 3.0
"""Seconds for answering what is in flight at the end."""

_SWEEP: Final = 5.0
"""Seconds between looks for lines that were left out of the log."""

_CERTIFICATES: Final = 1.0
"""Seconds between looks for certificates that were replaced."""

_GC_THRESHOLDS: Final = (50_000, 20, 50)
"""New containers per collection of the youngest generation, and collections per collection of the next one."""

_SWITCH_INTERVAL: Final = 0.0005
"""Seconds: the worker thread must get the interpreter soon after a sync, also while the loop is busy."""


def serve(config: NodeConfig, load: Callable[[], NodeConfig]) -> int:
    """Run one node until a signal ends it. Returns the process's exit code. ``load`` reads the configuration anew.

    Raises RaftKVError (with a message for people) if the node cannot start.
    """
    clock = SystemClock()
    output = NodeLog(config.node.id, clock.now)
    output.use(config.node)
    # To file 2, as it is at the time: the log file, if that is where stderr goes.
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT, chain=True)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        tls = certificates(config)
        secret = None
        if tls is None:
            secret = peer_secret(config)
            check_exposure(config)
        _tell_variables()
        return uvloop.run(_serve(config, load, output, clock, tls, secret))
    except Exception as problem:
        # The caller prints the message on stderr, which may be elsewhere or read by a program, without the traceback of
        # unexpected errors.
        elsewhere = config.node.log_file is not None or config.node.log_format == "json"
        if elsewhere or not isinstance(problem, RaftKVError | OSError):
            log.critical("node stopped: %s", problem, exc_info=not isinstance(problem, RaftKVError | OSError))
        raise
    finally:
        signals.ignore()
        output.close()


def _tell_variables() -> None:
    if used := variables.used(NodeConfig, os.environ):
        log.info("settings from variables: %s", ", ".join(used))
    if unknown := variables.unknown(NodeConfig, os.environ):
        log.warning("variables that set nothing, as they name no setting: %s", ", ".join(unknown))


async def _serve(
    config: NodeConfig,
    load: Callable[[], NodeConfig],
    output: NodeLog,
    clock: Clock,
    tls: Certificates | None,
    secret: Secret | None,
) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()
    problems: list[BaseException] = []

    def fail(problem: BaseException) -> None:
        problems.append(problem)
        end(insisted=True)

    def end(insisted: bool) -> None:
        stop.set()
        if insisted:
            hurry.set()

    def reload() -> None:
        reloading.ask()

    signals.handle(loop, end, reload)
    descriptors = Descriptors(raise_limit(), len(config.nodes) - 1, tls=tls is not None)
    worker, background = ThreadWorker(loop, "raftkv-wal"), ThreadWorker(loop, "raftkv-files")
    node = RaftNode(
        config,
        fs=OsFileSystem(),
        worker=worker,
        background=background,
        network=TcpNetwork(tls),
        secret=secret,
        clock=clock,
        rng=random.Random(),
        on_fatal=fail,
        memory=SystemMemory(),
    )
    reloading = Reloading(config, load, (lambda new: output.use(new.node), node.reconfigure), clock)
    resources = Resources(clock)
    passwords = ThreadWorker(loop, "raftkv-passwords")
    access = Access(
        node.users,
        Audit(config.node.data_dir, clock),
        clock,
        worker=passwords,
        reader=background,
        known_map=node.cluster_map,
    )
    server = GrpcServer(node, config.node.listen, resources, connections=descriptors.clients, tls=tls, door=access)
    for source in (descriptors.problems, resources.problems):
        node.add_problems(source)
    if tls is not None:
        node.add_problems(lambda: tls.problems(clock.wall()))
    monitor = _monitor(node, resources, config.node.metrics, tls, access)
    try:
        if monitor is not None:
            await monitor.start()
        await node.start()
        access.start()
        await server.start()
        # What exists now lives as long as the process, and records are not cyclic garbage: look at both rarely.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        log.info("%s", descriptors)
        log.info("serving clients at %s, nodes at %s", config.node.listen, config.node.peer_listen)
        if monitor is not None:
            log.info("serving metrics and probes at %s", config.node.metrics)
        supervisor.tell("READY=1")
        _sweep(output, clock)
        if tls is not None:
            log.info("all connections are encrypted; the certificate is valid until %s", tls.until)
            _look(tls, clock)
        await stop.wait()
        supervisor.tell("STOPPING=1")
        if monitor is not None:
            monitor.stopping()
        if problems:
            await server.stop(0)
        else:
            await _hand_over(node, server, hurry)
    finally:
        if monitor is not None:
            await monitor.stop()
        access.close()
        await node.close()
        passwords.close()
        worker.close()
        background.close()
    if not problems:
        log.info("stopped")
        return 0
    problem = problems[0]
    if isinstance(problem, RaftKVError):
        log.critical("node stopped: %s", problem)
    else:
        log.critical("node stopped: %r", problem, exc_info=problem)
    return 1


async def _hand_over(node: RaftNode, server: GrpcServer, hurry: asyncio.Event) -> None:
    """Hand over and answer what is in flight, unless somebody insists on ending at once."""

    async def gently() -> None:
        await node.hand_over(_HAND_OVER)
        await server.stop(_GRACE)

    log.info("stopping: transferring leaderships")
    steps = [asyncio.ensure_future(gently()), asyncio.ensure_future(hurry.wait())]
    await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
    if not steps[0].done():
        log.info("stopping at once")
        await server.stop(0)
    for step in steps:
        step.cancel()
    outcome, _ = await asyncio.gather(*steps, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


def _sweep(output: NodeLog, clock: Clock) -> None:
    output.sweep()
    clock.call_later(_SWEEP, lambda: _sweep(output, clock))


def _look(tls: Certificates, clock: Clock) -> None:
    clock.call_later(_CERTIFICATES, lambda: _look(tls, clock))
    tls.look()


def _monitor(
    node: RaftNode, resources: Resources, address: str | None, tls: Certificates | None, door: Door
) -> Monitor | None:
    if address is None:
        return None
    # Its libraries take time and memory to import, so only if it is configured.
    from raftkv.frontend.http.monitor import Monitor

    host, port = parse_listen_address(address)
    if tls is None:
        return Monitor(node, resources.counters, host, port, resources.clock, door)
    return Monitor(
        node, resources.counters, host, port, resources.clock, door, lambda: tls.visited, ask_clients=tls.ask_clients
    )
