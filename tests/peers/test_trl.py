"""TRL's training templates mark what to train by hand. Where they agree with the sampled rule, and why not."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from maskpipe.errors import TemplateError
from maskpipe.template import ChatTemplate

pytestmark = pytest.mark.shared

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Which is the longer river?"},
    {"role": "assistant", "content": "The one in the north."},
    {"role": "user", "content": "And the wider one?"},
    {"role": "assistant", "content": "The one in the south."},
]


def marked(template: str, eos: str) -> tuple[str, list[tuple[int, int]]] | None:
    """The text, and the ranges inside `{% generation %}`, as transformers finds them."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    try:
        (text,), (ranges,) = utils.render_jinja_template(
            [CHAT], chat_template=template, return_assistant_tokens_mask=True, bos_token="<s>", eos_token=eos
        )
    except Exception:
        return None
    return text, ranges


def per_turn(ranges: list[tuple[int, int]], stops: list[int]) -> list[tuple[int, int]]:
    """Their ranges joined per turn: some templates mark a turn in several pieces."""
    out = []
    last = 0
    for stop in stops:
        inside = [(start, end) for start, end in ranges if last <= start < stop]
        out.append((inside[0][0], inside[-1][1]) if inside else (stop, stop))
        last = stop
    return out


def explain(template: ChatTemplate, text: str, theirs: tuple[int, int], ours: tuple[int, int], message: int) -> str:
    """One line on why two ranges differ; "" when nothing says why."""
    before = text[theirs[0] : ours[0]]
    after = text[ours[1] : theirs[1]]
    untrained = text[theirs[1] : ours[1]]
    skipped = text[ours[0] : theirs[0]]
    reasons = []
    prompt = template.engine.plain(CHAT[:message], add_generation_prompt=True)
    if before:
        if not prompt.endswith(before) and before not in prompt:
            return ""
        reasons.append("trains part of the generation prompt")
    if after:
        if after.strip():
            return ""
        reasons.append("trains white space after the stop token")
    if untrained:
        reasons.append("does not train the stop token")
    if skipped:
        if skipped.strip() and not any(mark in skipped for mark in ("<", "[")):
            return ""
        reasons.append("does not train literal text that the model samples")
    return "; ".join(reasons)


def test_disagreements_with_trls_training_templates_are_explained(shared_data: Path) -> None:
    agreements: Counter[str] = Counter()
    unexplained = []
    seen = 0
    for path in sorted((shared_data / "templates" / "jinja").glob("trl__*_training.jinja")):
        source = path.read_text(encoding="utf-8")
        eos = "<|im_end|>"
        theirs = marked(source, eos)
        if theirs is None:
            continue
        text, ranges = theirs
        template = ChatTemplate(source, bos_token="<s>", eos_token=eos, clock=datetime.now().isoformat())
        try:
            rendered = template.render(CHAT)
        except TemplateError:
            continue
        assert rendered.text == text
        seen += 1
        said = set()
        for turn, theirs_range in zip(rendered.turns, per_turn(ranges, [t.stop for t in rendered.turns]), strict=True):
            if (turn.start, turn.stop) == tuple(theirs_range):
                continue
            reason = explain(template, text, theirs_range, (turn.start, turn.stop), turn.message)
            said.add(reason)
            if not reason:
                unexplained.append(
                    f"{path.name} message {turn.message} ({turn.reason}): theirs "
                    f"{text[slice(*theirs_range)]!r}, ours {text[turn.start : turn.stop]!r}"
                )
        for reason in said or {"agrees"}:
            agreements[reason] += 1
        print(f"{path.name}: {'; '.join(sorted(said)) or 'agrees'}")
    print(dict(agreements))
    assert seen >= 25
    assert unexplained == []
