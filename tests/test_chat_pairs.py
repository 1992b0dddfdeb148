"""Preference data in every shape that people keep it in: the same two conversations, split where they diverge."""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpipe.chat import Conversation, Side, read_all
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch
from maskpipe.sources import open_sources
from tests.chats import at, turns

PREFERENCE = {"objective": "preference"}
HI, HO = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Ho"}
YES, NO = {"role": "assistant", "content": "Yes"}, {"role": "assistant", "content": "No"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def sides(record: Any, **recipe: Any) -> list[Conversation]:
    """All conversations of a record, each with its side."""
    out = []
    for item in read_all(record, Recipe(objective="preference", **recipe)).items:
        assert isinstance(item, Conversation) and isinstance(item.side, Side)
        assert len(item.messages) == len(item.weights) == len(item.paths)
        out.append(item)
    return out


def refusal(record: Any, **recipe: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read_all(record, Recipe(objective="preference", **recipe))
    return caught.value


SHAPES: dict[str, Any] = {
    "TRL, explicit prompt, messages": {"prompt": [HI], "chosen": [YES], "rejected": [NO]},
    "TRL, implicit prompt, messages": {"chosen": [HI, YES], "rejected": [HI, NO]},
    "TRL, explicit prompt, strings": {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
    "prompt beside whole chats": {"prompt": "Hi", "chosen": [HI, YES], "rejected": [HI, NO]},
    "prompt beside whole chats, spaces apart": {"prompt": " Hi\n", "chosen": [HI, YES], "rejected": [HI, NO]},
    "UltraFeedback": {
        "prompt": "Hi", "prompt_id": "5", "chosen": [HI, YES], "rejected": [HI, NO], "messages": [HI, YES],
        "score_chosen": 8.5, "score_rejected": 6,
    },
    "single messages": {"prompt": [HI], "chosen": YES, "rejected": NO},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Yes"},
        "rejected": {"from": "gpt", "value": "No"},
    },
    "LLaMA-Factory, alpaca": {"instruction": "Hi", "input": "", "chosen": "Yes", "rejected": "No"},
    "LLaMA-Factory v1": {
        "chosen_messages": [{**HI, "loss_weight": 0.0}, {**YES, "loss_weight": 1.0}],
        "rejected_messages": [{**HI, "loss_weight": 0.0}, {**NO, "loss_weight": 1.0}],
    },
    "HH": {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    "HH, prompt apart": {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"},
    "HH, prompt beside whole strings": {
        "prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "\n\nHuman: Hi\n\nAssistant: Yes",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No",
    },
    "torchtune": {"question": "Hi", "response_j": "Yes", "response_k": "No"},
    "OpenAI": {"input": {"messages": [HI]}, "preferred_output": [YES], "non_preferred_output": [NO]},
    "JSON text": {"prompt": [HI], "chosen": json.dumps([YES]), "rejected": json.dumps([NO])},
    "ranked": {"prompt": "Hi", "completions": ["No", "Yes"], "scores": [1, 2]},
    "Nectar": {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "Yes", "rank": 1.0}, {"answer": "No", "rank": 2}],
    },
    "UltraFeedback, all answers": {
        "instruction": "Hi",
        "completions": [
            {"model": "a", "response": "Meh", "overall_score": 5.0},
            {"model": "b", "response": "No", "overall_score": 1},
            {"model": "c", "response": "Yes", "overall_score": 9},
        ],
    },
    "NeMo-RL": {"context": [HI], "completions": [{"rank": 0, "completion": [YES]}, {"rank": 1, "completion": [NO]}]},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_same_pair(shape: str) -> None:
    chosen, rejected = sides(SHAPES[shape])
    assert turns(chosen) == [("user", "Hi"), ("assistant", "Yes")]
    assert turns(rejected) == [("user", "Hi"), ("assistant", "No")]
    for chat, branch in ((chosen, Branch.CHOSEN), (rejected, Branch.REJECTED)):
        assert chat.side is not None and (chat.side.prompt, chat.side.branch) == (1, branch)
        for message, path in zip(chat.messages, chat.paths, strict=True):
            if shape != "JSON text":
                there = at(SHAPES[shape], path)
                said = there if isinstance(there, str) else there.get("content", there.get("value"))
                assert message["content"].strip() == said.strip()


def test_tools_system_prompts_and_template_arguments_are_both_sides() -> None:
    record = {
        **SHAPES["TRL, explicit prompt, messages"], "tools": TOOLS, "system": "Be kind",
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    for chat in sides(record):
        assert chat.tools == TOOLS and chat.chat_template_kwargs == {"enable_thinking": False}
        assert chat.messages[0] == {"role": "system", "content": "Be kind"}
        assert chat.side is not None and chat.side.prompt == 2
    inner = {**SHAPES["OpenAI"], "input": {"messages": [HI], "tools": TOOLS}}
    assert [chat.tools for chat in sides(inner)] == [TOOLS, TOOLS]


def test_the_common_prompt_is_found_by_message_and_goes_beyond_an_explicit_one() -> None:
    """D01, D09. Answers that begin alike are not cut: only whole messages are common."""
    history = [HI, YES, {"role": "user", "content": "Why?"}]
    alike = [{"role": "assistant", "content": "Because A"}, {"role": "assistant", "content": "Because B"}]
    for record in (
        {"chosen": [*history, alike[0]], "rejected": [*history, alike[1]]},
        {"prompt": [HI], "chosen": [*history[1:], alike[0]], "rejected": [*history[1:], alike[1]]},
        {"prompt": history, "chosen": alike[:1], "rejected": alike[1:]},
    ):
        for chat, answer in zip(sides(record), alike, strict=True):
            assert chat.side is not None and chat.side.prompt == 3
            assert chat.messages[chat.side.prompt :] == [answer]


def test_sides_of_several_turns_and_with_tools_stay_whole() -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    chosen = [call, {"role": "tool", "content": "1"}, YES]
    one, two = sides({"prompt": [HI], "chosen": chosen, "rejected": [NO, HI, YES]})
    assert one.messages == [HI, *chosen] and two.messages == [HI, NO, HI, YES]
    assert one.side is not None and two.side is not None and one.side.prompt == two.side.prompt == 1


@pytest.mark.parametrize(
    ("columns", "scores"),
    [
        ({"score_chosen": 8.5, "score_rejected": 6}, (8.5, 6.0)),
        ({"chosen_score": -1, "rejected_score": 2}, (-1.0, 2.0)),
        ({"chosen-rating": 5, "rejected-rating": 1}, (5.0, 1.0)),
        ({"margin": 0.25}, (0.25, 0.0)),
        ({}, (None, None)),
    ],
)
def test_scores_and_margins_are_kept(columns: dict[str, Any], scores: tuple[float | None, float | None]) -> None:
    found = [chat.side.score for chat in sides({**SHAPES["TRL, explicit prompt, messages"], **columns}) if chat.side]
    assert tuple(found) == scores


RANKED = {"prompt": "Hi", "completions": ["a", "b", "c", "d", "e"], "ranks": [2, 1, 2, 3, 1]}


@pytest.mark.parametrize(
    ("method", "pairs", "tied", "unused"),
    [
        ("best_worst", ["bd"], 3, 0),
        ("adjacent", ["ba", "ad"], 2, 0),
        ("all", ["ba", "bc", "bd", "ea", "ec", "ed", "ad", "cd"], 0, 0),
    ],
)
def test_a_ranked_list_makes_the_pairs_that_the_recipe_names(
    method: Any, pairs: list[str], tied: int, unused: int
) -> None:
    read = read_all(RANKED, Recipe(objective="preference", ranked_pairs=method))
    said = [item.messages[-1]["content"] for item in read.items if isinstance(item, Conversation)]
    assert [a + b for a, b in zip(said[::2], said[1::2], strict=True)] == pairs
    assert [len(unit) for unit in read.units()] == [2] * len(pairs)
    assert +read.counts == +Counter({"ranked_answers_tied": tied, "ranked_answers_unused": unused})


@given(ranks=st.lists(st.integers(0, 4), min_size=2, max_size=7))
def test_pairs_of_a_ranked_list_are_those_of_the_obvious_definition(ranks: list[int]) -> None:
    record = {"prompt": "Hi", "completions": [f"answer {k}" for k in range(len(ranks))], "scores": [-r for r in ranks]}
    everything = [(a, b) for a in range(len(ranks)) for b in range(len(ranks)) if ranks[a] < ranks[b]]
    if not everything:
        assert refusal(record).reason == "all_tied"
        return
    found = {}
    for method in ("all", "best_worst", "adjacent"):
        said = [int(chat.messages[-1]["content"].split()[1]) for chat in sides(record, ranked_pairs=method)]
        found[method] = list(zip(said[::2], said[1::2], strict=True))
    assert sorted(found["all"]) == sorted(everything)
    (best, worst) = found["best_worst"][0]
    assert ranks[best] == min(ranks) and ranks[worst] == max(ranks) and len(found["best_worst"]) == 1
    levels = sorted(set(ranks))
    assert [(ranks[a], ranks[b]) for a, b in found["adjacent"]] == list(itertools.pairwise(levels))
    assert {*found["best_worst"], *found["adjacent"]} <= set(everything)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "Hi", "completion": "Yes", "label": True}, 1),
        ({"prompt": [HI], "completion": [YES], "label": True}, 1),
        ({"messages": [HI, YES], "label": True}, 1),
        ({"messages": [HI, YES], "kto_tag": True}, 1),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}], "label": 1}, 1),
        ({"instruction": "Hi", "output": "Yes", "label": True}, 1),
        ({"messages": [HI, NO, HI, YES], "label": True}, 3),
        ({"prompt": [HI], "completion": [NO, HI, YES], "label": True}, 1),
    ],
)
def test_an_answer_with_a_label_is_kept_with_it(record: dict[str, Any], prompt: int) -> None:
    (chat,) = sides(record)
    assert chat.side == Side(prompt, label=True)
    (other,) = sides({**record, **{key: False for key in ("label", "kto_tag") if key in record}})
    assert other.messages == chat.messages and other.side == Side(prompt, label=False)


