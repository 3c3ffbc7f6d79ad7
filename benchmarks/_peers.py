"""An environment of its own for each peer that uBatch is measured beside, under `.bench/`, which git ignores.

    python = environment("batched 0.1.5")                       # its interpreter; makes the environment if need be
    python = environment("service-streamer 0.1.2", "flask")     # with more packages in it
    subprocess.run([python, "-I", "script.py"])                 # -I: neither this folder nor PYTHONPATH is seen

Peers are installed from the package index, each at one version, with the gevent that runs here. `Missing` says why one
cannot be had; a benchmark marks its rows then, and goes on.
"""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gevent

FOLDER = Path(__file__).resolve().parent.parent / ".bench"
LIMIT = 600.0  # seconds, to install

PEERS = {
    "uBatch 1.0.0": ("ubatch==1.0.0", "typing_extensions"),  # which it imports and does not declare
    "batched 0.1.5": ("batched==0.1.5",),
    "service-streamer 0.1.2": ("service-streamer==0.1.2",),
}


class Missing(Exception):
    """The environment of a peer cannot be made here."""


FAILURES = (Missing, subprocess.SubprocessError)  # of a row that runs in an environment and a process of its own


def environment(peer: str, *more: str) -> str:
    """The path of the interpreter of a peer's environment, with these packages in it too. Raises Missing."""
    return _environment(peer, tuple(more))


def same(*packages: str) -> list[str]:
    """These packages at the version that is installed here, for `environment`."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in packages]


def reason(error: Exception) -> str:
    """Why a row failed, of `FAILURES`, in a line for a table: no command, and no path."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no figure within {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        return ((error.stderr or "").strip().splitlines() or [f"exit status {error.returncode}"])[-1]
    return str(error)


# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def _environment(peer: str, more: tuple[str, ...]) -> str:
    folder = FOLDER / f"{peer.replace(' ', '-').lower()}-py{platform.python_version()}"
    python, note = folder / "bin" / "python", folder / "installed.txt"
    wanted = [*PEERS[peer], f"gevent=={gevent.__version__}", *more]
    installed = note.read_text().splitlines() if note.exists() else []
    missing = [package for package in wanted if package not in installed]
    if not missing:
        return str(python)
    print(f"Installing {' '.join(missing)} into {folder.relative_to(FOLDER.parent)}", file=sys.stderr, flush=True)
    if not installed:
        _run(peer, sys.executable, "-m", "venv", "--clear", folder)
    _run(peer, python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *missing)
    note.write_text("\n".join([*installed, *missing, ""]))
    return str(python)


def _run(peer: str, *command: Any) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise Missing(f"{peer} took more than {LIMIT:.0f} s to install") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith(("ERROR", "Error"))]
        told = (lines or error.stderr.splitlines() or ["no reason given"])[0]
        where = "host=" in told or "://" in told  # the reader's index is the reader's business
        raise Missing(f"{peer} cannot be installed: {'no answer from the package index' if where else told}") from None
