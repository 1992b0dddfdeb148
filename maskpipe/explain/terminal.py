"""An Explanation as a person reads it in a terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text as Shown

from maskpipe.chat import Conversation, Text
from maskpipe.errors import RecordError
from maskpipe.explain.record import Explanation
from maskpipe.explain.table import Prediction, PredictionTable
from maskpipe.explain.text import LINE_BREAK, characters, token_texts, visible, visible_character
from maskpipe.explain.why import WORDS, Why, reasons, verdict_words
from maskpipe.roles import Branch, Role, role_of

if TYPE_CHECKING:
    from maskpipe.document import Document


_STYLES = {
    Role.SYSTEM: "magenta",
    Role.USER: "cyan",
    Role.ASSISTANT: "green",
    Role.TOOL: "yellow",
    Role.CONTEXT: "blue",
    Role.OTHER: "bright_magenta",
    Role.TEXT: "green",
    Role.TEMPLATE: "bright_black",
    Role.PADDING: "bright_black",
    Role.UNKNOWN: "red",
}
OPEN, CLOSE = "⟦", "⟧"
"""Around trained text, so that it is seen without colour too."""
LONG = 2000
"""Stretches of one kind longer than this many characters are shown at their beginning and end, unless all is wanted."""


def show(explanation: Explanation, console: Console, *, tokens: bool = False, full: bool = False) -> None:
    """Prints an explanation. tokens: one line per position instead of one per run; full: long stretches uncut."""
    for part in _parts(explanation, tokens, full, console.width, not console.is_terminal or console.no_color):
        ended = isinstance(part, Shown) and part.plain.endswith("\n")
        console.print(part, soft_wrap=not isinstance(part, Table), end="" if ended else "\n")


def _parts(e: Explanation, tokens: bool, full: bool, width: int, plain: bool) -> Iterator[RenderableType]:
    yield _headline(e)
    yield ""
    if e.turns:
        yield _turn_table(e)
        yield ""
    if e.refused is not None:
        yield _refusal(e.refused)
        yield ""
    if e.documents:
        yield _legend(e, plain)
        yield ""
    for number, (document, table) in enumerate(zip(e.documents, e.tables(), strict=True), 1):
        yield _document_title(e, number, document, table)
        yield ""
        yield _flow(document, e, full)
        yield ""
        yield _token_table(document, table, e, width) if tokens else _run_table(document, table, e, width)
        yield ""
    yield from _notes(e)


def _headline(e: Explanation) -> Shown:
    made = sum(len(document) for document in e.documents)
    trained = sum(int(document.loss_mask.sum()) for document in e.documents)
    out = Shown(visible(e.place), style="bold")
    if isinstance(e.conversation, Conversation):
        count = len(e.conversation.messages)
        out.append(f"   {count} message{'s' * (count != 1)}: ", style="not bold")
        for k, message in enumerate(e.conversation.messages):
            role = str(message.get("role"))
            out.append(" · " if k else "", style="not bold")
            out.append(visible(role), style=f"not bold {_STYLES[role_of(role)]}")
            if k == 11 and count > 13:
                out.append(f" · … {count - 12} more", style="not bold")
                break
    if e.documents:
        many = len(e.documents)
        share = f"{100 * trained / made:.1f} %"
        counted = f"\n{made:,} tokens in {many} document{'s' * (many != 1)}, {trained:,} with loss ({share})"
        out.append(counted, style="not bold")
    return out


def _turn_table(e: Explanation) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("assistant turn", "verdict", "what happens", "tokens with loss"):
        table.add_column(name, justify="right" if name == "tokens with loss" else "left", header_style="dim")
    for turn in e.turns:
        verdict = verdict_words(turn.verdict)
        style = "green" if verdict == "exact" else "red" if verdict == "refused" else "yellow"
        happens = e.outcome(turn.message) + (f" ({turn.reason})" if turn.reason else "")
        trained = f"{e.loss_tokens(turn.message):,}"
        table.add_row(f"messages[{turn.message}]", Shown(verdict, style=style), visible(happens), trained)
    return table


def _refusal(error: RecordError) -> Shown:
    out = Shown("refused  ", style="bold red")
    out.append(visible(str(error)), style="default not bold")
    if error.reason in _ADVICE:
        out.append(f"\nto do    {_ADVICE[error.reason]}", style="default not bold")
    out.append(f"\nreason   {error.reason}: what rejects.jsonl lists and the summary counts", style="dim not bold")
    return out


_ADVICE = {
    "template_error": "the template itself raises this, at inference too. Give the messages as it expects them (order "
    "of roles, content that is not null), or use another template: --chat-template FILE",
    "turns_refused": "the turns above say why. A recipe may decide otherwise: --on-history-rewrite accept trains a "
    "turn where it stands, --sampled-text verbatim takes the message's own text",
    "nothing_to_train": "look at --train-on, at weights in the data, and at --sequence-length",
}
"""What to do where the message itself does not say."""


def _legend(e: Explanation, plain: bool) -> Shown:
    out = Shown()
    present = np.unique(np.concatenate([document.role_ids for document in e.documents]))
    for role in present.tolist():
        out.append(Role(role).name.lower(), style=_STYLES[Role(role)])
        out.append("  ")
    out.append(f"{OPEN}trained{CLOSE}", style="bold underline")
    out.append(f"  {LINE_BREAK} line break" + ("" if plain else "  inverse: control token"))
    out.append("\neach token is predicted from those before it; its loss says whether that is trained", style="dim")
    return out


def _document_title(e: Explanation, number: int, document: Document, table: PredictionTable) -> Shown:
    trained = int(document.loss_mask.sum())
    what = f"messages[{document.turn}] alone, after what inference would feed" if document.turn >= 0 else "all messages"
    if isinstance(e.conversation, Text):
        what = "text"
    if e.origins:
        what = e.origins[number - 1]
    elif document.branch is not Branch.NONE and document.turn < 0:
        what = "its messages"
    what = _judged_words(document) + what
    out = Shown(f"document {number} of {len(e.documents)}", style="bold")
    out.append(f"  {what}, {len(document):,} tokens, {trained:,} with loss", style="not bold")
    if table.mean_loss is not None:
        out.append(f", mean {table.mean_loss:.2f}", style="not bold")
    return out


def _judged_words(document: Document) -> str:
    """The same in words, in front of a title."""
    score = "" if document.score is None else f" (score {document.score:g})"
    if document.branch is Branch.PROMPT:
        return "the prompt, which both answers continue: "
    if document.branch is not Branch.NONE:
        return f"the {document.branch.name.lower()} answer{score}: "
    if document.label is not None:
        return f"an answer that is {'' if document.label else 'not '}wanted{score}: "
    return ""


def _flow(document: Document, e: Explanation, full: bool) -> Shown:
    """The text as it is read, coloured by role, trained stretches between brackets and underlined."""
    out = Shown()
    mask, roles = document.loss_mask, document.role_ids
    controls = {e.tokenizer.added_tokens[token] for token in e.tokenizer.control}
    pieces: list[tuple[int, bool, bool, str]] = []
    for start, stop in characters(document.input_ids, e.tokenizer):
        text = e.tokenizer.decode(document.input_ids[start:stop])
        key = (int(roles[start]), bool(mask[start:stop].any()), int(document.input_ids[start]) in controls)
        if pieces and pieces[-1][:3] == key:
            pieces[-1] = (*key, pieces[-1][3] + text)
        else:
            pieces.append((*key, text))
    trained = False
    for role, loss, control, text in pieces:
        style = _STYLES[Role(role)]
        if loss != trained:
            out.append(OPEN if loss else CLOSE, style="bold")
            trained = loss
        emphasis = "bold underline" if loss else "dim"
        if control:
            emphasis += " reverse"
        out.append(_readable(text, full), style=f"{style} {emphasis}")
    if trained:
        out.append(CLOSE, style="bold")
    return out


def _readable(text: str, full: bool) -> str:
    if not full and len(text) > LONG:
        hidden = len(text) - 2 * (LONG // 4)
        text = f"{text[: LONG // 4]} … {hidden:,} characters, --full shows them … {text[-(LONG // 4) :]}"
    return "".join(LINE_BREAK + "\n" if c == "\n" else visible_character(c) for c in text)


def _quoted(text: str, width: int) -> str:
    """The visible text in quotes, its middle left out where it is wider than `width` cells of a terminal."""
    size = width - 2
    shown = visible(text[: 2 * size] + text[-size:]) if len(text) > 4 * size else visible(text)
    if len(text) > 4 * size or cell_len(shown) > size:
        tail = set_cell_size(shown[::-1], size // 3)[::-1].lstrip()
        shown = f"{set_cell_size(shown, size - 1 - cell_len(tail)).rstrip()}…{tail}"
    return f'"{shown}"'


def _token(text: tuple[str, str], width: int) -> str:
    return f"{_quoted(text[0], width)} {text[1]}".rstrip()


def _loss_cell(in_loss: bool) -> Shown:
    return Shown("yes", style="bold") if in_loss else Shown("no", style="dim")


def _mean_cell(rows: Sequence[Prediction], in_loss: bool) -> Shown:
    """Mean -log p in nats; nothing for the first token, which nothing predicts."""
    losses = [row.loss for row in rows if row.loss is not None]
    text = f"{math.fsum(losses) / len(losses):.2f}" if losses else ""
    return Shown(text, style="bold" if in_loss else "dim")


def _why_cell(document: Document, e: Explanation, position: int, why: Why) -> str:
    words = WORDS[why]
    message = int(document.message_ids[position])
    turn = next((turn for turn in e.turns if turn.message == message), None)
    if why in (Why.REFUSED, Why.HISTORY_DIFFERS) and turn is not None and turn.reason:
        words += f": {turn.reason}"
    if why in (Why.HISTORY_DIFFERS, Why.HISTORY_OF_SPLIT) and message >= 0:
        own = next((k for k, d in enumerate(e.documents, 1) if d.turn == message), None)
        words += f" (trained in document {own})" if own is not None and document.turn != message else ""
    return words


def _runs(why: npt.NDArray[np.uint8], messages: npt.NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Stretches [start, stop) of one reason in one message. Template text inside tool definitions goes with them."""
    edges = np.flatnonzero((np.diff(why) != 0) | (np.diff(messages) != 0)) + 1
    runs = list(itertools.pairwise([0, *edges.tolist(), len(why)]))
    start = None
    for k, (first, stop) in enumerate(runs):
        start = first if start is None else start
        here = int(why[first])
        after = [int(why[first]) for first, _ in runs[k + 1 : k + 3]]
        inside = here == Why.CONTEXT and after == [Why.TEMPLATE, Why.CONTEXT]
        if not inside and not (here == Why.TEMPLATE and why[start] == Why.CONTEXT):
            yield start, stop
            start = None


