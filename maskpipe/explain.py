"""explain: one conversation, token by token: whose each is, whether it gets loss, and why. For when a mask looks wrong.

    record ─▶ Explanation ─▶ text for a terminal, or JSON

    position  input token        true next token    in the loss   why
    4         "\\n"               "Hello"            yes           assistant content
    5         "Hello"            "<|im_end|>"       yes           stop token: the turn ends here
    6         "<|im_end|>"       "\\n"               no            template text after the turn's end

`reasons` is the one place that turns facts into reasons; everything that shows a reason asks it.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text as Shown

from maskpipe.branches import encode_all, joined
from maskpipe.chat import Conversation, Text, read_all
from maskpipe.encoder import Encoder
from maskpipe.errors import RecordError, UsageError
from maskpipe.findings import Finding
from maskpipe.policy import Policy, kinds, may_train
from maskpipe.roles import Branch, Flag, Part, Role, Verdict, role_of
from maskpipe.sources import open_sources

if TYPE_CHECKING:
    from maskpipe.document import Document
    from maskpipe.template.sampled import Turn
    from maskpipe.tokenizer import Tokenizer


# -- why: facts -> reasons


class Why(IntEnum):
    """Why a token gets loss (below 32) or does not."""

    CONTENT = 0
    REASONING = 1
    TOOL_CALL = 2
    STOP = 3
    WRAPPER = 4
    EMPTY_REASONING_TRAINED = 5
    SELECTED = 6
    TEXT = 7
    ALL = 8
    GIVEN = 9

    FIRST = 32
    HEADER = 33
    AFTER_STOP = 34
    SYSTEM = 35
    USER = 36
    TOOL = 37
    CONTEXT = 38
    OTHER = 39
    AROUND = 40
    TEMPLATE = 41
    STRADDLES = 42
    EMPTY_REASONING = 43
    REFUSED = 44
    HISTORY_DIFFERS = 45
    HISTORY_OF_SPLIT = 46
    WEIGHT_0 = 47
    NOT_CHOSEN = 48
    NOT_SELECTED = 49
    NOT_SAMPLED = 50
    PROMPT = 53
    PADDING = 51
    UNKNOWN = 52
    GIVEN_NONE = 53


WORDS = {
    Why.CONTENT: "assistant content",
    Why.REASONING: "assistant reasoning, with its markup",
    Why.TOOL_CALL: "assistant tool call, with its markup",
    Why.STOP: "stop token: the turn ends here",
    Why.WRAPPER: "assistant markup: the model writes it itself",
    Why.EMPTY_REASONING_TRAINED: "empty reasoning added by the template, trained because of train_on_empty_reasoning",
    Why.SELECTED: "not the assistant's, but selected by train_on",
    Why.TEXT: "text",
    Why.ALL: "every token is trained under this recipe",
    Why.GIVEN: "the mask of the data says so",
    Why.FIRST: "first token of a document: nothing predicts it",
    Why.HEADER: "header: supplied by the generation prompt",
    Why.AFTER_STOP: "template text after the turn's end",
    Why.SYSTEM: "system message",
    Why.USER: "user message",
    Why.TOOL: "tool output",
    Why.CONTEXT: "tool definitions and documents",
    Why.OTHER: "message of another role",
    Why.AROUND: "template text around the message",
    Why.TEMPLATE: "template text",
    Why.STRADDLES: "straddles the border of sampled text",
    Why.EMPTY_REASONING: "empty reasoning added by the template",
    Why.REFUSED: "turn refused",
    Why.HISTORY_DIFFERS: "turn whose context is not what inference would feed",
    Why.HISTORY_OF_SPLIT: "history of a split turn",
    Why.WEIGHT_0: "source weight 0",
    Why.NOT_CHOSEN: "turn not chosen by train_on",
    Why.NOT_SELECTED: "not selected by train_on",
    Why.NOT_SAMPLED: "assistant text that the model does not write here",
    Why.PROMPT: "turn of the prompt, which the answers share",
    Why.PADDING: "padding",
    Why.UNKNOWN: "role unknown",
    Why.GIVEN_NONE: "the mask of the data says so",
}
"""The reason of each kind, as a person reads it."""

_OTHERS = {
    Role.SYSTEM: Why.SYSTEM,
    Role.USER: Why.USER,
    Role.TOOL: Why.TOOL,
    Role.CONTEXT: Why.CONTEXT,
    Role.OTHER: Why.OTHER,
    Role.TEXT: Why.NOT_SELECTED,
    Role.TEMPLATE: Why.TEMPLATE,
    Role.PADDING: Why.PADDING,
    Role.UNKNOWN: Why.UNKNOWN,
}


def reasons(document: Document, policy: Policy) -> npt.NDArray[np.uint8]:
    """[n] Why of each token as a target. Below 32 exactly where `document.loss_mask` is 1."""
    return np.where(document.loss_mask > 0, _gets_loss(document, policy), _gets_none(document, policy)).astype(np.uint8)


def _gets_loss(document: Document, policy: Policy) -> npt.NDArray[np.uint8]:
    roles, parts = document.role_ids, kinds(document.part_ids, document.flags, document.message_ids)
    assistant = (roles == Role.ASSISTANT) & (document.sampled > 0)
    everything = Why.ALL if policy.trains_everything else Why.SELECTED
    out = np.where(roles == Role.TEXT, Why.TEXT, everything)
    for part, why in (
        (Part.CONTENT, Why.CONTENT),
        (Part.REASONING, Why.REASONING),
        (Part.TOOL_CALL, Why.TOOL_CALL),
        (Part.STOP, Why.STOP),
        (Part.SCAFFOLD, Why.WRAPPER),
    ):
        out[assistant & (parts == part)] = why
    out[document.flags & Flag.EMPTY_REASONING > 0] = Why.EMPTY_REASONING_TRAINED
    return out.astype(np.uint8)


def _gets_none(document: Document, policy: Policy) -> npt.NDArray[np.uint8]:
    roles, flags = document.role_ids, document.flags
    out = np.full(len(document), Why.UNKNOWN, np.uint8)
    for role, why in _OTHERS.items():
        out[roles == role] = why
    spoken = np.isin(roles, (Role.SYSTEM, Role.USER, Role.TOOL, Role.CONTEXT, Role.OTHER))
    out[spoken & (document.part_ids == Part.SCAFFOLD)] = Why.AROUND
    for message in np.unique(document.message_ids[roles == Role.ASSISTANT]).tolist():
        own = (roles == Role.ASSISTANT) & (document.message_ids == message)
        out[own] = _of_turn(document, policy, message, own)[own]
    if document.weights is not None:
        would = (document.sampled > 0) | (policy.loss(replace(document, weights=None)) > 0)
        out[(document.weights == 0) & would] = Why.WEIGHT_0
    out[flags & Flag.STRADDLES > 0] = Why.STRADDLES
    out[:1] = Why.FIRST if document.parent is None else Why.HEADER
    out[roles == Role.PADDING] = Why.PADDING
    return out


def _of_turn(document: Document, policy: Policy, message: int, own: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Why tokens of an assistant turn, those without loss, have none."""
    out = np.full(len(document), Why.NOT_SAMPLED, np.uint8)
    sampled = np.flatnonzero(own & (document.flags & (Flag.SAMPLED | Flag.STRADDLES) > 0))
    if message not in document.verdicts and (document.pair is not None or document.label is not None):
        out[:] = Why.PROMPT
        return out
    verdict = document.verdicts.get(message, Verdict.REFUSED)
    if document.turn >= 0 and message != document.turn:
        out[:] = Why.HISTORY_OF_SPLIT
        return out
    if verdict & Verdict.REFUSED:
        out[:] = Why.REFUSED
        return out
    if len(sampled):
        place = np.arange(len(document))
        literal = document.part_ids == Part.SCAFFOLD
        out[(place < sampled[0]) & literal] = Why.HEADER
        out[(place > sampled[-1]) & literal] = Why.AFTER_STOP
    why = Why.NOT_SELECTED
    if message not in policy.chosen_turns(sorted(document.verdicts)):
        why = Why.NOT_CHOSEN
    elif document.turn < 0 and not may_train(verdict, policy):
        why = Why.HISTORY_DIFFERS
    out[sampled] = why
    if not policy.empty_reasoning:
        out[document.flags & Flag.EMPTY_REASONING > 0] = Why.EMPTY_REASONING
    return out


