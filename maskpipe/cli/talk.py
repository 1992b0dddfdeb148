"""How all commands talk: stdout is data, stderr is talk."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from rich.console import Console

NARROWEST = 84
"""Columns of the widest table of numbers, that of `stats`."""


def answer(value: Any) -> None:
    """Prints a result: text as it is, anything else as JSON."""
    ascii_only = not holds_unicode(sys.stdout)
    print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=ascii_only, indent=1, allow_nan=False))


def say(text: str) -> None:
    """Prints a line about the work."""
    print(text, file=sys.stderr, flush=True)


def holds_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("_", "-").startswith("utf")


class _Results(Console):
    def on_broken_pipe(self) -> None:
        """Who reads our output has seen enough: no finding, so not exit code 1, which is what rich would make of it."""
        raise BrokenPipeError


def console() -> Console:
    """A console for results: as wide as the terminal, 120 columns where there is none, and never so narrow that a table
    would cut its figures."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = _Results(width=width, highlight=False, markup=False, emoji=False)
    console.width = max(console.width, NARROWEST)
    return console


def quiet_hub() -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