def _run_table(document: Document, predictions: PredictionTable, e: Explanation, width: int) -> Table:
    """The article's table, one line per run of targets with one reason."""
    modelled = e.probabilities is not None
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("targets", justify="right", header_style="dim", no_wrap=True)
    table.add_column("tokens", justify="right", header_style="dim", no_wrap=True)
    table.add_column("role", header_style="dim", no_wrap=True)
    table.add_column("true next tokens", header_style="dim", no_wrap=True)
    if modelled:
        table.add_column("mean -log p", justify="right", header_style="dim", no_wrap=True)
    table.add_column("loss", header_style="dim", no_wrap=True)
    table.add_column("why", header_style="dim")
    room = max(16, min(48, (width - 37 - 13 * modelled) // 2 - 4))
    why = reasons(document, e.policy)
    for start, stop in _runs(why, document.message_ids):
        role = Role(document.role_ids[start])
        in_loss = bool(document.loss_mask[start])
        style = _STYLES[role]
        table.add_row(
            f"{start}" if stop - start == 1 else f"{start}-{stop - 1}",
            f"{stop - start:,}",
            Shown(role.name.lower(), style=style),
            Shown(
                _quoted(e.tokenizer.decode(document.input_ids[start:stop]), room),
                style=f"{style} bold underline" if in_loss else f"{style} dim",
            ),
            *([_mean_cell(predictions.rows[max(start - 1, 0) : stop - 1], in_loss)] if modelled else []),
            _loss_cell(in_loss),
            visible(_why_cell(document, e, start, Why(why[start]))),
        )
    return table


def _token_table(document: Document, predictions: PredictionTable, e: Explanation, width: int) -> Table:
    """The article's table, one line per position."""
    modelled = e.probabilities is not None
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("position", justify="right", header_style="dim", no_wrap=True)
    table.add_column("input token", header_style="dim", no_wrap=True)
    if modelled:
        table.add_column("p(true next)", justify="right", header_style="dim", no_wrap=True)
    table.add_column("true next token", header_style="dim", no_wrap=True)
    if modelled:
        table.add_column("-log p", justify="right", header_style="dim", no_wrap=True)
    table.add_column("loss", header_style="dim", no_wrap=True)
    table.add_column("why", header_style="dim")
    room = max(12, min(24, (width - 38 - 22 * modelled) // 4))
    texts = token_texts(document.input_ids, e.tokenizer)
    for row in predictions.rows:
        k = row.position
        style = _STYLES[Role(document.role_ids[k + 1])]
        table.add_row(
            str(k),
            Shown(f"{row.input_id} {_token(texts[k], room)}", style=_STYLES[Role(document.role_ids[k])]),
            *([f"{row.probability:.2g}"] if row.probability is not None else []),
            Shown(
                f"{row.next_id} {_token(texts[k + 1], room)}",
                style=f"{style} bold underline" if row.in_loss else style,
            ),
            *([_mean_cell([row], row.in_loss)] if modelled else []),
            _loss_cell(row.in_loss),
            visible(_why_cell(document, e, k + 1, row.why)),
        )
    return table


_NOTES = {
    "control_tokens_neutralised": "control token in content encoded as ordinary text",
    "tokens_truncated": "token cut off at a turn border, to fit a sequence",
    "tokens_dropped_too_long": "token dropped: longer than a sequence, and no whole turn fits",
    "tokens_dropped_nothing_to_train": "token dropped: in a document without anything to train",
    "straddling_tokens": "token straddles the border of sampled text and gets no loss",
    "cuts": "place where encoding was cut because the generation prompt ends there",
    "fields_shortened_in_history": "field shown shortened in history, as at inference",
}


def _notes(e: Explanation) -> Iterator[RenderableType]:
    notes = [f"{e.counts[name]:,} × {words}" for name, words in _NOTES.items() if e.counts.get(name)]
    notes += [f"lost: {text}" for text in e.lost]
    notes += [str(finding) for finding in e.findings]
    if notes:
        yield Group(*(Shown(f"note     {visible(note)}") for note in notes))
