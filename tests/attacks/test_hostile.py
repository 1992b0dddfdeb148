"""Hostile input is refused in seconds, in little memory, and costs nothing else; the table is in hostile.py.

By default the cases that need no more than a moment each, and some of the others; MASKPIPE_LONG=1 or `make hostile`:
all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.attacks.hostile import CASES, Case

LONG = os.environ.get("MASKPIPE_LONG") == "1"
LARGE = ("bomb", "000,000", "100 MB", "20 MB", "1e6", "only blank")
SOME = ("file-zstd_bomb", "poison-nested_loops", "template-doubling_text")


def is_chosen(case: Case) -> bool:
    """Cases in a process of their own need a second to start it, and those that have to reach a limit some more."""
    heavy = case.workers > 0 or any(word in case.name for word in LARGE)
    return LONG or not heavy or str(case) in SOME


CHOSEN = [case for case in CASES if is_chosen(case)]


def test_there_are_many_kinds() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) >= 200
    assert min(Counter(case.kind for case in CASES).values()) >= 2


def test_each_is_refused_in_seconds_and_costs_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.attacks.hostile", *(f"={case}" for case in CHOSEN)],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=Path(__file__).resolve().parents[2],
    )
    print(done.stdout)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("!!")]
    assert wrong == []
    assert f"{len(CHOSEN)} cases, 0 not as they must be" in done.stdout, done.stderr
