"""A process beside this one that asks a cluster for something: an abuser, or a client that behaves well.

``python -m faults.abuse.child`` reads one line of JSON, ``{"act": NAME, ...}``, does what ``ACTS`` has by that name,
and prints its counts, a line of JSON each time. It ends when its stdin does, so it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

_SAYS: Final = 0.1
_GRACE: Final = 60.0
"""Seconds for what is under way when the end is asked for."""
_LINE: Final = 1024 * 1024
_ROOT: Final = Path(__file__).resolve().parents[2]


class Child:
    """The process, from :meth:`start` to :meth:`end`. ``counts``: what it printed last."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.counts: dict[str, Any] = {}
        self._process = process
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, act: str, **arguments: Any) -> Self:
        """Begin to do ``act`` with ``arguments``, which JSON can hold."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "faults.abuse.child",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=_LINE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"act": act, **arguments}).encode() + b"\n")
        await process.stdin.drain()
        return cls(process)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.counts = json.loads(line)
            self._changed.set()

    async def until(self, reached: Callable[[dict[str, Any]], object], timeout: float) -> bool:
        """Wait until the counts are so, or the process has ended; whether they are so within ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not reached(self.counts) and not self._reader.done():
                    self._changed.clear()
                    changed = asyncio.create_task(self._changed.wait())
                    await asyncio.wait({changed, self._reader}, return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
        return bool(reached(self.counts))

    async def end(self) -> dict[str, Any]:
        """Let it finish; its last counts. It is killed if it does not end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_GRACE + 10.0):
                await self._reader
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        return self.counts


async def _stdin_ended(over: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    over.set()


async def _work(asked: dict[str, Any]) -> None:
    from faults.abuse.acts import ACTS

    counts: dict[str, Any] = {}
    over = asyncio.Event()
    waiting = asyncio.create_task(_stdin_ended(over))
    work = asyncio.create_task(ACTS[asked.pop("act")](counts, over, **asked))
    left = _GRACE
    while not work.done() and left > 0:
        await asyncio.wait({work}, timeout=_SAYS)
        left -= _SAYS if over.is_set() else 0.0
        print(json.dumps(counts), flush=True)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    if not over.is_set():
        # Who started it still wants to read, and to say when it may go.
        await waiting
    if not work.cancelled():
        work.result()
    print(json.dumps(counts), flush=True)


def main() -> None:
    """Do what stdin asks for."""
    asyncio.run(_work(json.loads(sys.stdin.readline())))


if __name__ == "__main__":
    main()
