"""Guarantee: ``pip install raftkv`` is a small client; what a node or the commands need is the extra ``server``."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MOST_BYTES = 25 * 1000 * 1000

CLIENT = """
import asyncio, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refused())
{code}
"""

USE = """
import raftkv
from raftkv.testing import FakeAsyncClient, FakeClient

for name in raftkv.__all__:
    getattr(raftkv, name)
with FakeClient(codec=raftkv.codecs.JSON) as kv:
    kv.put_many({"a": 1, "b": 2})
    assert [record.value for record in kv.scan()] == [1, 2]

async def ask():
    async with FakeAsyncClient() as kv:
        await kv.txn().incr("n").commit()
    async with raftkv.AsyncClient("127.0.0.1:1", timeout=0.01) as kv:
        try:
            await kv.get("k")
        except raftkv.Unavailable:
            print("nobody there")

asyncio.run(ask())
"""


def name_of(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def closure(wanted: list[str]) -> set[str]:
    """The names of what these requirements install."""
    found: set[str] = set()
    todo = [Requirement(one) for one in wanted]
    while todo:
        one = todo.pop()
        if name_of(one.name) not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.add(name_of(one.name))
            todo += map(Requirement, distribution(one.name).requires or [])
    return found


BASE = closure(PROJECT["dependencies"])


def modules(distributions: set[str]) -> set[str]:
    """What one imports of them."""
    return {
        module
        for module, homes in packages_distributions().items()
        if not module.startswith("_") and {name_of(home) for home in homes} & distributions
    }


def run(code: str) -> subprocess.CompletedProcess[str]:
    others = closure(PROJECT["optional-dependencies"]["server"]) | {"opentelemetry-api"}
    refused = modules(others - BASE) - modules(BASE)
    assert {"aiohttp", "click", "grpc_health", "opentelemetry", "pysyncobj", "rich", "uvloop"} <= refused
    source = CLIENT.format(refused=refused, code=code)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_client_needs_nothing_of_the_extras() -> None:
    done = run(USE)
    assert (done.stdout, done.stderr) == ("nobody there\n", "")


def test_the_commands_say_what_they_lack() -> None:
    for command in ("main", "admin"):
        done = run(f"import raftkv.__main__; raftkv.__main__.{command}()")
        assert done.returncode == 1
        assert re.fullmatch(r"raftkv(-admin)?: click is not installed: pip install 'raftkv\[server\]'\n", done.stderr)


def test_the_client_is_small() -> None:
    size = sum(
        path.stat().st_size
        for name in BASE
        for file in distribution(name).files or ()
        if "__pycache__" not in file.parts and (path := Path(str(file.locate()))).is_file()
    )
    own = sum(path.stat().st_size for folder in ("raftkv", "shards") for path in (ROOT / folder).rglob("*.py"))
    assert size + own < MOST_BYTES


def test_each_dependency_is_wanted_once() -> None:
    extras = PROJECT["optional-dependencies"]
    names = {name: {name_of(Requirement(one).name) for one in wanted} for name, wanted in extras.items()}
    direct = {name_of(Requirement(one).name) for one in PROJECT["dependencies"]}
    assert not direct & names["server"]
    assert names["otel"] == {"opentelemetry-api"}
    assert {"raftkv[otel,server]"} <= set(extras["dev"]), "whoever develops has all"
