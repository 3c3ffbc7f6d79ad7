"""Runs all benchmarks one after the other, those named, or lists them. A benchmark is a module here with a
`main(arguments)`; `--quick` is handed to those that know it.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """The modules that can be run, and the first line of each: its question."""
    found = {}
    for path in sorted(HERE.glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> str | int:
    found = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"of {', '.join(found)} (default: all)")
    parser.add_argument("--list", action="store_true", help="which there are, and their questions")
    parser.add_argument("--quick", action="store_true", help="a look at those that have a quick way")
    options = parser.parse_args()
    if unknown := set(options.name) - set(found):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(found)}")
    failed = []
    for name in options.name or found:
        print(f"python -m benchmarks.{name}\n    {found[name]}", flush=True)
        if options.list:
            continue
        print(flush=True)
        quick = ["--quick"] if options.quick and _knows_quick(name) else []
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *quick], check=False).returncode:
            failed.append(name)
        print(flush=True)
    return f"failed: {', '.join(failed)}" if failed else 0


def _knows_quick(name: str) -> bool:
    return ".quick" in (HERE / f"{name}.py").read_text()


if __name__ == "__main__":
    sys.exit(main())
