"""Pretraining, SFT and DPO of one small model on the CPU, from shards made by `prepare`, in a few minutes.

python examples/three_stages.py OUT

The stages share model and optimizer and differ in one thing, which tokens get loss:

    pretrain    every token of the texts              linear_cross_entropy
    sft         what the assistant says               linear_cross_entropy
    preference  chosen answers against rejected ones  document_logps, reference log-probabilities, DPO

Prints what each stage did to the loss of each role; writes OUT/result.json, from which docs/make_three_stages.py
draws the picture.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import canal_world as world
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import maskpipe
from maskpipe import Recipe, demo_data
from maskpipe.data import Batch, Loader
from maskpipe.losses import (
    LossPlan,
    RefLogps,
    cross_entropy,
    document_logps,
    linear_cross_entropy,
    pair_loss,
    write_reference_logps,
)

LENGTH = 256
FULL: dict[str, Any] = {
    "texts": 2000, "chats": 1500, "pairs": 600, "rows": 16, "questions": 20,
    "steps": {"pretrain": 110, "sft": 80, "preference": 20},
    "rates": {"pretrain": 3e-3, "sft": 1.5e-3, "preference": 2e-5},
    "model": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
}  # fmt: skip
SHORT: dict[str, Any] = {
    "texts": 40, "chats": 60, "pairs": 16, "rows": 4, "questions": 2,
    "steps": {"pretrain": 8, "sft": 16, "preference": 3},
    "rates": {"pretrain": 1e-2, "sft": 1e-2, "preference": 2e-3},
    "model": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}  # fmt: skip
BETA = 0.1

Curve = list[tuple[int, float]]


def prepare_all(out: Path, sizes: dict[str, Any]) -> None:
    """OUT/pretrain, sft, preference and, of other records, sft-test and preference-test."""
    records: dict[str, tuple[str, Iterable[Any]]] = {
        "pretrain": ("pretrain", world.texts(sizes["texts"])),
        "sft": ("sft", world.chats(sizes["chats"])),
        "preference": ("preference", world.pairs(sizes["pairs"])),
        "sft-test": ("sft", world.chats(60, seed=1)),
        "preference-test": ("preference", world.pairs(48, seed=1, held_out=True)),
    }
    for name, (objective, rows) in records.items():
        source = out / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe = Recipe(objective=objective, sequence_length=LENGTH)  # type: ignore[arg-type]
        maskpipe.prepare([str(source)], out / name, tokenizer=demo_data.tokenizer(), recipe=recipe, workers=0)


def new_model(vocab_size: int, sizes: dict[str, int]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=LENGTH, tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config)


def hidden_states(model: Any, batch: Batch) -> Tensor:
    return model.model(**batch.as_hf(labels=False)).last_hidden_state  # type: ignore[no-any-return]


def train(model: Any, loader: Loader, steps: int, rate: float, loss_of: Callable[[Batch], Tensor]) -> Curve:
    """AdamW with a short warm-up and a cosine; one batch per step. The loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    curve = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 8) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        loss = loss_of(next(loader))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append((step, float(loss.detach())))
    return curve


def token_loss(model: Any) -> Callable[[Batch], Tensor]:
    return lambda batch: (
        linear_cross_entropy(hidden_states(model, batch), model.lm_head.weight, LossPlan.from_batch(batch)).loss
    )


def loss_by_role(model: Any, out: Path) -> dict[str, float]:
    """Mean -log p of what each role says, stop tokens included, over another draw of chats. train_on decides anew which
    tokens get loss: here all."""
    metrics = None
    for batch in Loader(
        out / "sft-test", global_batch_size=8, epochs=1, shuffle=False, remainder="pad", train_on="all"
    ):
        with torch.no_grad():
            found = linear_cross_entropy(
                hidden_states(model, batch), model.lm_head.weight, LossPlan.from_batch(batch)
            ).metrics
        metrics = found if metrics is None else metrics + found
    assert metrics is not None
    said: dict[str, list[tuple[float, int]]] = {}
    for (role, part), metric in metrics.by_role_and_part().items():
        if part in ("content", "stop"):  # not the template's scaffold, which is the same in every chat
            said.setdefault(role, []).append((metric.loss, metric.count))
    return {role: sum(loss * n for loss, n in found) / sum(n for _, n in found) for role, found in said.items()}


def check_gradients(model: Any, batch: Batch) -> tuple[int, int]:
    """(predictions with loss, predictions without): only the first have a gradient at their logits. AssertionError."""
    logits = model(**batch.as_hf(labels=False)).logits.detach().requires_grad_()
    cross_entropy(logits, LossPlan.from_batch(batch)).loss.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1) > 0
    assert torch.equal(touched, batch.targets != -100), "a target without loss got a gradient"
    after = torch.roll(batch.role_ids, -1, 1)[touched]
    assert (after == maskpipe.Role.ASSISTANT).all(), "a token that is not the assistant's was a target"
    return int(touched.sum()), int((~touched).sum())


def preference_loss(model: Any, reference: RefLogps) -> Callable[[Batch], Tensor]:
    return lambda batch: dpo(model, reference, batch).loss


