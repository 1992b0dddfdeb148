"""The mask held to an oracle that knows nothing of maskpipe: transformers' apply_chat_template, turn by turn.

Generated conversations (white space at every edge, empty contents, contents that look like headers, control tokens,
reasoning, tool calls, answers in a row, an answer first) go through real templates and tokenizers. For each turn that
is trained: the ids before it are the ids of its prompt, what is trained is how the template writes that turn when it
is last, up to a stop, and all the rest of the conversation has no loss.
"""

from __future__ import annotations

import json
import random
import unicodedata
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe.chat import read_record
from maskpipe.roles import Flag, Part, Role, Verdict

pytestmark = pytest.mark.shared
transformers = pytest.importorskip("transformers", reason="needs transformers")

Json = Any

PAIRS = {
    "qwen3": ["Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "trl__qwen3_instruct_2507", "ollama__qwq__32b"],
    "llama-3.1": ["meta-llama-Llama-3.1-8B-Instruct", "chat_templates__llama-3-instruct"],
    "gemma-3": ["google-gemma-2-2b-it", "axolotl__gemma3"],
    "deepseek-v3": ["deepseek-ai-DeepSeek-V3.1", "deepseek-ai-DeepSeek-V3.2"],
    "mistral-v0.1": ["ollama__mixtral__8x7b", "stephenlzc__Mistral-7B-v0.3-Chinese-Chat-uncensored"],
}
"""Templates beside the tokenizer that knows their control tokens; the tokenizer's own template comes on top."""

EDGES = [
    "", " ", "\n", "\n\nfirst", "last\n", "a", ".", "user", "assistant\n", "{}", '{"role": "user"}', "é", "e\u0301",
    "日本語", "👩\u200d🚀🇳🇴", "\u2028", "null", "[INST] x [/INST]", "### Response:", "</think>",
    "<think>\nhm\n</think>\n\nyes", "<tool_call>\n{}\n</tool_call>", "ok", "ok",
]  # fmt: skip


@cache
def library(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))


@cache
def ours(folder: Path) -> maskpipe.Tokenizer:
    return maskpipe.Tokenizer.load(str(folder))


def conversation(seed: int, control: list[str]) -> list[dict[str, Json]]:
    draw = random.Random(seed)

    def text() -> str:
        if draw.random() < 0.5:
            return "".join(draw.choice([*EDGES, *control]) for _ in range(draw.choice([1, 1, 2])))
        return " ".join(draw.choice(["alpha", "Beta,", "42", "ünï", "is", "no!\n"]) for _ in range(draw.randint(1, 8)))

    messages: list[dict[str, Json]] = [{"role": "system", "content": text()}] if draw.random() < 0.3 else []
    if draw.random() < 0.1:
        messages.append({"role": "assistant", "content": text()})
    for _ in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": text()})
        if draw.random() < 0.25:
            call = {"name": draw.choice(["f", "find_it"]), "arguments": {"q": text(), "n": draw.choice([1, 2.5, True])}}
            messages.append(
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
            )
            messages.append({"role": "tool", "name": call["name"], "content": text()})
        messages.append({"role": "assistant", "content": text()})
        if draw.random() < 0.25:
            messages[-1]["reasoning_content"] = text()
        if draw.random() < 0.1:
            messages.append({"role": "assistant", "content": text()})
    if draw.random() < 0.15:
        messages.append({"role": "user", "content": text()})
    return messages


class Oracle:
    """One tokenizer and template, seen through transformers alone."""

    def __init__(self, folder: Path, template: str) -> None:
        self.tokenizer = library(folder)
        self.template = template
        self.added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if "<" in token.content}

    def text(self, messages: list[dict[str, Json]], prompt: bool = False) -> str | None:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self.template, add_generation_prompt=prompt, tokenize=False
                )
            )
        except Exception:
            return None

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def is_plain(self, messages: list[dict[str, Json]]) -> bool:
        """Does no content hold an added token, which maskpipe encodes as text and transformers as the token?"""
        dumped = json.dumps(messages, ensure_ascii=False)
        return not any(token in dumped for token in self.added)


