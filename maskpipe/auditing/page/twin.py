"""Specimens as the JSON that the page's viewer reads: runs of facts, and one table of the texts of tokens.

    Specimen ─▶ runs (length, index of the facts, message) and symbols (index of (id, text)), as varints in base64

20 rows of 8,192 tokens take about 0.6 MB: a token costs 1 to 2 bytes, most symbols standing in the first 128 of a table
that is sorted by how often they occur.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.specimens import Specimen
from maskpipe.explain import WORDS, Why, visible
from maskpipe.roles import Flag, Part, Role

Facts = tuple[int, int, int, int]
"""Role, part, flags, why."""
LONGEST_TEXT = 400
"""Characters of one token's text that are shown; what is longer says how much is missing."""


def twin(specimens: Sequence[Specimen]) -> dict[str, Any]:
    """Plain values for `to_script`. Everything in it is shown as text; nothing in it is markup."""
    counted = Counter((int(id), text) for s in specimens for id, text in zip(s.input_ids, s.texts, strict=True))
    symbols = sorted(counted, key=lambda symbol: (-counted[symbol], symbol))
    number = {symbol: k for k, symbol in enumerate(symbols)}
    facts: dict[Facts, int] = {}
    rows = [_row(specimen, number, facts) for specimen in specimens]
    return {
        "roles": {int(role): role.name.lower() for role in Role},
        "parts": {int(part): part.name.lower() for part in Part},
        "why": {int(why): WORDS[why] for why in Why},
        "given": [int(Why.GIVEN), int(Why.GIVEN_NONE)],
        "flags": {flag.name.lower(): int(flag) for flag in Flag if flag.name},
        "facts": [list(entry) for entry in facts],
        "ids": varints(id if id >= 0 else (1 << 32) + id for id, _ in symbols),
        "texts": [shown(text) for _, text in symbols],
        "rows": rows,
    }


def _row(
    s: Specimen, number: dict[tuple[int, str], int], facts: dict[tuple[int, int, int, int], int]
) -> dict[str, Any]:
    n = len(s)
    columns = np.stack([s.role_ids, s.part_ids, s.flags, s.why], axis=1).astype(np.int64).reshape(n, 4)
    changed = np.any(columns[1:] != columns[:-1], axis=1) | (s.message_ids[1:] != s.message_ids[:-1])
    starts = [0, *(np.flatnonzero(changed) + 1).tolist()] if n else []
    values: list[int] = []
    last = -1
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        role, part, flags, why = columns[start].tolist()
        message = int(s.message_ids[start])
        step = message - last
        values += (stop - start, facts.setdefault((role, part, flags, why), len(facts)), zigzag(step))
        last = message
    out: dict[str, Any] = {
        "row": s.row,
        "title": visible(s.title),
        "file": visible(s.file),
        "chosen": [visible(reason) for reason in s.chosen],
        "n": n,
        "tokens": s.tokens,
        "loss": int(np.count_nonzero(s.loss_mask)),
        "runs": varints(values),
        "symbols": varints(number[symbol] for symbol in zip(s.input_ids.tolist(), s.texts, strict=True)),
        "documents": [
            [d.end, visible(d.title), [visible(note) for note in d.notes], _verdicts(d.verdicts)] for d in s.documents
        ],
        "marks": [[mark.start, mark.end, mark.code, visible(mark.text)] for mark in s.marks],
    }
    if s.first or s.length >= 0:
        out["first"], out["length"] = s.first, s.length
    if s.weights is not None:
        out["weights"] = _weights(s.weights)
    return out


def _verdicts(verdicts: Iterable[tuple[int, str]]) -> dict[str, str]:
    return {str(message): words for message, words in verdicts}


def _weights(weights: npt.NDArray[np.float32]) -> list[list[float]]:
    """[start, stop, weight] of each stretch that is not 1."""
    starts = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist()]
    stretches = zip(starts, [*starts[1:], len(weights)], strict=True)
    return [[a, b, round(float(weights[a]), 6)] for a, b in stretches if weights[a] != 1]


def shown(text: str) -> str:
    """A token's text with every character that is not printed made visible, line feeds aside, which the viewer breaks
    lines at; an accent that stands alone gets a circle to stand on."""
    cut = text[:LONGEST_TEXT]
    out = "\n".join(visible(line) for line in cut.split("\n"))
    if out and unicodedata.category(out[0]).startswith("M"):
        out = "◌" + out
    return out if len(text) <= LONGEST_TEXT else f"{out}… {len(text) - LONGEST_TEXT:,} more characters"


def to_script(value: Any) -> str:
    """JSON that may stand inside a script element, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_ESCAPED = re.compile("[<>&\u2028\u2029\x7f-\x9f\ufeff\ud800-\udfff]")
"""What JSON leaves as it is and HTML, JavaScript or UTF-8 do not; outside strings JSON has none of it."""


def varints(values: Iterable[int]) -> str:
    """Numbers 0 and up, 7 bits a byte, the lowest first, the high bit set on all bytes but the last; in base64."""
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return base64.b64encode(out).decode("ascii")


def zigzag(value: int) -> int:
    """0, -1, 1, -2 … as 0, 1, 2, 3 …"""
    return value * 2 if value >= 0 else -value * 2 - 1
