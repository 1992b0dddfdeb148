"""One fact of one token changed in each document of a sealed dataset: the proof against the source finds every one.

The tokens are those with which a proof by rendering has its trouble: white space, quotes and backslashes of the data
and of the template, and every border between the two; their facts become those of a neighbour, or others. By default a
few rounds; MASKPIPE_LONG=1 takes many, and real templates. Figures are printed (pytest -s).
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe.auditing.expectation import Expectation
from maskpipe.auditing.proof import expected_of, prove
from maskpipe.auditing.stored import Index
from maskpipe.chat import read_all
from maskpipe.document import Document
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role
from maskpipe.shards.reader import Dataset
from maskpipe.tokenizer import Tokenizer
from tests.conversations import CHATS, TOOLS, assistant, call, tool, user
from tests.corpus import named
from tests.made_tokenizers import config_of, from_config, made
from tests.test_audit_corpus import tokenizer_of
from tests.test_audit_proof import republished

LONG = "MASKPIPE_LONG" in os.environ
GOLDEN = Path(__file__).parent / "golden" / "templates"
GATHERED = (
    "{%- macro shown(text) -%}'{{ text | replace('\\\\', '\\\\\\\\') | replace(\"'\", \"\\\\'\")"
    " | replace('\\n', '\\\\n') }}'{%- endmacro -%}"
    "{%- set ns = namespace(out='') -%}{%- for m in messages -%}"
    "{%- set ns.out = ns.out ~ '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content or '').strip().replace('\\n\\n', '\\n') -%}"
    "{%- for c in m.tool_calls or [] -%}{%- set said -%}\n[{{ c.function.name }}("
    "{%- for k, v in c.function.arguments | items -%}{{ k }}={{ shown(v) if v is string else v | tojson }}"
    "{{ ', ' if not loop.last }}{%- endfor -%})]\n{%- endset -%}{%- set ns.out = ns.out ~ said -%}{%- endfor -%}"
    "{%- set ns.out = ns.out ~ '\\n<|im_end|>\\n' -%}{%- endfor -%}"
    "{{- ns.out -}}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
JSON = (
    "{%- if tools -%}{{ '<|im_start|>system\\n' ~ (tools | tojson) ~ '\\n<|im_end|>\\n' }}{%- endif -%}"
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{% if m.content %}{{ m.content }}{% endif %}"
    "{%- for c in m.tool_calls or [] %}\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor -%}"
    "\n<|im_end|>\n{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
NOTED = {"note": "a\n'b' \"c\" \\d\\", "times": 3, "loud": True}
AWKWARD: list[dict[str, Any]] = [
    {"messages": [user("\n\n\"quoted\"\n"), assistant(" 'it' \\n is\\\\ so\n\n\n")]},
    {"messages": [user("a\tb \\"), assistant("\"\""), user("'"), assistant("\n")]},
    {"messages": [user("user\nassistant"), assistant("user: \"assistant\"\n")]},
    {"messages": [user("{\"a\": 1}"), assistant("{\"b\": \"\\\"\\n\"}")]},
    {
        "messages": [
            user("Ring."),
            assistant("\"", tool_calls=[call("ring", NOTED, "call00001")]),
            tool("ring", "call00001", "\n\"3\"\\n"),
            assistant("Rung 3 times: true"),
        ],
        "tools": TOOLS,
    },
]  # fmt: skip
RECORDS = AWKWARD + [
    {"messages": chat.messages, **({"tools": chat.tools} if chat.tools else {})}
    for name, chat in CHATS.items()
    if name in ("whitespace", "unicode", "system_three_turns", "duplicates", "reasoning")
]


def cases() -> list[Any]:
    out = [
        pytest.param(GATHERED, "byte_level", id="gathered byte_level"),
        pytest.param(GATHERED, "prepend", id="gathered prepend"),
        pytest.param(JSON, "byte_level", id="json byte_level"),
        pytest.param(JSON, "metaspace_never", id="json metaspace"),
    ]
    for name in ("stop_then_newline", "loop_by_index", "tools_inside_the_turn"):
        out.append(pytest.param((GOLDEN / f"{name}.jinja").read_text(), "byte_level", id=name))
    return out


def where(dataset: Dataset, records: list[dict[str, Any]]) -> dict[tuple[int, int], tuple[list[str], Any]]:
    """Per document (row, turn) the text of each of its tokens, and which of them have two readings."""
    recipe = Recipe.from_dict(dataset.manifest.recipe)
    expectation = Expectation(Tokenizer.load(dataset.path), recipe)
    index = Index(dataset)
    out = {}
    for key, stored in index.documents(index.keys).items():
        expected, _ = expected_of(expectation, read_all(records[key & 0xFFFFFFFF], recipe), stored)
        for document in expected:
            assert document.shown is not None
            texts = [document.text[a:b] for a, b in zip(document.starts, document.ends, strict=True)]
            out[key & 0xFFFFFFFF, document.turn] = texts, document.shown.doubtful[document.starts]
    index.close()
    return out


def kinds(document: Document, texts: list[str]) -> dict[str, list[int]]:
    """Tokens by what makes them hard."""
    facts = np.stack([document.role_ids, document.part_ids, document.message_ids, document.flags & Flag.SAMPLED])
    at = (np.flatnonzero((facts[:, 1:] != facts[:, :-1]).any(axis=0)) + 1).tolist()
    found = {
        "border": sorted({k for edge in at for k in (edge - 1, edge)}),
        "white space": [k for k, text in enumerate(texts) if not text.strip()],
        "quote or backslash": [k for k, text in enumerate(texts) if set(text) & set("\"'\\")],
        "any": list(range(len(texts))),
    }
    return {name: places for name, places in found.items() if places}


def planted(document: Document, at: int, what: str, random: np.random.Generator) -> Document | None:
    """The document with one fact of one token changed; None where it is the same then."""
    name = {"role": "role_ids", "part": "part_ids", "message": "message_ids"}.get(what, "flags")
    values = getattr(document, name).copy()
    before = int(values[at])
    if what in ("sampled", "loss"):
        values[at] ^= Flag.SAMPLED if what == "sampled" else Flag.LOSS
        if what == "loss" and not at:
            return None  # the first token of a document is never a target
    elif random.random() < 0.6:
        values[at] = values[min(len(values) - 1, at + 1) if random.random() < 0.5 else max(0, at - 1)]
    else:
        others = {
            "role": [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL, Role.CONTEXT, Role.TEMPLATE],
            "part": [Part.CONTENT, Part.REASONING, Part.TOOL_CALL, Part.TOOL_SCHEMA, Part.SCAFFOLD, Part.STOP],
            "message": range(-1, 1 + int(values.max())),
        }[what]
        values[at] = random.choice([int(other) for other in others])
    return replace(document, **{name: values}) if values[at] != before else None


def tokenizer_named(name: str) -> Tokenizer:
    if not name.startswith("byte"):
        return made(name)
    return from_config(config_of(name), name, **{"tokenizer_config.json": '{"eos_token": "<|im_end|>"}'})


def hunt(tmp_path: Path, template: str, tokenizer: Tokenizer, rounds: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Plants and proves: counts, and what was not found."""
    wanted = Recipe(
        chat_template=template, sequence_length=2048, on_bad_record="reject", on_content_lost="count",
        train_on=("assistant", "user.content"),
    )  # fmt: skip
    records = list(RECORDS)
    maskpipe.prepare(records, str(tmp_path / "clean"), tokenizer=tokenizer, recipe=wanted, workers=1)
    dataset = maskpipe.open(tmp_path / "clean")
    clean = prove(dataset, records)
    assert {finding.code for finding in clean.findings} <= {"MP611"}
    known = where(dataset, records)
    random = np.random.default_rng(seed)
    counts: Counter[str] = Counter(
        tokens=clean.tokens, doubtful=clean.two_readings, documents=clean.documents, unproved=sum(clean.cannot.values())
    )
    missed: list[str] = []
    for number in range(rounds):
        changed: list[tuple[str, bool]] = []
        other = republished(dataset, tmp_path / f"changed{number}", lambda found: _plant(found, known, random, changed))  # noqa: B023
        proof = prove(other, records)
        counts.update(what.split()[0] for what, _ in changed)
        excused = sum(doubtful for _, doubtful in changed)
        counts.update(planted=len(changed), found=proof.differ, excused=excused)
        if proof.differ < len(changed) - excused:
            missed.append(f"round {number}: {proof.differ} of {len(changed)}: {changed}")
    return counts, missed


