"""Runs, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

Facts = tuple[int, int, int, int]
"""(role, part, flags, message) of one token."""


def encode(documents: Sequence[Sequence[Facts]]) -> list[list[tuple[int, Facts]]]:
    """Per document its (end, facts), equal neighbours together."""
    encoded = []
    for document in documents:
        runs: list[tuple[int, Facts]] = []
        for facts, group in groupby(document):
            runs.append(((runs[-1][0] if runs else 0) + len(list(group)), facts))
        encoded.append(runs)
    return encoded


def expand(runs: Sequence[tuple[int, int]]) -> list[int]:
    """The value of each token of one group, from its (end, value)."""
    dense: list[int] = []
    for end, value in runs:
        dense += [value] * (end - len(dense))
    return dense
