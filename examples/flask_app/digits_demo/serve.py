"""`python -m digits_demo.serve`: the application and its title service, until Ctrl-C.

Prints where the Swagger page is, and `curl` lines to try. The exit status is 0 after Ctrl-C or
SIGTERM, and 1 if the application did not start or ended by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from digits_app.model import unseen_digits
from digits_demo.servers import (
    ServerError,
    Stopped,
    running_app,
    running_upstream,
    stop_on_signals,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m digits_demo.serve", description="Serve.")
    parser.add_argument("--port", type=int, default=0, help="of the application (a free one)")
    port = parser.parse_args(arguments).port
    # A line to copy stays one line.
    console = Console(soft_wrap=True, highlight=False, markup=False)
    stop_on_signals()
    try:
        with running_upstream() as upstream, running_app(upstream.url, port=port) as app:
            console.print(_invitation(app.url))
            console.print(f"The application ended by itself, with exit status {app.wait()}.")
            return 1
    except Stopped:
        console.print("Stopped.")
        return 0
    except ServerError as error:
        console.print(f"FAILED: {error}", style="bold red")
        return 1


# ----------------------------------------------------------------------------------------------


def _invitation(url: str) -> str:
    images, digits = unseen_digits()
    three = images[digits.index(3)]
    pixels = json.dumps({"pixels": [int(pixel) for pixel in three]})
    title = json.dumps({"title": "You will not believe this!"})
    return f"""
The Swagger page: {url}/

What the batchers do: {url}/ubatch (for Prometheus: {url}/metrics)
{_traces()}

Try it (the image shows a 3):

curl -d '{pixels}' {url}/predict

curl -d '{title}' {url}/title

Ctrl-C stops it."""


def _traces() -> str:
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        return "Traces: a span for each request and for each batch, printed here as JSON."
    return "Traces: set OTEL_TRACES_EXPORTER=console, and they are printed here."


if __name__ == "__main__":
    sys.exit(main())
