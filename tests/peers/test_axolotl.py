"""The mask structure of labels that axolotl published: six trained turns, each with its end-of-text token.

Their ids are Llama-2's, and no Llama-2 tokenizer is at hand, so the runs are compared by order and by size (the same
texts in Mistral-v0.1 tokens), not by id.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from maskpipe.chat import read_record
from maskpipe.encoder import Encoder
from maskpipe.recipe import Recipe
from maskpipe.roles import Part
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer

pytestmark = pytest.mark.shared


def runs(mask: list[bool]) -> list[tuple[bool, int]]:
    return [(trained, len(list(group))) for trained, group in groupby(mask)]


@pytest.mark.parametrize(
    ("fixture", "template"),
    [
        ("conversation.tokenized.json", "unsloth__vicuna.jinja"),
        ("conversation.tokenized_llama2chat.json", "ollama__llama2__7b.jinja"),
    ],
)
def test_published_labels_have_the_same_runs(shared_data: Path, fixture: str, template: str) -> None:
    folder = shared_data / "chats" / "axolotl-fixtures"
    published = json.loads((folder / fixture).read_text(encoding="utf-8"))
    size = sum(published["attention_mask"])
    theirs = runs([label != -100 for label in published["labels"][:size]])
    files = {
        "tokenizer.json": (shared_data / "tokenizers" / "mistral-v0.1" / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps({"bos_token": "<s>", "eos_token": "</s>"}).encode(),
    }
    recipe = Recipe(chat_template=str(shared_data / "templates" / "jinja" / template), sequence_length=8192)
    (record,) = (found for _, _, found in open_sources(folder / "conversation.json", recipe).records())
    (document,) = Encoder(Tokenizer(files), recipe).encode(read_record(record, recipe)).documents
    ours = runs([bool(flag) for flag in document.loss_mask])
    assert [trained for trained, _ in ours] == [trained for trained, _ in theirs]
    assert sum(trained for trained, _ in ours) == 6
    explained: list[Any] = []
    for (trained, mine), (_, other) in zip(ours, theirs, strict=True):
        if trained:
            assert 0.8 < mine / other < 1.25  # another vocabulary, the same text
            explained.append(f"{mine} / {other}")
    trained_ends = [i for i in range(len(document)) if document.part_ids[i] == Part.STOP and document.loss_mask[i]]
    assert len(trained_ends) == 6
    print(f"{fixture}: trained tokens per turn, ours / theirs: {', '.join(explained)}")
