"""Writes tests/golden/sampled/*.txt: what is sampled, shown so that a person can judge it.

    python -m tests.golden.make_sampled

Each template of tests/golden/templates shows one behaviour that a naive rule gets wrong; its first line says which.
`⟦…⟧` is sampled, the stop token in `⟨…⟩`, an empty reasoning block that is not trained in `⦃…⦄`; `↵` is a newline.
"""

from __future__ import annotations

from pathlib import Path

from maskpipe.roles import Verdict
from maskpipe.template import ChatTemplate
from maskpipe.template.render import Trace, wrap
from maskpipe.template.turn import Turn
from tests.conversations import Chat, assistant, call, tool, user

HERE = Path(__file__).parent

PLAIN = Chat([user("Ahoy?"), assistant("Ahoy."), user("Wind?"), assistant("From the west.")])
REASONING = Chat(
    [
        user("3 + 4?"),
        assistant("7.", reasoning_content="Three and four."),
        user("Sure?"),
        assistant("Yes.", reasoning_content="Count again."),
    ]
)
INLINE = Chat([user("3 + 4?"), assistant("<think>\nThree and four.\n</think>\n\n7.")])
TOOL = Chat(
    [
        user("Ring twice."),
        assistant(None, tool_calls=[call("ring", {"times": 2}, "call00001")]),
        tool("ring", "call00001", "rung"),
        assistant("Done."),
    ]
)
MODEL = Chat([user("assistant"), assistant("model"), user("model"), assistant("user")])
THINKING_OFF = Chat(PLAIN.messages, kwargs={"enable_thinking": False})
THINKING_ON = Chat(REASONING.messages, kwargs={"enable_thinking": True})

CASES: dict[str, tuple[Chat, ...]] = {
    "always_on_prompt": (PLAIN,),
    "channels_and_two_stops": (PLAIN, REASONING, TOOL),
    "closed_prefill": (PLAIN, THINKING_ON, REASONING),
    "empty_block_in_history": (PLAIN, THINKING_OFF, REASONING),
    "eos_for_the_whole_chat": (PLAIN,),
    "header_that_the_prompt_lacks": (TOOL,),
    "loop_by_index": (PLAIN,),
    "no_prompt_but_header": (PLAIN,),
    "no_prompt_instruct": (PLAIN,),
    "open_prefill": (PLAIN, REASONING, INLINE),
    "other_instruction_in_the_prompt": (PLAIN,),
    "prefill_written_otherwise": (PLAIN, THINKING_OFF, REASONING),
    "renamed_role": (MODEL,),
    "stop_is_next_header": (PLAIN, TOOL),
    "stop_only_at_the_end": (PLAIN,),
    "stop_then_newline": (PLAIN,),
    "stop_written_by_next_message": (PLAIN,),
    "tools_inside_the_turn": (TOOL,),
}


def page(name: str) -> str:
    """The text of one golden file."""
    path = HERE / "templates" / f"{name}.jinja"
    template = ChatTemplate(path.read_text(encoding="utf-8"), bos_token="<s>", eos_token="</s>")
    shown = path.read_text(encoding="utf-8").partition("-#}")[0].removeprefix("{#-").strip()
    return shown + "\n" + "".join(_case(template, chat) for chat in CASES[name])


def _case(template: ChatTemplate, chat: Chat) -> str:
    wrapped = wrap(chat.messages, tools=chat.tools, documents=chat.documents, kwargs=chat.kwargs)
    whole = template.engine.trace(wrapped)
    turns = template.sampling.turns(wrapped, whole)
    out = ["\n" + "=" * 72 + "\n"]
    for index, message in enumerate(chat.messages):
        fields = {name: value for name, value in message.items() if name not in ("role", "tool_call_id", "name")}
        if "tool_calls" in fields:
            fields["tool_calls"] = [entry["function"] for entry in fields["tool_calls"]]
        out.append(f"{index} {message['role']}: {fields}\n")
    if chat.kwargs:
        out.append(f"with {chat.kwargs}\n")
    out.append("\n" + _marked(whole, [turn for turn in turns if turn.trainable_in_place]))
    for turn in turns:
        out.append(f"\n-- turn {turn.message}: {_verdict(turn)}\n")
        if turn.trainable_in_place:
            continue
        document, own = template.sampling.own_document(wrapped, turn.message)
        if document is None:
            out.append(f"   no document of its own: {own.reason}\n")
        else:
            out.append(f"   its own document: {_verdict(own)}\n" + _marked(document, [own]))
    return "".join(out)


def _verdict(turn: Turn) -> str:
    names = [flag.name.lower() for flag in Verdict if turn.verdict & flag and flag.name] or ["exact"]
    return " + ".join(names) + (f" ({turn.reason})" if turn.reason else "")


def marks(trace: Trace, turn: Turn) -> str:
    """The sampled text of one turn with its marks."""
    text = _with_marks(trace, [turn])
    return text[text.index("⟦") : text.rindex("⟧") + 1]


def _marked(trace: Trace, turns: list[Turn]) -> str:
    return _with_marks(trace, turns).replace("\n", "↵\n") + "\n"


def _with_marks(trace: Trace, turns: list[Turn]) -> str:
    marks: dict[int, str] = {}
    for turn in turns:
        places = [(turn.start, "⟦"), (turn.stop, "⟧")]
        if turn.empty_reasoning is not None:
            places[1:1] = [(turn.empty_reasoning[0], "⦃"), (turn.empty_reasoning[1], "⦄")]
        if turn.stop_token is not None:
            places[-1:-1] = [(turn.stop_token[0], "⟨"), (turn.stop_token[1], "⟩")]
        for at, mark in places:
            marks[at] = marks.get(at, "") + mark
    return "".join(marks.get(at, "") + char for at, char in enumerate(trace.text)) + marks.get(len(trace.text), "")


def main() -> None:
    (HERE / "sampled").mkdir(exist_ok=True)
    for name in CASES:
        (HERE / "sampled" / f"{name}.txt").write_text(page(name), encoding="utf-8")


if __name__ == "__main__":
    main()
