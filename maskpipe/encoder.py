"""Conversation or Text + Tokenizer → Documents. A pure function of (record, recipe): no clock, no state that shows.

    render once, with provenance ─▶ turns (sampled.py) ─▶ which turns need a document of their own
      ─▶ one encoding of each whole text ─▶ token bytes merged with spans ─▶ facts per token ─▶ loss (policy.py)

A token takes role, part and message from the span that holds its first byte. It is sampled when all its bytes are;
one that holds bytes from both sides of that border is not, and is flagged (Flag.STRADDLES).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.backends import Backend, Fastokens, engage
from maskpipe.chat import Conversation, Side, Text
from maskpipe.document import Document
from maskpipe.errors import RecordError, TemplateError, TokenizerError, UsageError
from maskpipe.policy import Policy, may_train
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch, Flag, Part, Role, Verdict, verdict_name
from maskpipe.template.lost import Lost, find_lost, find_printed, is_lost
from maskpipe.template.render import Trace, Wrapped, end_of_inline_reasoning, wrap
from maskpipe.template.spans import ChatTemplate
from maskpipe.template.turn import Turn
from maskpipe.tokenizer import NO_CONTENT, NO_INT32, Content, Encoding, Int32, Tokenizer, byte_positions, utf8


def encode(conversation: Conversation | Text, tokenizer: Tokenizer, recipe: Recipe) -> list[Document]:
    """The documents of one record, with loss as the recipe decides; at least one, each at most sequence_length long.

    Raises RecordError with a reason code when the record is refused: the template refuses it or loses its content,
    nothing in it can be trained, it is too long, or it holds control tokens and the recipe refuses those.
    """
    encoded = _encoder(tokenizer, json.dumps(recipe.to_dict())).encode(conversation)
    if encoded.refused is not None:
        raise encoded.refused
    return encoded.documents


@lru_cache(maxsize=8)
def _encoder(tokenizer: Tokenizer, recipe: str) -> Encoder:
    """Learning a template's habits takes a while, so the last few encoders are kept; the recipe comes as JSON text."""
    return Encoder(tokenizer, Recipe.from_dict(json.loads(recipe)))


@dataclass
class Encoded:
    """What became of one record. Tokens add up: `tokens` of the counts are those of `documents` plus the
    `tokens_truncated` and `tokens_dropped_…`."""

    documents: list[Document] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """What a person should know of: tokens made, cut and dropped, control tokens neutralised, fields lost, …"""
    lost: list[Lost] = field(default_factory=list)
    """What the template dropped, where that did not refuse the record."""
    dropped: list[tuple[int, str]] = field(default_factory=list)
    """Documents and turns that came to nothing: (turn or -1, why)."""
    turns: list[Turn] = field(default_factory=list)
    """What was established about each assistant turn of a chat, and why in words."""
    refused: RecordError | None = None
    """Why there are no documents at all."""


@dataclass(frozen=True)
class _View:
    """One text of the conversation on its way to becoming a document."""

    trace: Trace
    turns: list[Turn]
    own: int
    """The only trainable turn, -1 for all."""
    trained: frozenset[int]
    """Message indices of the turns that are trained here: where their prompts end, encoding is cut as at inference."""


@dataclass(frozen=True)
class _Chat:
    """What is decided about one conversation before its texts are tokenized."""

    record: Conversation
    wrapped: Wrapped
    whole: Trace
    turns: list[Turn]
    views: list[_View]
    dropped: list[tuple[int, str]]
    """Turns that come to nothing: (message, why)."""
    why: str
    """Why the first of these does, in words."""


@dataclass(frozen=True)
class _Draft:
    """A text that is ready for the tokenizer."""

    text: str
    raw: bytes
    """`text` in UTF-8."""
    view: _View | None
    """None for plain text, as are the spans."""
    spans: _core.SpanTable | None
    cuts: list[int]
    """Where prompts end, in bytes; ascending."""


@dataclass
class Begun:
    """A record on its way: what is known of it before its texts are tokenized."""

    record: Conversation | Text
    out: Encoded
    chat: _Chat | None = None
    drafts: list[_Draft] = field(default_factory=list)

    @property
    def side(self) -> Side | None:
        """What it is in preference data."""
        return self.record.side if isinstance(self.record, Conversation) else None

    @property
    def texts(self) -> list[str]:
        """What of it goes to the tokenizer; nothing where it is refused already."""
        return [draft.text for draft in self.drafts]

    @property
    def size(self) -> int:
        """Of these texts, in bytes."""
        return sum([len(draft.raw) for draft in self.drafts])


