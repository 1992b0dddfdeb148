"""Preference pairs through prepare: both sides in one row, loss behind the common prompt only, nothing lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.branches import encode_all
from maskpipe.chat import read_all
from maskpipe.document import Document
from maskpipe.encoder import Encoded, Encoder
from maskpipe.errors import RecordError, UsageError
from maskpipe.pairs import fit_pair
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch, Part, Role
from maskpipe.shards.verify import verify
from maskpipe.tokenizer import Tokenizer
from tests.reference.pairs import separate_of

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


# -- what may go wrong, by the ids of reference/known-bugs.md


def test_d01_answers_that_begin_alike_are_never_cut_inside_a_message() -> None:
    """A prefix of characters or tokens would end in the middle of the answers."""
    chosen, rejected = documents_of(pair([user("q")], [assistant("same words, yes")], [assistant("same words, no")]))
    assert trained(chosen) == "same words, yes<|done|>" and trained(rejected) == "same words, no<|done|>"
    prefix = next(k for k in range(len(chosen)) if chosen.input_ids[k] != rejected.input_ids[k])
    assert chosen.loss_mask[:prefix].sum() > 0  # what a common prefix of tokens would take for the prompt


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_d02_prompt_and_answer_are_the_whole_conversation(layout: Any) -> None:
    recipe = PREFERENCE.replace(pair_layout=layout)
    record = pair([user("q")], [assistant("q and more")], [assistant("q")])
    whole = [
        Encoder(TOKENIZER, Recipe(sequence_length=512)).encode(item).documents[0].input_ids.tolist()
        for answer in (record["chosen"], record["rejected"])
        for item in read_all({"messages": [*record["prompt"], *answer]}, Recipe()).items
    ]
    assert [rebuilt.input_ids.tolist() for rebuilt in separate_of(documents_of(record, recipe))] == whole


def test_d09_only_what_diverges_gets_loss_and_tool_outputs_never() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    history = [user("q"), assistant("old answer"), user("use the tool")]
    chosen = [assistant("", tool_calls=[call]), {"role": "tool", "content": "tool says 7"}, assistant("It is seven")]
    one, two = documents_of(pair(history, chosen, [assistant("No idea"), user("really?"), assistant("Yes")]))
    assert "It is seven" in trained(one) and "f" in trained(one)
    for said in ("tool says", "old answer", "use the tool"):
        assert said not in trained(one) and said in TOKENIZER.decode(one.input_ids.tolist())
    assert trained(two) == "No idea<|done|>Yes<|done|>"
    assert not one.loss_mask[one.role_ids == Role.TOOL].any()


def test_x02_x05_a_side_without_answer_and_two_of_the_same_tokens_are_refused() -> None:
    for record, reason in (
        (pair([user("q")], [assistant("a")], [assistant("")]), "empty_side"),
        (pair([user("q")], [assistant("a")], [assistant("a")]), "collapsed"),
        # the template does not show a name: what differs is gone in the tokens
        (pair([user("q")], [assistant("a", name="x")], [assistant("a", name="y")]), "collapsed"),
    ):
        with pytest.raises(RecordError) as caught:
            documents_of(record, PREFERENCE.replace(on_content_lost="count"))
        assert caught.value.reason == reason


def test_x03_x04_x05_both_sides_are_cut_alike_for_every_length() -> None:
    """For any length of a row: both sides keep the whole prompt and as many whole turns, or the pair is refused."""
    turns = [assistant("first"), user("go on"), assistant("second and longer"), user("more"), assistant("third")]
    other = [assistant("1st one"), user("go on"), assistant("2nd")]
    record = pair([user("q"), assistant("a"), user("b")], turns, other)
    whole = documents_of(record)
    ends = [[int(end) + 1 for end in np.flatnonzero(d.part_ids == Part.STOP) if d.loss_mask[end]] for d in whole]
    assert [len(own) for own in ends] == [3, 2]
    allowed = {(a, b) for a, b in zip(ends[0], [*ends[1], ends[1][-1]], strict=True)} | {tuple(map(len, whole))}
    seen: Counter[object] = Counter()
    for layout in ("separate", "shared_prompt"):
        laid_out = documents_of(record, PREFERENCE.replace(pair_layout=layout))
        size = sum(map(len, laid_out))
        for length in range(2, size + 3):
            recipe = PREFERENCE.replace(sequence_length=length, pair_layout=layout)
            out = Encoded()
            try:
                documents = fit_pair(laid_out, recipe, out)
            except RecordError as error:
                assert error.reason == "too_long" and out.counts == {"tokens_dropped_too_long": size}
                seen["refused"] += 1
                continue
            assert sum(map(len, documents)) == size - out.counts["tokens_truncated"] <= length
            sides = separate_of(documents)
            assert tuple(map(len, sides)) in allowed
            seen[tuple(map(len, sides))] += 1
            for side, all_of_it in zip(sides, whole, strict=True):
                assert np.array_equal(side.input_ids, all_of_it.input_ids[: len(side)])
                assert np.array_equal(side.loss_mask, all_of_it.loss_mask[: len(side)]) and side.loss_mask.any()
            assert length < size or len(sides[0]) == len(whole[0])
    assert len(seen) >= 4 and seen["refused"]


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_a_pair_whose_sides_are_the_same_once_they_are_cut_is_refused(layout: Any) -> None:
    recipe = PREFERENCE.replace(pair_layout=layout, on_content_lost="count")
    sides = [[assistant("same", name=name), user("go on"), assistant(f"then {name}")] for name in ("one", "other")]
    whole = documents_of(pair([user("q")], *sides), recipe)
    size = sum(map(len, whole))
    seen: set[str] = set()
    for length in range(2, size):
        out = Encoded()
        try:
            *_, chosen, rejected = fit_pair(whole, recipe.replace(sequence_length=length), out)
        except RecordError as error:
            assert sum(out.counts.values()) == size
            seen.add(error.reason)
            continue
        assert not np.array_equal(chosen.input_ids, rejected.input_ids)
    assert seen == {"collapsed", "too_long"}


@pytest.mark.parametrize(("method", "reason"), [("refuse", "too_long"), ("drop", "too_long"), ("truncate", "too_long")])
def test_a_pair_of_one_turn_each_is_whole_or_refused(method: Any, reason: str) -> None:
    long = pair([user("q")], [assistant("word " * 40)], [assistant("no")])
    with pytest.raises(RecordError) as caught:
        documents_of(long, PREFERENCE.replace(on_too_long=method, sequence_length=48))
    assert caught.value.reason == reason


def test_a_side_that_would_be_several_documents_is_refused() -> None:
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role == 'user' else m.content[:1] }}<|done|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    recipe = PREFERENCE.replace(chat_template=template, on_content_lost="count")
    record = pair([user("q")], [assistant("long one"), user("go on"), assistant("two")], [assistant("other")])
    with pytest.raises(RecordError) as caught:
        documents_of(record, recipe)
    assert caught.value.reason in ("side_in_several_documents", "turns_refused")
    chosen, _ = documents_of(record, recipe.replace(on_history_rewrite="last"))
    assert trained(chosen) == "two<|done|>"
