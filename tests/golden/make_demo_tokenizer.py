"""Makes maskpipe/demo_data/tokenizer/ from demo_data/chats.jsonl, prose.txt and chat_template.jinja. Deterministic.

    python tests/golden/make_demo_tokenizer.py

A byte-level BPE of VOCABULARY tokens without any normaliser. Turn markers are special tokens; <think> and <tool_call>
are added but not special, as many model families have them, so that control-token safety is tried on both kinds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

DEMO = Path(__file__).resolve().parents[2] / "maskpipe" / "demo_data"
VOCABULARY = 4000
SPECIAL = ["<|pad|>", "<|turn|>", "<|done|>"]
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]


def strings(value: object) -> Iterator[str]:
    """Every string value inside a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)


def corpus() -> Iterator[str]:
    for line in (DEMO / "chats.jsonl").read_text(encoding="utf-8").split("\n"):
        if line:
            record = json.loads(line)
            yield from strings(record["messages"])
            yield json.dumps(record.get("tools", []), ensure_ascii=False)
    yield (DEMO / "prose.txt").read_text(encoding="utf-8")
    yield (DEMO / "chat_template.jinja").read_text(encoding="utf-8")


def make(out: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    texts = list(corpus())
    for control in SPECIAL + ADDED:  # the letters of control tokens are learnt from nothing but text
        texts = [text.replace(control, " ") for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(ADDED),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|done|>",
        "pad_token": "<|pad|>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "chat_template": (DEMO / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n"),
    }
    value = json.loads(tokenizer.to_str())
    (out / "tokenizer.json").write_text(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    (out / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO / "tokenizer")
