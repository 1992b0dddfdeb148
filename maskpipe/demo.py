"""`maskpipe demo`: the main job on chats and a tokenizer that come with the package, and one conversation explained."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from maskpipe import demo_data, pipeline
from maskpipe.explain import explain, show
from maskpipe.job import encoder_of
from maskpipe.recipe import Recipe

SEQUENCE_LENGTH = 1024
ROW = 7
"""The conversation that is explained."""


def free_name(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `-3` … where it is taken."""
    number, path = 1, wanted
    while path.exists() or path.is_symlink():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def run(out: Path, console: Console) -> None:
    """Prepares the embedded chats into the new directory `out`, prints the summary and one explanation."""
    recipe = Recipe(sequence_length=SEQUENCE_LENGTH)
    chats, tokenizer = demo_data.chats(), demo_data.tokenizer()
    command = f"maskpipe prepare {_q(chats)} {_q(out)} --tokenizer {_q(tokenizer)} --sequence-length {SEQUENCE_LENGTH}"
    console.print(f"$ {command}", style="bold", soft_wrap=True)
    made = pipeline.prepare(chats, out, tokenizer=tokenizer, recipe=recipe, workers=0)
    console.print(str(made), soft_wrap=True)
    command = f"maskpipe explain {_q(chats)} --row {ROW} --tokenizer {_q(tokenizer)}"
    console.print(f"\n$ {command}", style="bold", soft_wrap=True)
    show(explain(chats, ROW, encoder=encoder_of(tokenizer, recipe)), console)
    console.print("next", style="bold")
    for line in (
        f"maskpipe audit {_q(out)} --report report.html",
        f"maskpipe stats {_q(out)}",
        f"maskpipe explain {_q(chats)} --row 26 --tokenizer {_q(out)} --recipe {_q(out / 'recipe.yaml')}",
        "maskpipe prepare YOUR.jsonl YOUR-OUT --tokenizer DIRECTORY --dry-run",
    ):
        console.print(f"  {line}", soft_wrap=True)


def _q(path: Path) -> str:
    return shlex.quote(str(path))
