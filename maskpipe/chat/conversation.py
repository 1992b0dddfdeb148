"""Conversation and Text: what a raw record becomes, whatever shape it had."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from maskpipe.errors import RecordError
from maskpipe.roles import Branch
from maskpipe.strict_json import Path

Json = Any  # None, bool, int, float, str, list of Json or dict of str to Json


@dataclass(frozen=True)
class Side:
    """What a conversation is in preference data: one of two answers to a prompt, or an answer with a label."""

    prompt: int
    """Messages [0, prompt) are the prompt; what follows is the answer, and begins with an assistant turn."""
    branch: Branch = Branch.NONE
    """CHOSEN or REJECTED in a pair, whose other conversation begins with the same prompt; NONE with a label."""
    score: float | None = None
    """What the data says of this answer. Of a pair with a margin alone, the chosen one has it and the other one 0."""
    label: bool | None = None
    """Is this answer wanted? Only where it has no rival."""


@dataclass(frozen=True)
class Conversation:
    """One chat. Messages are raw JSON values as a chat template wants them, never a unified struct (C05)."""

    messages: list[dict[str, Json]]
    tools: list[Json] | None = None
    documents: list[Json] | None = None
    chat_template_kwargs: dict[str, Json] = field(default_factory=dict)
    weights: list[float | None] = field(default_factory=list)
    """Per message, the data's own: `train` false is 0, true is 1, a number is that; None: the data said nothing."""
    paths: list[Path] = field(default_factory=list)
    """Per message, where it stands in the record, such as ("conversations", 3). Where it is a stretch of a longer
    string, the last two steps are the first character and the one behind the last: ("chosen", 9, 52)."""
    source: int = 0
    """Index of the source, in the order given."""
    row: int = 0
    """0-based record number in its source."""
    side: Side | None = None
    """In preference data."""


@dataclass(frozen=True)
class Text:
    """One plain text for pretraining."""

    text: str
    path: Path = ()
    source: int = 0
    row: int = 0


@dataclass
class Read:
    """All that one record holds."""

    items: list[Conversation | Text]
    """At least one. More where a record is a tree or has several completions, in the order of the record. Of a
    preference pair the chosen conversation, then the rejected one."""
    counts: Counter[str]
    """What was left out on purpose, such as tree_nodes_deleted."""

    def units(self) -> list[list[Conversation | Text]]:
        """The items by what belongs together: the two of a pair, every other one alone."""
        out: list[list[Conversation | Text]] = []
        for item in self.items:
            if isinstance(item, Conversation) and item.side is not None and item.side.branch is Branch.REJECTED:
                out[-1].append(item)
            else:
                out.append([item])
        return out


MAX_MESSAGES = 10_000
"""In one conversation. The longest that were seen in public data have some hundreds."""


@dataclass
class Chat:
    """A conversation being read: messages, with the weight and the place of each."""

    messages: list[dict[str, Json]] = field(default_factory=list)
    weights: list[float | None] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    tools: list[Json] | None = None
    """Where the shape itself brings them."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was left out of the record, on its first chat."""
    side: Side | None = None

    def add(self, message: dict[str, Json], path: Path, weight: float | None = None) -> None:
        """RecordError too_many_messages beyond MAX_MESSAGES."""
        if len(self.messages) >= MAX_MESSAGES:
            raise RecordError(
                f"the conversation has more than {MAX_MESSAGES:,} messages. Split it into several records",
                reason="too_many_messages",
            )
        self.messages.append(message)
        self.weights.append(weight)
        self.paths.append(path)

    def then(self, other: Chat) -> Chat:
        """Both, one after the other."""
        return Chat(
            self.messages + other.messages,
            self.weights + other.weights,
            self.paths + other.paths,
            self.tools if self.tools is not None else other.tools,
            {**self.counts, **other.counts},
        )
