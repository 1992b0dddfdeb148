"""The application that commands are registered at, and the flags that several of them have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

from maskpipe.errors import UsageError
from maskpipe.recipe_flags import RecipeFlags

CLEAN, FINDINGS, FAILED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


def _version() -> str:
    from maskpipe import __version__

    return __version__


app = App(
    name="maskpipe",
    usage="Usage: maskpipe COMMAND [ARGS]",
    help="""Chats and text to packed Arrow shards in which every token carries the right role and loss flag.

  maskpipe demo
  maskpipe prepare chats.jsonl out --tokenizer ./qwen3
  maskpipe explain chats.jsonl --row 3 --tokenizer ./qwen3
""",
    help_format="plaintext",
    help_epilogue="Exit codes: 0 clean, 1 findings, 2 could not run, 130 interrupted.",
    version=_version,
    suppress_keyboard_interrupt=False,
)
recipe_app = App(
    name="recipe",
    help="Recipes that come with maskpipe, those of trainers, and which keys there are.",
    sort_key=8,
)
app.command(recipe_app)

INPUT = Group("Input and output", sort_key=0)

TokenizerFlag = Annotated[
    str,
    Parameter(
        "--tokenizer", group=INPUT, help="Directory with tokenizer.json, a tokenizer.json, or a hub name org/name."
    ),
]
SplitFlag = Annotated[
    str | None, Parameter("--split", group=INPUT, help="Split of a data set that has several, such as train.")
]
RecipeFile = Annotated[
    Path | None, Parameter("--recipe", group=INPUT, help="YAML file with recipe keys; flags go before it.")
]
FormatFlag = Annotated[
    Literal["human", "json"], Parameter("--format", group=INPUT, help="json is for programs: its keys are stable.")
]
Flags = Annotated[RecipeFlags | None, Parameter(name="*")]


def proof_count(value: str | None) -> int | None:
    """--proof as pipeline.prepare takes it."""
    if value is None:
        return None
    if value == "all":
        return -1
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"--proof {value}: expected 'all' or a number of records, such as --proof 100")
    return int(value)