def verdict_words(verdict: Verdict) -> str:
    """A verdict as a person reads it."""
    if verdict & Verdict.REFUSED:
        return "refused"
    names = {Verdict.HISTORY_DIFFERS: "history differs", Verdict.NO_STOP: "no stop token"}
    return ", ".join(name for bit, name in names.items() if verdict & bit) or "exact"


# -- the article's table


@dataclass(frozen=True)
class Prediction:
    """One position of the article's table: what the model reads, what it must predict, and what that costs."""

    position: int
    input_id: int
    next_id: int
    in_loss: bool
    """The true next token is a target with loss."""
    why: Why
    probability: float | None = None
    """What a model gave the true next token."""
    loss: float | None = None
    """-log(probability); None without one."""


@dataclass(frozen=True)
class PredictionTable:
    """n - 1 predictions of a document of n tokens: every position but the last predicts the one after it."""

    rows: tuple[Prediction, ...]
    mean_loss: float | None
    """Mean of -log(probability) over the positions in the loss; None without probabilities or such positions."""


def prediction_table(
    document: Document,
    probabilities: Sequence[float] | npt.NDArray[np.floating[Any]] | None = None,
    policy: Policy | None = None,
) -> PredictionTable:
    """The article's table. `probabilities` [n - 1]: what a model gave the true next token at each position.

    UsageError when there are not n - 1 of them or one is outside [0, 1]. -log(0) is infinite. `policy` words the
    reasons; None: the default recipe's.
    """
    size = max(0, len(document) - 1)
    if probabilities is not None:
        if len(probabilities) != size:
            raise UsageError(
                f"a document of {len(document)} tokens has {size} predictions, got {len(probabilities)} probabilities"
            )
        bad = next((k for k, p in enumerate(probabilities) if not 0 <= p <= 1), None)
        if bad is not None:
            raise UsageError(f"probabilities[{bad}] is {probabilities[bad]}; a probability is between 0 and 1")
    why, mask = reasons(document, policy or _default_policy()), document.loss_mask
    ids = document.input_ids.tolist()
    rows = []
    for k in range(size):
        p = None if probabilities is None else float(probabilities[k])
        loss = None if p is None else -math.log(p) if p > 0 else math.inf
        rows.append(Prediction(k, ids[k], ids[k + 1], bool(mask[k + 1]), Why(why[k + 1]), p, loss))
    losses = [row.loss for row in rows if row.in_loss and row.loss is not None]
    return PredictionTable(tuple(rows), math.fsum(losses) / len(losses) if losses else None)


