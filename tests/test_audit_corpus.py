"""The proof and the tracker on real templates: two ways that share no code must say the same of every token.

By default a slice of the corpus; MASKPIPE_LONG=1 takes all of it. Figures are printed (pytest -s).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import maskpipe
from maskpipe.auditing.exchange import CannotProveError
from maskpipe.auditing.expectation import Expectation
from maskpipe.chat import Conversation
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import RecordError, TemplateError
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Verdict
from maskpipe.tokenizer import Tokenizer
from tests.conversations import CHATS, Chat
from tests.corpus import Entry, chat_templates

LONG = "MASKPIPE_LONG" in os.environ
STEP = 1 if LONG else 72
MARKERS = re.compile(r"<\|[^<>|\s]+\|>|<｜[^<>\s]+｜>|</?[A-Za-z_]+>|\[/?[A-Z_]+\]")
DEMO = Path(maskpipe.__file__).parent / "demo_data" / "tokenizer"


def tokenizer_of(entry: Entry) -> Tokenizer:
    """The demo's tokenizer, with the strings that look like control tokens in the template as control tokens."""
    config = json.loads((DEMO / "tokenizer.json").read_bytes())
    known = {token["content"] for token in config["added_tokens"]} | set(config["model"]["vocab"])
    free = max([*config["model"]["vocab"].values(), *(token["id"] for token in config["added_tokens"])]) + 1
    found = {*MARKERS.findall(entry.source), entry.bos_token, entry.eos_token} - known
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    config["added_tokens"] += [{"id": free + k, "content": word, **flags} for k, word in enumerate(sorted(found))]
    settings = {"bos_token": entry.bos_token, "eos_token": entry.eos_token}
    files = {"tokenizer.json": config, "tokenizer_config.json": settings}
    return Tokenizer({name: json.dumps(value).encode() for name, value in files.items()}, name=entry.name)


def conversation(chat: Chat) -> Conversation:
    return Conversation(
        messages=chat.messages, tools=chat.tools, documents=chat.documents, chat_template_kwargs=chat.kwargs,
        weights=[None] * len(chat.messages),
    )  # fmt: skip


def difference(expectation: Expectation, documents: list[Document], chat: Conversation, counts: Counter[str]) -> str:
    """The first thing in which the two ways differ, "" for nothing. Raises CannotProveError."""
    said = {m: verdict for d in documents for m, verdict in d.verdicts.items() if verdict & Verdict.REFUSED}
    loud = {int(m) for d in documents if d.turn < 0 for m in d.message_ids[d.flags & (Flag.SAMPLED | 4) > 0]}
    silent = frozenset(m for m, verdict in said.items() if verdict == Verdict.REFUSED and m not in loud)
    begun = expectation.begin(0, 0, chat, frozenset(said), silent)
    expected = {e.turn: e for e in expectation.finish(begun, expectation.speller.spell(begun.texts))}
    for document in documents:
        mine = expected.pop(document.turn, None)
        if mine is None:
            return f"no document of turn {document.turn}"
        if document.input_ids.tolist() != mine.ids.tolist():
            return f"other ids in the document of turn {document.turn}"
        unlike = (document.role_ids != mine.roles) | (document.part_ids != mine.parts)
        unlike |= document.message_ids != mine.messages
        for k in np.flatnonzero(unlike).tolist():
            facts = int(document.role_ids[k]), int(document.part_ids[k]), int(document.message_ids[k])
            assert mine.shown is not None
            if not mine.shown.may_be(int(mine.starts[k]), *facts):
                return f"token {k}, {mine.text[mine.starts[k] : mine.ends[k]]!r}: {facts}"
        if (document.flags & ~np.uint8(Flag.LOSS)).tolist() != mine.flags.tolist():
            return f"other flags in the document of turn {document.turn}"
        if {message: int(verdict) for message, verdict in document.verdicts.items()} != mine.verdicts:
            return f"verdicts {document.verdicts}, {mine.verdicts}"
        if expectation.loss(mine, document.part_ids, document.role_ids).tolist() != document.loss_mask.tolist():
            return f"other loss in the document of turn {document.turn}"
        counts["tokens"] += len(document)
        assert mine.shown is not None
        counts["with two readings"] += int(np.count_nonzero(mine.shown.doubtful[mine.starts]))
    return ""


@pytest.mark.shared
def test_the_proof_agrees_with_the_tracker_on_real_templates(shared_data: Path) -> None:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    differences: dict[str, str] = {}
    compared: dict[str, set[str]] = {}
    for entry in chat_templates(shared_data)[::STEP]:
        tokenizer, recipe = tokenizer_of(entry), Recipe(chat_template=entry.source, sequence_length=8192)
        try:
            encoder, expectation = Encoder(tokenizer, recipe), Expectation(tokenizer, recipe)
        except TemplateError:
            counts["templates that do not compile"] += 1
            continue
        for name, chat in CHATS.items():
            record = conversation(chat)
            try:
                encoded = encoder.encode(record)
            except RecordError:
                continue
            if encoded.refused is not None:
                continue
            counts["conversations"] += 1
            said = compared.setdefault(entry.name, set())
            try:
                found = difference(expectation, encoded.documents, record, counts)
            except CannotProveError as error:
                reasons[str(error)] += 1
                said.add("cannot")
                continue
            counts["agree"] += not found
            said.add("differs" if found else "agrees")
            if found:
                differences[f"{entry.name} {name}"] = found
    shadowed = [name for name, said in compared.items() if said != {"cannot"}]
    agree = [name for name in shadowed if "differs" not in compared[name]]
    print(f"\n{len(agree)} of {len(shadowed)} templates that can be shadowed agree on every token; {dict(counts)}")
    print(f"cannot be proved: {dict(reasons)}; differ: {differences}")
    assert len(agree) >= 0.99 * len(shadowed) and len(shadowed) >= 0.97 * len(compared)
    assert counts["with two readings"] <= 0.002 * counts["tokens"]
    assert counts["agree"] >= 0.99 * (counts["conversations"] - sum(reasons.values()))
