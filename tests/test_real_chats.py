"""Real data: every file is converted, or refused with a reason; nothing crashes and nothing is lost on the way.

`pytest -rP tests/test_real_chats.py` prints what became of each file.
"""

from __future__ import annotations

import fnmatch
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskpipe.chat import Conversation, Text, read_all, read_record
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.sources import open_sources

pytestmark = pytest.mark.shared

PLAIN: dict[str, str] = {}
CONVERTS: list[tuple[str, dict[str, str], int]] = [
    # files, --map, conversations that their records become (what is no chat is refused)
    ("axolotl-fixtures/alpaca/alpaca.json", PLAIN, 2),
    ("axolotl-fixtures/conversation.json", PLAIN, 1),
    ("axolotl-fixtures/conversation.missingturns.json", PLAIN, 1),
    ("bfcl/BFCL_v4_simple_python.json", {"question.0": "messages", "function": "functions"}, 400),
    ("deepseek-math-v2/outputs/*.jsonl", {"question": "prompt", "model_prediction.proof": "completion"}, 84),
    ("fastchat/dummy_conversation.json", PLAIN, 500),
    ("gpteacher/codegen-instruct.json", PLAIN, 4535),
    ("gpteacher/roleplay-simple-deduped-roleplay-instruct.json", PLAIN, 1923),
    ("gsm8k/train.jsonl", PLAIN, 7473),
    ("gsm8k/test.jsonl", PLAIN, 1319),
    ("gsm8k/example_model_solutions.jsonl", {"question": "prompt", "175b_verification.solution": "completion"}, 1319),
    ("llamafactory-demo/alpaca_en_demo.json", PLAIN, 999),
    ("llamafactory-demo/alpaca_zh_demo.json", PLAIN, 1000),
    ("llamafactory-demo/identity.json", PLAIN, 91),
    ("llamafactory-demo/glaive_toolcall_en_demo.json", PLAIN, 300),
    ("llamafactory-demo/glaive_toolcall_zh_demo.json", PLAIN, 300),
    ("llamafactory-demo/reason_tool_use_demo_50.jsonl", PLAIN, 50),
    ("llamafactory-demo/v1_sft_demo.jsonl", PLAIN, 500),
    ("llamafactory-demo/dpo_en_demo.json", {"conversations": "prompt", "chosen": "completion"}, 300),
    ("llamafactory-demo/dpo_zh_demo.json", {"conversations": "prompt", "chosen": "completion"}, 300),
    ("llamafactory-demo/v1_dpo_demo.jsonl", {"chosen_messages": "messages"}, 10),
    ("llamafactory-demo/kto_en_demo.json", {"label": "ignore"}, 300),
    ("hh-rlhf/harmless-base/test.jsonl.gz", {"chosen": "messages"}, 2312),
    ("oasst-sample/en_100_message.jsonl", PLAIN, 626),
    ("oasst-sample/en_100_tree.jsonl", PLAIN, 626),
    ("open-instruct/eval_instances_tulu_1.jsonl", PLAIN, 1992),
    ("open-instruct/eval_instances_tulu_1.jsonl", {"completions.0.completion": "completion"}, 996),
    ("tau-bench/*.jsonl", PLAIN, 3),
    ("tinker-cookbook/conversations.jsonl", PLAIN, 128),
    ("toolbench/*/*/*/*.json", PLAIN, 17),
    ("tooltalk/*/*.json", PLAIN, 78),
    (
        "toolbench/*/*/*/*.json",
        {"answer_generation.train_messages.-1": "messages", "answer_generation.function": "functions"},
        13,
    ),
    ("torchtune-assets/stack_exchange_paired_tiny.json", {"question": "prompt", "response_j": "completion"}, 25),
]
REFUSED = {
    "axolotl-fixtures/conversation.tokenized*.json": "already_tokenized",
    "bfcl/*": "unknown_shape",
    "blns/blns.json": "not_an_object",
    "deepseek-math-v2/*": "unknown_shape",
    "gsm8k/example_model_solutions.jsonl": "unknown_shape",
    "hh-rlhf/*": "preference_pair",
    "llamafactory-demo/*dpo*": "preference_pair",
    "llamafactory-demo/kto_en_demo.json": "preference_label",
    "llamafactory-demo/mllm_*": "multimodal_content",
    "llamafactory-demo/v1_multimodal_demo.jsonl": "multimodal_content",
    "llamafactory-demo/dataset_info.json": "unknown_shape",
    "llamafactory-demo/c4_demo.jsonl": "text_needs_pretrain",
    "nemo-rl/*": "unknown_shape",
    "tau-bench/*": "call_not_shown",
    "toolbench/*": "no_answer_found",
    "torchtune-assets/*": "preference_pair",
    "*.txt": "text_needs_pretrain",
    "*.rst": "text_needs_pretrain",
}


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("LICENSE", "README.md")]


def outcome(path: Path, recipe: Recipe) -> tuple[Counter[str], list[tuple[Any, Conversation | Text]]]:
    counts: Counter[str] = Counter()
    read = []
    for _, _, record in open_sources(path).records():
        if isinstance(record, RecordError):
            counts[record.reason] += 1
            continue
        try:
            converted = read_all(record, recipe).items
        except RecordError as error:
            counts[error.reason] += 1
        else:
            counts["records"] += 1
            for item in converted:
                counts["conversations" if isinstance(item, Conversation) else "texts"] += 1
                read.append((record, item))
    return counts, read