class Encoder:
    """Encodes records of one tokenizer and one recipe. TemplateError or UsageError when they do not go together."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.policy = Policy.of(recipe)
        self._fast: Fastokens | None = engage(tokenizer) if recipe.tokenizer_backend == "fastokens" else None
        allowed = recipe.control_tokens_allowed
        self._allowed_of_role = {
            int(role): frozenset(allowed[role.name.lower()]) for role in Role if allowed.get(role.name.lower())
        }
        self._template: ChatTemplate | None = None
        if recipe.chat_template is not None or tokenizer.chat_template is not None:
            self._template = ChatTemplate(
                recipe.chat_template if recipe.chat_template is not None else tokenizer.chat_template or "",
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
                special_tokens=tokenizer.special_tokens,
                control_tokens=tuple(sorted(tokenizer.control)),
                stop_tokens=tokenizer.stop_tokens,
                clock=recipe.clock,
            )

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def template(self) -> ChatTemplate:
        if self._template is None:
            raise UsageError(
                f"the tokenizer {self.tokenizer.name} has no chat template; give one with --chat-template FILE"
            )
        return self._template

    @property
    def backend(self) -> str:
        """Who computes the ids: tokenizers or fastokens."""
        return "tokenizers" if self._fast is None else self._fast.name

    def choose_backend(self, texts: Sequence[str]) -> Backend:
        """Proves fastokens on these texts of the data, and uses it from here on. Under `auto` one that cannot be used
        is not; asked for by name, that is an error with the reason."""
        asked = self.recipe.tokenizer_backend
        if asked == "tokenizers":
            return Backend()
        try:
            if self._fast is None:
                self._fast = engage(self.tokenizer, texts)
            else:
                self._fast.prove(texts)
        except (UsageError, TokenizerError) as error:
            if asked != "auto":
                raise
            return Backend(reason=str(error), refused=isinstance(error, TokenizerError))
        return Backend(used=self._fast.name)

    def encode(self, record: Conversation | Text) -> Encoded:
        """What becomes of one record."""
        return self.finish([self.begin(record)])[0]

    def begin(self, record: Conversation | Text) -> Begun:
        """Everything up to the tokenizer."""
        begun = Begun(record, Encoded())
        try:
            if isinstance(record, Text):
                begun.drafts = self._text(record)
            else:
                begun.chat = self._chat(record, begun.out)
                begun.drafts = [self._draft(view) for view in begun.chat.views]
        except RecordError as error:
            begun.out.refused = error
        return begun

    def finish(self, records: Sequence[Begun], ids: Sequence[Int32] | None = None) -> list[Encoded]:
        """What becomes of each record. The same as one by one, but their texts go to the tokenizer together; `ids` are
        what that makes of them, where it is known."""
        if ids is None:
            ids = self.ids([text for begun in records for text in begun.texts])
        left = iter(ids)
        for begun in records:
            own = [next(left) for _ in begun.drafts]
            out = begun.out
            if out.refused is not None:
                continue
            try:
                if begun.chat is None:
                    documents = self._text_document(begun.record, begun.drafts[0], own[0], out)
                else:
                    documents = self._chat_documents(begun.chat, begun.drafts, own, out)
                if begun.side is not None and begun.side.branch is not Branch.NONE:
                    out.documents = documents  # both sides of a pair are fitted together (pairs.py)
                else:
                    out.documents = fit_lengths(documents, self.recipe, out)
            except RecordError as error:
                out.refused = error
        return [begun.out for begun in records]

    def _chat(self, record: Conversation, out: Encoded) -> _Chat:
        messages = shown_messages(record.messages, self.recipe)
        wrapped = wrap(
            messages,
            tools=record.tools,
            documents=record.documents,
            kwargs={**self.recipe.chat_template_kwargs, **record.chat_template_kwargs},
        )
        try:
            whole = self.template.engine.trace(wrapped)
        except TemplateError as error:
            raise RecordError(f"{error}{_hint(messages)}", reason="template_error") from None
        _refuse_flood(whole.text, wrapped)
        turns = out.turns = self.template.sampling.turns(wrapped, whole)
        unshown = self._judge_losses(wrapped, whole, out)
        if unshown:
            turns = [_refuse(turn, unshown[turn.message]) if turn.message in unshown else turn for turn in turns]
        out.turns = turns
        return self._plan(record, wrapped, whole, turns)

    def _plan(self, record: Conversation, wrapped: Wrapped, whole: Trace, turns: list[Turn]) -> _Chat:
        views, dropped, why = self._views(wrapped, whole, turns, record)
        return _Chat(record, wrapped, whole, turns, views, dropped, why)

    def _chat_documents(self, chat: _Chat, drafts: list[_Draft], ids: list[Int32], out: Encoded) -> list[Document]:
        counts: Counter[str] = Counter()
        documents = [self._document(chat, draft, given, counts) for draft, given in zip(drafts, ids, strict=True)]
        behind_a_cut = self._turns_behind_a_cut(documents, chat.turns) if "cuts" in counts else set()
        if behind_a_cut:
            out.turns = [_set_apart(turn) if turn.message in behind_a_cut else turn for turn in chat.turns]
            chat = self._plan(chat.record, chat.wrapped, chat.whole, out.turns)
            counts.clear()
            drafts = [self._draft(view) for view in chat.views]
            ids = self.ids([draft.text for draft in drafts])
            documents = [self._document(chat, draft, given, counts) for draft, given in zip(drafts, ids, strict=True)]
        for name, count in counts.items():
            out.counts[name] += count
        for turn in chat.turns:
            out.counts["turns_" + verdict_name(turn.verdict)] += 1
        out.dropped += chat.dropped
        if not documents:
            why = chat.why or ("" if chat.turns else "it has no assistant message")
            raise RecordError(
                "no turn of the conversation can be trained" + (f": {why}" if why else " under this recipe"),
                reason="turns_refused" if chat.dropped else "nothing_to_train",
            )
        return documents

    # -- which texts

    def _judge_losses(self, wrapped: Wrapped, whole: Trace, out: Encoded) -> dict[int, str]:
        """The turns whose own reasoning the template does not show (message → why they cannot be trained). Raises
        RecordError for other lost content that the recipe does not accept. What only a turn's place in history hides
        is not lost: the turn's own document shows it."""
        unshown: dict[int, str] = {}
        last = len(wrapped.raw["messages"]) - 1
        for lost in find_lost(whole) + find_printed(self.template.engine, wrapped, whole):
            if lost.role is Role.ASSISTANT and lost.message != last:
                try:
                    alone = self.template.engine.trace(wrapped, lost.message + 1)
                except TemplateError:
                    alone = whole
                if not is_lost(alone, lost):
                    out.counts["fields_shortened_in_history"] += 1
                    continue
            if self.recipe.on_content_lost == "count" or (
                lost.part is Part.REASONING and self.recipe.sampled_text == "verbatim"
            ):
                out.counts["fields_lost"] += 1
                out.lost.append(lost)
            elif lost.part is Part.REASONING:
                unshown[lost.message] = f"{_UNSHOWN} ({lost})"
                out.lost.append(lost)
            else:
                raise RecordError(
                    f"the chat template loses content: {lost}. Use a template that shows it, or accept the loss with "
                    f"--on-content-lost count{_hint(wrapped.raw['messages'])}",
                    reason="content_lost",
                )
        return unshown

    def _views(
        self, wrapped: Wrapped, whole: Trace, turns: list[Turn], record: Conversation
    ) -> tuple[list[_View], list[tuple[int, str]], str]:
        """The whole conversation when something in it can be trained, and the turns that need a document of their own;
        beside them the turns that the recipe wants and that come to nothing, and why the first of these does."""
        if self.policy.trains_everything or not self.policy.trains_turns:
            return [_View(whole, turns, -1, frozenset())], [], ""
        answers = [turn for turn in turns if turn.message >= _prompt_size(record)]
        wanted = self.policy.chosen_turns([turn.message for turn in answers])
        wanted -= {index for index, weight in enumerate(record.weights) if weight == 0}
        apart = [turn for turn in answers if not may_train(turn.verdict, self.policy)]
        if self.recipe.on_history_rewrite == "last" and apart:
            wanted &= {turns[-1].message}
        views = []
        in_place = frozenset(turn.message for turn in turns if turn not in apart) & wanted
        if self.policy.trains_others or in_place:
            views.append(_View(whole, turns, -1, in_place))
        dropped = []
        reasons = []
        for turn in apart:
            if turn.message in wanted:
                splits = self.recipe.on_history_rewrite in ("split", "last")
                view, reason = self._own_view(wrapped, turn) if splits else (None, turn.reason)
                if view is None:
                    reasons.append(reason)
                    dropped.append((turn.message, "turn_refused"))
                else:
                    views.append(view)
        return views, dropped, next(filter(None, reasons), "")

    def _own_view(self, wrapped: Wrapped, turn: Turn) -> tuple[_View | None, str]:
        sampling = self.template.sampling
        if self.recipe.sampled_text == "verbatim":
            trace, own = sampling.verbatim_document(wrapped, turn.message)
        elif turn.reason.startswith(_UNSHOWN):
            return None, turn.reason
        else:
            trace, own = sampling.own_document(wrapped, turn.message)
        return None if trace is None else _View(trace, [own], turn.message, frozenset([turn.message])), own.reason

    def _turns_behind_a_cut(self, documents: list[Document], turns: list[Turn]) -> set[int]:
        """Where inference encodes a prompt up to a cut that the prompts of later turns do not have, the later turns'
        context is not these ids."""
        if not documents or documents[0].turn >= 0 or self.recipe.on_history_rewrite == "accept":
            return set()
        cuts = np.flatnonzero(documents[0].flags & Flag.CUT_BEFORE)
        if not len(cuts):
            return set()
        first = int(documents[0].message_ids[cuts[0]])
        return {turn.message for turn in turns if turn.message > first and may_train(turn.verdict, self.policy)}

    # -- one text

    def _draft(self, view: _View) -> _Draft:
        trace = view.trace
        raw = utf8(trace.text)
        spans = span_table(trace, view.turns, raw)
        cuts = sorted({turn.cut for turn in view.turns if turn.cut > 0 and turn.message in view.trained})
        return _Draft(trace.text, raw, view, spans, byte_positions(trace.text, raw, cuts))

    def _document(self, chat: _Chat, draft: _Draft, ids: Int32, counts: Counter[str]) -> Document:
        view, spans = draft.view, draft.spans
        assert view is not None and spans is not None
        if self.recipe.control_tokens_in_content == "keep":
            content = NO_CONTENT
        else:
            starts, ends, roles = spans.content()
            content = Content(starts, ends, self._allowed(roles))
        encoding = self._encode_text(draft, content, ids, counts)
        cut_before = np.array(encoding.cut_before, np.int32) if encoding.cut_before else NO_INT32
        facts = _core.token_facts(encoding.byte_ends, spans, cut_before)
        counts["tokens"] += len(encoding.input_ids)
        counts["straddling_tokens"] += facts.straddling
        counts["straddling_parts"] += facts.straddling_parts
        first = _prompt_size(chat.record)
        verdicts = {turn.message: turn.verdict for turn in (*chat.turns, *view.turns) if turn.message >= first}
        weights = _weights(chat.record, facts.messages)
        side = chat.record.side
        marks = self.policy.mark(facts.roles, facts.parts, facts.flags, facts.messages, weights, view.own, verdicts)
        return Document(
            input_ids=encoding.input_ids,
            role_ids=facts.roles,
            part_ids=facts.parts,
            flags=marks,
            message_ids=facts.messages,
            weights=weights,
            source=chat.record.source,
            row=chat.record.row,
            turn=view.own,
            verdicts=verdicts,
            score=None if side is None else side.score,
            label=None if side is None else side.label,
        )

    def _allowed(self, roles: npt.NDArray[np.uint8]) -> list[frozenset[str]] | None:
        """The control tokens that each range of content may hold; None where none may hold any."""
        if not self._allowed_of_role:
            return None
        none: frozenset[str] = frozenset()
        return [self._allowed_of_role.get(role, none) for role in roles.tolist()]

    def _encode_text(self, draft: _Draft, content: Content, ids: Int32, counts: Counter[str]) -> Encoding:
        encoding = self.tokenizer.encode_bytes(draft.text, draft.raw, content, draft.cuts, ids)
        if encoding.neutralised and self.recipe.control_tokens_in_content == "refuse":
            start, _, token = encoding.neutralised[0]
            raise RecordError(
                f"content holds the control token {token!r} (character {start} of the rendered text); encode it as "
                "ordinary text with --control-tokens-in-content text",
                reason="control_token_in_content",
            )
        for name, count in encoding.counts.items():
            counts[name] += count
        return encoding

    def ids(self, texts: list[str]) -> list[Int32]:
        """What the tokenizer makes of each text, taken alone."""
        return self._fast.ids(texts) if self._fast is not None else self.tokenizer.ids(texts)

    def _text(self, record: Text) -> list[_Draft]:
        if self.recipe.objective != "pretrain":
            raise RecordError(
                f"plain text has no turns to train under objective={self.recipe.objective!r}; use --objective pretrain",
                reason="text_needs_pretrain",
            )
        return [_Draft(record.text, utf8(record.text), None, None, [])]

    def _text_document(self, record: Conversation | Text, draft: _Draft, ids: Int32, out: Encoded) -> list[Document]:
        content = NO_CONTENT
        if self.recipe.control_tokens_in_content != "keep" and draft.raw:
            content = Content(np.zeros(1, np.int64), np.array([len(draft.raw)]), None)
        encoding = self._encode_text(draft, content, ids, out.counts)
        size = len(encoding.input_ids)
        out.counts["tokens"] += size
        if not size:
            return []
        document = Document(
            input_ids=encoding.input_ids,
            role_ids=np.full(size, Role.TEXT, np.uint8),
            part_ids=np.full(size, Part.CONTENT, np.uint8),
            flags=np.full(size, Flag.SAMPLED, np.uint8),
            message_ids=np.full(size, -1, np.int32),
            source=record.source,
            row=record.row,
        )
        return [with_loss(document, self.policy)]


