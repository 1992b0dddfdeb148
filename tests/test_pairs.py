"""Preference pairs through prepare: both sides in one row, loss behind the common prompt only, nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.branches import encode_all
from maskpipe.chat import read_all
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch
from maskpipe.shards.verify import verify
from maskpipe.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
PREFERENCE = Recipe(objective="preference", sequence_length=512, on_bad_record="reject")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def pair(prompt: list[dict[str, Any]], chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def simple(number: int) -> dict[str, Any]:
    return pair([user(f"question {number}")], [assistant(f"good {number}")], [assistant(f"bad and long {number}")])


def documents_of(record: Any, recipe: Recipe = PREFERENCE) -> list[Document]:
    out = encode_all(Encoder(TOKENIZER, recipe), read_all(record, recipe)).encoded
    if out.refused is not None:
        raise out.refused
    return out.documents


def trained(document: Document) -> str:
    return TOKENIZER.decode(document.input_ids[document.loss_mask > 0].tolist())


def test_a_pair_is_two_documents_whose_answers_alone_get_loss() -> None:
    history = [user("q"), assistant("first answer"), user("again")]
    chosen, rejected = documents_of(pair(history, [assistant("yes")], [assistant("no")]))
    assert [document.branch for document in (chosen, rejected)] == [Branch.CHOSEN, Branch.REJECTED]
    assert trained(chosen) == "yes<|done|>" and trained(rejected) == "no<|done|>"
    both = [TOKENIZER.decode(document.input_ids.tolist()) for document in (chosen, rejected)]
    assert both[0].replace("yes", "no") == both[1] and "first answer" in both[0]
    assert sorted(chosen.verdicts) == [3] and sorted(rejected.verdicts) == [4]
    assert set(chosen.message_ids) & set(rejected.message_ids) == {0, 1, 2}
    for document in (chosen, rejected):
        assert np.array_equal(Encoder(TOKENIZER, PREFERENCE).policy.loss(document), document.loss_mask)


def test_both_sides_of_every_pair_are_in_one_row(tmp_path: Path) -> None:
    rows = [simple(number) for number in range(60)]
    made = maskpipe.prepare(rows, tmp_path / "out", tokenizer=TOKENIZER, recipe=PREFERENCE, workers=1)
    assert made.counts["pairs"] == 60 and made.manifest.records_kept == 60
    verify(tmp_path / "out")
    seen: list[int] = []
    for row in maskpipe.open(tmp_path / "out"):
        facts = [(int(entry["pair"]), int(entry["branch"])) for entry in row.documents]
        assert facts[::2] == [(number, Branch.CHOSEN) for number, _ in facts[::2]]
        assert facts[1::2] == [(number, Branch.REJECTED) for number, _ in facts[::2]]
        seen += [number for number, _ in facts[::2]]
    assert sorted(seen) == list(range(60))


def test_only_what_the_assistant_says_can_be_compared() -> None:
    for train_on in ("assistant+user", "all", "tool.content"):
        with pytest.raises(UsageError, match="only what the assistant says"):
            Encoder(TOKENIZER, PREFERENCE.replace(train_on=train_on))
