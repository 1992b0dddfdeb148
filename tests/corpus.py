"""The corpus of real chat templates, where it lies beside the checkout; each template is compiled once per test run."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpipe.template import ChatTemplate


@dataclass(frozen=True)
class Entry:
    """One template of the corpus."""

    name: str
    source: str
    bos_token: str
    eos_token: str

    @property
    def template(self) -> ChatTemplate:
        return _template(self)


@functools.cache
def _template(entry: Entry) -> ChatTemplate:
    return ChatTemplate(entry.source, bos_token=entry.bos_token, eos_token=entry.eos_token)


@functools.cache
def chat_templates(shared: Path) -> tuple[Entry, ...]:
    """Every template of kind "chat". Where the place it was found names no bos or eos token, `<s>` and `</s>`."""
    manifest: list[dict[str, Any]] = json.loads((shared / "templates" / "manifest.json").read_text(encoding="utf-8"))
    return tuple(
        Entry(
            Path(entry["file"]).stem,
            (shared / "templates" / entry["file"]).read_bytes().decode(),
            entry["bos_token"] or "<s>",
            entry["eos_token"] or "</s>",
        )
        for entry in manifest
        if entry["kind"] == "chat"
    )


def named(shared: Path, name: str) -> Entry:
    return next(entry for entry in chat_templates(shared) if entry.name == name)
