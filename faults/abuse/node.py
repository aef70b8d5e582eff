"""A node as abuse wants it: ``python -m faults.abuse.node`` in the place of the command ``raftkv``.

Variables say what is different: the source tree that is run, how many descriptors the process may have, and by how many
seconds its wall clock is wrong. Nothing of raftkv is imported before that tree is known.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

MAIN: Final = "faults.abuse.node"
_PRODUCT: Final = "RAFTKV_ABUSE_PRODUCT"
_DESCRIPTORS: Final = "RAFTKV_ABUSE_DESCRIPTORS"
_WALL: Final = "RAFTKV_ABUSE_WALL"


def environment(
    product: Path | None = None, descriptors: int | None = None, wall: Mapping[int, float] | None = None
) -> dict[str, str]:
    """The variables of such nodes. ``product``: a checkout. ``wall``: node -> seconds that its clock is ahead."""
    found = {}
    if product is not None:
        found[_PRODUCT] = str(product.resolve())
    if descriptors is not None:
        found[_DESCRIPTORS] = str(descriptors)
    if wall:
        found[_WALL] = json.dumps({f"node-{node}": seconds for node, seconds in wall.items()})
    return found


def main() -> None:
    """Run the command ``raftkv`` as the variables say."""
    if product := os.environ.get(_PRODUCT):
        sys.path.insert(0, product)
    if descriptors := os.environ.get(_DESCRIPTORS):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors),) * 2)
    from raftkv import clock
    from raftkv.cli import main as command

    # A local node works in a folder of its name.
    wrong = json.loads(os.environ.get(_WALL, "{}")).get(Path.cwd().name, 0.0)
    if wrong:
        true = clock.SystemClock.wall
        vars_of = {"wall": lambda self: true(self) + wrong}
        for name, changed in vars_of.items():
            setattr(clock.SystemClock, name, changed)
    command.main()


if __name__ == "__main__":
    main()
