"""Guarantee: the house of ``faults`` stands as drawn: who imports whom, and who knows the product's inside."""

from __future__ import annotations

import ast
from pathlib import Path

import faults

ROOT = Path(faults.__file__).parent

LAYERS = (
    ("check", "disks", "driver", "keys", "operator"),
    ("workloads",),
    ("verdict", "nemesis", "report", "abuse"),
    ("course",),
    ("sim",),
    ("planted",),
    ("sim.soak", "process"),
    ("planted.search",),
    ("checking",),
    ("cli",),
    ("__main__",),
)
"""From below. Packages and modules of one layer know nothing of each other."""

PRIVATE = {
    "sim/cluster.py": {"_replicas", "_links"},
    "sim/moving.py": {"_mover", "_copier", "_ask"},
}
"""Where names of the product are used that are not public."""


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__init__.py"
    }


def layer_of(module: str) -> tuple[int, str]:
    """The longest name that is in LAYERS, with its layer."""
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        name = ".".join(parts[:size])
        for number, layer in enumerate(LAYERS):
            if name in layer:
                return number, name
    raise AssertionError(f"faults/{module.replace('.', '/')}.py stands in no layer")


def imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "faults":
            below = node.module.split(".")[1:]
            names = [alias.name for alias in node.names]
            found |= {".".join([*below, name]) for name in names if (ROOT / Path(*below, f"{name}.py")).exists()}
            if (ROOT / Path(*below)).with_suffix(".py").exists():
                found.add(".".join(below))
    return found


def test_nobody_imports_what_stands_above_or_beside_it() -> None:
    wrong = []
    for module, tree in modules().items():
        number, name = layer_of(module)
        for other in imported(tree):
            below, theirs = layer_of(other)
            if theirs != name and below >= number:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_few_know_the_inside_of_a_node() -> None:
    """Whoever drives a cluster or looks at it does so by public names and ports; where not, it is written down here."""
    raft = ("sim.raftlab", "sim.raftreplica", "sim.raftstorm")
    for module, tree in modules().items():
        if module in raft or module == "sim.loop":
            continue  # of one replica by hand; asyncio's
        own = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        private = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.endswith("_")
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        }
        strange = private - own - {"_replace"}
        allowed = PRIVATE.get(f"{module.replace('.', '/')}.py", set())
        assert strange <= allowed, f"{module} uses {sorted(strange - allowed)}"
