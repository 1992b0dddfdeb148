"""A sample of the mutants of fuzz.py; `make fuzz` runs them all, under sanitizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.fuzz import CAMPAIGNS

LONG = os.environ.get("MASKPIPE_LONG") == "1"
COUNTS = {"lines": (6_000, 50_000), "shards": (1_200, 100_000), "loads": (600, 30_000), "manifests": (4_000, 100_000)}


@pytest.mark.parametrize("what", CAMPAIGNS)
def test_a_mutant_is_refused_or_means_what_it_says(what: str, tmp_path: Path) -> None:
    if what == "loads":
        pytest.importorskip("torch")
    results = CAMPAIGNS[what](COUNTS[what][LONG], 7, lambda data: (tmp_path / "mutant").write_bytes(data))
    print(f"{what}: {dict(results)}")
    assert sum(results.values()) == COUNTS[what][LONG]
    assert sum(number for name, number in results.items() if "refused" not in name) > 0  # not all die at the gate


def test_the_judges_see_a_reader_that_accepts_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a rule away, and the campaign fails."""
    from maskpipe.shards import reader

    monkeypatch.setattr(reader, "check", lambda *arguments, **named: None)
    with pytest.raises(AssertionError, match="rows that break a rule passed"):
        CAMPAIGNS["shards"](1_000, 7, lambda data: None)


def test_the_judge_sees_a_loader_that_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from maskpipe import data

    loader: Any = data.Loader
    monkeypatch.setattr(data, "Loader", lambda *given, **named: loader(*given, **{**named, "verify": "off"}))
    with pytest.raises(AssertionError, match=r"changed bytes passed|other ids"):
        CAMPAIGNS["loads"](100, 7, lambda data: None)
