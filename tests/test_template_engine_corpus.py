"""On every real template the core's engine renders hostile contents as the Python tracker does, or leaves them to it.

By default one template in twelve; MASKPIPE_LONG=1 takes all of them with four chats each. Figures: pytest -s.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from maskpipe.errors import TemplateError
from maskpipe.template.render import Engine
from tests.conversations import Chat, assistant, user
from tests.corpus import chat_templates
from tests.test_template_engine import differences

LONG = "MASKPIPE_LONG" in os.environ
ODD = [
    *(chr(code) for code in range(0x3100) if chr(code).isspace()),
    *"ßİıŉΣςǅﬁé\u0301\u200b\u200d\ufeff\x00\x7f\U0001f600\"'\\/<>&|{}[]%#-_",
    *("</think>", "<think>", "```", "{{", "}}", "{%", "<|im_end|>", "[INST]", "None", "true", "\r\n", "assistant"),
]


class Chance(random.Random):
    """What templates are seldom tried with."""

    def text(self) -> str:
        return "".join(
            self.choice(ODD) if self.random() < 0.6 else self.choice("abc AB1") for _ in range(self.below(12))
        )

    def below(self, end: int) -> int:
        return self.randrange(end)

    def value(self, depth: int = 0) -> Any:
        match self.below(8 if depth < 2 else 6):
            case 0 | 1 | 2:
                return self.text()
            case 3:
                return self.choice([0, -1, 10**12, 2**62, 2**70])
            case 4:
                return self.choice([True, False, None])
            case 5:
                return self.choice([0.5, 1e300, -0.0])
            case 6:
                return [self.value(depth + 1) for _ in range(self.below(3))]
        return {self.text() or "k": self.value(depth + 1) for _ in range(self.below(3))}

    def calls(self) -> list[Any]:
        arguments = [{self.text() or "a": self.value() for _ in range(self.below(3))} for _ in range(1 + self.below(2))]
        return [{"type": "function", "id": "call_1", "function": {"name": "f", "arguments": a}} for a in arguments]

    def tool(self) -> dict[str, Any]:
        kind = {"type": "string", "description": self.text(), "enum": [self.text()]}
        parameters = {"type": "object", "properties": {self.text() or "x": kind}, "required": ["x"]}
        return {"type": "function", "function": {"name": "f", "description": self.text(), "parameters": parameters}}

    def chat(self) -> Chat:
        messages: list[Any] = []
        if self.random() < 0.4:
            messages.append({"role": self.choice(["system", "developer"]), "content": self.text()})
        for _ in range(1 + self.below(3)):
            messages.append(user(self.text()))
            beside: dict[str, Any] = {"reasoning_content": self.text()} if self.random() < 0.4 else {}
            if self.random() < 0.2:
                beside["weird"] = self.value()
            if self.random() < 0.4:
                beside["tool_calls"] = self.calls()
            messages.append(assistant(self.text(), **beside))
            if "tool_calls" in beside:
                messages.append({"role": "tool", "tool_call_id": "call_1", "name": "f", "content": self.text()})
        if self.random() < 0.3:
            messages[0] = {"role": "user", "content": [{"type": "text", "text": self.text()} for _ in range(2)]}
        switches = {"enable_thinking": self.choice([True, False]), "custom": self.text()}
        kwargs = {name: value for name, value in switches.items() if self.random() < 0.3}
        return Chat(messages, tools=[self.tool()] if self.random() < 0.4 else None, kwargs=kwargs)


@pytest.mark.shared
def test_hostile_contents_on_real_templates(shared_data: Path) -> None:
    found: Counter[str] = Counter()
    for entry in chat_templates(shared_data)[:: 1 if LONG else 12]:
        try:
            engine = Engine(entry.source, special_tokens={"bos_token": entry.bos_token, "eos_token": entry.eos_token})
        except TemplateError:  # Jinja2 cannot read it
            continue
        if engine._program is None:
            found["no program"] += 1
            continue
        chance = Chance(entry.name)
        for _ in range(4 if LONG else 2):
            found += differences(engine, chance.chat())
    print(dict(found))
    assert found["same"] > found["left to Python"]
