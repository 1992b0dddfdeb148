"""A record of several conversations is one record: its messages are numbered through, and nothing of it is lost."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.branches import encode_all
from maskpipe.chat import Conversation, read_all
from maskpipe.encoder import Encoder
from maskpipe.explain import explain
from maskpipe.recipe import Recipe
from maskpipe.shards.verify import verify
from maskpipe.tokenizer import Tokenizer
from tests.test_chat_trees import TREE, node

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
RECIPE = Recipe(sequence_length=512)


def test_every_token_leads_to_its_message_through_all_conversations_of_the_record() -> None:
    encoder = Encoder(TOKENIZER, RECIPE)
    read = read_all(TREE, RECIPE)
    out = encode_all(encoder, read)
    messages = [message for item in read.items if isinstance(item, Conversation) for message in item.messages]
    first = 0
    assert out.of == sorted(out.of) and set(out.of) == {0, 1, 2}
    for number, item in enumerate(read.items):
        assert isinstance(item, Conversation)
        alone = encoder.encode(item).documents
        here = [document for document, of in zip(out.encoded.documents, out.of, strict=True) if of == number]
        assert len(alone) == len(here)
        for one, two in zip(alone, here, strict=True):
            for field in ("input_ids", "role_ids", "part_ids", "flags", "loss_mask"):
                assert np.array_equal(getattr(one, field), getattr(two, field))
            shifted = np.where(one.message_ids >= 0, one.message_ids + first, -1)
            assert np.array_equal(shifted, two.message_ids)
            assert two.verdicts == {message + first: verdict for message, verdict in one.verdicts.items()}
            for message in np.unique(two.message_ids[two.part_ids == 1]).tolist():
                said = TOKENIZER.decode(two.input_ids[(two.message_ids == message) & (two.part_ids == 1)].tolist())
                assert said == messages[message]["content"]
        first += len(item.messages)


def test_a_record_is_kept_while_one_of_its_conversations_is(tmp_path: Path) -> None:
    lonely = node("prompter", "only a question")
    both = node("prompter", "q", node("assistant", "a"), node("prompter", "no answer"))
    rows = [lonely, both, TREE, {"prompt": "p", "completions": ["x", "y"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = dataclasses.replace(RECIPE, on_bad_record="reject")
    made = maskpipe.prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=1)
    assert made.manifest.records == 4 and made.manifest.records_kept == 3
    assert made.manifest.rejected == {"nothing_to_train": 1}
    assert made.manifest.dropped == {"conversation_nothing_to_train": 1}
    said = ("conversations", "tree", "records")
    counted = Counter({name: n for name, n in made.counts.items() if name.startswith(said)})
    assert counted == {
        "conversations": 7,
        "conversations_refused": 1,
        "records_of_several_conversations": 3,
        "tree_nodes_deleted": 2,
        "tree_nodes_refused": 1,
    }
    assert made.manifest.totals.documents == 6
    verify(tmp_path / "out")


def test_explain_shows_all_conversations_of_a_record() -> None:
    shown = explain([{"prompt": "p", "completions": ["x", "y"]}], 0, encoder=Encoder(TOKENIZER, RECIPE))
    assert isinstance(shown.conversation, Conversation) and len(shown.conversation.messages) == 4
    assert len(shown.documents) == 2 and sorted(shown.documents[1].verdicts) == [3]


@pytest.mark.parametrize("train_on", ["assistant", "last_turn", "turns:0"])
def test_policies_choose_turns_within_each_conversation(train_on: str) -> None:
    recipe = Recipe(sequence_length=512, train_on=train_on)  # type: ignore[arg-type]
    encoder = Encoder(TOKENIZER, recipe)
    out = encode_all(encoder, read_all(TREE, recipe))
    for document in out.encoded.documents:
        assert np.array_equal(encoder.policy.loss(document), document.loss_mask)


@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
def test_reasoning_in_a_part_that_the_template_drops_is_lost_content(kind: str) -> None:
    answer = [{"type": kind, kind: "hm"}, {"type": "text", "text": "a"}]
    said = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}
    encoder = Encoder(Tokenizer.load(demo_data.tokenizer()), Recipe())
    refused = encode_all(encoder, read_all(said, Recipe())).encoded.refused
    assert refused is not None and refused.reason == "content_lost" and f"content[0].{kind}" in str(refused)
