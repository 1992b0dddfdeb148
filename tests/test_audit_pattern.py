"""The proof by patterns: it takes a record only where the long way would, and says of the others what that says.

By default a few rounds; MASKPIPE_LONG=1 takes many. Figures are printed (pytest -s).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe.auditing import together
from maskpipe.auditing.pattern import Patterns
from maskpipe.auditing.plain import Plain
from maskpipe.auditing.proof import Proof, prove
from maskpipe.document import Document
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag
from maskpipe.shards.reader import Dataset
from maskpipe.template.sandbox import plain_environment
from tests.conversations import CHATS
from tests.corpus import chat_templates
from tests.made_tokenizers import config_of, from_config
from tests.test_audit_planted import GATHERED, JSON, planted
from tests.test_audit_proof import codes, republished
from tests.test_sandbox import DEFAULT_CLOCK, PROBES, VALUES, outcome

LONG = "MASKPIPE_LONG" in os.environ
GOLDEN = Path(__file__).parent / "golden" / "templates"
SAID = ["Hi", "Hello there.", "\n\n\"quoted\"\n", "a\tb \\", "one\ntwo", "Häß 你好", "user", "assistant\n", "x" * 60,
        " padded ", "{\"a\": 1}", "<b>bold</b> [A]"]  # fmt: skip
BY_LENGTH = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ 'Hi' if m.content | length == 2 else m.content }}"
    "<|im_end|>\n{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
BY_LETTER = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}{{ '!' if 'e' in m.content }}<|im_end|>\n"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
THINKING = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{%- if m.role == 'assistant' and loop.last -%}"
    "\n<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{{ m.content.lstrip('\n') }}{%- else -%}\n{{ m.content }}"
    "{%- endif -%}<|im_end|>\n{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
TEMPLATES = {
    "gathered": GATHERED, "json": JSON, "by length": BY_LENGTH, "by letter": BY_LETTER, "thinking": THINKING,
    **{
        name: (GOLDEN / f"{name}.jinja").read_text(encoding="utf-8")
        for name in ("stop_then_newline", "loop_by_index", "tools_inside_the_turn")
    },
}  # fmt: skip


def chats(count: int, seed: int, said: list[str] = SAID) -> list[dict[str, Any]]:
    """Conversations of few shapes."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        roles = [["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant"] * 2][random.integers(3)]
        messages: list[dict[str, Any]] = [{"role": role, "content": str(random.choice(said))} for role in roles]
        if random.random() < 0.2:
            messages[-1]["reasoning_content"] = str(random.choice(SAID[:2]))
        out.append({"messages": messages})
    return out


def prepared(tmp: Path, records: list[dict[str, Any]], template: str, **recipe: Any) -> Dataset:
    values: dict[str, Any] = {"sequence_length": 1024, "on_bad_record": "reject", "on_content_lost": "count", **recipe}
    wanted = Recipe(chat_template=template, **values)
    maskpipe.prepare(records, str(tmp), tokenizer=from_config(config_of("byte_level")), recipe=wanted, workers=1)
    return maskpipe.open(tmp)


def long_way(monkeypatch: pytest.MonkeyPatch, dataset: Dataset, records: list[dict[str, Any]]) -> Proof:
    with monkeypatch.context() as patched:
        patched.setattr(Patterns, "shape", lambda self, chat: None)
        out = prove(dataset, records)
    assert out.by_pattern == 0
    return out


def said(proof: Proof) -> dict[str, Any]:
    """All that a proof says, but how."""
    return {**asdict(proof), "by_pattern": 0}


@pytest.mark.parametrize("probe", PROBES)
def test_the_proofs_jinja_prints_and_refuses_what_stock_jinja_does(probe: str) -> None:
    def of(environment: Any) -> Callable[[], str]:
        return lambda: str(environment.from_string(probe).render(**VALUES))

    assert outcome(of(Plain(DEFAULT_CLOCK))) == outcome(of(plain_environment(DEFAULT_CLOCK)))


