"""Writes docs/TEMPLATES.md: what becomes of every chat template of the corpus, by kind of conversation.

    python -m benchmarks.templates_report ../shared/data > docs/TEMPLATES.md

The corpus is not part of the repository; of its files, only the names and the verdicts are written.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from maskpipe.errors import TemplateError
from maskpipe.roles import Part, Role, Verdict
from maskpipe.template import ChatTemplate
from maskpipe.template.lost import Lost, find_lost, find_printed
from maskpipe.template.render import Trace, Wrapped, wrap
from maskpipe.template.turn import Turn
from tests.conversations import CHATS, KIND, Chat
from tests.corpus import Entry, chat_templates

ORDER = ("exact", "no stop", "split", "part refused", "refused", "loses content", "cannot render")
"""From the best to the worst that can happen to a kind of conversation."""

MEANING = {
    "exact": "every turn is trained where it stands, stop token included",
    "no stop": "trained where it stands, but the template writes no stop token after some turn",
    "split": "some turn gets a document of its own: what precedes it is not what inference would feed",
    "part refused": "some turn cannot be trained, others can",
    "refused": "no turn can be trained",
    "loses content": "the template drops a message, a tool call or a tool definition, or prints it as Python repr",
    "cannot render": "the template itself raises an error",
}


@dataclass(frozen=True)
class Outcome:
    """What becomes of one conversation under one template."""

    word: str
    reasons: tuple[str, ...] = ()
    stopless: bool = False


def outcome(template: ChatTemplate, chat: Chat) -> Outcome:
    wrapped = wrap(chat.messages, tools=chat.tools, documents=chat.documents, kwargs=chat.kwargs)
    try:
        whole = template.engine.trace(wrapped)
    except TemplateError:
        return Outcome("cannot render")
    lost = [str(entry.part.name).lower() + " " + entry.what for entry in _lost(template, wrapped, whole)]
    if lost:
        return Outcome("loses content", tuple(sorted(set(lost))))
    turns = template.sampling.turns(wrapped, whole)
    unshown = _unshown_reasoning(template, wrapped, whole)
    apart, refused, reasons, stopless = 0, 0, set(), False
    for turn in turns:
        final: Turn | None = turn
        if turn.message in unshown:
            final = None
            reasons.add("the template does not show its reasoning")
        elif not turn.trainable_in_place:
            reasons.update(map(_in_general, turn.reason.split("; ")))
            document, final = template.sampling.own_document(wrapped, turn.message)
            if document is None:
                reasons.add(_in_general(final.reason))
                final = None
            apart += 1
        refused += final is None
        stopless |= final is not None and bool(final.verdict & Verdict.NO_STOP)
    if refused:
        word = "refused" if refused == len(turns) else "part refused"
    else:
        word = "split" if apart else "no stop" if stopless else "exact"
    return Outcome(word, tuple(sorted(reasons - {NO_STOP})), stopless)


NO_STOP = "the template writes no stop token after it"


def _lost(template: ChatTemplate, wrapped: Wrapped, whole: Trace) -> list[Lost]:
    """What refuses the record: lost content other than reasoning, and not only hidden by a turn's place in history."""
    last = len(wrapped.raw["messages"]) - 1
    out = []
    for entry in find_lost(whole) + find_printed(template.engine, wrapped, whole):
        if entry.part is Part.REASONING:
            continue
        if entry.role is Role.ASSISTANT and entry.message != last:
            try:
                alone = find_lost(template.engine.trace(wrapped, entry.message + 1), entry.message + 1)
            except TemplateError:
                alone = [entry]
            if all(other.path != entry.path for other in alone):
                continue
        out.append(entry)
    return out


def _unshown_reasoning(template: ChatTemplate, wrapped: Wrapped, whole: Trace) -> set[int]:
    out = set()
    for entry in find_lost(whole):
        if entry.part is Part.REASONING:
            alone = template.engine.trace(wrapped, entry.message + 1)
            if any(other.path == entry.path for other in find_lost(alone, entry.message + 1)):
                out.add(entry.message)
    return out


def _in_general(reason: str) -> str:
    """A reason without the template's own text."""
    if "cannot be rendered" in reason:
        return "its prompt cannot be rendered"
    if reason.startswith("the prompt ends with"):
        if "reasoning" in reason.rpartition("which the template")[2]:
            return "its prompt closes reasoning that the message has"
        if "instead" in reason:
            return "its prompt ends with other text than history has there"
        return "its prompt ends with text (an open reasoning block, an instruction) that nothing in the turn answers"
    if reason.startswith("it ends with"):
        return "it ends with another stop token than as the last turn"
    return re.sub(r"'[^']*'", "…", reason)