def dpo(model: Any, reference: RefLogps, batch: Batch) -> Any:
    plan = LossPlan.from_batch(batch)
    policy = document_logps(hidden_states(model, batch), model.lm_head.weight, plan)
    kept = reference.documents(batch, plan).pairs
    return pair_loss("sigmoid", policy.pairs, kept, beta=BETA, denominator=batch.pair_denominator)


def margins(model: Any, out: Path) -> dict[str, float]:
    """Over the pairs of preference-test, about facts that no chat and no pair asked for: mean log p(chosen) - log
    p(rejected), above that of the reference; and how often it is above 0."""
    loader = Loader(out / "preference-test", global_batch_size=8, epochs=1, shuffle=False, remainder="pad")
    reference = RefLogps.open(out / "reference-test", loader)
    found = []
    for batch in loader:
        with torch.no_grad():
            found.append(dpo(model, reference, batch).margin)
    every = torch.cat(found)
    return {"margin": float(every.mean()), "accuracy": float((every > 0).float().mean()), "pairs": len(every)}


def answers(model: Any, facts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What the model says to one question per fact, greedily: right, in a sentence, ended by the stop token."""
    tokenizer = AutoTokenizer.from_pretrained(demo_data.tokenizer())
    stop = tokenizer.convert_tokens_to_ids("<|done|>")
    counts = {"asked": 0, "stopped": 0, "right": 0, "sentences": 0}
    said = []
    draw = random.Random(3)
    for fact in facts:
        asked = world.question(draw, fact)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
                             eos_token_id=stop, pad_token_id=stop)[0, ids.shape[1]:].tolist()  # fmt: skip
        text = tokenizer.decode(new, skip_special_tokens=True)
        counts["asked"] += 1
        counts["stopped"] += new[-1] == stop
        counts["right"] += world.FACTS[fact].lower() in text.lower()
        counts["sentences"] += text.startswith("The ")
        said.append((asked, text))
    return {**counts, "said": said[:3]}


def run(out: Path, sizes: dict[str, Any], say: Callable[[str], None] = print) -> dict[str, Any]:
    """All three stages in the new directory `out`; what result.json holds."""
    out.mkdir(parents=True)
    began = time.process_time()
    prepare_all(out, sizes)
    shares = {
        name: maskpipe.open(out / name).manifest.totals.n_loss / maskpipe.open(out / name).manifest.totals.n_tokens
        for name in ("pretrain", "sft", "preference")
    }
    model = new_model(maskpipe.open(out / "sft").manifest.vocab_size, sizes["model"])
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{parameters / 1e6:.1f} M parameters; tokens with loss: "
        + ", ".join(f"{n} {s:.0%}" for n, s in shares.items())
    )
    asked = random.Random(4).sample(sorted(world.FACTS.keys() - set(world.HELD_OUT)), 20)
    result: dict[str, Any] = {"parameters": parameters, "shares": shares, "stages": {}, "curves": {}}

    def stage(name: str, loss: Callable[[Any], Callable[[Batch], Tensor]]) -> None:
        loader = Loader(out / name, global_batch_size=sizes["rows"], seed=1)
        if name == "sft":
            result["gradients"] = check_gradients(model, next(loader))
        result["curves"][name] = train(model, loader, sizes["steps"][name], sizes["rates"][name], loss(loader))
        report(name)

    def report(name: str) -> None:
        found = {
            "loss by role": loss_by_role(model, out),
            "asked in chats": answers(model, asked[: sizes["questions"]]),
            "only read": answers(model, world.HELD_OUT[: sizes["questions"]]),
        }
        if (out / "reference-test").is_dir():
            found |= margins(model, out)
        result["stages"][name] = found
        say(line(name, found))

    report("before")
    stage("pretrain", lambda loader: token_loss(model))
    stage("sft", lambda loader: token_loss(model))

    for split in ("", "-test"):
        write_reference_logps(out / f"preference{split}", out / f"reference{split}", model)
    result["stages"]["sft"] |= margins(model, out)
    model.save_pretrained(out / "sft-model")
    stage("preference", lambda loader: preference_loss(model, RefLogps.open(out / "reference", loader)))

    result["cpu_seconds"] = time.process_time() - began
    say(f"{result['gradients'][0]} targets of a batch get a gradient, the other {result['gradients'][1]} none")
    for question, text in result["stages"]["preference"]["only read"]["said"]:
        say(f"  {question}  ->  {text}")
    say(f"{result['cpu_seconds']:.0f} s of CPU")
    (out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def line(name: str, found: dict[str, Any]) -> str:
    roles = "  ".join(f"{role} {loss:5.2f}" for role, loss in sorted(found["loss by role"].items()))
    parts = [f"{name:10} {roles}"]
    for key in ("asked in chats", "only read"):
        a = found[key]
        parts.append(f"{key}: {a['right']}/{a['asked']} right, {a['stopped']} stopped, {a['sentences']} sentences")
    if "margin" in found:
        parts.append(f"margin {found['margin']:+.2f}, accuracy {found['accuracy']:.0%}")
    return " | ".join(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), FULL)
