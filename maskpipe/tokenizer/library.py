"""The tokenizers library, whichever version is installed: who computes ids, and what more can be asked.

    0.2x   ids, offsets, normalizers, models; added tokens can be added
    1.0    ids, many times faster, and nothing else: what 0.2x is asked for is done to tokenizer.json instead

Both make the same ids. What a tokenizer needs beyond ids (offsets of text that its normaliser rewrites, added tokens
that are looked for in rewritten text) is refused under 1.0, with what to do.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from maskpipe.errors import TokenizerError
from maskpipe.tokenizer.positions import Int32
from maskpipe.tokenizer.vocabulary import AddedToken, Config, model_vocabulary, parts, without_entries

FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
"""Of an added token, in the order of AddedToken's fields."""

HAS_PARTS = all(
    hasattr(tokenizers.Tokenizer, name)
    for name in ("from_str", "to_str", "model", "normalizer", "add_tokens", "get_added_tokens_decoder", "token_to_id")
)
"""Whether the installed library is one of those with parts."""


class Library(ABC):
    """One tokenizer.json, loaded. Texts are encoded whole, without the tokens that a post-processor adds."""

    added: list[AddedToken]
    """By id, ascending."""

    @abstractmethod
    def with_added(self, tokens: Sequence[AddedToken]) -> Library:
        """The same with these tokens added; their own ids are not looked at."""

    @abstractmethod
    def json(self) -> str:
        """The tokenizer.json that gives this."""

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> list[Int32]:
        """The ids of each text, alone."""

    @abstractmethod
    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids, their ranges in characters) of a text; TokenizerError where the library has none."""

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """The id of a vocabulary entry or an added token."""

    @abstractmethod
    def token_of(self, id: int) -> str | None:
        """The vocabulary entry or added token with this id."""

    @abstractmethod
    def stretch(
        self,
        normalizer: Config | None,
        pre_tokenizer: Config | None,
        ordinary: Sequence[AddedToken],
        without: frozenset[str],
    ) -> Library:
        """The same model behind other parts, with these added tokens alone and without these vocabulary entries."""

    @property
    def model(self) -> Any:
        """The library's own, to share; there is none without HAS_PARTS."""
        raise NotImplementedError

    @property
    @abstractmethod
    def normalizer(self) -> Any:
        """The library's own; None where there is none. TokenizerError where the library does not show it."""


def load(text: str, config: Config, name: str) -> Library:
    """From the text of tokenizer.json and what it says. TokenizerError when the library refuses it."""
    return _Whole(_built(tokenizers.Tokenizer.from_str, text, name), config) if HAS_PARTS else _Bare(config, name)


def _built(make: Callable[[str], Any], given: str, name: str) -> Any:
    try:
        return make(given)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library is no Exception
        raise TokenizerError(f"{name}: the tokenizers library cannot load tokenizer.json: {error}") from None


