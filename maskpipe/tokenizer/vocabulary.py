"""What a tokenizer.json says: the bytes each id stands for, the added tokens, and where it adds a space of its own.

vocabulary entry   id stands for        because
"Ġhello"           b" hello"            byte-level alphabet: one printable character per byte
"▁hello"           b" hello"            "▁" is written for a space
"<0xE2>"           b"\\xe2"              byte fallback
"##ing"            b"ing"               the prefix of a continued word is no text
"<|im_end|>"       b"<|im_end|>"        an added token is its own text
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from maskpipe.errors import TokenizerError

Config = dict[str, Any]
MAX_VOCABULARY = 1 << 24
"""Ids; tables are as long as the largest one. Real vocabularies have up to some 300,000."""
Lead = Literal["start", "after_token", "after_normalized", "cut"]
"""What stands before a stretch of text: nothing, an added token found in the raw text, one found in the normalised
text, or text that was encoded apart from it. It decides where the tokenizer adds a space of its own."""


@dataclass(frozen=True)
class AddedToken:
    """A string that the tokenizer finds in the text before it does anything else."""

    id: int
    content: str
    special: bool = False
    normalized: bool = False
    """Looked for in the normalised text, between the tokens that are not normalized."""
    lstrip: bool = False
    rstrip: bool = False
    """Whitespace beside it belongs to the token."""
    single_word: bool = False
    """Only where no word character is next to it."""


@cache
def byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level vocabularies (256 entries), as GPT-2 introduced it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def parts(component: Config | None, kind: str | None = None) -> Iterator[Config]:
    """The components of a normalizer, pre-tokenizer or decoder, sequences flattened; only those of type `kind`."""
    if component is None:
        return
    nested = [component[key] for key in ("normalizers", "pretokenizers", "decoders") if key in component]
    if component.get("type") == "Sequence" and nested:
        for child in nested[0]:
            yield from parts(child, kind)
    elif kind is None or component.get("type") == kind:
        yield component


def model_vocabulary(config: Config) -> dict[str, int]:
    """Entry → id of the model alone, without added tokens."""
    vocabulary = config["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: the position is the id
        return {entry[0]: i for i, entry in enumerate(vocabulary)}
    return dict(vocabulary)


def is_byte_level(config: Config) -> bool:
    return any(
        component["type"] == "ByteLevel"
        for key in ("normalizer", "pre_tokenizer", "decoder")
        for component in parts(config.get(key))
    )


def space_mark(config: Config) -> str:
    """The character written for a space ("▁"), or "" when spaces are spaces."""
    for key in ("pre_tokenizer", "decoder"):
        for component in parts(config.get(key), "Metaspace"):
            return str(component["replacement"])
    for component in parts(config.get("normalizer"), "Replace"):
        if component["pattern"].get("String") == " ":
            return str(component["content"])
    for component in parts(config.get("decoder"), "Replace"):
        if component["content"] == " " and "String" in component["pattern"]:
            return str(component["pattern"]["String"])
    return ""


def has_byte_fallback(config: Config) -> bool:
    return bool(config["model"].get("byte_fallback")) or any(parts(config.get("decoder"), "ByteFallback"))


BYTE_ENTRY = re.compile(r"<0x([0-9A-F]{2})>")


def entry_bytes(config: Config) -> dict[int, bytes]:
    """Id → the bytes it stands for, for the ids of the model.

    Where that depends on the text (unknown, lossy normalisers) the bytes are a guess that comparing with the text
    shows to be wrong.
    """
    alphabet = byte_alphabet() if is_byte_level(config) else None
    mark = space_mark(config)
    fallback = has_byte_fallback(config)
    model = config["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    # In Latin-1 a character is its byte; what is no character of the alphabet becomes one that Latin-1 does not have.
    latin = dict.fromkeys(range(256), "\uffff")
    latin |= {ord(character): chr(byte) for character, byte in (alphabet or {}).items()}
    table: dict[int, bytes] = {}
    for entry, token in model_vocabulary(config).items():
        if prefix and entry.startswith(prefix):
            entry = entry[len(prefix) :]
        if suffix and entry.endswith(suffix):
            entry = entry[: -len(suffix)]
        if alphabet is not None:
            try:
                table[token] = entry.translate(latin).encode("latin-1")
                continue
            except UnicodeEncodeError:
                pass
        if fallback and (match := BYTE_ENTRY.fullmatch(entry)):
            table[token] = bytes([int(match[1], 16)])
        else:
            table[token] = (entry.replace(mark, " ") if mark else entry).encode("utf-8", "surrogatepass")
    return table


def flat_table(entries: list[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """(offsets [ids + 1], bytes): the entries one after the other."""
    offsets = np.zeros(len(entries) + 1, dtype=np.int64)
    np.cumsum([len(entry) for entry in entries], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(entries), dtype=np.uint8)


def adds_space(config: Config) -> bool:
    """Whether some stretch of text gets a space at its start that the text does not have."""
    return (
        any(parts(config.get("normalizer"), "Prepend"))
        or any(
            component.get("prepend_scheme", "always") != "never" and component.get("add_prefix_space") is not False
            for component in parts(config.get("pre_tokenizer"), "Metaspace")
        )
        or any(component.get("add_prefix_space", True) for component in parts(config.get("pre_tokenizer"), "ByteLevel"))
    )


def stretch_config(config: Config, lead: Lead) -> tuple[Config | None, Config | None]:
    """(normalizer, pre_tokenizer) that treat a stretch alone as the tokenizer treats it inside a text."""
    prepend = lead in ("start", "after_token")  # the normaliser starts anew after a token of the raw text only

    def normalizer(component: Config | None) -> Config | None:
        if component is None or (component["type"] == "Prepend" and not prepend):
            return None
        if component["type"] == "Sequence":
            children = [normalizer(child) for child in component["normalizers"]]
            return component | {"normalizers": [child for child in children if child is not None]}
        return component

    def pre_tokenizer(component: Config | None) -> Config | None:
        if component is None:
            return None
        if component["type"] == "Sequence":
            return component | {"pretokenizers": [pre_tokenizer(child) for child in component["pretokenizers"]]}
        if component["type"] == "Metaspace":
            scheme = component.get("prepend_scheme", "always")
            if lead == "cut" or (lead != "start" and scheme == "first"):
                kept = {key: value for key, value in component.items() if key != "add_prefix_space"}
                return kept | {"prepend_scheme": "never"}
        if component["type"] == "ByteLevel" and lead == "cut":
            return component | {"add_prefix_space": False}
        return component

    return normalizer(config.get("normalizer")), pre_tokenizer(config.get("pre_tokenizer"))


def without_entries(config: Config, contents: frozenset[str]) -> Config:
    """The model without these vocabulary entries, where it can do without them (no merge needs them, not unknown)."""
    model = config["model"]
    if not isinstance(model["vocab"], dict):
        return config
    needed = {model.get("unk_token")}
    for merge in model.get("merges", []):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        needed.update((left, right, left + right.removeprefix(model.get("continuing_subword_prefix") or "")))
    gone = contents - needed
    return config | {"model": model | {"vocab": {k: v for k, v in model["vocab"].items() if k not in gone}}}


def check_config(config: Any, name: str) -> Config:
    """The parsed tokenizer.json, or TokenizerError when it is none or would encode at random."""
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict) or "vocab" not in config["model"]:
        raise TokenizerError(f"{name}: tokenizer.json holds no model with a vocabulary; is it a fast tokenizer's file?")
    if config["model"].get("dropout"):
        raise TokenizerError(
            f"{name}: the model has dropout {config['model']['dropout']}, so its ids are random; set it to null"
        )
    tokens = config.get("added_tokens") or []
    ids = [*model_ids(config), *(token.get("id") for token in tokens if isinstance(token, dict))]
    wild = next((id for id in ids if isinstance(id, int) and not 0 <= id < MAX_VOCABULARY), None)
    if wild is not None:
        raise TokenizerError(f"{name}: the id {wild} is not in [0, {MAX_VOCABULARY:,}), so no model can have it")
    if any(isinstance(token, dict) and token.get("content") == "" for token in tokens):
        raise TokenizerError(f"{name}: an added token has no text; take it out of tokenizer.json")
    return config


def model_ids(config: Config) -> list[Any]:
    vocabulary = config["model"]["vocab"]
    return list(vocabulary.values()) if isinstance(vocabulary, dict) else []
