"""The rules of the house that a reader would have to check by hand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ubatch

PACKAGE = Path(ubatch.__file__).parent
TESTS = Path(__file__).parent
CORE = sorted(path for path in PACKAGE.rglob("*.py") if "integrations" not in path.parts)
OUR_TESTS = sorted(path for path in TESTS.glob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", [*CORE, *OUR_TESTS], ids=lambda path: path.name)
def test_nothing_sleeps_in_the_package_or_in_its_tests(path: Path) -> None:
    assert [call for call in calls(path) if call.split(".")[-1] == "sleep"] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_queue_is_asked_with_a_timeout(path: Path) -> None:
    """`SimpleQueue.get` with one can wait for ever: see `_Signal` in ubatch/_runtime/_threading.py."""
    names_one = "SimpleQueue" in path.read_text()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            assert not {keyword.arg for keyword in node.keywords} & {"block", "timeout"}
            assert not (names_one and node.args) or ast.unparse(node.func.value) == "sys.modules"


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_gevent_is_imported_only_behind_the_seam(path: Path) -> None:
    named = any(name.split(".")[0] in ("gevent", "greenlet") for name in imports(path))
    assert not named or path.name in ("_gevent.py", "_gevent_locks.py", "_world.py", "testing.py")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_needs_gevent_and_the_standard_library(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots <= sys.stdlib_module_names | {"gevent", "greenlet", "annotationlib"}  # the last from 3.14 on


def test_the_policy_is_pure() -> None:
    pure = {"__future__", "collections", "collections.abc", "itertools", "math", "typing"}
    assert set(imports(PACKAGE / "_core" / "policy.py")) <= pure


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_every_module_opens_with_its_contract(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_the_package_imports_no_extra() -> None:
    script = "import sys, ubatch; print([n for n in ('gevent', 'flask', 'numpy', 'gunicorn') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in ubatch.__all__ if not getattr(ubatch, name).__doc__] == []
