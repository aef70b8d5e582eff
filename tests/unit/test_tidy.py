"""What must hold for every file of the repository."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_MODULE = 600
# Put together here, so that this file does not name them itself.
FORBIDDEN = [
    "pypi" + ".org",
    "python" + "hosted",
    "files.python" + "hosted",
    "/work" + "/",
    "/tmp" + "/spec",
    "/opt" + "/wheels",
]


def committed() -> list[Path]:
    """Files under version control (or about to be); from an unpacked archive, all of the sources."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    if not any(names):
        return [
            path
            for folder in ("raftkv", "shards", "tests", "bench", "faults")
            for path in (ROOT / folder).rglob("*.py")
        ]
    return [path for name in names if name and (path := ROOT / name).is_file()]


FILES = committed()
SOURCES = [path for path in FILES if path.suffix == ".py" and "v1" not in path.parts]


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 20


def test_no_file_names_a_registry_or_a_path_of_the_machine_it_was_written_on() -> None:
    named = []
    for path in FILES:
        text = path.read_bytes().decode(errors="replace").lower()
        named += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert not named


def test_every_module_is_read_in_one_sitting() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name.startswith("test_")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_test_file_asserts(path: Path) -> None:
    tree = ast.parse(path.read_text())
    asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
    raises = sum(isinstance(node, ast.Attribute) and node.attr == "raises" for node in ast.walk(tree))
    assert asserts + raises > 0, "a test that checks nothing passes whatever happens"


def test_every_module_says_what_it_is_about() -> None:
    silent = [
        path for path in SOURCES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_the_versions_are_the_same_everywhere() -> None:
    import tomllib

    import raftkv

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == raftkv.__version__
    assert f"raftkv:{raftkv.__version__}" in (ROOT / "docker-compose.yml").read_text()
    assert f"## {raftkv.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra if not one.startswith("raftkv["))]
    normal = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins()}
    assert {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", name)[0]).lower() for name in wanted} <= normal
    assert all("==" in line and "@" not in line and "://" not in line for line in pins())


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
