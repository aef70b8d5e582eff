"""``raftkv lock``."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

import click

from raftkv.cli.common import Exit, Target, argument_bytes, complain, run, targeted, timeout_option
from raftkv.cli.parameters import Duration
from raftkv.errors import LockLost
from raftkv.limits import MAX_TTL

_VARIABLE: Final = "RAFTKV_LOCK_TOKEN"
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)
_NOT_FOUND: Final = 127
_NOT_RUN: Final = 126
_SIGNALLED: Final = 128
"""Exit codes as those of shells: what the command's own would be."""


@click.command()
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--ttl", type=Duration(MAX_TTL, least=0.1), default="10s", show_default=True, help="Free so long after it is lost."
)
@click.option("--wait", type=Duration(MAX_TTL, least=0.0), help="Give up after this time; 0: only try.")
@click.option("--holder", metavar="TEXT", show_default="host and process", help="What the lock says of its holder.")
@click.option(
    "--grace",
    type=Duration(least=0.0),
    default="10s",
    show_default=True,
    help="From SIGTERM to SIGKILL, if it is lost.",
)
@targeted
@timeout_option(5.0)
def lock(
    name: str,
    command: tuple[str, ...],
    ttl: float,
    wait: float | None,
    holder: str | None,
    grace: float,
    target: Target,
    timeout: float,
) -> int:
    """Run COMMAND while holding the lock NAME; its options follow `--`. Exits with the command's exit code.

    RAFTKV_LOCK_TOKEN in its environment is the fencing token. If the lock is lost, the command is ended: by SIGTERM,
    then by SIGKILL; the exit code is 1. If others hold the lock for longer than --wait, it is 4.

    \b
    Example:
      raftkv lock report --wait 0 -- sh -c 'echo "token $RAFTKV_LOCK_TOKEN"'
    """

    async def hold() -> int:
        async with target.client(timeout) as client:
            held = client.lock(argument_bytes(name), ttl=ttl, holder=None if holder is None else argument_bytes(holder))
            if not await held.acquire(timeout=wait):
                complain(f"others hold the lock {name}")
                return Exit.NOT_MET
            try:
                async with held:
                    return await _command(command, held.token, grace)
            except LockLost as error:
                complain(f"{error}; the command was ended")
                return Exit.ERROR

    return run(hold())


async def _command(command: tuple[str, ...], token: int, grace: float) -> int:
    """Its exit code. It does not outlive the task."""
    loop, process, early = asyncio.get_running_loop(), None, list[signal.Signals]()

    def pass_on(number: signal.Signals) -> None:
        if process is None:
            early.append(number)
        elif process.returncode is None:
            process.send_signal(number)

    for one in _PASSED_ON:
        loop.add_signal_handler(one, pass_on, one)
    try:
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, _VARIABLE: str(token)})
        for one in early:
            pass_on(one)
        code = await process.wait()
    except OSError as error:
        complain(f"cannot run {command[0]}: {error.strerror}")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUN
    finally:
        if process is not None and process.returncode is None:
            await _end(process, grace)
        for one in _PASSED_ON:
            loop.remove_signal_handler(one)
    return code if code >= 0 else _SIGNALLED - code


async def _end(process: asyncio.subprocess.Process, grace: float) -> None:
    process.terminate()
    try:
        async with asyncio.timeout(grace):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
