"""Findings by code: what each means, why it matters, what to do. `maskpipe rule MP101` prints one.

    MP1xx  fit.py      template and tokenizer do not fit
    MP2xx  rows.py     documents, positions, padding, labels across documents, shifts
    MP3xx  loss.py     what is trained and should not be, what is not and should be
    MP4xx  tokens.py   vocabulary, BOS, control tokens from content
    MP5xx  ledger.py   files, counts, rejects, what is not in the dataset
    MP6xx  proof.py    the dataset is not what its source says

Codes are stable, and mean the same in datasets of maskpipe and of others.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maskpipe.errors import UsageError
from maskpipe.rules import fit, ledger, loss, proof, rows, tokens
from maskpipe.rules.rule import LEVELS as LEVELS
from maskpipe.rules.rule import Level as Level
from maskpipe.rules.rule import Rule as Rule

if TYPE_CHECKING:
    from rich.console import Console


RULES = {rule.code: rule for rule in (*fit.RULES, *rows.RULES, *loss.RULES, *tokens.RULES, *ledger.RULES, *proof.RULES)}


def find(code: str) -> Rule:
    """The rule of a code, in any case, or of a name. UsageError for one that is not known, with the nearest."""
    for rule in RULES.values():
        if code.upper() == rule.code or code.lower() == rule.name:
            return rule
    names = [*RULES, *(rule.name for rule in RULES.values())]
    close = [*difflib.get_close_matches(code.upper(), names, n=1), *difflib.get_close_matches(code, names, n=1)]
    hint = f"; did you mean {close[0]}?" if close else ";"
    raise UsageError(f"no rule {code!r}{hint} `maskpipe rule` lists all")


def show(rule: Rule, console: Console) -> None:
    """Prints one rule."""
    console.print(f"{rule.code} {rule.name} ({rule.level})", style="bold")
    lines = (("what", rule.what), ("why", rule.why), ("such as", rule.example), ("do", rule.do))
    for label, text in (*lines, ("bugs", ", ".join(rule.bugs))):
        if text:
            _labelled(label, text, console)


def show_all(console: Console) -> None:
    """Prints code, name and what of each rule."""
    for rule in RULES.values():
        _labelled(rule.code, f"{rule.name} ({rule.level}): {rule.what}", console)
    console.print("\nmaskpipe rule CODE says why it matters and what to do")


def show_keys(values: Mapping[str, Any], texts: Mapping[str, str], console: Console) -> None:
    """Prints a recipe's keys, their defaults and what they mean."""
    for name, value in values.items():
        shown = "+".join(value) if isinstance(value, list) else value if isinstance(value, str) else json.dumps(value)
        console.print(f"{name}: {shown}", style="bold")
        _labelled("", texts[name], console)


def _labelled(label: str, text: str, console: Console) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=7)
    table.add_column(ratio=1)
    table.add_row(label, text)
    console.print(table)
