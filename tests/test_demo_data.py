"""The chats and the tokenizer that are shipped: what they hold, and that the script makes the same bytes again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from tokenizers import Tokenizer

from maskpipe import demo_data
from maskpipe.chat import Conversation, read_record
from maskpipe.recipe import Recipe
from maskpipe.sources import open_sources


def conversations() -> list[Conversation]:
    read = [read_record(record, Recipe()) for _, _, record in open_sources(demo_data.chats()).records()]
    chats = [entry for entry in read if isinstance(entry, Conversation)]
    assert len(chats) == len(read)
    return chats


def test_every_demo_chat_converts_and_each_promised_kind_is_there() -> None:
    chats = conversations()
    messages = [message for chat in chats for message in chat.messages]
    assert len(chats) == 78
    assert {message["role"] for message in messages} == {"system", "developer", "user", "assistant", "tool"}
    assert sum(bool(chat.tools) for chat in chats) >= 10
    assert any(isinstance(call["function"]["arguments"], str) for m in messages for call in m.get("tool_calls", []))
    assert any(isinstance(call["function"]["arguments"], dict) for m in messages for call in m.get("tool_calls", []))
    reasoned = [sum("reasoning_content" in message for message in chat.messages) for chat in chats]
    assert max(reasoned) >= 3
    assert any(0.0 in chat.weights for chat in chats) and any(0.5 in chat.weights for chat in chats)
    assert any(message["content"] == "" for message in messages)
    assert any(str(message["content"]).startswith("\n") for message in messages)
    assert any("<|done|>" in str(message["content"]) for message in messages if message["role"] == "user")
    text = "".join(str(message["content"]) for message in messages)
    for sign in "éüłжіλ的のم한हก🎈\u2028":
        assert sign in text, f"U+{ord(sign):04X}"


def test_the_demo_tokenizer_rebuilds_every_text() -> None:
    tokenizer = Tokenizer.from_file(str(demo_data.tokenizer() / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 4000
    assert tokenizer.normalizer is None
    for path in (demo_data.chats(), demo_data.prose()):
        text = path.read_text(encoding="utf-8")
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    control = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert control["<|turn|>"] and control["<|done|>"] and not control["<think>"] and not control["<tool_call>"]


def test_the_script_makes_the_shipped_tokenizer_byte_for_byte(tmp_path: Path) -> None:
    script().make(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (demo_data.tokenizer() / name).read_bytes(), name


def test_the_demo_data_stays_small() -> None:
    files = [path for path in Path(demo_data.__file__).parent.rglob("*") if path.suffix != ".pyc" and path.is_file()]
    assert sum(path.stat().st_size for path in files) < 400_000


def script() -> ModuleType:
    path = Path(__file__).parent / "golden" / "make_demo_tokenizer.py"
    spec = importlib.util.spec_from_file_location("make_demo_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
