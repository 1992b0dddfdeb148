"""What `maskpipe demo` runs on: chats, a text and a tokenizer with its chat template, all written for this project."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def chats() -> Path:
    """78 conversations as JSON Lines: many turns, tools, reasoning, many scripts, hostile text."""
    return _HERE / "chats.jsonl"


def prose() -> Path:
    """One plain text, for objective "pretrain"."""
    return _HERE / "prose.txt"


def tokenizer() -> Path:
    """A directory with tokenizer.json (byte-level BPE, 4,000 tokens) and tokenizer_config.json (chat template).

    Made by tests/golden/make_demo_tokenizer.py.
    """
    return _HERE / "tokenizer"
