"""Real pairs go through the whole preparation: each record and each token is somewhere, tool outputs have no loss."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe.chat import Conversation, read_all
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch, Role
from maskpipe.shards.verify import verify
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer
from tests.test_pairs_datasets import units_of

TAKEN = 40


def first(path: Path, count: int = TAKEN) -> list[Any]:
    out = []
    for _, _, record in open_sources(path).records():
        out.append(record)
        if len(out) == count:
            break
    return out


def ultrafeedback(path: Path) -> list[Any]:
    """Real pairs as UltraFeedback keeps them: a prompt string, whole chats, scores, and the chosen chat again."""
    out = []
    for number, record in enumerate(first(path)):
        chosen, rejected = (
            item.messages
            for item in read_all(record, Recipe(objective="preference")).items
            if isinstance(item, Conversation)
        )
        if [message["role"] for message in chosen] == ["user", "assistant"]:
            out.append({
                "prompt": chosen[0]["content"], "prompt_id": str(number), "chosen": chosen, "rejected": rejected,
                "messages": chosen, "score_chosen": 8.0, "score_rejected": 3.5,
            })  # fmt: skip
    return out


def with_tools(path: Path) -> list[Any]:
    """Real tool calls: the chosen side is what follows the user's last question, with calls and outputs; the rejected
    side answers at once, with the answer of another record."""
    chats = []
    for record in first(path, 3 * TAKEN):
        item = read_all(record, Recipe()).items[0]
        assert isinstance(item, Conversation)
        chats.append(item)
    out = []
    for item, other in itertools.pairwise(chats):
        asked = 1 + max(k for k, message in enumerate(item.messages) if message["role"] == "user")
        answer = item.messages[asked:]
        if any(message["role"] == "tool" for message in answer) and answer[-1]["role"] == "assistant":
            prompt = item.messages[:asked]
            rejected = [{"role": "assistant", "content": other.messages[-1]["content"]}]
            out.append({"prompt": prompt, "chosen": answer, "rejected": rejected, "tools": item.tools})
    return out


@pytest.mark.shared
@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_real_pairs_are_kept_or_refused_and_no_token_is_lost(shared_data: Path, tmp_path: Path, layout: Any) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "qwen3")
    template = (shared_data / "templates" / "jinja" / "Qwen-Qwen3-0.6B.jinja").read_text()
    folder = shared_data / "chats"
    gsm8k = {"question": "prompt", "6b_finetuning.solution": "completion", "6b_finetuning.is_correct": "label"}
    sets: dict[str, tuple[list[Any], dict[str, str]]] = {
        "HH": (first(folder / "hh-rlhf/harmless-base/test.jsonl.gz"), {}),
        "UltraFeedback-shaped": (ultrafeedback(folder / "llamafactory-demo/dpo_en_demo.json"), {}),
        "LLaMA-Factory": (first(folder / "llamafactory-demo/dpo_zh_demo.json"), {}),
        "KTO": (first(folder / "llamafactory-demo/kto_en_demo.json"), {}),
        "GSM8K solutions": (first(folder / "gsm8k/example_model_solutions.jsonl"), gsm8k),
        "tool calls": (with_tools(folder / "llamafactory-demo/glaive_toolcall_en_demo.json"), {}),
    }
    for name, (rows, columns) in sets.items():
        recipe = Recipe(
            objective="preference", pair_layout=layout, columns=columns, on_bad_record="reject", chat_template=template,
            content_parts="join",
        )  # fmt: skip
        out = tmp_path / name.replace(" ", "")
        made = maskpipe.prepare(json.loads(json.dumps(rows)), out, tokenizer=tokenizer, recipe=recipe, workers=0)
        verify(out)
        units = units_of(out)
        manifest = made.manifest
        kinds = Counter("label" if unit[0].pair is None else "pair" for unit in units)
        print(f"{name:22} {len(rows):3} records: {dict(kinds)}, refused {dict(manifest.rejected)}")
        assert manifest.records == len(rows) == manifest.records_kept + sum(manifest.rejected.values())
        assert manifest.records_kept == len(units) > 0
        assert set(manifest.rejected) <= {"empty_side", "side_in_several_documents", "too_long"}, name
        for unit in units:
            for document in unit:
                assert not document.loss_mask[document.role_ids != Role.ASSISTANT].any()
        if name == "tool calls":
            chosen = [d for unit in units for d in unit if d.branch is Branch.CHOSEN]
            outputs = [d for d in chosen if (d.role_ids == Role.TOOL).any()]
            assert len(outputs) == len(units) >= 5
        assert (name in ("KTO", "GSM8K solutions")) == (set(kinds) == {"label"})