@pytest.mark.parametrize(
    ("record", "reason", "says"),
    [
        ({"prompt": [HI], "chosen": [YES], "rejected": [YES]}, "collapsed", "say the same"),
        ({"chosen": [HI, YES], "rejected": [HI]}, "empty_side", "rejected has no answer"),
        ({"prompt": "Hi", "chosen": "", "rejected": "No"}, "empty_side", "chosen has no answer"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": " \n"}, "empty_side", "rejected has no answer"),
        ({"prompt": [HI], "chosen": [YES], "rejected": []}, "empty_side", "no messages"),
        ({"prompt": [HI], "chosen": [YES]}, "empty_side", "half a pair"),
        ({"chosen": [YES], "rejected": [NO]}, "no_common_prompt", "--map NAME=prompt"),
        ({"chosen": "Yes", "rejected": "No"}, "no_prompt", "never guessed"),
        ({"chosen": [HI, YES, HI, NO], "rejected": [HI, YES, HO, NO]}, "prompts_differ", "message 2"),
        ({"prompt": "Ho", "chosen": [HI, YES], "rejected": [HI, NO]}, "ambiguous_shape", "$.chosen begins with"),
        ({**SHAPES["UltraFeedback"], "messages": [HO]}, "ambiguous_shape", "two readings"),
        ({**SHAPES["UltraFeedback"], "score_chosen": "8"}, "bad_score", "$.score_chosen is the string '8'"),
        ({**SHAPES["HH"], "margin": float("nan")}, "bad_score", "$.margin"),
        ({"messages": [HI, YES]}, "no_preference", "which answer is preferred"),
        ({"prompt": "Hi", "completions": ["a", "b"]}, "no_preference", "$.completions[0] has no rank"),
        ({"prompt": "Hi", "completions": ["a", "b"], "scores": [1]}, "bad_score", "2 numbers"),
        ({"prompt": "Hi", "completions": ["a", "b"], "scores": [1, 1]}, "all_tied", "one rank"),
        ({"prompt": "Hi", "completions": ["a", "a"], "scores": [1, 2]}, "collapsed", "answers 1 and 0"),
        ({"prompt": "Hi", "completion": "Yes", "label": "good"}, "bad_label", "$.label is the string 'good'"),
        ({"messages": [HI], "label": True}, "empty_side", "no answer"),
        ({"messages": [YES], "label": True}, "no_common_prompt", "no prompt"),
        ({"x": 1}, "unknown_shape", "the columns x"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_by_name(record: Any, reason: str, says: str) -> None:
    error = refusal(record)
    assert error.reason == reason and says in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "rank", "from", "x"]), inner)
    ),
    max_leaves=8,
)
COLUMNS = st.sampled_from(["prompt", "chosen", "rejected", "label", "completions", "scores", "messages"])


