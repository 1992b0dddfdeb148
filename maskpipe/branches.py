"""A record of several conversations (a tree, several completions) as one: its documents, counts and fate together.

    items  [user q, assistant a]      [user q, assistant b]
    messages of the record   0 1                        2 3

In documents, turns and verdicts, messages are numbered through all conversations of the record, so that a message of a
record is one place in it. A conversation that is refused while another one is kept is counted and listed like a turn
that came to nothing; a record all of whose conversations are refused is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from maskpipe.chat import Conversation, Read, Text
from maskpipe.document import Document
from maskpipe.encoder import Encoded, Encoder


@dataclass
class Branches:
    """What became of all conversations of a record."""

    encoded: Encoded
    """Of all together."""
    of: list[int] = field(default_factory=list)
    """Per document, the number of its conversation."""


def encode_all(encoder: Encoder, read: Read) -> Branches:
    """What becomes of a record."""
    return join(read, encoder.finish([encoder.begin(item) for item in read.items]))


def join(read: Read, parts: list[Encoded]) -> Branches:
    """What becomes of a record, from what becomes of each of its conversations."""
    if len(parts) == 1:
        whole = parts[0]
        whole.counts.update(read.counts)
        return Branches(whole, [0] * len(whole.documents))
    whole = Encoded()
    out = Branches(whole)
    first = 0
    for number, (item, part) in enumerate(zip(read.items, parts, strict=True)):
        whole.documents += [_renumbered(document, first) for document in part.documents]
        out.of += [number] * len(part.documents)
        whole.counts.update(part.counts)
        whole.lost += part.lost
        whole.dropped += [(turn + first if turn >= 0 else turn, why) for turn, why in part.dropped]
        whole.turns += [replace(turn, message=turn.message + first) for turn in part.turns]
        if part.refused is not None:
            whole.counts["conversations_refused"] += 1
            whole.dropped.append((first, f"conversation_{part.refused.reason}"))
        first += len(item.messages) if isinstance(item, Conversation) else 0
    whole.counts["conversations"] += len(parts)
    whole.counts["records_of_several_conversations"] += 1
    whole.counts.update(read.counts)
    if not whole.documents:
        whole.refused = next(part.refused for part in parts if part.refused is not None)
    return out


def joined(read: Read) -> Conversation | Text:
    """The record as one, for looking at: the messages of all its conversations, numbered as in documents."""
    item = read.items[0]
    if len(read.items) == 1 or isinstance(item, Text):
        return item
    chats = [chat for chat in read.items if isinstance(chat, Conversation)]
    return replace(
        item,
        messages=[message for chat in chats for message in chat.messages],
        weights=[weight for chat in chats for weight in chat.weights],
        paths=[path for chat in chats for path in chat.paths],
    )


def _renumbered(document: Document, first: int) -> Document:
    if not first:
        return document
    messages = document.message_ids
    return replace(
        document,
        message_ids=np.where(messages >= 0, messages + np.int32(first), messages).astype(np.int32),
        turn=document.turn + first if document.turn >= 0 else -1,
        verdicts={message + first: verdict for message, verdict in document.verdicts.items()},
    )
