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


def from_imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]


def module_of(path: Path) -> str:
    return ".".join(("ubatch", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def runtime_imports(path: Path) -> Iterator[str]:
    """The modules of ours that are imported with this one."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    known = {module_of(other) for other in CORE}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(
                [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [node.module])]
            )
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base


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


@pytest.mark.parametrize("name", ["policy", "pending", "state", "stall"])
def test_what_decides_is_pure(name: str) -> None:
    """No clock, no lock, no thread, no queue that waits; what it imports of ours is looked at there."""
    pure = {"__future__", "collections", "collections.abc", "dataclasses", "itertools", "math", "sys", "typing"}
    pure |= {"logging"}  # of `stall.report`
    assert set(imports(PACKAGE / "_core" / f"{name}.py")) <= pure


@pytest.mark.parametrize("path", sorted((PACKAGE / "integrations").glob("*.py")), ids=lambda path: path.name)
def test_integrations_use_public_names_only(path: Path) -> None:
    """So anybody's can do what ours do. The checks of options are shared; they are of no batcher."""
    for module, names in from_imports(path):
        parts = [*module.split("."), *names]
        private = [part for part in parts if part.startswith("_") and not part.startswith("__")]
        assert set(private) <= {"_page", "_validation", "_gunicorn_worker", "_typeshed"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            assert ast.unparse(node.value) == "self" or node.attr in ("_replace", "_ubatch_no_deadline")


def test_no_module_imports_itself_in_a_circle() -> None:
    """Modules of the core that import each other when they are imported (not in a function, not for types alone)."""
    arrows = {module_of(path): set(runtime_imports(path)) for path in CORE}
    modules = set(arrows)
    while arrows:
        ends = [module for module, targets in arrows.items() if not targets & set(arrows) - {module}]
        assert ends, f"a circle among {sorted(arrows)}"
        for module in ends:
            del arrows[module]
    assert len(modules) > 30


def test_arrows_go_down_from_the_face_to_the_core_to_the_runtime() -> None:
    core = {module for path in CORE if path.parent.name == "_core" for module in runtime_imports(path)}
    runtime = {module for path in CORE if path.parent.name == "_runtime" for module in runtime_imports(path)}
    vocabulary = {"_deadline", "_errors", "_instrument", "_statistics", "_validation"}
    assert {module.split(".")[1] for module in core if "." in module} <= {"_core", "_runtime"} | vocabulary
    assert {module.split(".")[1] for module in runtime if "." in module} <= {"_runtime"}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_every_module_opens_with_its_contract(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_the_package_imports_no_extra() -> None:
    script = "import sys, ubatch; print([n for n in ('gevent', 'flask', 'numpy', 'gunicorn') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in ubatch.__all__ if not getattr(ubatch, name).__doc__] == []