class _Whole(Library):
    """Of 0.2x."""

    def __init__(self, library: Any, config: Config, model: Any = None) -> None:
        self._library = library
        self._config = config
        self._model = library.model if model is None else model
        self._slim: dict[frozenset[str], Any] = {}
        library.no_truncation()
        library.no_padding()
        self._encode = getattr(library, "encode_batch_fast", library.encode_batch)
        self.added = [
            AddedToken(
                id, token.content, token.special, token.normalized, token.lstrip, token.rstrip, token.single_word
            )
            for id, token in sorted(library.get_added_tokens_decoder().items())
        ]

    def with_added(self, tokens: Sequence[AddedToken]) -> Library:
        self._library.add_tokens([_library_token(token) for token in tokens])
        return _Whole(self._library, self._config, self._model)

    def json(self) -> str:
        return str(self._library.to_str())

    def ids(self, texts: Sequence[str]) -> list[Int32]:
        # One text at a time: no slower than a batch, and needs no memory for the others' offsets.
        return [np.array(self._encode([text], add_special_tokens=False)[0].ids, np.int32) for text in texts]

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._library.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def id_of(self, token: str) -> int | None:
        id: int | None = self._library.token_to_id(token)
        return id

    def token_of(self, id: int) -> str | None:
        token: str | None = self._library.id_to_token(id)
        return token

    def stretch(
        self,
        normalizer: Config | None,
        pre_tokenizer: Config | None,
        ordinary: Sequence[AddedToken],
        without: frozenset[str],
    ) -> Library:
        """Shares the model: costs no memory to speak of."""
        if without not in self._slim:
            slim = {"version": "1.0", "model": without_entries(self._config, without)["model"]}
            self._slim[without] = tokenizers.Tokenizer.from_str(json.dumps(slim)).model if without else self._model
        model = {"type": "BPE", "vocab": {}, "merges": []}
        shell = {"version": "1.0", "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model}
        stretch = tokenizers.Tokenizer.from_str(json.dumps(shell, ensure_ascii=False))
        stretch.model = self._slim[without]
        stretch.add_tokens([_library_token(token) for token in ordinary])
        return _Whole(stretch, self._config, self._slim[without])

    @property
    def model(self) -> Any:
        return self._model

    @property
    def normalizer(self) -> Any:
        return self._library.normalizer


def _library_token(token: AddedToken) -> Any:
    return tokenizers.AddedToken(token.content, **{flag: getattr(token, flag) for flag in FLAGS})


class _Bare(Library):
    """Of 1.0: everything but ids is read from, and written to, tokenizer.json."""

    def __init__(self, config: Config, name: str) -> None:
        self._name = name
        self._config = config | {"truncation": None, "padding": None, "post_processor": None}
        self.added = sorted(
            (
                AddedToken(
                    entry["id"],
                    entry["content"],
                    *(bool(entry.get(flag)) for flag in FLAGS),
                )
                for entry in config.get("added_tokens") or []
            ),
            key=lambda token: token.id,
        )
        with tempfile.TemporaryDirectory() as directory:  # it loads files, not texts
            path = Path(directory) / "tokenizer.json"
            path.write_text(json.dumps(self._config), encoding="utf-8")
            self._library = _built(tokenizers.Tokenizer.from_file, str(path), name)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return model_vocabulary(self._config)

    def with_added(self, tokens: Sequence[AddedToken]) -> Library:
        entries = list(self._config.get("added_tokens") or [])
        free = max([-1, *self._vocabulary.values(), *(entry["id"] for entry in entries)]) + 1
        for token in tokens:
            id = self.id_of(token.content)
            if id is None:
                id, free = free, free + 1
            entries = [entry for entry in entries if entry["content"] != token.content]
            entries.append(vars(token) | {"id": id})
        return _Bare(self._config | {"added_tokens": sorted(entries, key=lambda entry: entry["id"])}, self._name)

    def json(self) -> str:
        return json.dumps(self._config, ensure_ascii=False)

    def ids(self, texts: Sequence[str]) -> list[Int32]:
        encode = self._library.encode
        return [encode(text, add_special_tokens=False).ids_array.astype(np.int32) for text in texts]

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        raise TokenizerError(
            f"{self._name}: this tokenizer rewrites text, and tokenizers {tokenizers.__version__} has no offsets to "
            "say how; install tokenizers<1, or use a tokenizer whose tokens spell the text"
        )

    def id_of(self, token: str) -> int | None:
        return next((known.id for known in self.added if known.content == token), self._vocabulary.get(token))

    def token_of(self, id: int) -> str | None:
        known = (token.content for token in self.added if token.id == id)
        return next(known, next((entry for entry, own in self._vocabulary.items() if own == id), None))

    def stretch(
        self,
        normalizer: Config | None,
        pre_tokenizer: Config | None,
        ordinary: Sequence[AddedToken],
        without: frozenset[str],
    ) -> Library:
        own = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "added_tokens": [vars(t) for t in ordinary]}
        return _Bare(without_entries(self._config, without) | own, self._name)

    @property
    def normalizer(self) -> Any:
        if not any(parts(self._config.get("normalizer"))):
            return None
        raise TokenizerError(
            f"{self._name}: this tokenizer looks for added tokens in text that it rewrote, and tokenizers "
            f"{tokenizers.__version__} does not show how; install tokenizers<1"
        )
