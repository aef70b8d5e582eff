"""Tripwires around PySyncObj: what the adapter relies on is there, and nobody else's copy is touched."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pysyncobj.version import VERSION

import raftkv.raft
from raftkv.raft import core
from raftkv.raft.core import Core

_SOURCE = Path(core.__file__).parent
_LISTED = {*core.PRIVATE_STATE, *core.PRIVATE_CALLED, *core.PRIVATE_OVERRIDDEN}


def test_version_is_the_one_that_was_examined() -> None:
    """Another version of the library may break any fix: look at PRIVATE_* and docs/adapter.md before changing this."""
    assert VERSION == core.WANTED_VERSION == "0.3.17"


def test_another_version_is_refused() -> None:
    """A node does not start with a library that nobody has examined."""
    program = "import pysyncobj.version\npysyncobj.version.VERSION = '0.3.18'\nimport raftkv.raft\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs pysyncobj 0.3.17, found 0.3.18" in done.stderr


@pytest.mark.parametrize("name", sorted({*core.PRIVATE_CALLED, *core.PRIVATE_OVERRIDDEN}))
def test_private_method_exists_in_the_library(name: str) -> None:
    """A method that is called or replaced is one of the library's."""
    assert callable(getattr(core.SyncObj, f"_SyncObj__{name}", None))


@pytest.mark.parametrize("name", core.PRIVATE_STATE)
def test_private_attribute_is_set_by_the_library(name: str) -> None:
    """An attribute that is read or set is one of the library's."""
    assert f"self.__{name} = " in inspect.getsource(core.SyncObj)


@pytest.mark.parametrize("name", core.PRIVATE_OVERRIDDEN)
def test_overridden_method_has_the_librarys_signature(name: str) -> None:
    """A method that replaces one of the library's takes the same arguments and is called on the instance."""
    mangled = f"_SyncObj__{name}"
    assert mangled in vars(Core)
    theirs, ours = (inspect.signature(vars(owner)[mangled]) for owner in (core.SyncObj, Core))
    assert list(theirs.parameters) == list(ours.parameters)
    assert f"self.__{name}(" in inspect.getsource(core.SyncObj)


def test_every_private_name_in_use_is_listed() -> None:
    """The list in core.py is complete, nothing is listed that is not used, and no other file knows such a name."""
    used = {path.name: set(re.findall(r"_SyncObj__(\w+)", path.read_text())) for path in _SOURCE.glob("*.py")}
    assert used.pop("core.py") == _LISTED
    assert not any(used.values())


def test_only_core_py_imports_the_library() -> None:
    """There is one door to PySyncObj."""
    for path in sorted(_SOURCE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert path.name == "core.py" or not any(name.startswith("pysyncobj") for name in names), path


def test_the_users_own_pysyncobj_is_not_patched() -> None:
    """Who uses PySyncObj in the same process gets the library as it is."""
    theirs = importlib.import_module("pysyncobj.syncobj")
    assert raftkv.raft is not None
    assert theirs.SyncObj is not core.SyncObj
    assert theirs.monotonicTime.__module__ != "raftkv.raft.core"
    assert theirs.createJournal.__module__ == "pysyncobj.journal"
    assert theirs.createPoller.__module__ == "pysyncobj.poller"
    assert sys.modules["pysyncobj.syncobj"] is theirs


def test_our_copy_has_no_sockets_no_files_and_no_own_clock() -> None:
    """The copy that the adapter drives has its clock, log storage and poller replaced."""
    module = core._module
    assert module.monotonicTime is core._now
    assert module.createJournal("anything") == "anything"
    module.createPoller("auto").poll(1.0)


def test_no_pickle_is_loaded_for_entries() -> None:
    """The two places at which the library would unpickle an entry are replaced."""
    source = inspect.getsource(core.SyncObj)
    users = {
        method.name
        for method in ast.walk(ast.parse(source))
        if isinstance(method, ast.FunctionDef) and "pickle.loads" in (ast.get_source_segment(source, method) or "")
    }
    assert users == {"__doApplyCommand", "__onMessageReceived", "__parseChangeClusterRequest"}
    # Of these, __onMessageReceived unpickles only a message with "transmission", which Core never builds.
    assert "transmission" not in inspect.getsource(core)
