"""A preference pair: what becomes of two encoded conversations that answer one prompt.

    chosen    prompt  a  a  a  stop          separate        document 0: prompt a a a stop     chosen
    rejected  prompt  b  b  stop                             document 1: prompt b b stop       rejected

                                             shared_prompt   document 0: prompt                prompt
                                                             document 1: . a a a stop          chosen, parent 1 back
                                                             document 2: . b b stop            rejected, parent 2 back

Both sides stand in one sequence, so they are too long or not together, and are cut alike: at turn borders, as many
turns of each, never in the prompt. A pair is refused as a whole when one side is, when a side would be trained in part
only or in several documents, when no token with loss is left of a side, and when both come out as the same tokens.

A prompt is shared where it is the same tokens with the same facts on both sides. It ends before the token from which
the first sampled one is predicted: that token (`.`) begins each branch, so that no branch loses a target (F17).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from maskpipe.chat import Conversation
from maskpipe.document import Document
from maskpipe.encoder import Encoded, count_loss, slice_document
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch, Flag, Role

REFUSED, TOO_LONG = "tokens_dropped_pair_refused", "tokens_dropped_too_long"


def join_pair(chosen: Conversation, rejected: Conversation, one: Encoded, two: Encoded, recipe: Recipe) -> Encoded:
    """What becomes of the pair. Its messages are numbered: prompt, what follows in chosen, what follows in rejected."""
    assert chosen.side is not None
    prompt, first = chosen.side.prompt, len(chosen.messages)

    def number(message: int) -> int:
        return message if message < prompt else message - prompt + first

    out = Encoded()
    for part in (one, two):
        out.counts.update(part.counts)
    # What was established about the prompt is said once.
    out.lost = one.lost + [lost for lost in two.lost if lost.message >= prompt]
    out.dropped = one.dropped + [(number(turn) if turn >= 0 else turn, why) for turn, why in two.dropped]
    out.turns = one.turns + [
        replace(turn, message=number(turn.message)) for turn in two.turns if turn.message >= prompt
    ]
    made = one.documents, [renumbered(document, number) for document in two.documents]
    try:
        for part in (one, two):
            if part.refused is not None:
                raise part.refused
        _check(chosen, made, out)
        documents = lay_out(made[0][0], made[1][0], recipe, out)
    except RecordError as error:
        out.counts[REFUSED] += sum(map(len, (*made[0], *made[1])))
        out.refused = error
        return out
    try:
        out.documents = fit_pair(documents, recipe, out)
    except RecordError as error:
        out.refused = error
        return out
    out.counts["pairs"] += 1
    return out


def renumbered(document: Document, number: Callable[[int], int]) -> Document:
    """The document with other numbers for its messages."""
    messages = document.message_ids
    present, where = np.unique(messages, return_inverse=True)
    table = np.array([number(message) if message >= 0 else message for message in present.tolist()], np.int32)
    return replace(
        document,
        message_ids=table[where.reshape(-1)].astype(np.int32),
        turn=number(document.turn) if document.turn >= 0 else -1,
        verdicts={number(message): verdict for message, verdict in document.verdicts.items()},
    )


def _check(chosen: Conversation, made: tuple[list[Document], list[Document]], out: Encoded) -> None:
    """RecordError where the two sides are no pair to train on."""
    if out.dropped:
        raise RecordError(
            f"assistant turn {out.dropped[0][0]} cannot be trained, so its side would be judged by a part of what it "
            "says",
            reason="turns_refused",
        )
    for name, documents in zip(("chosen", "rejected"), made, strict=True):
        if len(documents) > 1:
            raise RecordError(
                f"the {name} side has several assistant turns, and the template shows some of them otherwise than "
                f"inference would, so that it becomes {len(documents)} documents; the loss of a pair needs one. Use "
                "--on-history-rewrite accept or last, or pairs whose sides have one turn",
                reason="side_in_several_documents",
            )
        if not count_loss(documents[0]):
            raise RecordError(f"no token of the {name} side gets loss under this recipe", reason="nothing_to_train")
    a, b = made[0][0], made[1][0]
    if np.array_equal(a.input_ids, b.input_ids):
        raise RecordError(
            "chosen and rejected are the same tokens: what they differ in is not shown by the template",
            reason="collapsed",
        )


# -- layout


def lay_out(chosen: Document, rejected: Document, recipe: Recipe, out: Encoded) -> list[Document]:
    """The documents of a pair, numbered 0 until a dataset numbers it."""
    sides = [
        replace(document, pair=0, branch=branch)
        for document, branch in ((chosen, Branch.CHOSEN), (rejected, Branch.REJECTED))
    ]
    if recipe.pair_layout == "separate":
        return sides
    size = shared_size(*sides)
    if not size:
        out.counts["pairs_prompt_not_shared"] += 1
        return sides
    out.counts["pairs_prompt_shared"] += 1
    out.counts["tokens_saved_by_sharing"] += size
    out.counts["tokens"] -= size  # tokens made are those of the documents
    prompt = replace(
        slice_document(sides[0], 0, size), branch=Branch.PROMPT, turn=-1, verdicts={}, score=None, label=None
    )
    branches = [replace(slice_document(side, size, len(side)), parent=number) for number, side in enumerate(sides, 1)]
    return [prompt, *branches]


def shared_size(chosen: Document, rejected: Document) -> int:
    """Tokens of the prompt that both sides can share, 0 for none: all up to the last one before the first that is
    sampled in an answer, where these are the same tokens with the same facts and no token reaches over their end."""
    firsts = {_first_of_answer(chosen), _first_of_answer(rejected)}
    if len(firsts) > 1:
        return 0
    size = firsts.pop() - 1
    if size < 1:
        return 0
    border = slice(size, size + 2)
    for side in (chosen, rejected):
        if (side.flags[border] & (Flag.STRADDLES | Flag.CUT_BEFORE)).any():
            return 0
    sides = [_facts(side, size + 1) for side in (chosen, rejected)]
    return size if all(map(np.array_equal, *sides)) else 0


def _facts(document: Document, size: int) -> list[Any]:
    """All that is said of the first tokens. Messages of the answer count from the end of the prompt here: the two
    answers of a record have other numbers, and the header before them is a part of a shared prompt."""
    messages, first = document.message_ids, min(document.verdicts)
    return [
        *(getattr(document, name)[:size] for name in ("input_ids", "role_ids", "part_ids", "flags")),
        np.where(messages < first, messages, messages - first + (1 << 30))[:size],
        [] if document.weights is None else document.weights[:size],
    ]


def _first_of_answer(document: Document) -> int:
    """The first sampled token of the answer."""
    answer = np.isin(document.message_ids, sorted(document.verdicts)) & (document.role_ids == Role.ASSISTANT)
    return int(np.argmax(answer & (document.flags & Flag.SAMPLED > 0)))


# -- length


def fit_pair(documents: Sequence[Document], recipe: Recipe, out: Encoded) -> list[Document]:
    """The documents of a pair, fitted to one sequence as the recipe wants it; cut tokens are counted in `out`.
    RecordError too_long where that cannot be, collapsed where what is left of both sides is the same; then all its
    tokens are counted as dropped."""
    limit, size = recipe.sequence_length, sum(map(len, documents))
    if size <= limit:
        return list(documents)
    if recipe.on_too_long == "truncate":
        *prompt, chosen, rejected = documents
        room = limit - sum(map(len, prompt))
        ends = [_turn_ends(chosen), _turn_ends(rejected)]
        for turns in range(max(map(len, ends)), 0, -1):
            cut = [own[min(turns, len(own)) - 1] for own in ends]
            sides = [slice_document(side, 0, end) for side, end in zip((chosen, rejected), cut, strict=True)]
            if sum(cut) <= room and all(map(count_loss, sides)):
                if np.array_equal(sides[0].input_ids, sides[1].input_ids):
                    out.counts[REFUSED] += size
                    raise RecordError(
                        f"chosen and rejected are the same tokens in the {limit:,} that a sequence holds: they differ "
                        "in later turns; raise --sequence-length",
                        reason="collapsed",
                    )
                out.counts["documents_truncated"] += sum(
                    len(whole) > len(side) for whole, side in zip((chosen, rejected), sides, strict=True)
                )
                out.counts["tokens_truncated"] += size - sum(map(len, prompt)) - sum(cut)
                return [*prompt, *sides]
    out.counts[TOO_LONG] += size
    said = "" if recipe.on_too_long != "truncate" else ", and no whole turn of both fits"
    raise RecordError(
        f"the pair has {size:,} tokens in one sequence, which holds {limit:,}{said}; raise --sequence-length"
        + ("" if recipe.on_too_long != "refuse" else ", or choose --on-too-long drop or truncate"),
        reason="too_long",
    )


def _turn_ends(document: Document) -> list[int]:
    """Where each assistant turn of the answer ends in the document, stop token included; ascending."""
    sampled = (document.role_ids == Role.ASSISTANT) & (document.flags & Flag.SAMPLED > 0)
    out = []
    for message in sorted(document.verdicts):
        own = np.flatnonzero(sampled & (document.message_ids == message))
        if len(own):
            out.append(int(own[-1]) + 1)
    return sorted(out)