@pytest.mark.shared
def test_the_proofs_jinja_renders_the_corpus_as_stock_jinja_does(shared_data: Path) -> None:
    compared = refused = 0
    for entry in chat_templates(shared_data)[:: 1 if LONG else 60]:
        made = [env(DEFAULT_CLOCK).from_string(entry.source) for env in (Plain, plain_environment)]
        for chat in CHATS.values():
            for prompt in (False, True):
                values = {
                    "bos_token": entry.bos_token, "eos_token": entry.eos_token, **chat.kwargs, "tools": chat.tools,
                    "messages": chat.messages, "documents": chat.documents, "add_generation_prompt": prompt,
                }  # fmt: skip
                mine, stock = [outcome(lambda template=t, values=values: template.render(**values)) for t in made]
                assert mine == stock
                compared += 1
                refused += stock[0] != "printed"
    print(f"\n{compared:,} renders are the same, {refused:,} of them refused with the same words")
    assert compared - refused > (10_000 if LONG else 150)


@pytest.mark.parametrize("recipe", [{}, {"train_on": ("user", "last_turn")}], ids=str)
@pytest.mark.parametrize("template", TEMPLATES)
def test_patterns_say_what_the_long_way_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, recipe: dict[str, Any]
) -> None:
    records = chats(44, 1)
    dataset = prepared(tmp_path / "out", records, TEMPLATES[template], **recipe)
    proof = prove(dataset, records)
    assert said(proof) == said(long_way(monkeypatch, dataset, records))
    assert codes(proof) == set()
    assert proof.by_pattern >= (8 if "<|im_start|>" in TEMPLATES[template] and template != "by letter" else 0)


def test_every_fact_that_is_planted_in_records_of_a_known_shape_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is said of it is what the long way says."""
    random = np.random.default_rng(5)
    counts = np.zeros(2, int)
    for name in ("thinking", "gathered"):
        records = chats(60, 2, [text for text in SAID if "quoted" not in text])  # has two readings
        dataset = prepared(tmp_path / name, records, TEMPLATES[name])
        clean = prove(dataset, records)
        assert clean.by_pattern >= 15 and not clean.two_readings
        for number in range(60 if LONG else 3):
            changed = 0

            def plant(documents: list[Document]) -> None:
                nonlocal changed
                for k, document in enumerate(documents):
                    if random.random() < 0.5:
                        continue
                    what = str(random.choice(["role", "part", "message", "sampled", "loss", "id", "verdict", "cut"]))
                    made = other(document, what, random)
                    if made is not None:
                        documents[k] = made
                        changed += 1

            other_dataset = republished(dataset, tmp_path / f"{name}{number}", plant)
            proof = prove(other_dataset, records)
            counts += changed, proof.differ
            assert proof.differ == changed and proof.by_pattern > 0
            if number < 2:
                assert said(proof) == said(long_way(monkeypatch, other_dataset, records))
    print(f"\n{counts[1]:,} of {counts[0]:,} planted facts found")
    assert counts[0] > 100


def other(document: Document, what: str, random: np.random.Generator) -> Document | None:
    """The document with one thing changed; None where it is the same then."""
    at = int(random.integers(len(document)))
    if what == "id":
        ids = document.input_ids.copy()
        ids[at] = (ids[at] + 1) % 200
        return replace(document, input_ids=ids)
    if what == "verdict":
        first = next(iter(document.verdicts))
        return replace(document, verdicts={**document.verdicts, first: document.verdicts[first] ^ 1})
    if what == "cut":
        flags = document.flags.copy()
        flags[at] ^= Flag.CUT_BEFORE
        return replace(document, flags=flags)
    return planted(document, at, what, random)


def test_a_pattern_that_does_not_come_again_is_given_up_and_what_it_took_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template writes two letters by itself instead of the data's: one text, two origins."""
    records = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
               for text in ("One", "Two", "Three", "Four", "Five", "Hi", "Seven")]  # fmt: skip
    dataset = prepared(tmp_path / "out", records, BY_LENGTH)
    proof = prove(dataset, records)
    assert proof.by_pattern == 4 and codes(proof) == set()  # all but the first two and the one that differs
    monkeypatch.setattr(together, "_AGAIN", 4)
    again = prove(dataset, records)
    assert again.by_pattern == 0
    assert said(again) == said(proof) == said(long_way(monkeypatch, dataset, records))
