"""Short ways to read a record in a test."""

from __future__ import annotations

from typing import Any

import pytest

from maskpipe.chat import Conversation, read_all, read_record
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe


def chat(record: Any, **recipe: Any) -> Conversation:
    """The one chat of a record."""
    read = read_record(record, Recipe(**recipe))
    assert isinstance(read, Conversation)
    assert len(read.messages) == len(read.weights) == len(read.paths)
    return read


def chats(record: Any, **recipe: Any) -> list[Conversation]:
    """All chats of a record."""
    found = []
    for item in read_all(record, Recipe(**recipe)).items:
        assert isinstance(item, Conversation)
        assert len(item.messages) == len(item.weights) == len(item.paths)
        found.append(item)
    return found


def refusal(record: Any, **recipe: Any) -> RecordError:
    """Why a record is refused."""
    with pytest.raises(RecordError) as caught:
        read_all(record, Recipe(**recipe))
    return caught.value


def turns(conversation: Conversation) -> list[tuple[str, Any]]:
    """(role, content) of each message."""
    return [(message["role"], message.get("content")) for message in conversation.messages]


def at(record: Any, path: tuple[str | int, ...]) -> Any:
    """What stands at a path of Conversation.paths; two last numbers in a string are a stretch of it."""
    here = record
    for number, step in enumerate(path):
        if isinstance(here, str):
            start, end = path[number:]
            assert isinstance(start, int) and isinstance(end, int)
            return here[start:end]
        here = here[step]
    return here
