"""Small tokenizers of every kind, made here: one corpus, various normalisers, prefixes and added tokens."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, trainers

from maskpipe.tokenizer import Tokenizer

CORPUS = [
    "<|im_start|>user\nHello world, how are you?<|im_end|>\n",
    "<|im_start|>assistant\nI am fine.\n\nThank you!  <|im_end|>",
    "the quick brown fox jumps over the lazy dog; don't stop. 1234 5678\n\n\tdef f(x):\n\t\treturn x + 1",
    "Zażółć gęślą jaźń é è ü ñ 漢字 かな 🎉 <|im <|end| think> <think tool_call",
] * 3
CONTROL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|end|>", "<|im"]
SPECIAL = {"<|im_start|>", "<|im_end|>", "<|end|>"}


def added(id: int, content: str, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": content in SPECIAL}
    return {"id": id, "content": content} | plain | flags


def _byte_level(**changes: Any) -> dict[str, Any]:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([text.replace("<|im_", "<|i m_") for text in CORPUS], trainer)
    return _finish(library, changes)


def _metaspace(
    normalizer: Any = None, pre_tokenizer: Any = None, byte_fallback: bool = True, **changes: Any
) -> dict[str, Any]:
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    library = Library(models.BPE(byte_fallback=byte_fallback, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizer or normalizers.Replace(" ", "▁")
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=620, special_tokens=["<unk>", *CONTROL, *fallback], show_progress=False)
    library.train_from_iterator([text[:110].replace("<|im_", "<|i m_") for text in CORPUS], trainer)
    return _finish(library, changes)


def _finish(library: Library, changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(library.to_str())
    vocabulary = config["model"]["vocab"]
    config["added_tokens"] = [added(vocabulary[content], content) for content in CONTROL]
    return config | changes


def with_flags(config: dict[str, Any], flags: dict[str, dict[str, bool]]) -> dict[str, Any]:
    tokens = [token | flags.get(token["content"], {}) for token in config["added_tokens"]]
    return config | {"added_tokens": tokens}


FLAGS = {
    "<|im_end|>": {"rstrip": True},
    "<|end|>": {"lstrip": True, "rstrip": True},
    "<think>": {"single_word": True},
    "</think>": {"lstrip": True},
}
NORMALIZED = {"<think>": {"normalized": True}, "</think>": {"normalized": True}, "<|end|>": {"normalized": True}}


def _word_piece() -> dict[str, Any]:
    words = [
        "hello",
        "world",
        "##s",
        "##ing",
        "the",
        "a",
        "##a",
        "<",
        "|",
        ">",
        "im",
        "_",
        "start",
        "end",
        "think",
        "/",
    ]
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *CONTROL, *words])}
    library = Library(models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finish(library, {})


def _unigram() -> dict[str, Any]:
    pieces = ["▁", "▁hello", "▁world", "h", "e", "l", "o", "<", "|", ">", "im", "_", "start", "end", "think", "/", "\n"]
    scores = [("<unk>", 0.0), *[(content, -50.0) for content in CONTROL], *[(piece, -2.0) for piece in pieces]]
    library = Library(models.Unigram(scores, unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    config: dict[str, Any] = json.loads(library.to_str())
    config["added_tokens"] = [added(i + 1, content) for i, content in enumerate(CONTROL)]
    return config


def _llama() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _bare_metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    return _metaspace(normalizers.Sequence([]), pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=split))


MADE = {
    "byte_level": lambda: _byte_level(),
    "byte_level_prefix": lambda: _byte_level(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    ),
    "byte_level_nfc": lambda: _byte_level(normalizer={"type": "NFC"}),
    "byte_level_flags": lambda: with_flags(_byte_level(), FLAGS),
    "byte_level_normalized": lambda: with_flags(_byte_level(), NORMALIZED),
    "byte_level_normalized_nfc": lambda: with_flags(_byte_level(normalizer={"type": "NFC"}), NORMALIZED),
    "byte_level_lower": lambda: with_flags(_byte_level(normalizer={"type": "Lowercase"}), NORMALIZED),
    "replace": lambda: _metaspace(),
    "prepend": lambda: _metaspace(_llama()),
    "prepend_flags": lambda: with_flags(_metaspace(_llama()), FLAGS),
    "prepend_normalized": lambda: with_flags(_metaspace(_llama()), NORMALIZED),
    "metaspace_first": lambda: _bare_metaspace("first"),
    "metaspace_always": lambda: _bare_metaspace("always", split=True),
    "metaspace_never": lambda: _bare_metaspace("never"),
    "metaspace_first_flags": lambda: with_flags(_bare_metaspace("first"), FLAGS),
    "unknown": lambda: _metaspace(byte_fallback=False),
    "word_piece": _word_piece,
    "unigram": _unigram,
}
"""Name → tokenizer.json as a JSON value."""


@cache
def config_of(name: str) -> dict[str, Any]:
    return MADE[name]()


@cache
def made(name: str) -> Tokenizer:
    return from_config(config_of(name), name)


@cache
def library_of(name: str) -> Library:
    return Library.from_str(json.dumps(config_of(name)))


def from_config(config: dict[str, Any], name: str = "made", **files: str) -> Tokenizer:
    return Tokenizer(
        {"tokenizer.json": json.dumps(config).encode()} | {key: value.encode() for key, value in files.items()}, name
    )


def without_added(config: dict[str, Any], contents: set[str]) -> Library:
    """The library's tokenizer as if these added tokens did not exist."""
    kept = [token for token in config["added_tokens"] if token["content"] not in contents]
    return Library.from_str(json.dumps(config | {"added_tokens": kept}))
