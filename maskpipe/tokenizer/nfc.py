"""Small groups of characters that NFC maps each by itself."""

from __future__ import annotations

import re
import unicodedata

STABLE_RUN = re.compile("[\\x00-\u02ff]+(?=[\\x00-\u02ff])|[\\x00-\u02ff]+\\Z")
"""Characters that NFC leaves alone, up to the last one that what follows could join."""


def nfc_groups(text: str) -> list[tuple[str, str]]:
    """(text, NFC of it) of small groups of characters that can be normalised one by one."""
    groups: list[tuple[str, str]] = []
    at = 0
    for run in STABLE_RUN.finditer(text):
        groups += _small_groups(text[at : run.start()])
        groups.append((run[0], run[0]))
        at = run.end()
    return groups + _small_groups(text[at:])


def _small_groups(text: str) -> list[tuple[str, str]]:
    groups: list[tuple[str, str]] = []
    begin = 0
    for at, character in enumerate(text):
        alone = unicodedata.normalize("NFC", character)
        if at == begin or unicodedata.combining(character) or unicodedata.combining(alone[0]):
            continue
        normal = unicodedata.normalize("NFC", text[begin:at])
        if unicodedata.normalize("NFC", text[begin : at + 1]) == normal + alone:
            groups.append((text[begin:at], normal))
            begin = at
    if begin < len(text):
        groups.append((text[begin:], unicodedata.normalize("NFC", text[begin:])))
    return groups