def _prompt_size(record: Conversation) -> int:
    """Messages whose turns are not trained: those of the prompt, in preference data."""
    return 0 if record.side is None else record.side.prompt


MAX_OUTPUT = 1 << 20
"""Characters that a template may always print..."""
MAX_OUTPUT_FACTOR = 8
"""...and so many for each character of the conversation."""


def _refuse_flood(text: str, wrapped: Wrapped) -> None:
    """RecordError for a template that prints without measure, before its text is encoded."""
    if len(text) <= MAX_OUTPUT:
        return
    limit = MAX_OUTPUT + MAX_OUTPUT_FACTOR * len(json.dumps(wrapped.raw, ensure_ascii=False, default=str))
    if len(text) > limit:
        raise RecordError(
            f"the chat template prints {len(text):,} characters for it, more than {limit:,}", reason="output_too_large"
        )


def shown_messages(messages: list[dict[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
    """The messages as the template is to see them."""
    out = []
    for message in messages:
        content = message.get("content")
        if content is None and "content" in message and recipe.null_content == "empty":
            message = {**message, "content": ""}
        elif isinstance(content, list) and recipe.content_parts == "join":
            message = {**message, "content": "".join(part["text"] for part in content)}
        out.append(message)
    return out


def _hint(messages: list[dict[str, Any]]) -> str:
    """What may help a template that cannot take these messages."""
    for number, message in enumerate(messages):
        if message.get("content", "") is None:
            return f". Message {number} has null content; --null-content empty shows it as an empty text"
        if isinstance(message.get("content"), list):
            return f". Message {number} has a list of text parts; --content-parts join makes it one text"
    return ""


_UNSHOWN = "the template does not show its reasoning"


def _refuse(turn: Turn, reason: str) -> Turn:
    return replace(turn, verdict=turn.verdict | Verdict.REFUSED, reason=reason)


def _set_apart(turn: Turn) -> Turn:
    return replace(turn, verdict=turn.verdict | Verdict.HISTORY_DIFFERS, reason="an earlier cut changes its context")


def count_loss(document: Document) -> int:
    """How many tokens get loss."""
    return int(np.count_nonzero(document.flags & _LOSS))


_LOSS = np.uint8(Flag.LOSS)


def span_table(trace: Trace, turns: Sequence[Turn], raw: bytes) -> _core.SpanTable:
    """The spans of a trace, as `template.spans.spans_of` gives them, in bytes of its text's UTF-8 `raw`."""
    places = [
        (turn.message, turn.start, turn.stop, *(turn.stop_token or _NOWHERE), *(turn.empty_reasoning or _NOWHERE))
        for turn in turns
    ]
    if trace.core is not None:
        return trace.core.spans(places, raw)
    leaves = [(leaf.role, leaf.part, leaf.message, end_of_inline_reasoning(leaf)) for leaf in trace.leaves]
    return _core.SpanTable(trace.origins, leaves, trace.roles, places, raw)


_NOWHERE = (-1, -1)


def _weights(record: Conversation, messages: npt.NDArray[np.int32]) -> npt.NDArray[np.float32] | None:
    """The data's own weight of each token's message; None when it is 1 everywhere."""
    if all(weight is None or weight == 1 for weight in record.weights):
        return None
    table = np.array([1.0 if weight is None else weight for weight in record.weights] + [1.0], np.float32)
    return table[messages]  # -1 takes the last entry


def with_loss(document: Document, policy: Policy) -> Document:
    """The document with Flag.LOSS as the policy decides."""
    return replace(document, flags=policy.flags(document))


def fit_lengths(documents: list[Document], recipe: Recipe, out: Encoded) -> list[Document]:
    """The documents of one record, those longer than a sequence as the recipe wants them, and only those with something
    left to train. What became of the others is counted in `out`; RecordError when nothing is left."""
    return _trainable(documents if recipe.packing == "concat_split" else _fit(documents, recipe, out), out)


def _fit(documents: list[Document], recipe: Recipe, out: Encoded) -> list[Document]:
    limit = recipe.sequence_length
    kept = []
    for document in documents:
        size = len(document)
        if size <= limit:
            kept.append(document)
        elif recipe.on_too_long == "refuse":
            out.counts["tokens_dropped_too_long"] += sum(map(len, documents))
            raise RecordError(
                f"a document has {size:,} tokens, a sequence holds {limit:,}; raise --sequence-length or choose "
                "--on-too-long drop or truncate",
                reason="too_long",
            )
        elif recipe.on_too_long == "split" and _is_text(document):
            out.counts["documents_split"] += 1
            kept += [slice_document(document, start, start + limit) for start in range(0, size, limit)]
        else:
            fits = _whole_turns(document, limit) if recipe.on_too_long == "truncate" else 0
            if fits:
                out.counts["documents_truncated"] += 1
                out.counts["tokens_truncated"] += size - fits
                kept.append(slice_document(document, 0, fits))
            else:
                out.counts["tokens_dropped_too_long"] += size
                out.dropped.append((document.turn, "too_long"))
    if documents and not kept:
        raise RecordError(
            f"every document of the record is longer than a sequence of {limit:,} tokens, and no whole turn fits",
            reason="too_long",
        )
    return kept


def _trainable(documents: list[Document], out: Encoded) -> list[Document]:
    kept = []
    for document in documents:
        if count_loss(document):
            kept.append(document)
        else:
            out.counts["tokens_dropped_nothing_to_train"] += len(document)
            out.dropped.append((document.turn, "nothing_to_train"))
    if not kept:
        raise RecordError("no token of the record gets loss under this recipe", reason="nothing_to_train")
    return kept


def slice_document(document: Document, start: int, stop: int) -> Document:
    """Tokens start..stop as a document of their own; its first token is no target."""
    flags = document.flags[start:stop].copy()
    flags[:1] &= np.uint8(0xFF ^ Flag.LOSS)
    return replace(
        document,
        input_ids=document.input_ids[start:stop],
        role_ids=document.role_ids[start:stop],
        part_ids=document.part_ids[start:stop],
        flags=flags,
        message_ids=document.message_ids[start:stop],
        weights=None if document.weights is None else document.weights[start:stop],
    )


def _is_text(document: Document) -> bool:
    """Is this plain text, not a chat? A chat may have no assistant turn."""
    return bool(document.role_ids[0] == Role.TEXT)


def _whole_turns(document: Document, limit: int) -> int:
    """How many tokens to keep so that the last message kept is a whole assistant turn, stop token included; 0 for none.
    Plain text keeps `limit` tokens."""
    if _is_text(document):
        return limit
    trained = np.flatnonzero((document.role_ids == Role.ASSISTANT) & (document.flags & Flag.SAMPLED > 0))[::-1]
    _, last = np.unique(document.message_ids[trained], return_index=True)
    ends = trained[last] + 1  # per message, ascending
    fitting = ends[ends <= limit]
    return int(fitting[-1]) if len(fitting) else 0
