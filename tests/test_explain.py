"""Every token has a reason, the reason agrees with the mask, and what is shown is what was encoded."""

from __future__ import annotations

import functools
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from maskpipe import demo_data
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import UsageError
from maskpipe.explain import (
    WORDS,
    Explanation,
    Why,
    characters,
    explain,
    explain_record,
    prediction_table,
    reasons,
    show,
    token_texts,
    visible,
)
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(demo_data.tokenizer())


def explained(record: Any, tokenizer: Tokenizer, **recipe: Any) -> Explanation:
    return explain_record(record, "made.jsonl:1", 0, Encoder(tokenizer, Recipe(sequence_length=1024, **recipe)))


def shown(explanation: Explanation, **options: Any) -> str:
    out = io.StringIO()
    show(explanation, Console(file=out, width=120, highlight=False, markup=False, emoji=False), **options)
    return out.getvalue()


def why_of(explanation: Explanation, text: str, document: int = 0) -> set[Why]:
    """The reasons of the tokens that make up the first occurrence of `text`."""
    found = explanation.documents[document]
    pieces = [explanation.tokenizer.decode([i]) for i in found.input_ids]
    start = "".join(pieces).index(text)
    ends = list(itertools.accumulate(map(len, pieces)))
    why = reasons(found, explanation.policy)
    return {Why(why[k]) for k, end in enumerate(ends) if end > start and end - len(pieces[k]) < start + len(text)}


# -- the article's table


def worked_example() -> Document:
    """The cat sat on the mat, with loss on everything: the article's six tokens."""
    ids = np.array([791, 5023, 3831, 389, 279, 5765], np.int32)
    return Document(
        input_ids=ids,
        role_ids=np.full(6, Role.TEXT, np.uint8),
        part_ids=np.full(6, Part.CONTENT, np.uint8),
        flags=np.array([Flag.SAMPLED] + 5 * [Flag.SAMPLED | Flag.LOSS], np.uint8),
        message_ids=np.full(6, -1, np.int32),
    )


def test_the_worked_example_gives_the_articles_table_and_its_mean() -> None:
    table = prediction_table(worked_example(), [0.02, 0.15, 0.40, 0.60, 0.05])
    assert [(row.position, row.input_id, row.next_id, round(row.loss or 0, 2)) for row in table.rows] == [
        (0, 791, 5023, 3.91),
        (1, 5023, 3831, 1.90),
        (2, 3831, 389, 0.92),
        (3, 389, 279, 0.51),
        (4, 279, 5765, 3.00),
    ]
    assert all(row.in_loss and row.why is Why.TEXT for row in table.rows)
    assert table.mean_loss is not None
    assert round(table.mean_loss, 2) == 2.05


def test_the_mean_is_over_positions_in_the_loss_only() -> None:
    document = worked_example()
    document.flags[1:4] = Flag.SAMPLED
    table = prediction_table(document, [0.02, 0.15, 0.40, 0.60, 0.05])
    assert table.mean_loss == pytest.approx((-np.log(0.60) - np.log(0.05)) / 2)
    assert prediction_table(document).mean_loss is None


@pytest.mark.parametrize("wrong", [[0.5] * 4, [0.5] * 6, [0.5, 1.1, 0.5, 0.5, 0.5], [0.5, float("nan"), 0.5, 0.5, 0.5]])
def test_probabilities_that_cannot_be_are_refused(wrong: list[float]) -> None:
    with pytest.raises(UsageError, match="probabilit"):
        prediction_table(worked_example(), wrong)


# -- reasons


RECIPES: list[dict[str, Any]] = [
    {},
    {"train_on": ("last_turn",)},
    {"train_on": ("assistant", "-assistant.reasoning", "-assistant.stop")},
    {"train_on": ("assistant", "tool.content", "user")},
    {"train_on": ("turns:0",)},
    {"train_on": ("all",)},
    {"on_history_rewrite": "accept"},
    {"on_history_rewrite": "refuse"},
    {"on_history_rewrite": "last", "train_on_empty_reasoning": True},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"enable_thinking": False}, "train_on_empty_reasoning": True},
    {"objective": "pretrain"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: json.dumps(recipe))
def test_a_reason_is_for_loss_exactly_where_the_mask_is(recipe: dict[str, Any], tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, Recipe(sequence_length=1024, **recipe))
    seen: set[Why] = set()
    for _, row, record in open_sources(demo_data.chats()).records():
        for document in explain_record(record, "", row, encoder).documents:
            why = reasons(document, encoder.policy)
            assert np.array_equal(why < 32, document.loss_mask == 1)
            seen |= {Why(value) for value in np.unique(why).tolist()}
    assert len(seen) >= 5
    assert seen <= set(WORDS)
    assert Why.UNKNOWN not in seen
    assert Why.NOT_SAMPLED not in seen


CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First question?"},
        {"role": "assistant", "content": "First answer."},
        {"role": "user", "content": "Second question?"},
        {"role": "assistant", "reasoning_content": "Some thought.", "content": "Second answer."},
    ]
}


def test_each_kind_of_token_has_its_own_reason(tokenizer: Tokenizer) -> None:
    e = explained(CHAT, tokenizer)
    why = reasons(e.documents[0], e.policy)
    assert why[0] == Why.FIRST
    assert why_of(e, "Be brief.") == {Why.SYSTEM}
    assert why_of(e, "First question?") == {Why.USER}
    assert why_of(e, "<|turn|>user\n") == {Why.AROUND}
    assert why_of(e, "<|turn|>assistant\n") == {Why.HEADER}
    assert why_of(e, "First answer.") == {Why.CONTENT}
    assert why_of(e, "First answer.<|done|>") == {Why.CONTENT, Why.STOP}
    assert why_of(e, "<think>\nSome thought.\n</think>") == {Why.REASONING}
    assert why[-1] == Why.AFTER_STOP


def test_reasons_name_the_recipes_choice(tokenizer: Tokenizer) -> None:
    e = explained(CHAT, tokenizer, train_on=("last_turn", "assistant", "-assistant.stop", "user"))
    assert why_of(e, "First question?") == {Why.SELECTED}
    assert why_of(e, "First answer.<|done|>") == {Why.NOT_CHOSEN}
    assert why_of(e, "Second answer.<|done|>") == {Why.CONTENT, Why.NOT_SELECTED}
    off = {"enable_thinking": False}
    e = explained({"messages": CHAT["messages"][:3]}, tokenizer, chat_template_kwargs=off)
    assert why_of(e, "<think>\n\n</think>\n\n") <= {Why.EMPTY_REASONING, Why.HEADER}


def test_reasons_name_the_datas_choice(tokenizer: Tokenizer) -> None:
    messages = [dict(message) for message in CHAT["messages"]]
    messages[2]["train"] = False
    e = explained({"messages": messages}, tokenizer)
    assert why_of(e, "First answer.<|done|>") == {Why.WEIGHT_0}
    assert why_of(e, "Second answer.") == {Why.CONTENT}


def test_a_split_turn_says_where_it_is_trained(tokenizer: Tokenizer) -> None:
    messages = [dict(message) for message in CHAT["messages"]]
    messages[2]["reasoning_content"] = "An earlier thought."
    e = explained({"messages": messages}, tokenizer)
    assert [document.turn for document in e.documents] == [-1, 2]
    assert why_of(e, "First answer.<|done|>") == {Why.HISTORY_DIFFERS}
    assert why_of(e, "An earlier thought.", document=1) == {Why.REASONING}
    text = shown(e)
    assert "trained in document 2, its own" in text
    assert "later messages make the template" in text
    assert "document 2 of 2  messages[2] alone" in text


def test_straddling_and_refused_tokens_say_so() -> None:
    document = worked_example()
    document.role_ids[:] = Role.ASSISTANT
    document.message_ids[:] = 1
    document.flags[2] = Flag.STRADDLES
    document.verdicts[1] = Verdict.EXACT
    policy = Encoder(Tokenizer.load(demo_data.tokenizer()), Recipe()).policy
    assert reasons(document, policy).tolist() == [Why.FIRST, Why.CONTENT, Why.STRADDLES, *[Why.CONTENT] * 3]
    document.verdicts[1] = Verdict.REFUSED
    document.flags[:] = Flag.SAMPLED
    assert set(reasons(document, policy)[1:].tolist()) == {Why.REFUSED}


# -- what a person sees


def test_the_plain_view_brackets_exactly_what_is_trained(tokenizer: Tokenizer) -> None:
    e = explained(CHAT, tokenizer)
    flow = shown(e).split("all messages")[1].split("targets")[0].replace("↵\n", "\n")
    document = e.documents[0]
    trained = [part.split("⟧")[0] for part in flow.split("⟦")[1:]]
    edges = np.flatnonzero(np.diff(document.loss_mask, prepend=0, append=0)).reshape(-1, 2)
    assert trained == [tokenizer.decode(document.input_ids[a:b]) for a, b in edges]
    assert "\x1b" not in flow


