"""Findings by code: what each means, why it matters, what to do. `maskpipe rule MP101` prints one.

Codes are stable. MP1xx: template and tokenizer do not fit; the audit adds its own series.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskpipe.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Rule:
    """One kind of finding."""

    code: str
    name: str
    what: str
    why: str
    do: str


RULES = {
    rule.code: rule
    for rule in (
        Rule(
            "MP101",
            "control-string-is-no-token",
            "The template writes a string that looks like a control token, and the tokenizer has no such token.",
            "It is encoded as several ordinary tokens. The model was not trained on it as a control token, and its "
            "pieces merge with the text beside it.",
            "Use the template that belongs to the tokenizer, or add the token to the tokenizer and the model.",
        ),
        Rule(
            "MP102",
            "no-stop-token",
            "The template writes no stop token after the last assistant turn.",
            "The model is trained on the turn's content but never on ending it: generation will not stop by itself.",
            "Check the template against the model's own. Some templates end a turn with the next turn's header; then "
            "only turns that are not the last are trained to stop.",
        ),
        Rule(
            "MP103",
            "stop-string-is-no-token",
            "The string with which the template ends assistant turns is no single token of the tokenizer.",
            "Generation stops at a token id. A stop string made of several tokens is never recognised as one.",
            "Use the template that belongs to the tokenizer, or add the token to the tokenizer and the model.",
        ),
        Rule(
            "MP104",
            "stop-token-is-not-declared",
            "The template ends assistant turns with a token that the tokenizer's files do not name as an end of text.",
            "It is trained as the end of the turn, but an engine that goes by these files will not stop there.",
            "Add its id to eos_token_id in the model's generation_config.json.",
        ),
        Rule(
            "MP105",
            "template-cannot-be-probed",
            "The template refused the plain conversations with which maskpipe learns how it ends turns.",
            "Stop tokens are then recognised per conversation only, with less to compare.",
            "Look at the reason given; a template for another task (reranking, embedding) has no assistant turns.",
        ),
    )
}


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
    console.print(f"{rule.code} {rule.name}", style="bold")
    for label, text in (("what", rule.what), ("why", rule.why), ("do", rule.do)):
        _labelled(label, text, console)


def show_all(console: Console) -> None:
    """Prints code, name and what of each rule."""
    for rule in RULES.values():
        _labelled(rule.code, f"{rule.name}: {rule.what}", console)
    console.print("\nmaskpipe rule CODE says why it matters and what to do")


def show_keys(values: Mapping[str, Any], texts: Mapping[str, str], console: Console) -> None:
    """Prints a recipe's keys, their defaults and what they mean."""
    for name, value in values.items():
        shown = "+".join(value) if isinstance(value, list) else "none" if value in (None, {}) else value
        console.print(f"{name}: {shown}", style="bold")
        _labelled("", texts[name], console)


def _labelled(label: str, text: str, console: Console) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=6)
    table.add_column(ratio=1)
    table.add_row(label, text)
    console.print(table)
