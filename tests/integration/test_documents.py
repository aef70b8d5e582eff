"""Guarantee: what README and docs show can be run as it is printed, and run again.

Python and commands run in a folder that looks like a checkout, with a local cluster in its ``data``, as ``make up``
starts it. Only addresses differ, as those of the pages may be in use. What is not run: ``documents.NOT_RUN``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from raftkv.cli.admin.common import AdminExit
from raftkv.testing import LocalCluster
from tests.chaos_runs import believable
from tests.documents import PAGES, ROOT, Block, Command, block_commands, blocks
from tests.needs import need

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

BLOCKS: Final = [block for page in PAGES for block in blocks(page)]
PYTHON: Final = [block for block in BLOCKS if block.language == "python"]
RUN: Final = {
    page: run
    for page in PAGES
    if (run := [one for block in blocks(page) for one in block_commands(block) if one.not_run is None])
}
KEPT_OUT: Final = {"data", "chaos", "build", "dist", ".ci"}
"""What commands write to, and what would install the checkout from another place."""

PATIENCE: Final = "timeout=60.0"
"""In place of what pages show, as the machine may be busy."""

PASSING: Final = {AdminExit.UNREACHABLE, AdminExit.UNHEALTHY, AdminExit.PARTIAL}
"""Exit codes of a cluster whose machine is busy: the command is tried again."""

OTHER_CODES: Final = {"raftkv-admin leader balance": {AdminExit.PARTIAL}}
"""Exit codes besides 0, of commands whose success is up to the cluster."""

OTHER_STATE: Final = {"raftkv-admin cluster health", "raftkv-admin rebalance status"}
"""Commands that are shown with problems, or in the middle of something: their output is another one here."""


class Checkout:
    """A folder with the files of the repository, a cluster, and a run of the chaos suite."""

    def __init__(self, folder: Path, cluster: LocalCluster) -> None:
        self.folder = folder
        self._cluster = cluster
        self._runs = 0
        self.environment = {
            **os.environ,
            "RAFTKV_ENDPOINTS": cluster.endpoints,
            "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "error",
        }

    def placed(self, text: str) -> str:
        """``text`` with what it leaves to the reader put in, and addresses and folders that are free."""
        for node in self._cluster.nodes:
            text = text.replace(f"127.0.0.1:{7400 + node}", self._cluster.address(node))
        text = re.sub(r"timeout=[0-9.]+", PATIENCE, text).replace(
            "(cluster.endpoints)", f"(cluster.endpoints, {PATIENCE})"
        )
        return re.sub(r"\b(DIR|FOLDER)\b", "run", text).replace("/backups/", f"backups-{self._runs}-")

    def is_up(self) -> bool:
        """Whether all nodes of the cluster run."""
        return all(self._cluster.pid(node) is not None for node in self._cluster.nodes)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        self._runs += 1
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    need((ROOT / ".venv" / "bin" / "raftkv").exists(), "no .venv: make setup")
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in KEPT_OUT:
            (folder / path.name).symlink_to(path)
    setup = folder / ".ci" / "setup"
    setup.parent.mkdir()
    setup.write_text("exit 0\n")
    believable(folder / "run")
    with LocalCluster(nodes=3, groups=3, folder=folder / "data") as cluster:
        yield Checkout(folder, cluster)


@pytest.fixture
def running(checkout: Checkout) -> Checkout:
    """With its cluster up: pages stop it too."""
    if not checkout.is_up():
        up = checkout.run("make", "up")
        assert up.returncode == 0, up.stderr
    return checkout


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs_twice(block: Block, running: Checkout) -> None:
    for _ in range(2):
        result = running.run(sys.executable, "-c", running.placed(block.text))
        assert (result.returncode, result.stderr) == (0, "")


def test_python_has_types_that_hold(tmp_path: Path) -> None:
    files = []
    for number, block in enumerate(PYTHON):
        files.append(tmp_path / f"block_{number}.py")
        files[-1].write_text(f"# {block}\n{block.text}")
    mypy = [sys.executable, "-m", "mypy", "--strict", *map(str, files)]
    result = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_commands_run_twice(page: Path, running: Checkout) -> None:
    for _ in range(2):
        for command in RUN[page]:
            for _ in range(10):
                result = running.run("sh", "-c", running.placed(command.line))
                if result.returncode not in PASSING:
                    break
            assert result.returncode in (0, *OTHER_CODES.get(command.line, ())), (
                f"{command}\n{result.stdout}{result.stderr}"
            )
            if command.line not in OTHER_STATE:
                assert missing_headings(command, result.stdout) == [], f"{command}\n{result.stdout}"


def missing_headings(command: Command, printed: str) -> list[str]:
    """The headings of tables that the page shows and that were not printed; columns may have other widths."""
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    shown = ["", *command.output]
    headings = [
        " ".join(line.split())
        for before, line in pairwise(shown)
        if not before and re.search(r"\S  +\S", line) and not re.search(r"\d", line)
    ]
    return [heading for heading in headings if heading not in lines]


def test_headings_are_compared() -> None:
    command = Command("here", "raftkv", True, ("node  address", "   1  here"))
    assert missing_headings(command, "node     address\n  2      there\n") == []
    assert missing_headings(command, "node  address  state\n") == ["node address"]