def _default_policy() -> Policy:
    from maskpipe.recipe import Recipe

    return Policy.of(Recipe())


# -- one record


@dataclass
class Explanation:
    """What became of one record, and why."""

    place: str
    """Where a person finds it: file:line, or file and record."""
    row: int
    conversation: Conversation | Text | None
    """None when the record could not be read."""
    tokenizer: Tokenizer
    policy: Policy
    documents: list[Document] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    """What was established about each assistant turn, with the reason in words."""
    counts: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    refused: RecordError | None = None
    findings: list[Finding] = field(default_factory=list)
    probabilities: list[npt.NDArray[np.float64]] | None = None
    """Per document, what a model gave the true next token at each position [n - 1]; None without a model."""
    origins: list[str] = field(default_factory=list)
    """Per document of a packed row, which record it is; empty where all are of one record."""

    def tables(self) -> list[PredictionTable]:
        """The article's table of every document."""
        given = self.probabilities if self.probabilities is not None else [None] * len(self.documents)
        return [prediction_table(d, p, self.policy) for d, p in zip(self.documents, given, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values: what `--format json` prints."""
        return {
            "place": self.place,
            "row": self.row,
            "refused": None if self.refused is None else {"reason": self.refused.reason, "message": str(self.refused)},
            "turns": [
                {
                    "message": turn.message,
                    "verdict": verdict_words(turn.verdict),
                    "reason": turn.reason,
                    "outcome": self.outcome(turn.message),
                    "loss_tokens": self.loss_tokens(turn.message),
                }
                for turn in self.turns
            ],
            "documents": [self._document_dict(*each) for each in zip(self.documents, self.tables(), strict=True)],
            "lost": self.lost,
            "dropped": [{"turn": turn, "policy": policy} for turn, policy in self.dropped],
            "counts": dict(sorted(self.counts.items())),
            "findings": [{"code": finding.code, "text": finding.text} for finding in self.findings],
        }

    def _document_dict(self, document: Document, table: PredictionTable) -> dict[str, Any]:
        why = reasons(document, self.policy)
        modelled = self.probabilities is not None
        # of token k: what position k - 1 gave it; nothing predicts the first
        given = [(None, None), *((row.probability, row.loss) for row in table.rows)]
        texts = token_texts(document.input_ids, self.tokenizer)
        return {
            "turn": document.turn,
            **_judged(document),
            "n_tokens": len(document),
            "n_loss": int(document.loss_mask.sum()),
            **({"mean_nll": _finite(table.mean_loss)} if modelled else {}),
            "tokens": [
                {
                    "position": k,
                    "id": int(document.input_ids[k]),
                    "text": texts[k][0],
                    "piece": texts[k][1],
                    "role": Role(document.role_ids[k]).name.lower(),
                    "part": Part(document.part_ids[k]).name.lower(),
                    "message": int(document.message_ids[k]),
                    "sampled": bool(document.sampled[k]),
                    "loss": bool(document.loss_mask[k]),
                    "why": Why(why[k]).name.lower(),
                    **({"probability": given[k][0], "nll": _finite(given[k][1])} if modelled else {}),
                }
                for k in range(len(document))
            ],
        }

    def loss_tokens(self, message: int) -> int:
        """Tokens with loss of one message, over all documents."""
        return sum(int(d.loss_mask[d.message_ids == message].sum()) for d in self.documents)

    def outcome(self, message: int) -> str:
        """What happens to an assistant turn, in words."""
        for number, document in enumerate(self.documents, 1):
            trained = int(document.loss_mask[document.message_ids == message].sum())
            if trained and document.turn == message:
                return f"trained in document {number}, its own"
            if trained:
                return f"trained in document {number}" if len(self.documents) > 1 else "trained"
        gone = next((policy for turn, policy in self.dropped if turn == message), None)
        if gone is not None:
            return f"not trained: {gone.replace('_', ' ')}"
        if self.refused is not None:
            return "not trained: the record is refused"
        for document in self.documents:
            why = reasons(document, self.policy)[(document.message_ids == message) & (document.sampled > 0)]
            if len(why):
                return f"not trained: {WORDS[Why(int(np.bincount(why).argmax()))]}"
        return "not trained: not in any document (cut off for length, or not selected)"


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity: None for it, as for no value."""
    return value if value is not None and math.isfinite(value) else None


def explain(
    source: Any, row: int, *, encoder: Encoder, split: str | None = None, findings: Sequence[Finding] = ()
) -> Explanation:
    """What becomes of record `row` (0-based) of a source. A record that is refused is explained too.

    UsageError when the source has no such row.
    """
    sources = open_sources(source, encoder.recipe, split=split)
    read = 0
    for chunk in sources.chunks():
        read = chunk.first_row + chunk.count
        if chunk.source or row < chunk.first_row:
            break
        if row < read:
            record = next(record for number, record in chunk.records() if number == row)
            return explain_record(record, chunk.place(row), row, encoder, findings)
    raise UsageError(
        f"{sources.names[0]} has no record {row}; it has {read:,}, the first is --row 0"
        if row >= 0
        else f"--row {row}: rows count from 0"
    )


def explain_record(
    record: Any, place: str, row: int, encoder: Encoder, findings: Sequence[Finding] = ()
) -> Explanation:
    """What becomes of one raw record (or the RecordError that came in its place)."""
    out = Explanation(place, row, None, encoder.tokenizer, encoder.policy, findings=list(findings))
    try:
        if isinstance(record, RecordError):
            raise record
        read = read_all(record, encoder.recipe, row=row)
    except RecordError as error:
        out.refused = error
        return out
    out.conversation = joined(read)
    encoded = encode_all(encoder, read).encoded
    out.documents, out.refused, out.turns = encoded.documents, encoded.refused, encoded.turns
    out.counts = {name: n for name, n in encoded.counts.items() if n}
    out.lost = [str(lost) for lost in encoded.lost]
    out.dropped = list(encoded.dropped)
    return out


# -- text that a terminal can show


_LINE_BREAK = "↵"
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """The text with every control, format and unassigned character made visible, so that it can do nothing to a
    terminal and nothing hides: a line break is ↵, a tab ⇥, ESC ␛, U+202E <U+202E>."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    code = ord(character)
    if character == "\n":
        return _LINE_BREAK
    if character == "\t":
        return "⇥"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) == "Zs":
        return "␣" if character != "\u00a0" else "⍽"
    return f"<U+{code:04X}>"


def token_texts(ids: npt.NDArray[np.int32], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The text of each token, and "". Tokens with parts of characters share a text, with their place in it: "1/3"."""
    out: list[tuple[str, str]] = []
    for start, stop in characters(ids, tokenizer):
        text, size = tokenizer.decode(ids[start:stop]), stop - start
        out += [(text, f"{k + 1}/{size}" if size > 1 else "") for k in range(size)]
    return out


def characters(ids: npt.NDArray[np.int32], tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """The smallest groups of tokens [start, stop) that are whole characters; bytes that are no UTF-8 stay alone."""
    start = 0
    while start < len(ids):
        stop, raw = start, b""
        while stop < min(start + 8, len(ids)):
            raw += tokenizer.token_bytes(int(ids[stop]))
            stop += 1
            try:
                raw.decode()
                break
            except UnicodeDecodeError:
                continue
        else:
            stop = start + 1
        yield start, stop
        start = stop


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
    out.append(f"  {_LINE_BREAK} line break" + ("" if plain else "  inverse: control token"))
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


def _judged(document: Document) -> dict[str, Any]:
    """What preference data says of the document; nothing for other data."""
    if document.branch is Branch.NONE and document.label is None:
        return {}
    return {"branch": document.branch.name.lower(), "score": document.score, "label": document.label}


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
    return "".join(_LINE_BREAK + "\n" if c == "\n" else _visible_character(c) for c in text)


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
