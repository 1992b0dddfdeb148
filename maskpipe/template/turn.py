"""Turn: what was established about one assistant turn."""

from __future__ import annotations

from dataclasses import dataclass

from maskpipe.roles import Verdict


@dataclass(frozen=True)
class Turn:
    """What was established about one assistant turn of one text; positions are characters of that text."""

    message: int
    verdict: Verdict
    start: int
    """First sampled character."""
    stop: int
    """End of the sampled characters, the stop token included."""
    stop_token: tuple[int, int] | None
    """Where the stop token stands, None when the template writes none."""
    empty_reasoning: tuple[int, int] | None
    """An empty reasoning block that the template added at the head of the turn."""
    cut: int
    """Where the prompt ends: inference encodes the text before it on its own. -1 when no prompt ends in this text."""
    reason: str = ""
    """Why the verdict is not exact, in words."""

    @property
    def trainable_in_place(self) -> bool:
        return not self.verdict & (Verdict.HISTORY_DIFFERS | Verdict.REFUSED)


def refused(index: int, reason: str) -> Turn:
    return Turn(index, Verdict.REFUSED, 0, 0, None, None, -1, reason)