def test_colour_underlines_what_is_trained(tokenizer: Tokenizer) -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system="standard", highlight=False)
    show(explained(CHAT, tokenizer), console)
    assert "\x1b[1;4;32mFirst answer.\x1b[0m" in out.getvalue()
    assert "\x1b[2;36mFirst question?\x1b[0m" in out.getvalue()


def test_tokens_shows_every_position(tokenizer: Tokenizer) -> None:
    e = explained(CHAT, tokenizer)
    lines = shown(e, tokens=True).split("position  input token")[1].splitlines()
    positions = [int(line.split()[0]) for line in lines[1:] if line.split() and line.split()[0].isdecimal()]
    assert positions == list(range(len(e.documents[0]) - 1))


def test_control_text_in_content_can_do_nothing_to_a_terminal(tokenizer: Tokenizer) -> None:
    hostile = "a\x1b[2Jb\x07c\u202ed\x9b31me\rf"
    messages = [{"role": "user", "content": hostile}, {"role": "assistant", "content": hostile + "<|done|>"}]
    e = explained({"messages": messages}, tokenizer)
    for text in (shown(e), shown(e, tokens=True)):
        assert not set(text) & set("\x1b\x07\u202e\x9b\r")
        assert "␛" in text
        assert "<U+202E>" in text
    assert "1 × control token in content encoded as ordinary text" in shown(e)


@given(st.text())
def test_visible_text_is_printable(text: str) -> None:
    assert all(c.isprintable() or c in "\u200c\u200d" for c in visible(text))


@given(st.text(max_size=40))
def test_token_groups_are_whole_characters_and_cover_all_tokens(text: str) -> None:
    tokenizer = _demo()
    ids = tokenizer.encode(text).input_ids
    groups = list(characters(ids, tokenizer))
    assert [k for start, stop in groups for k in range(start, stop)] == list(range(len(ids)))
    assert "".join(tokenizer.decode(ids[start:stop]) for start, stop in groups) == text
    assert len(token_texts(ids, tokenizer)) == len(ids)


@functools.cache
def _demo() -> Tokenizer:
    return Tokenizer.load(demo_data.tokenizer())


def test_bytes_that_are_no_character_are_shown_one_by_one(tokenizer: Tokenizer) -> None:
    ids = np.array([i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xff"] * 12, np.int32)
    assert len(ids) == 12
    assert list(characters(ids, tokenizer)) == [(k, k + 1) for k in range(12)]


# -- records that are refused


def test_a_refused_record_says_why_and_what_to_do(tokenizer: Tokenizer) -> None:
    e = explained(
        {"messages": [{"role": "alien", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}, tokenizer
    )
    assert e.refused is not None
    text = shown(e)
    assert "refused" in text
    assert "alien" in text
    assert e.refused.reason in text
    e = explained({"strange": 1}, tokenizer)
    assert "unknown shape" in shown(e)
    assert e.to_dict()["refused"]["reason"] == "unknown_shape"
    e = explained({"messages": CHAT["messages"]}, tokenizer, train_on=("turns:7",))
    assert "look at --train-on" in shown(e)


def test_rows_that_are_not_there_are_refused(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, Recipe())
    with pytest.raises(UsageError, match="has no record 78; it has 78"):
        explain(demo_data.chats(), 78, encoder=encoder)
    with pytest.raises(UsageError, match="count from 0"):
        explain(demo_data.chats(), -1, encoder=encoder)


def test_a_bad_line_is_explained_not_raised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + '\n{"messages": [\n', encoding="utf-8")
    e = explain(tmp_path / "a.jsonl", 1, encoder=Encoder(tokenizer, Recipe()))
    assert e.refused is not None
    assert e.place == "a.jsonl:2"


# -- JSON


def test_json_says_the_same_as_the_documents(tokenizer: Tokenizer) -> None:
    e = explained(CHAT, tokenizer)
    values = json.loads(json.dumps(e.to_dict()))
    assert list(values) == ["place", "row", "refused", "turns", "documents", "lost", "dropped", "counts", "findings"]
    tokens = values["documents"][0]["tokens"]
    assert set(tokens[0]) == {
        "position", "id", "text", "piece", "role", "part", "message", "sampled", "loss", "why",
    }  # fmt: skip
    document = e.documents[0]
    assert [token["id"] for token in tokens] == document.input_ids.tolist()
    assert [int(token["loss"]) for token in tokens] == document.loss_mask.tolist()
    assert values["turns"][0] == {
        "message": 2, "verdict": "exact", "reason": "", "outcome": "trained",
        "loss_tokens": int(document.loss_mask[document.message_ids == 2].sum()),
    }  # fmt: skip
