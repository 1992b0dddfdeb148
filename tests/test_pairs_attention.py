"""A prompt that two answers share gives a model the same logits as a prompt of their own, and costs fewer tokens."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe.encoder import Encoder
from maskpipe.recipe import Recipe
from maskpipe.records import add_records, new_batch
from maskpipe.roles import Branch
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer
from tests.test_pairs import PREFERENCE, TOKENIZER, assistant, pair, user
from tests.test_pairs_datasets import records

torch = pytest.importorskip("torch")
from maskpipe.data import Batch, Loader  # noqa: E402
from maskpipe.losses import LossPlan  # noqa: E402
from maskpipe.losses.document_logps import collect_documents  # noqa: E402

LAYOUTS: tuple[Any, Any] = ("separate", "shared_prompt")


def model(vocabulary: int, attention: str = "sdpa") -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, attn_implementation=attention, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def batches(out: Path, rows: int = 4) -> Iterator[Batch]:
    return iter(Loader(out, global_batch_size=rows, shuffle=False, threads=0, epochs=1, remainder="pad"))


def logits_of(
    net: torch.nn.Module, out: Path
) -> tuple[dict[tuple[int, int, int], Any], dict[int, tuple[float, float]]]:
    """Logits per (pair, branch, place in the conversation), and log-probabilities of both answers per pair."""
    logits: dict[tuple[int, int, int], Any] = {}
    answers: dict[int, tuple[float, float]] = {}
    for batch in batches(out):
        with torch.no_grad():
            found = net(**batch.as_hf(labels=False, mask_dtype=torch.float32)).logits
        flat, places = found.flatten(0, 1), batch.position_ids.flatten()
        segments = list(itertools.pairwise(batch.cu_seqlens.tolist()))
        facts = list(zip(batch.branches.tolist(), batch.pairs.tolist(), strict=True))
        for (start, stop), (branch, number) in zip(segments, facts, strict=True):
            for at in range(start, stop) if number >= 0 else ():
                logits[number, branch, int(places[at])] = flat[at]
        plan = LossPlan.from_batch(batch)
        if plan.pairs is None:
            continue
        sums = collect_documents(flat.log_softmax(-1)[plan.rows, plan.targets], plan).pairs
        chosen = [number for branch, number in facts if branch == Branch.CHOSEN]
        for number, one, two in zip(chosen, sums.chosen.tolist(), sums.rejected.tolist(), strict=True):
            answers[number] = (one, two)
    return logits, answers


def compare(tmp_path: Path, rows: Any, tokenizer: Tokenizer, recipe: Recipe, attention: str) -> tuple[int, float]:
    """How many tokens were compared, and the greatest difference of their logits."""
    for layout in LAYOUTS:
        maskpipe.prepare(
            rows, tmp_path / layout, tokenizer=tokenizer, recipe=recipe.replace(pair_layout=layout), workers=0
        )
    net = model(tokenizer.vocab_size, attention)
    (apart, answers), (shared, same) = (logits_of(net, tmp_path / layout) for layout in LAYOUTS)
    assert answers.keys() == same.keys() and len(answers) > 5
    for number, values in answers.items():
        assert same[number] == pytest.approx(values, rel=1e-5, abs=1e-4)
    assert any(branch == Branch.PROMPT for _, branch, _ in shared)
    most = 0.0
    for (number, branch, place), found in shared.items():
        for side in (Branch.CHOSEN, Branch.REJECTED) if branch == Branch.PROMPT else (branch,):
            most = max(most, float((found - apart[number, side, place]).abs().max()))
    return len(shared), most


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prompts_give_the_logits_of_separate_ones(tmp_path: Path, attention: str) -> None:
    tokens, most = compare(tmp_path, records(30), TOKENIZER, PREFERENCE, attention)
    print(f"{attention}: {tokens} tokens, logits differ by at most {most:.1e}")
    assert most < 1e-5


def test_without_the_mask_they_would_not(tmp_path: Path) -> None:
    """The comparison can fail: a row read as one stream gives other logits."""
    rows = [pair([user(f"q {k}")], [assistant(f"a {k}")], [assistant(f"b {k}")]) for k in range(6)]
    maskpipe.prepare(
        rows, tmp_path / "out", tokenizer=TOKENIZER, recipe=PREFERENCE.replace(pair_layout="shared_prompt"), workers=0
    )
    net = model(TOKENIZER.vocab_size)
    batch = next(batches(tmp_path / "out", 1))
    inputs = batch.as_hf(labels=False, mask_dtype=torch.float32)
    with torch.no_grad():
        right, wrong = net(**inputs).logits, net(**{**inputs, "attention_mask": None}).logits
    assert float((right - wrong)[0, : int(batch.cu_seqlens[-2])].abs().max()) > 0.01


SETS: tuple[tuple[str, dict[str, str]], ...] = (
    ("hh-rlhf/harmless-base/test.jsonl.gz", {}),
    ("llamafactory-demo/dpo_en_demo.json", {}),
    ("llamafactory-demo/dpo_zh_demo.json", {}),
    ("llamafactory-demo/v1_dpo_demo.jsonl", {"messages[].loss_weight": "ignore"}),
    ("torchtune-assets/stack_exchange_paired_tiny.json", {}),
)
TAKEN = 2312 if os.environ.get("MASKPIPE_LONG") else 25


@pytest.mark.shared
def test_what_sharing_saves_on_real_pairs(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "qwen3")
    template = (shared_data / "templates" / "jinja" / "Qwen-Qwen3-0.6B.jinja").read_text()
    for name, columns in SETS:
        tokens: dict[str, int] = {}
        for layout in LAYOUTS:
            recipe = Recipe(
                objective="preference", pair_layout=layout, columns=columns, on_bad_record="reject",
                content_parts="join", chat_template=template, on_too_long="drop",
            )  # fmt: skip
            total, lengths = new_batch(), []  # type: ignore[var-annotated]
            encoder = Encoder(tokenizer, recipe)
            for chunk in open_sources(shared_data / "chats" / name, recipe).chunks():
                add_records(encoder, chunk, total, lengths, None, TAKEN - total.records, None)
                if total.records >= TAKEN:
                    break
            tokens[layout] = sum(lengths)
            shared = total.counts["pairs_prompt_shared"]
        saved = 1 - tokens["shared_prompt"] / tokens["separate"]
        print(
            f"{name:50} {total.counts['pairs']:5} pairs, {shared} share: {tokens['separate']:9,} -> "
            f"{tokens['shared_prompt']:9,} tokens ({saved:.1%} saved)"
        )
        assert shared == total.counts["pairs"] > 0 and saved > 0.05
