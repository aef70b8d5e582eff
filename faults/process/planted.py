"""A node with a fault planted in it: ``python -m faults.process.planted`` in the place of the command ``raftkv``.

A run that cannot see these faults proves nothing. They are those of the simulator's planted faults
(:mod:`faults.planted`) that show on real processes too: ``kill -9`` loses nothing that was written, so what guards
against power loss is left to the simulator. Started by ``LocalCluster(main=MAIN, environment=environment(FAULT))``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Final

from faults.planted.catalogue import find
from raftkv.cli import main as command
from raftkv.cli.common import Exit, complain

MAIN: Final = "faults.process.planted"
VARIABLE: Final = "RAFTKV_PLANTED_FAULT"

OF_NODES: Final[dict[str, tuple[str, ...]]] = {
    "stale reads": ("reads without a lease", "any replica reads"),
    "no dedupe": ("no dedupe",),
    "acknowledge before majority": ("commits alone",),
}
"""Fault -> the simulator's faults that it is made of: whoever believes to lead reads at once, and others read what they
have; a write that is sent again is executed again; what is in the leader's log counts as committed."""


def environment(fault: str) -> dict[str, str]:
    """The variables of a process that has this fault. Raises KeyError for an unknown one."""
    if fault not in OF_NODES:
        raise KeyError(fault)
    return {VARIABLE: fault}


@contextlib.contextmanager
def in_place(fault: str) -> Iterator[None]:
    """The product with the fault in it. Raises KeyError for an unknown one."""
    with contextlib.ExitStack() as stack:
        for name in OF_NODES[fault]:
            stack.enter_context(find(name).in_place())
        yield


def main() -> None:
    """Run the command ``raftkv`` with the fault that VARIABLE names; the node's log begins with its name."""
    fault = os.environ.get(VARIABLE, "")
    if fault not in OF_NODES:
        complain(f"{VARIABLE} is {fault!r}: it must name one of {', '.join(OF_NODES)}")
        sys.exit(Exit.USAGE)
    with in_place(fault):
        print(f"planted fault: {fault}", file=sys.stderr, flush=True)
        command.main()


if __name__ == "__main__":
    main()