@given(record=st.dictionaries(COLUMNS, json_values))
def test_any_json_value_is_a_pair_or_refused_and_never_crashes(record: Any) -> None:
    try:
        read = read_all(record, Recipe(objective="preference"))
    except RecordError as error:
        assert error.reason != "bad_record"
    else:
        for unit in read.units():
            for item in unit:
                assert isinstance(item, Conversation) and item.side is not None
                assert 0 < item.side.prompt < len(item.messages)
                assert item.messages[item.side.prompt]["role"] == "assistant"


REAL: list[tuple[str, dict[str, str], Counter[str]]] = [
    ("hh-rlhf/harmless-base/*", {}, Counter(pairs=2308, empty_side=4)),
    ("llamafactory-demo/dpo_en_demo.json", {}, Counter(pairs=300)),
    ("llamafactory-demo/dpo_zh_demo.json", {}, Counter(pairs=300)),
    ("llamafactory-demo/v1_dpo_demo.jsonl", {}, Counter(pairs=10)),
    ("llamafactory-demo/kto_en_demo.json", {}, Counter(labels=300)),
    ("torchtune-assets/*.json", {}, Counter(pairs=25)),
    ("open-instruct/*.jsonl", {}, Counter(no_preference=996)),
    *(
        (
            "gsm8k/example_model_solutions.jsonl",
            {"question": "prompt", f"{model}.solution": "completion", f"{model}.is_correct": "label"},
            Counter(labels=1319),
        )
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    ),
    ("gsm8k/train.jsonl", {}, Counter(no_preference=7473)),
    ("nemo-rl/*.json", {}, Counter(unknown_shape=1)),
]