def records_in(path: Path) -> int:
    """How many records a file holds, counted in another way."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.suffix in (".txt", ".rst"):
        return 1
    try:
        value = json.loads(content)
    except ValueError:
        return sum(1 for line in content.decode().split("\n") if line.strip())
    return len(value) if isinstance(value, list) else 1


def test_every_file_is_converted_or_refused_with_the_expected_reason(shared_data: Path) -> None:
    folder = shared_data / "chats"
    converts = {pattern: number for pattern, columns, number in CONVERTS if not columns}
    total: Counter[str] = Counter()
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        counts, _ = outcome(path, Recipe())
        assert sum(counts.values()) - counts["conversations"] == records_in(path), name
        reason = next((reason for pattern, reason in REFUSED.items() if fnmatch.fnmatch(name, pattern)), "")
        if any(fnmatch.fnmatch(name, pattern) for pattern in converts):
            assert set(counts) <= {"records", "conversations", reason}, name
        else:
            assert set(counts) == {reason}, name
        print(f"{name:75} {', '.join(f'{what} {number}' for what, number in counts.items())}")
        total.update(counts)
    print(total)
    assert total["records"] == 20_412 and total["conversations"] == 22_464 == sum(converts.values())


def test_with_a_map_the_other_chats_convert_too(shared_data: Path) -> None:
    folder = shared_data / "chats"
    for pattern, columns, expected in CONVERTS:
        paths = sorted(folder.glob(pattern))
        assert paths, pattern
        counts: Counter[str] = Counter()
        for path in paths:
            counts.update(outcome(path, Recipe(columns=columns))[0])
        maps = " ".join(f"--map {name}={known}" for name, known in columns.items())
        print(f"{pattern:60} {maps:90} {dict(counts)}")
        assert counts["conversations"] == expected, pattern


def test_texts_are_for_pretraining(shared_data: Path) -> None:
    folder = shared_data / "chats"
    for pattern, expected in (("text/**/*.*", 18), ("blns/blns.txt", 1), ("llamafactory-demo/c4_demo.jsonl", 300)):
        counts: Counter[str] = Counter()
        for path in sorted(folder.glob(pattern)):
            counts.update(outcome(path, Recipe(objective="pretrain"))[0])
        assert counts == {"records": expected, "texts": expected}, pattern


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, string) of every string inside; a string that is the JSON text of a list or object counts as that."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from leaves(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry, key)
    elif isinstance(value, str):
        if value[:1] in ("[", "{"):
            try:
                inner = json.loads(value)
            except ValueError:
                inner = None
            if isinstance(inner, dict | list):
                yield from leaves(inner, key)
                return
        yield key, value


BESIDE = {
    # keys of strings that are not part of the chat
    "oasst-sample/*": {"message_id", "parent_id", "lang", "model_name", "message_tree_id", "tree_state"},
    "open-instruct/*": {"model"},
    "tooltalk/*": {"name", "conversation_id", "suites_used", "apis_used", "scenario", "user", "metadata"},
}


def test_no_string_of_a_converted_record_is_lost(shared_data: Path) -> None:
    checked = 0
    for pattern, columns, _ in CONVERTS:
        if columns or pattern.startswith("toolbench"):
            continue  # a map takes a part of the record on purpose, and a search trace holds every text many times
        beside = next((keys for name, keys in BESIDE.items() if fnmatch.fnmatch(pattern, name)), set())
        for path in sorted((shared_data / "chats").glob(pattern)):
            kept: dict[int, list[str]] = {}
            records: dict[int, Any] = {}
            for record, read in outcome(path, Recipe())[1]:
                assert isinstance(read, Conversation)
                kept.setdefault(id(record), []).extend(text for _, text in leaves([read.messages, read.tools]))
                records[id(record)] = record
            for key, texts in kept.items():
                whole = "\0".join(texts)
                record = records[key]
                if "messages_display" in record:  # cut at the names of roles
                    turns = re.split("^(?:user|assistant|tool): ", record["messages_display"], flags=re.MULTILINE)
                    record = {"text": [turn.removesuffix("\n") for turn in turns]}
                if isinstance(record, dict):
                    record = {name: value for name, value in record.items() if name not in beside}
                for name, text in leaves(record):
                    if name not in ("id", "from", "role", "type", *beside - {"name"}):
                        assert text in whole, (path.name, name, text)
                        checked += 1
    assert checked > 44_000


def test_every_message_leads_back_to_its_place_in_the_record(shared_data: Path) -> None:
    checked: Counter[str] = Counter()
    for pattern, columns, _ in CONVERTS:
        for path in sorted((shared_data / "chats").glob(pattern)):
            for record, read in outcome(path, Recipe(columns=columns))[1][:300]:
                assert isinstance(read, Conversation)
                for message, place in zip(read.messages, read.paths, strict=True):
                    here: Any = record
                    stretch: list[int] = []
                    for step in place:
                        if isinstance(here, str) and here[:1] in "[{":
                            here = json.loads(here)
                        if isinstance(here, str):
                            stretch.append(int(step))
                        else:
                            here = here[step]
                    if stretch:
                        here = here[slice(*stretch)]
                    content = message.get("content")
                    if isinstance(content, str) and content and "input" not in record:  # alpaca joins two columns
                        there = here if isinstance(here, str) else json.dumps(here, ensure_ascii=False)
                        assert json.dumps(content, ensure_ascii=False)[1:-1] in there or content in there, (path, place)
                        checked["stretch" if stretch else "place"] += 1
    print(checked)
    assert checked["place"] > 15_000 and checked["stretch"] > 1_000


def test_messages_that_are_openais_already_stay_as_they_are(shared_data: Path) -> None:
    records = messages = 0
    for _, _, record in open_sources(shared_data / "mix-openai.jsonl.gz").records():
        read = read_record(record, Recipe())
        assert isinstance(read, Conversation)
        assert read.messages == record["messages"]
        records += 1
        messages += len(read.messages)
    assert (records, messages) == (35_634, 94_584)
