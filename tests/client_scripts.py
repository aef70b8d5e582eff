"""Programs that use a client, each run as a process of its own: what they print, how they end, what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass

HANG = 300.0
"""Seconds after which a program is taken for one that does not end. Beside a dozen others, one of 2 s took 100 s."""

_BEGIN = """\
import asyncio, atexit, collections, gc, multiprocessing, os, signal, sys, threading, time
import raftkv
from raftkv import AsyncClient, Client, RaftKVError, UsageError

E = sys.argv[1]


def use():
    with Client(E) as kv:
        kv.put("k", b"v")
        return kv.get("k").value


async def use_async():
    async with AsyncClient(E) as kv:
        await kv.put("k", b"v")
        return (await kv.get("k")).value


def name(do):
    try:
        return do()
    except BaseException as error:
        return type(error).__name__


def forked(do, hard=True):
    '''What ``do`` returns in a forked process, or how that process ended.'''
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, repr(name(do)).encode())
        if hard:
            os._exit(0)
        sys.exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return told if status == 0 else f"{told} and ended with {status}"
"""


@dataclass
class Ended:
    """How a program ended."""

    code: int
    out: list[str]
    errors: str

    @property
    def warnings(self) -> list[str]:
        """The class of each client of which a ResourceWarning says that nobody closed it."""
        return re.findall(r"ResourceWarning: unclosed <raftkv\.client\.\w+\.(\w+) object", self.errors)

    @property
    def noise(self) -> list[str]:
        """What else is on stderr."""
        # The line of a warning, that of its source, and the hint at tracemalloc.
        lines = self.errors.splitlines()
        return [
            line
            for line, before in zip(lines, ["", *lines], strict=False)
            if "ResourceWarning" not in line and "ResourceWarning: unclosed" not in before
        ]


def run(program: str, endpoints: str, *, environment: dict[str, str] | None = None, begin: str = _BEGIN) -> Ended:
    """Run ``program``; ``E`` are the endpoints. Fails if it hangs."""
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", begin + textwrap.dedent(program), endpoints],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}, **(environment or {})},
    )
    return Ended(done.returncode, done.stdout.splitlines(), done.stderr)
