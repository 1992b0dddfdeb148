"""A record of several conversations (a tree, several completions) as one: its documents, counts and fate together.

    items  [user q, assistant a]      [user q, assistant b]
    messages of the record   0 1                        2 3

    a pair  [user q, assistant a]     [user q, assistant b]
    messages of the record   0 1                        0 2

In documents, turns and verdicts, messages are numbered through all conversations of the record, so that a message of a
record is one place in it; the prompt of a pair is numbered once. A conversation that is refused while another one is
kept is counted and listed like a turn that came to nothing, and so is a pair; a record all of whose conversations are
refused is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from maskpipe.chat import Conversation, Read, Text
from maskpipe.document import Document
from maskpipe.encoder import Encoded, Encoder
from maskpipe.pairs import join_pair, renumbered
from maskpipe.recipe import Recipe


@dataclass
class Branches:
    """What became of all conversations of a record."""

    encoded: Encoded
    """Of all together."""
    of: list[int] = field(default_factory=list)
    """Per document, the number of its conversation."""


def encode_all(encoder: Encoder, read: Read) -> Branches:
    """What becomes of a record."""
    return join(read, encoder.finish([encoder.begin(item) for item in read.items]), encoder.recipe)


def join(read: Read, parts: list[Encoded], recipe: Recipe) -> Branches:
    """What becomes of a record, from what becomes of each of its conversations."""
    rest = iter(parts)
    units = [(unit, _unit(unit, [next(rest) for _ in unit], recipe)) for unit in read.units()]
    if len(units) == 1:
        whole = units[0][1]
        whole.counts.update(read.counts)
        return Branches(whole, [0] * len(whole.documents))
    whole = Encoded()
    out = Branches(whole)
    first = 0
    paired = any(len(unit) > 1 for unit, _ in units)
    for number, (unit, part) in enumerate(units):
        whole.documents += [_renumbered(document, first) for document in part.documents]
        out.of += [number] * len(part.documents)
        whole.counts.update(part.counts)
        whole.lost += part.lost
        whole.dropped += [(turn + first if turn >= 0 else turn, why) for turn, why in part.dropped]
        whole.turns += [replace(turn, message=turn.message + first) for turn in part.turns]
        if part.refused is not None:
            whole.counts["pairs_refused" if paired else "conversations_refused"] += 1
            whole.dropped.append((first, f"{'pair' if paired else 'conversation'}_{part.refused.reason}"))
        first += _messages(unit)
    if not paired:
        whole.counts["conversations"] += len(units)
        whole.counts["records_of_several_conversations"] += 1
    whole.counts.update(read.counts)
    if not whole.documents:
        whole.refused = next(part.refused for _, part in units if part.refused is not None)
    return out


def _unit(unit: list[Conversation | Text], parts: list[Encoded], recipe: Recipe) -> Encoded:
    """What becomes of one conversation, or of a pair of them."""
    if len(unit) == 1:
        return parts[0]
    chosen, rejected = (item for item in unit if isinstance(item, Conversation))
    return join_pair(chosen, rejected, parts[0], parts[1], recipe)


def _messages(unit: list[Conversation | Text]) -> int:
    """How many messages it has; the prompt of a pair counts once."""
    sizes = [len(item.messages) for item in unit if isinstance(item, Conversation)]
    side = unit[-1].side if isinstance(unit[-1], Conversation) else None
    return sum(sizes) - (side.prompt if len(unit) > 1 and side is not None else 0)


def joined(read: Read) -> Conversation | Text:
    """The record as one, for looking at: the messages of all its conversations, numbered as in documents."""
    item = read.items[0]
    if len(read.items) == 1 or isinstance(item, Text):
        return item
    chats = [
        (chat, chat.side.prompt if number and chat.side is not None else 0)
        for unit in read.units()
        for number, chat in enumerate(unit)
        if isinstance(chat, Conversation)
    ]
    return replace(
        item,
        messages=[message for chat, known in chats for message in chat.messages[known:]],
        weights=[weight for chat, known in chats for weight in chat.weights[known:]],
        paths=[path for chat, known in chats for path in chat.paths[known:]],
    )


def _renumbered(document: Document, first: int) -> Document:
    """The document with messages counted from `first`."""
    return renumbered(document, lambda message: message + first) if first else document
