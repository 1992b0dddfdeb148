"""Clean data of real templates: rows of maskpipe's own documents without their facts hold no finding.

MASKPIPE_LONG=1 takes every fifth template of the corpus, else one in sixty.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError
from tests import corpus, foreign_data
from tests.foreign_data import Chat

pytestmark = pytest.mark.shared

STEP, CHATS = (5, 9) if os.environ.get("MASKPIPE_LONG") else (60, 9)
MARKS = re.compile(
    r"<\|[^<>|\s]+\|>|<｜[^<>｜]+｜>|</?s>|<(?:start|end)_of_turn>|\[/?[A-Z_]+\]|</?[a-z_]+>|\[\|[^\[\]|\s]+\|\]"
)


def with_marks(entry: corpus.Entry) -> maskpipe.Tokenizer:
    """The demo's tokenizer, to which the template's own marks are control tokens."""
    folder = demo_data.tokenizer()
    settings = json.loads((folder / "tokenizer_config.json").read_bytes()) | {
        "bos_token": entry.bos_token,
        "eos_token": entry.eos_token,
        "chat_template": entry.source,
        "extra_special_tokens": sorted(set(MARKS.findall(entry.source))),
    }
    files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    return maskpipe.Tokenizer(files | {"tokenizer_config.json": json.dumps(settings).encode()}, entry.name)


def documents(tokenizer: maskpipe.Tokenizer) -> list[Chat]:
    encoder = Encoder(tokenizer, maskpipe.Recipe(sequence_length=1 << 20))
    lines = demo_data.chats().read_text(encoding="utf-8").strip().split("\n")
    out = []
    for row, line in enumerate([*lines[:3], *lines[6::CHATS]]):
        record = json.loads(line)
        conversation = maskpipe.Conversation(messages=record["messages"], tools=record.get("tools"), row=row)
        for document in encoder.encode(conversation).documents:
            out.append(Chat(document.input_ids.tolist(), document.loss_mask.tolist(), [], [], []))
    return out


def test_clean_data_of_real_templates_has_no_finding(shared_data: Path) -> None:
    wrong: dict[str, list[str]] = {}
    datasets = located = total = 0
    for entry in corpus.chat_templates(shared_data)[::STEP]:
        try:
            tokenizer = with_marks(entry)
            chats = documents(tokenizer)
        except MaskpipeError:
            continue
        if not chats:
            continue
        report = maskpipe.audit_batches([foreign_data.unpacked(chats)], tokenizer)
        datasets += 1
        located += report.coverage.values["located_documents"]
        total += len(chats)
        if found := [str(finding) for finding in (*report.errors, *report.warnings)]:
            wrong[entry.name] = found
    print(
        f"\n{datasets} datasets, {total:,} documents, {located:,} with their turns located; {len(wrong)} with findings"
    )
    assert wrong == {}
    assert located
