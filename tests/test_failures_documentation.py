"""docs/failures.md: its code runs, its links lead somewhere, and the names and messages in it are the package's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ubatch

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "failures.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```\w*\n.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SOURCE = "".join(path.read_text() for path in Path(ubatch.__file__).parent.rglob("*.py"))
ERRORS = {name for name in ubatch.__all__ if isinstance(getattr(ubatch, name), type)}
ERRORS = {name for name in ERRORS if issubclass(getattr(ubatch, name), ubatch.UBatchError)}


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs(block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_error_that_a_caller_can_get_is_told_about() -> None:
    assert {name for name in ERRORS if f"`{name}`" not in PROSE} <= {"UBatchError", "BatcherClosed"}


def test_a_link_within_the_page_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


@pytest.mark.parametrize(
    "words",
    ["it has not come back for", "has not come back for", "; it is at:", "was killed: try again", "ubatch-collector:"],
)
def test_words_that_are_quoted_are_the_packages(words: str) -> None:
    assert words in " ".join(PROSE.split())
    assert words in SOURCE