def _plant(
    documents: list[Document],
    known: dict[tuple[int, int], tuple[list[str], Any]],
    random: np.random.Generator,
    changed: list[tuple[str, bool]],
) -> None:
    """One fact in each document that is proved; `changed` gets (what, does its token have two readings)."""
    for k, document in enumerate(documents):
        if (document.row, document.turn) not in known:
            continue
        texts, doubtful = known[document.row, document.turn]
        hard = kinds(document, texts)
        kind = list(hard)[int(random.integers(len(hard)))]
        at = int(random.choice(hard[kind]))
        what = str(random.choice(["role", "part", "message", "sampled", "loss"]))
        made = planted(document, at, what, random)
        if made is not None:
            documents[k] = made
            changed.append((f"{what} of {kind} {texts[at]!r} in record {document.row}", bool(doubtful[at])))


@pytest.mark.parametrize(("template", "tokenizer"), cases())
def test_every_planted_fact_is_found(tmp_path: Path, template: str, tokenizer: str) -> None:
    counts, missed = hunt(tmp_path, template, tokenizer_named(tokenizer), 40 if LONG else 3, 1)
    print(f"\n{counts['found']} of {counts['planted']} found; {dict(counts)}")
    assert not missed
    assert counts["planted"] >= 12 and counts["doubtful"] <= 0.01 * counts["tokens"]


@pytest.mark.shared
@pytest.mark.skipif(not LONG, reason="MASKPIPE_LONG=1")
@pytest.mark.parametrize(
    "name",
    ["trl__lfm2_v2", "Reka-Edge", "unsloth-Apriel-1.5", "tiiuae__falcon-7b-instruct", "vllm__toolace", "Qwen-QwQ-32B"],
)
def test_every_planted_fact_is_found_with_real_templates(shared_data: Path, tmp_path: Path, name: str) -> None:
    entry = named(shared_data, name)
    counts, missed = hunt(tmp_path, entry.source, tokenizer_of(entry), 20, 2)
    print(f"\n{name}: {counts['found']} of {counts['planted']} found; {dict(counts)}")
    assert not missed


def test_training_all_leaves_out_straddling_tokens_and_is_proved(tmp_path: Path) -> None:
    """With every selector a token that holds text from both sides of the sampled border has no loss; `all` included."""
    recipe = Recipe(chat_template=JSON, sequence_length=2048, on_content_lost="count", train_on=("all",))
    maskpipe.prepare(RECORDS, str(tmp_path / "out"), tokenizer=tokenizer_named("byte_level"), recipe=recipe, workers=0)
    dataset = maskpipe.open(tmp_path / "out")
    totals = dataset.manifest.totals
    assert totals.straddles > 0
    trained = sum(int(dataset[row].loss_mask.sum()) for row in range(len(dataset)))
    assert trained == totals.n_loss == totals.n_tokens - totals.documents - totals.straddles
    assert {finding.code for finding in prove(dataset, RECORDS).findings} <= {"MP611"}
