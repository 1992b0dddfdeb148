"""What of the input never reached the output: the template dropped it, or printed it as Python repr.

Provenance gives this for free: a leaf's characters that no origin points to were lost. White space around a text is
trimmed by many templates and is not reported; markup that the template reads and writes anew (the `<think>` around
reasoning) was not lost, so a lost piece that stands in the literal text of the same render does not count.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from maskpipe.roles import Part, Role
from maskpipe.template.render import KEY, Leaf, Path, Trace, end_of_inline_reasoning

_NOT_TEXT = ("role", "name", "tool_call_id", "id", "type", "index")


@dataclass(frozen=True)
class Lost:
    """One field of the input that was not shown in full."""

    path: Path
    message: int
    role: Role
    part: Part
    what: str
    """In words: "dropped", "shown only in part", "a list printed as Python repr"."""
    text: str
    """The lost text, shortened."""

    def __str__(self) -> str:
        field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")
        return f"{field}: {self.what}" + (f": {self.text!r}" if self.text else "")


def find_lost(trace: Trace, messages: int | None = None) -> list[Lost]:
    """What the render lost of the first `messages` messages (None: all), the tools and the documents."""
    shown: dict[int, list[tuple[int, int]]] = defaultdict(list)
    literal: list[str] = []
    for entry in trace.origins:
        if entry[2] >= 0:
            shown[entry[2]].append((entry[3], entry[4]))
        else:
            literal.append(trace.text[entry[0] : entry[1]])
    scaffold = "\0".join(literal)
    out = []
    for number, leaf in enumerate(trace.leaves):
        if not _counts(leaf) or (messages is not None and leaf.message >= messages):
            continue
        missing = _uncovered(leaf.text, shown.get(number, []))
        pieces = [leaf.text[start:stop] for start, stop in missing if not _written(leaf.text[start:stop], scaffold)]
        if pieces:
            reasoning = leaf.part is Part.REASONING or missing[-1][1] <= end_of_inline_reasoning(leaf)
            whole = sum(map(len, pieces)) >= len(leaf.text.strip())
            text = " … ".join(piece.strip() for piece in pieces)
            out.append(
                Lost(
                    leaf.path,
                    leaf.message,
                    leaf.role,
                    Part.REASONING if reasoning else leaf.part,
                    "dropped by the template" if whole else "shown only in part",
                    text if len(text) <= 60 else text[:57] + "...",
                )
            )
    for message, what in trace.reprs:
        if messages is None or message < messages:
            out.append(
                Lost(("messages", message) if message >= 0 else (), message, Role.TEMPLATE, Part.SCAFFOLD, what, "")
            )
    return out


def _written(piece: str, scaffold: str) -> bool:
    """Does the template write the same by itself? Many write `true` where a condition finds a value true."""
    piece = piece.strip()
    return piece in scaffold or (piece in ("True", "False") and piece.lower() in scaffold)


def _counts(leaf: Leaf) -> bool:
    """Is this a field whose text a reader of the rendered chat must see?"""
    if leaf.is_role_name or not leaf.text.strip():
        return False
    path = leaf.path
    if path[0] == "messages":
        field = path[2]
        if field in ("content", "reasoning_content", "thinking", "reasoning"):
            return path[-1] != KEY and not (len(path) > 4 and path[4] != "text")
        if field == "tool_calls":
            inside = path[:-2] if path[-1] == KEY else path  # the word "arguments" itself is no argument
            return path[-1] == "name" or "arguments" in inside
        return False
    if path[0] == "tools":
        return path[-1] == "name" and len(path) <= 4
    return path[0] == "documents" and path[-1] != KEY and path[-1] not in _NOT_TEXT


def _uncovered(text: str, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pieces of `text`, those of white space aside, that no range covers."""
    out = []
    at = 0
    for start, stop in sorted(ranges):
        if start > at and text[at:start].strip():
            out.append((at, start))
        at = max(at, stop)
    if text[at:].strip():
        out.append((at, len(text)))
    return out
