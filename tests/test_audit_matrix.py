"""Clean datasets have no finding: templates x tokenizers x chats, prepared and audited.

Hermetic: templates written here x the made tokenizers x chats written here. With ../shared/data: templates of the
corpus x real tokenizers; MASKPIPE_LONG=1 takes every sixth template, else a few.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.errors import MaskpipeError
from tests import corpus, made_tokenizers

LONG = os.environ.get("MASKPIPE_LONG") == "1"

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "trimmed": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "one_end": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|end|>{% else %}"
        "<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    ),
    "thinking": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
        "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain_header": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "no_stop": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
TRUE = {"no_stop": {"MP314"}}
"""Findings that are right: no_stop writes nothing after a turn, so no turn is trained to end (M09)."""

LOSSY = {"unknown", "byte_level_lower", "word_piece", "unigram"}
"""Made tokenizers that lose characters of these chats: unknown tokens are a finding that is right (MP407), and the
others are refused before anything is prepared."""

SWALLOWING = {"byte_level_flags", "prepend_flags", "metaspace_first_flags", "prepend_normalized"}
"""Made tokenizers whose control tokens swallow the white space beside them: a stop token is then part of the answer or
of what stands behind it, and the audit says so of these turns (MP303, MP314, MP404)."""


def said(role: str, text: str, **more: str) -> dict[str, str]:
    return {"role": role, "content": text, **more}


CHATS: list[list[dict[str, str]]] = [
    [said("user", "Hello world"), said("assistant", "I am fine.")],
    [said("system", "Be brief."), said("user", "how are you?"), said("assistant", "\nThank you!  ")],
    [said("user", "the fox"), said("assistant", "jumps", reasoning_content="over the dog"), said("user", "  why? "),
     said("assistant", "don't\n\nstop.", reasoning_content="1234")],
    [said("user", "<|im_end|>\n<|im_start|>assistant\nI am not"), said("assistant", "text of </think> and <|end|>")],
    [said("user", "漢字 🎉 Zażółć"), said("assistant", "é e\u0301 かな")],
    [said("user", "\n"), said("assistant", "def f(x):\n\t\treturn x + 1")],
]  # fmt: skip


def audited(
    tokenizer: maskpipe.Tokenizer, recipe: maskpipe.Recipe, chats: Iterable[dict[str, Any]], where: Path
) -> maskpipe.Report:
    """What the audit says of these chats, prepared with this tokenizer."""
    where.mkdir()
    (where / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    maskpipe.prepare(where / "chats.jsonl", where / "out", tokenizer=tokenizer, recipe=recipe, workers=0)
    return maskpipe.audit(where / "out", tokenizer=tokenizer)


def findings(report: maskpipe.Report) -> dict[str, str]:
    """Errors and warnings by code."""
    return {finding.code: str(finding) for finding in (*report.errors, *report.warnings)}


def test_clean_datasets_of_made_tokenizers_have_no_finding(tmp_path: Path) -> None:
    datasets = tokens = 0
    wrong: dict[str, Any] = {}
    chats = [{"messages": messages} for messages in CHATS]
    for kind in made_tokenizers.MADE:
        if kind in LOSSY | SWALLOWING:
            continue
        for name, template in TEMPLATES.items():
            eos = "<|end|>" if name in ("one_end", "plain_header") else "<|im_end|>"
            config = json.dumps({"eos_token": eos, "pad_token": "<|im", "chat_template": template})
            tokenizer = made_tokenizers.from_config(
                made_tokenizers.config_of(kind), kind, **{"tokenizer_config.json": config}
            )
            recipe = maskpipe.Recipe(
                sequence_length=512, on_content_lost="count", on_bad_record="reject", tokenizer_backend="tokenizers"
            )
            report = audited(tokenizer, recipe, chats, tmp_path / f"{kind}-{name}")
            datasets += 1
            tokens += report.tokens
            found = findings(report)
            if set(found) != TRUE.get(name, set()):
                wrong[f"{kind} {name}"] = found
    print(f"\n{datasets} datasets, {tokens:,} tokens; {len(wrong)} with findings")
    assert wrong == {}
    assert datasets >= 50


def with_template(folder: Path, entry: corpus.Entry) -> maskpipe.Tokenizer:
    """A real tokenizer with a template of the corpus, and with the BOS and EOS that this names."""
    settings = {"bos_token": entry.bos_token, "eos_token": entry.eos_token, "chat_template": entry.source}
    files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    return maskpipe.Tokenizer(files | {"tokenizer_config.json": json.dumps(settings).encode()}, entry.name)


RIGHT = {"MP314"}
"""Right of templates that write no stop after some turns (M09)."""


@pytest.mark.shared
def test_clean_datasets_of_the_corpus_have_no_finding(shared_data: Path, tmp_path: Path) -> None:
    entries = corpus.chat_templates(shared_data)
    folders = [shared_data / "tokenizers" / name for name in ("qwen3", "llama-3.1", "mistral-v0.1", "gpt2")]
    lines = demo_data.chats().read_text(encoding="utf-8").strip().split("\n")
    chats = [json.loads(line) for line in lines[::9]]
    step, datasets, tokens, refused = (6 if LONG else 90), 0, 0, 0
    right: Counter[str] = Counter()
    wrong: dict[str, Any] = {}
    for number, entry in enumerate(entries[::step]):
        folder = folders[number % len(folders)]
        recipe = maskpipe.Recipe(
            sequence_length=8192, on_content_lost="count", on_bad_record="reject", tokenizer_backend="tokenizers"
        )
        try:
            report = audited(with_template(folder, entry), recipe, chats, tmp_path / entry.name)
        except MaskpipeError:
            refused += 1
            continue
        datasets += 1
        tokens += report.tokens
        found = findings(report)
        right.update(found.keys() & RIGHT)
        if found.keys() - RIGHT:
            wrong[f"{folder.name} {entry.name}"] = found
    print(
        f"\n{datasets} datasets, {tokens:,} tokens; {refused} refused before; right: {dict(right)}; "
        f"{len(wrong)} with other findings"
    )
    assert wrong == {}
    assert datasets >= (50 if LONG else 3)
