"""Runs all benchmarks one after the other, or lists them. A benchmark is a module here with a `main(arguments)`."""

from __future__ import annotations

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
            found[f"benchmarks.{path.stem}"] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


if __name__ == "__main__":
    failed = []
    for module, question in benchmarks().items():
        print(f"python -m {module}\n    {question}", flush=True)
        if "--list" not in sys.argv[1:]:
            print(flush=True)
            if subprocess.run([sys.executable, "-m", module], check=False).returncode:
                failed.append(module)
            print(flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