def behaviour(template: ChatTemplate) -> tuple[str, str, str]:
    """How the answer of a one-turn chat stands between prompt and stop: three descriptions."""
    chat = CHATS["one_turn"]
    wrapped = wrap(chat.messages)
    try:
        whole = template.engine.trace(wrapped)
    except TemplateError:
        return "cannot render", "", ""
    turn = template.sampling.turns(wrapped, whole)[0]
    prompt, document, own = "the prompt is a prefix", whole, turn
    if not turn.trainable_in_place:
        prompt = "the prompt is no prefix"
        glued, own = template.sampling.own_document(wrapped, 1)
        if glued is None:
            return prompt, "refused", ""
        document = glued
    elif template.engine.plain(chat.messages[:1]) == template.engine.plain(
        chat.messages[:1], add_generation_prompt=True
    ):
        prompt = "no generation prompt, or one that is always there"
    text, answer = document.text[own.start : own.stop], chat.messages[1]["content"]
    at = text.find(answer)
    if at < 0:
        return prompt, "shows nothing", ""
    head, tail = text[:at], text[at + len(answer) :]
    if own.empty_reasoning is not None:
        before = "an empty reasoning block (no loss) before the answer"
    elif not head.strip():
        before = "white space before the answer" if head else "the answer at once"
    else:
        before = "markers before the answer (a channel, a header)"
    if own.stop_token is None:
        after = "no stop token"
    elif tail.strip() == document.text[slice(*own.stop_token)]:
        after = "the stop token at once" if tail == tail.strip() else "white space before the stop token"
    else:
        after = "closing markers, then the stop token"
    return prompt, before, after


def write(entries: tuple[Entry, ...]) -> str:
    table: dict[str, dict[str, Outcome]] = {}
    for entry in entries:
        table[entry.name] = {
            kind: max((outcome(entry.template, CHATS[name]) for name in names), key=lambda o: ORDER.index(o.word))
            for kind, names in KIND.items()
        }
    kinds = list(KIND)
    out = [HEAD.format(count=len(entries), chats="\n".join(f"- {kind}: {', '.join(KIND[kind])}" for kind in kinds))]
    out.append("| outcome | " + " | ".join(kinds) + " | meaning |\n|---|" + "---:|" * len(kinds) + "---|\n")
    for word in ORDER:
        counts = [sum(row[kind].word == word for row in table.values()) for kind in kinds]
        out.append(f"| {word} | " + " | ".join(map(str, counts)) + f" | {MEANING[word]} |\n")

    out.append("\n## Distinct behaviours of a one-turn chat\n\n| prompt | sampled before | after | templates |\n")
    out.append("|---|---|---|---:|\n")
    behaviours = Counter(behaviour(entry.template) for entry in entries)
    for parts, count in sorted(behaviours.items(), key=lambda item: (-item[1], item[0])):
        out.append(f"| {' | '.join(parts)} | {count} |\n")

    out.append("\n## Why turns are split or refused\n")
    for kind in kinds:
        why: defaultdict[str, set[str]] = defaultdict(set)
        for name, row in table.items():
            if row[kind].word in ("split", "part refused", "refused", "loses content"):
                for reason in row[kind].reasons:
                    why[reason].add(name)
        out.append(f"\n### {kind}\n\n| reason | templates |\n|---|---|\n")
        for reason, names in sorted(why.items(), key=lambda item: (-len(item[1]), item[0])):
            out.append(f"| {reason} | {_some(names)} |\n")
    stopless = {name for name, row in table.items() if row["plain"].stopless or row["system"].stopless}
    headers = {
        entry.name
        for entry in entries
        if behaviour(entry.template)[0].startswith("no generation prompt")
        and behaviour(entry.template)[1].startswith("markers")
    }
    out.append(f"\n## No stop token after some plain turn\n\n{_some(stopless, None)}\n")
    out.append(HEADERS.format(names=_some(headers, None)))

    out.append("\n## Every template\n\n| template | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds) + "\n")
    for name, row in sorted(table.items()):
        words = [row[kind].word + (" (no stop)" if _also_stopless(row[kind]) else "") for kind in kinds]
        out.append(f"| {name} | " + " | ".join(words) + " |\n")
    return "".join(out)


def _also_stopless(found: Outcome) -> bool:
    return found.stopless and found.word in ("split", "part refused")


def _some(names: set[str], most: int | None = 6) -> str:
    listed = sorted(names)
    more = "" if most is None or len(listed) <= most else f" and {len(listed) - most} more"
    return f"{len(listed)}: " + ", ".join(listed[:most]) + more


HEAD = """\
# What becomes of real chat templates

Generated by benchmarks/templates_report.py from {count} chat templates, without a tokenizer and with no keyword
arguments; not to be changed by hand. With the model's own tokenizer the stop tokens are known instead of guessed by
their look, and keyword arguments such as `enable_thinking` change what a prompt supplies: `maskpipe explain` shows it
for your data. The conversations are those of tests/conversations.py; a kind's outcome is the worst of its chats:

{chats}

**How to read it.** *exact* needs no thought. *split* costs tokens, never correctness: each such turn becomes a document
that begins with the very prompt of inference (`on_history_rewrite` chooses otherwise). *no stop* means that the model
is not taught to stop by this template; data with another turn behind it may still teach it. *refused* turns get no
loss and are counted; most of them are answers without reasoning for a prompt that opens reasoning (switch thinking off
in `chat_template_kwargs`, or use `sampled_text="verbatim"`). *loses content* refuses the record unless
`on_content_lost` is `count`. What each verdict means and when: docs/decisions/002-verdicts-of-turns.md.

"""

HEADERS = """
## Markers that no prompt supplies

These write a header or a channel before the answer and offer no prompt that holds it (or always the same one), so the
model has to write it and it is sampled: {names}
"""


def main() -> None:
    sys.stdout.write(write(chat_templates(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