def problems(oracle: Oracle, folder: Path, messages: list[dict[str, Json]]) -> list[str] | None:
    """What is wrong with the mask of one conversation; None when it is refused."""
    recipe = maskpipe.Recipe(chat_template=oracle.template, on_content_lost="count")
    try:
        documents = maskpipe.encode(read_record({"messages": messages}, recipe), ours(folder), recipe)
    except maskpipe.RecordError:
        return None
    whole = oracle.text(messages)
    if whole is None:
        return ["transformers refuses what maskpipe takes"]
    plain, out = oracle.is_plain(messages), []
    for document in documents:
        ids = document.input_ids.tolist()
        if document.turn < 0 and plain and not np.any(document.flags & Flag.CUT_BEFORE) and ids != oracle.ids(whole):
            out.append("the ids are not those of the whole conversation")
        for message in sorted(set(document.message_ids[document.loss_mask != 0].tolist())):
            out += [
                f"message {message}: {problem}" for problem in turn_problems(oracle, document, messages, message, plain)
            ]
    return out


def turn_problems(
    oracle: Oracle, document: maskpipe.Document, messages: list[dict[str, Json]], message: int, plain: bool
) -> list[str]:
    out = []
    mine, sampled = document.message_ids == message, document.sampled != 0
    places = np.flatnonzero(mine & sampled)
    first, end = int(places[0]), int(places[-1]) + 1
    loss, empty = document.loss_mask != 0, document.flags & Flag.EMPTY_REASONING != 0
    if messages[message]["role"] != "assistant" or np.any(document.role_ids[loss] != Role.ASSISTANT):
        out.append("loss outside the assistant's turns")
    if not np.array_equal(loss[first:end], ~empty[first:end]) or np.any(loss[mine] & ~sampled[mine]):
        out.append("loss is not on all that is sampled")
    prompt = oracle.text(messages[:message], prompt=True) if message else None
    if prompt is None:
        return out  # transformers renders no empty chat
    ids = document.input_ids.tolist()
    if plain and ids[:first] != oracle.ids(prompt):
        out.append(f"its context is not its prompt {prompt[-60:]!r}")
    alone = oracle.text(messages[: message + 1])
    if alone is not None and alone.startswith(prompt):
        written = unicodedata.normalize("NFC", oracle.tokenizer.decode(ids[first:end])).strip()
        last = unicodedata.normalize("NFC", alone[len(prompt) :]).strip()
        for text in ("<think>\n\n</think>", "<think></think>"):  # an empty block more or less is no other turn
            written, last = (side.removeprefix(text).lstrip() for side in (written, last))
        if document.part_ids[end - 1] == Part.STOP:
            written = written[: len(written) - len(oracle.tokenizer.decode(ids[end - 1 : end]).strip())].rstrip()
        elif not document.verdicts[message] & Verdict.NO_STOP:
            out.append("no stop is trained, and the verdict does not say so")
        if not last.startswith(written):
            out.append(f"trains {written!r}, where the template writes {last!r}")
    return out


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_every_trained_turn_is_what_transformers_feeds_and_the_template_writes(shared_data: Path, name: str) -> None:
    folder = shared_data / "tokenizers" / name
    own = ours(folder).chat_template
    templates = {"its own": own} if own else {}
    for stem in PAIRS[name]:
        templates[stem] = (shared_data / "templates" / "jinja" / f"{stem}.jinja").read_text(encoding="utf-8")
    control = sorted(library(folder).all_special_tokens)[:4]
    wrong: list[str] = []
    checked = 0
    for stem, template in templates.items():
        oracle = Oracle(folder, template)
        for seed in range(40):
            messages = conversation(seed, [*control, control[0][:-2]] if seed % 4 == 0 else [])
            found = problems(oracle, folder, messages)
            checked += found is not None
            wrong += [f"{stem}, seed {seed}: {problem}" for problem in found or []]
    assert wrong == []
    assert checked > 10 * len(templates)


def test_the_oracle_notices_a_mask_that_is_off_by_one(shared_data: Path) -> None:
    folder = shared_data / "tokenizers" / "qwen3"
    template = shared_data / "templates" / "jinja" / "Qwen-Qwen2.5-7B-Instruct.jinja"
    oracle = Oracle(folder, template.read_text(encoding="utf-8"))
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
    recipe = maskpipe.Recipe(chat_template=oracle.template)
    (document,) = maskpipe.encode(read_record({"messages": messages}, recipe), ours(folder), recipe)
    assert turn_problems(oracle, document, messages, 1, True) == []
    first, last = np.flatnonzero(document.loss_mask)[[0, -1]]
    both = np.uint8(Flag.LOSS | Flag.SAMPLED)
    for place, value in ((first - 1, both), (first, 0), (last, 0), (last, Flag.SAMPLED), (last + 1, both)):
        flags = document.flags.copy()
        flags[place] = value
        assert turn_problems(oracle, replace(document, flags=flags), messages, 1, True), place