@pytest.mark.shared
def test_real_pairs_go_through_or_are_refused_by_name(shared_data: Path) -> None:
    for pattern, columns, expected in REAL:
        counts: Counter[str] = Counter()
        for path in sorted((shared_data / "chats").glob(pattern)):
            if fnmatch.fnmatch(path.name, "LICENSE*"):
                continue
            for _, _, record in open_sources(path).records():
                try:
                    read = read_all(record, Recipe(objective="preference", columns=columns))
                except RecordError as error:
                    counts[error.reason] += 1
                else:
                    counts.update("pairs" if len(unit) == 2 else "labels" for unit in read.units())
        print(f"{pattern:45} {dict(counts)}")
        assert counts == expected, pattern


@pytest.mark.parametrize(("one", "other"), [({"n": 1}, {"n": True}), ({"n": 1}, {"n": 1.0})])
def test_answers_that_a_template_shows_otherwise_are_no_part_of_the_common_prompt(one: Any, other: Any) -> None:
    def call(arguments: Any) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}],
        }

    result = {"role": "tool", "content": "ok"}
    record = {"prompt": [HI], "chosen": [call(one), result, YES], "rejected": [call(other), result, NO], "tools": TOOLS}
    again = {**record, "rejected": [call(dict(one)), result, NO]}
    assert [side.side.prompt for side in sides(record) if side.side] == [1, 1]
    assert [side.side.prompt for side in sides(again) if side.side] == [3, 3]
    assert len(sides({"prompt": [HI], "chosen": [call(one)], "rejected": [call(other)], "tools": TOOLS})) == 2
