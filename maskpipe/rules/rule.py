"""Rule: what one code means. The codes themselves stand in one file per series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""error: labels or data are wrong · warning: probably not what was meant · note: a count that a person should see."""


@dataclass(frozen=True)
class Rule:
    """One kind of finding."""

    code: str
    name: str
    what: str
    why: str
    do: str
    level: Level = "warning"
    example: str = ""
    bugs: tuple[str, ...] = ()
    """Ids of known bugs of such tools that show as this finding."""
