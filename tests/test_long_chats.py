"""Rendering apart, the work for a conversation grows with its length, not with its square.

Counted in executed lines of Python, which no busy machine changes; comparing prompts with the text is C's memcmp.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from maskpipe.template import ChatTemplate
from maskpipe.template.lost import find_lost, is_lost
from maskpipe.template.render import wrap
from maskpipe.template.spans import spans_of
from tests.conversations import assistant, user
from tests.corpus import named

GOLDEN = Path(__file__).parent / "golden" / "templates"
COUNTED = tuple(
    f"/template/{name}.py"
    for name in ("sampled", "own_text", "control", "headers", "stops", "habits", "turn", "verbatim", "spans", "lost")
)


def lines(template: ChatTemplate, turns: int) -> Counter[str]:
    """Executed lines per function for a chat of so many assistant turns, without those that render."""
    messages = [
        message
        for number in range(turns)
        for message in (user(f"Question {number}?"), assistant(f"Answer {number}.", reasoning_content="Because."))
    ]
    count: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(COUNTED):
            return None
        count[frame.f_code.co_name] += event == "line"
        return trace

    before = sys.gettrace()
    wrapped = wrap(messages)
    whole = template.engine.trace(wrapped)
    sys.settrace(trace)
    try:
        found = template.sampling.turns(wrapped, whole)
        assert len(found) == turns
        assert len(list(spans_of(whole, found))) > turns
        for lost in find_lost(whole):
            if lost.message >= 0:
                is_lost(template.engine.trace(wrapped, lost.message + 1), lost)
    finally:
        sys.settrace(before)
    return count


def growth(template: ChatTemplate) -> float:
    lines(template, 3)  # habits are learned once
    few, many = lines(template, 20), lines(template, 40)
    assert sum(few.values()) > 20 * 20
    return sum(many.values()) / sum(few.values())


def test_own_templates_do_linear_work() -> None:
    grown = {path.stem: growth(ChatTemplate(str(path), eos_token="</s>")) for path in sorted(GOLDEN.glob("*.jinja"))}
    print({name: round(ratio, 2) for name, ratio in grown.items()})
    assert max(grown.values()) <= 2.3


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct", "openai-gpt-oss-120b", "GLM-4.6", "Qwen3.5-4B"]
)
def test_real_templates_do_linear_work(shared_data: Path, name: str) -> None:
    ratio = growth(named(shared_data, name).template)
    print(f"{name}: {ratio:.2f}")
    assert ratio <= 2.3
