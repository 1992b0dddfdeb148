"""Tokenizers that encode a stretch of text as it is encoded inside a whole one, without control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from maskpipe.tokenizer.added_tokens import Occurrence
from maskpipe.tokenizer.library import Library
from maskpipe.tokenizer.vocabulary import AddedToken, Config, Lead, stretch_config


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


class Stretches:
    """One for each lead, made when it is asked for."""

    def __init__(
        self, config: Config, library: Library, ordinary: Sequence[AddedToken], without: frozenset[str] = frozenset()
    ) -> None:
        """`config` is tokenizer.json; `ordinary` added tokens are found in every stretch, entries `without` in none."""
        self._config = config
        self._library = library
        self._ordinary = ordinary
        self._without = without
        self._leads: dict[Lead, Library] = {}
        self._built: list[tuple[tuple[Config | None, Config | None], Library]] = []

    def of(self, lead: Lead) -> Library:
        """For text that stands after this."""
        if lead not in self._leads:
            parts = stretch_config(self._config, lead)
            stretch = next((stretch for known, stretch in self._built if known == parts), None)
            if stretch is None:
                stretch = self._library.stretch(*parts, self._ordinary, self._without)
                self._built.append((parts, stretch))
            self._leads[lead] = stretch
        return self._leads[lead]


def without_control(config: Config, library: Library) -> tuple[frozenset[str], Stretches]:
    """The control tokens: every added token but those that are ordinary vocabulary; and stretches that make none.

    Ordinary is what is not flagged special and what the model makes of the same text by itself (Gemma lists runs of
    newlines): nothing tells such a token from plain text, so it is encoded as in any text.
    """
    tokens = library.added
    contents = [token.content for token in tokens]
    trial = Stretches(config, library, ())
    inside = [ids.tolist() for ids in trial.of("cut").ids(contents)]
    first = [ids.tolist() for ids in trial.of("start").ids(contents)]
    ordinary = [token for token, ids in zip(tokens, inside, strict=True) if ids == [token.id] and not token.special]
    control = frozenset(contents) - {token.content for token in ordinary}
    made = frozenset(
        token.content
        for token, some, others in zip(tokens, inside, first, strict=True)
        if token.content in control and token.id in (*some, *others)
    )
    return control, Stretches(config, library, ordinary, made)
