"""Do the chat template and the tokenizer fit each other? What does not is a Finding with a code (rules.py)."""

from __future__ import annotations

import re

from jinja2 import nodes

from maskpipe.encoder import Encoder
from maskpipe.errors import TemplateError
from maskpipe.findings import Finding
from maskpipe.template.render import wrap

_LOOKS_LIKE_CONTROL = re.compile(r"<\|[^<>|\s]+\|>|<｜[^<>｜]+｜>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]")


def check_fit(encoder: Encoder) -> list[Finding]:
    """What does not fit, in the order of the codes. Nothing is checked when no template is used."""
    if encoder.recipe.objective == "pretrain" and not encoder.has_template:
        return []
    tokenizer, template = encoder.tokenizer, encoder.template
    findings = []
    for text in _control_strings(template.engine.tree):
        pieces = len(tokenizer.encode(text).input_ids)
        if not tokenizer.is_control(text) and pieces > 1:
            findings.append(
                Finding(
                    "MP101", f"the template writes {text!r}, which the tokenizer encodes as {pieces} ordinary tokens"
                )
            )
    try:
        template.engine.trace(wrap([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]))
    except TemplateError as error:
        return [*findings, Finding("MP105", str(error))]
    habits = template.sampling.habits(encoder.recipe.chat_template_kwargs)
    if not habits.stops_last:
        shown = f" (turns before it end with {habits.stops_middle[0]!r})" if habits.stops_middle else ""
        names = {name.name for name in template.engine.tree.find_all(nodes.Name)}
        if "eos_token" in names and not tokenizer.eos_token:
            shown += "; it writes eos_token, and the tokenizer's files name none: give it a tokenizer_config.json"
        findings.append(Finding("MP102", f"the template writes no stop token after the last assistant turn{shown}"))
    for stop in dict.fromkeys(habits.stops_last + habits.stops_middle):
        if not tokenizer.is_control(stop):
            findings.append(Finding("MP103", f"turns end with {stop!r}, which is no single token of the tokenizer"))
        elif tokenizer.stop_tokens and stop not in tokenizer.stop_tokens:
            declared = ", ".join(map(repr, tokenizer.stop_tokens))
            findings.append(Finding("MP104", f"turns end with {stop!r}; the tokenizer's files declare {declared}"))
    return findings


def _control_strings(tree: nodes.Template) -> list[str]:
    """Strings in the template's literal text that look like control tokens, in the order of the alphabet."""
    literals = [node.data for node in tree.find_all(nodes.TemplateData)]
    literals += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return sorted({match.group() for text in literals for match in _LOOKS_LIKE_CONTROL.finditer(text)})
