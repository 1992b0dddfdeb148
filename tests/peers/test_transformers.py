"""Every context that is trained on is what transformers would feed at inference, on the embedded chats."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from maskpipe import demo_data
from maskpipe.chat import Conversation, read_record
from maskpipe.encoder import Encoder
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Role
from maskpipe.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
DEMO = [json.loads(line) for line in demo_data.chats().read_text(encoding="utf-8").strip().split("\n")]
LONG = Recipe(sequence_length=1 << 20)


def check_against_transformers(tokenizer: Tokenizer, theirs: Any, records: list[Any]) -> tuple[int, int]:
    """(documents equal to apply_chat_template, documents cut): a whole document without a cut has its ids; one with a
    cut, and a split one, begins with the ids of the turn's own prompt."""
    equal = cut = 0
    encoder = Encoder(tokenizer, LONG)
    for record in records:
        conversation = read_record(record, LONG)
        assert isinstance(conversation, Conversation)
        context = {
            "tools": conversation.tools,
            "documents": conversation.documents,
            **conversation.chat_template_kwargs,
        }

        def ids(messages: list[Any], prompt: bool, context: dict[str, Any] = context) -> list[int]:
            out = theirs.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=True, return_dict=False, **context
            )
            return [int(token) for token in out]

        for document in encoder.encode(conversation).documents:
            targets = np.flatnonzero(document.loss_mask & (document.role_ids == Role.ASSISTANT))
            for message in sorted({int(number) for number in document.message_ids[targets]}):
                sampled = np.flatnonzero((document.message_ids == message) & (document.flags & Flag.SAMPLED > 0))
                prompt = ids(conversation.messages[:message], True)
                assert document.input_ids[: sampled[0]].tolist() == prompt, "context is not what inference feeds"
            if document.turn >= 0 or (document.flags & Flag.CUT_BEFORE).any():
                cut += 1
            else:
                assert document.input_ids.tolist() == ids(conversation.messages, False)
                equal += 1
    return equal, cut


def is_clean(record: Any, tokenizer: Tokenizer) -> bool:
    return not any(token in json.dumps(record, ensure_ascii=False) for token in tokenizer.control)


def test_ids_of_the_demo_chats_are_what_transformers_feeds() -> None:
    records = [record for record in DEMO if is_clean(record, TOKENIZER)]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(demo_data.tokenizer()))
    equal, cut = check_against_transformers(TOKENIZER, theirs, records)
    print(f"{equal} documents equal, {cut} split or cut, all contexts as at inference")
    assert equal > 50
    assert cut > 5
