"""Library tokenizers that encode a stretch of text as it is encoded inside a whole one, without control tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from maskpipe.tokenizer.added_tokens import Occurrence
from maskpipe.tokenizer.positions import Int32
from maskpipe.tokenizer.vocabulary import AddedToken, Config, Lead, stretch_config, without_entries


class Piece(NamedTuple):
    """Text without control tokens: between two occurrences, a cut or an end; bytes."""

    start: int
    end: int
    lead: Lead


def pieces_between(begin: int, end: int, occurrences: list[Occurrence], lead: Lead) -> list[Piece]:
    """The text between the occurrences; not the empty pieces, of which the library makes nothing."""
    pieces = []
    for occurrence in occurrences:
        if begin < occurrence.start:
            pieces.append(Piece(begin, occurrence.start, lead))
        begin, lead = occurrence.end, "after_normalized" if occurrence.token.normalized else "after_token"
    if begin < end:
        pieces.append(Piece(begin, end, lead))
    return pieces


def ids_of(library: Any, texts: Sequence[str]) -> list[Int32]:
    """One text at a time: no slower than a batch, and needs no memory for the others' offsets."""
    encode = getattr(library, "encode_batch_fast", library.encode_batch)
    return [np.array(encode([text], add_special_tokens=False)[0].ids, np.int32) for text in texts]


class Stretches:
    """One for each lead, made when it is asked for. They share the model, so they cost no memory to speak of."""

    def __init__(self, config: Config, model: Any, ordinary: Sequence[AddedToken]) -> None:
        """`config` is tokenizer.json, `model` that of the library; `ordinary` tokens are found in every stretch."""
        self._config = config
        self._model = model
        self._ordinary = ordinary
        self._leads: dict[Lead, Any] = {}
        self._built: list[tuple[tuple[Config | None, Config | None], Any]] = []

    def of(self, lead: Lead) -> Any:
        """The library tokenizer for text that stands after this."""
        if lead not in self._leads:
            config = stretch_config(self._config, lead)
            stretch = next((stretch for known, stretch in self._built if known == config), None)
            if stretch is None:
                stretch = self._build(*config)
                self._built.append((config, stretch))
            self._leads[lead] = stretch
        return self._leads[lead]

    def _build(self, normalizer: Config | None, pre_tokenizer: Config | None) -> Any:
        model = {"type": "BPE", "vocab": {}, "merges": []}
        shell = {"version": "1.0", "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model}
        stretch = tokenizers.Tokenizer.from_str(json.dumps(shell, ensure_ascii=False))
        stretch.model = self._model
        stretch.add_tokens(
            [
                tokenizers.AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                )
                for token in self._ordinary
            ]
        )
        return stretch


def without_control(config: Config, model: Any, added: Iterable[AddedToken]) -> tuple[frozenset[str], Stretches]:
    """The control tokens: every added token but those that are ordinary vocabulary; and stretches that make none.

    Ordinary is what is not flagged special and what the model makes of the same text by itself (Gemma lists runs of
    newlines): nothing tells such a token from plain text, so it is encoded as in any text.
    """
    tokens = list(added)
    contents = [token.content for token in tokens]
    trial = Stretches(config, model, ())
    inside = [encoded.ids for encoded in trial.of("cut").encode_batch(contents, add_special_tokens=False)]
    first = [encoded.ids for encoded in trial.of("start").encode_batch(contents, add_special_tokens=False)]
    ordinary = [token for token, ids in zip(tokens, inside, strict=True) if ids == [token.id] and not token.special]
    control = frozenset(contents) - {token.content for token in ordinary}
    made = frozenset(
        token.content
        for token, some, others in zip(tokens, inside, first, strict=True)
        if token.content in control and token.id in (*some, *others)
    )
    if made:
        slim = without_entries(config, made)
        model = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "model": slim["model"]})).model
    return control, Stretches(config, model, ordinary)
