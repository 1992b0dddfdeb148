"""A record → the documents that it must have become, with the facts of each token, decided anew.

    conversation ─renders.py─▶ texts and provenance ─rule.py─▶ turns ─ids.py─▶ tokens ─▶ facts ─selection.py─▶ loss

Nothing of the encoder's way is used: not the tracker, not its sampled rule, not byte sums, not the core's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.exchange import CannotProveError, Data
from maskpipe.auditing.ids import Spelled, Speller
from maskpipe.auditing.renders import Renders, Template
from maskpipe.auditing.rule import Rule, Turn
from maskpipe.auditing.selection import Selection
from maskpipe.auditing.shown import Shown
from maskpipe.chat import Conversation, Text
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.tokenizer import Tokenizer

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

INLINE_END = "</think>"
"""How data marks the end of reasoning that stands inside a message's content."""


@dataclass(eq=False)
class Expected:
    """A document as it must be. Arrays have one entry per token."""

    turn: int
    ids: Int32
    roles: UInt8
    parts: UInt8
    flags: UInt8  # roles.Flag, without loss
    messages: Int32
    weights: npt.NDArray[np.float32] | None
    verdicts: dict[int, int]
    starts: Int32  # first character of each token in the text
    ends: Int32
    shown: Shown | None
    """The text and its provenance; None for plain text."""
    text: str
    item: int
    """Number of the conversation in the record."""
    base: int
    """What is added to message numbers, since a record numbers the messages of all its conversations."""
    prompt: int = -1
    """Of the rejected side of a pair: how many messages its prompt has, which are numbered as in the chosen side;
    `base` is added to the others. -1 elsewhere."""
    split: bool = False
    """Plain text that is cut into several documents where it is too long."""

    def __len__(self) -> int:
        return len(self.ids)

    def local(self, message: int) -> int:
        """The number in its own conversation of a message of the record."""
        return message if message < 0 or 0 <= message < self.prompt else message - self.base

    def rejected(self, prompt: int, chosen: int) -> Expected:
        """The same as the rejected side of a pair whose chosen side has so many messages."""
        base = chosen - prompt

        def number(message: int) -> int:
            return message + base if message >= prompt else message

        return replace(
            self, messages=np.where(self.messages >= prompt, self.messages + base, self.messages).astype(np.int32),
            turn=number(self.turn) if self.turn >= 0 else -1, base=base, prompt=prompt,
            verdicts={number(message): verdict for message, verdict in self.verdicts.items()},
        )  # fmt: skip

    def cut(self, start: int, stop: int) -> Expected:
        at = slice(start, stop)
        return replace(
            self, ids=self.ids[at], roles=self.roles[at], parts=self.parts[at], flags=self.flags[at],
            messages=self.messages[at], weights=None if self.weights is None else self.weights[at],
            starts=self.starts[at], ends=self.ends[at],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class View:
    """A text that becomes a document, and the turns in it."""

    shown: Shown
    turns: list[Turn]
    own: int
    trained: frozenset[int]


@dataclass(eq=False)
class Begun:
    """A conversation or text whose texts are known, before they are encoded."""

    item: int
    base: int
    conversation: Conversation | None
    text: Text | None
    renders: Renders | None
    turns: list[Turn] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    refused: frozenset[int] = frozenset()
    told: bool = False
    """Was anything taken as the dataset says it?"""

    @property
    def prompt(self) -> int:
        """Messages whose turns are not trained: those of the prompt, in preference data."""
        side = None if self.conversation is None else self.conversation.side
        return 0 if side is None else side.prompt

    @property
    def texts(self) -> list[str]:
        return [self.text.text] if self.text is not None else [view.shown.text for view in self.views]


class Expectation:
    """Of one dataset: its tokenizer, template and recipe."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.tokenizer, self.recipe = tokenizer, recipe
        self.selection = Selection.of(recipe)
        self.speller = Speller(tokenizer, recipe.control_tokens_in_content == "keep")
        source = recipe.chat_template if recipe.chat_template is not None else tokenizer.chat_template
        self.rule: Rule | None = None
        if source is not None:
            names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, **tokenizer.special_tokens}
            self.rule = Rule(Template(source, names, recipe.clock), tokenizer.control, tokenizer.stop_tokens)
        self._allowed = {
            int(Role[role.upper()]): frozenset(tokens) for role, tokens in recipe.control_tokens_allowed.items()
        }

    def renders(self, item: Conversation) -> Renders:
        """The renders of a conversation, none made yet. There must be a template."""
        assert self.rule is not None
        kwargs = {**self.recipe.chat_template_kwargs, **item.chat_template_kwargs}
        return Renders(self.rule.template, item, kwargs, _as_shown(item.messages, self.recipe))

    def begin(
        self,
        number: int,
        base: int,
        item: Conversation | Text,
        refused: frozenset[int],
        silent: frozenset[int] = frozenset(),
    ) -> Begun:
        """Up to the tokenizer. `refused`: the turns that the dataset says it refused, which is taken as said; `silent`:
        those of them in which it has nothing sampled. Raises CannotProveError."""
        if isinstance(item, Text):
            return Begun(number, base, None, item, None)
        if self.rule is None:
            raise CannotProveError("the dataset holds no chat template")
        renders = self.renders(item)
        messages = renders.messages
        whole = renders.shown(renders.count)
        turns = [
            self.rule.in_place(renders, index)
            for index, message in enumerate(messages)
            if message.get("role") == "assistant"
        ]
        said = {turn.message for turn in turns if turn.message in refused and not turn.verdict & Verdict.REFUSED}
        turns = [
            Turn(turn.message, int(Verdict.REFUSED))
            if turn.message in silent
            else replace(turn, verdict=turn.verdict | int(Verdict.REFUSED))
            if turn.message in said
            else turn
            for turn in turns
        ]
        begun = Begun(number, base, item, None, renders, turns, refused=frozenset(said), told=bool(refused or silent))
        self._plan(begun, whole)
        return begun

    def finish(self, begun: Begun, spelled: Sequence[Spelled]) -> list[Expected]:
        """The documents, from the tokens of each text taken whole; longer ones are not cut yet."""
        if begun.text is not None:
            return [self._of_text(begun, spelled[0])]
        made = [self._of_view(begun, view, tokens) for view, tokens in zip(begun.views, spelled, strict=True)]
        behind = self._behind_a_cut(begun, made)
        if behind and begun.renders is not None:
            begun.turns = [
                replace(turn, verdict=turn.verdict | int(Verdict.HISTORY_DIFFERS)) if turn.message in behind else turn
                for turn in begun.turns
            ]
            self._plan(begun, begun.renders.shown(begun.renders.count))
            again = self.speller.spell(begun.texts)
            made = [self._of_view(begun, view, tokens) for view, tokens in zip(begun.views, again, strict=True)]
        return made

    # -- which documents

    def _plan(self, begun: Begun, whole: Shown) -> None:
        selection, turns, conversation = self.selection, begun.turns, begun.conversation
        assert conversation is not None and begun.renders is not None and self.rule is not None
        begun.views = []
        if selection.everything or not selection.takes_turns:
            begun.views = [View(whole, turns, -1, frozenset())]
            return
        answers = [turn.message for turn in turns if turn.message >= begun.prompt]
        wanted = selection.chosen(answers)
        wanted -= {index for index, weight in enumerate(conversation.weights) if weight == 0}
        apart = [turn.message for turn in turns if turn.message in answers and not selection.may_train(turn.verdict)]
        if self.recipe.on_history_rewrite == "last" and apart:
            wanted &= {turns[-1].message}
        in_place = frozenset(turn.message for turn in turns if turn.message not in apart) & wanted
        if selection.takes_others or in_place:
            begun.views.append(View(whole, turns, -1, in_place))
        if self.recipe.on_history_rewrite not in ("split", "last"):
            return
        for message in apart:
            if message in wanted:
                if self.recipe.sampled_text == "verbatim":
                    raise CannotProveError("a turn is taken as the data has it (sampled_text: verbatim)")
                own = self.rule.apart(begun.renders, message)
                if own is not None:
                    begun.views.append(View(own[0], [own[1]], message, frozenset([message])))

    def _behind_a_cut(self, begun: Begun, made: list[Expected]) -> set[int]:
        if not made or made[0].turn >= 0 or self.recipe.on_history_rewrite == "accept":
            return set()
        cuts = np.flatnonzero(made[0].flags & np.uint8(Flag.CUT_BEFORE))
        if not len(cuts):
            return set()
        first = int(made[0].messages[cuts[0]]) - begun.base
        return {turn.message for turn in begun.turns if turn.message > first and self.selection.may_train(turn.verdict)}

    # -- facts

    def _of_view(self, begun: Begun, view: View, whole: Spelled) -> Expected:
        conversation, renders = begun.conversation, begun.renders
        assert conversation is not None and renders is not None
        shown, size = view.shown, len(view.shown)
        roles, parts, messages, sampled, empty = self.characters(shown, view.turns, renders)
        cuts = self.cuts(view)
        allowed = None
        if self._allowed:
            none: frozenset[str] = frozenset()
            allowed = [self._allowed.get(role, none) for role in roles.tolist()]
        tokens = self.speller.settle(shown.text, whole, shown.leaf >= 0, allowed, cuts)
        if tokens.neutralised and self.recipe.control_tokens_in_content == "refuse":
            raise CannotProveError("the recipe refuses control tokens in data, and this record holds some")
        starts, ends = _tiled(tokens, size)
        last = np.maximum(ends - 1, starts)
        sums = np.concatenate(([0], np.cumsum(sampled)))
        count = sums[last + 1] - sums[starts]
        whole_inside = count == last + 1 - starts
        flags = np.where(whole_inside, np.uint8(Flag.SAMPLED), np.where(count > 0, np.uint8(Flag.STRADDLES), 0))
        flags |= np.where(whole_inside & empty[starts], np.uint8(Flag.EMPTY_REASONING), np.uint8(0))
        flags[list(tokens.cuts)] |= np.uint8(Flag.CUT_BEFORE)
        verdicts = self.verdicts(begun, view)
        own = messages[starts]
        weights = None
        if any(weight not in (None, 1) for weight in conversation.weights):
            table = np.array([1 if w is None else w for w in conversation.weights] + [1], np.float32)
            weights = table[own]
        return Expected(
            view.own + begun.base if view.own >= 0 else -1, tokens.ids, roles[starts], parts[starts],
            flags.astype(np.uint8), np.where(own >= 0, own + begun.base, own).astype(np.int32), weights, verdicts,
            starts, ends, shown, shown.text, begun.item, begun.base,
        )  # fmt: skip

    @staticmethod
    def cuts(view: View) -> list[int]:
        """Where prompts end inside of a text, ascending."""
        return sorted({turn.cut for turn in view.turns if turn.cut > 0 and turn.message in view.trained})

    @staticmethod
    def verdicts(begun: Begun, view: View) -> dict[int, int]:
        return {
            turn.message + begun.base: turn.verdict
            for turn in (*begun.turns, *view.turns)
            if turn.message >= begun.prompt
        }

    def characters(
        self, shown: Shown, turns: Sequence[Turn], renders: Renders
    ) -> tuple[UInt8, UInt8, Int32, Bool, Bool]:
        """Role, part, message, sampled and empty reasoning of each character."""
        literal = shown.leaf < 0
        of_message = np.array([*renders.roles, Role.TEMPLATE], np.uint8)  # loop -1 takes the last entry
        roles = of_message[shown.loop]
        parts = np.full(len(shown), Part.SCAFFOLD, np.uint8)
        messages = shown.loop.astype(np.int32)
        if not literal.all():
            table = _leaf_table(shown.data)
            leaf = shown.leaf
            roles = np.where(literal, roles, table[0][leaf]).astype(np.uint8)
            inside = (shown.offset >= 0) & (shown.offset < table[3][leaf])
            parts = np.where(literal, parts, np.where(inside, np.uint8(Part.REASONING), table[1][leaf])).astype(
                np.uint8
            )
            messages = np.where(literal, messages, table[2][leaf]).astype(np.int32)
        sampled, empty = np.zeros(len(shown), bool), np.zeros(len(shown), bool)
        for turn in turns:
            at = slice(turn.start, turn.stop)
            sampled[at] = True
            here = literal[at]
            roles[at][here], messages[at][here], parts[at][here] = Role.ASSISTANT, turn.message, Part.SCAFFOLD
            for (start, stop), part in ((turn.empty, Part.REASONING), (turn.stop_token, Part.STOP)):
                if start >= 0:
                    parts[start:stop][literal[start:stop]] = part
            if turn.empty[0] >= 0:
                empty[turn.empty[0] : turn.empty[1]] = True
        return roles, parts, messages, sampled, empty

    def _of_text(self, begun: Begun, whole: Spelled) -> Expected:
        assert begun.text is not None
        text = begun.text.text
        tokens = self.speller.settle(text, whole, np.ones(len(text), bool), None, ())
        starts, ends = _tiled(tokens, len(text))
        size = len(tokens)
        return Expected(
            -1, tokens.ids, np.full(size, Role.TEXT, np.uint8), np.full(size, Part.CONTENT, np.uint8),
            np.full(size, Flag.SAMPLED, np.uint8), np.full(size, -1, np.int32), None, {}, starts, ends, None, text,
            begun.item, begun.base, split=self.recipe.on_too_long == "split",
        )  # fmt: skip

    # -- lengths

    def fitted(self, document: Expected) -> list[Expected]:
        """The document as the recipe fits it into sequences: whole, cut at a turn border, in pieces, or not at all."""
        limit = self.recipe.sequence_length
        if self.recipe.packing == "concat_split" or len(document) <= limit:
            return [document]
        if document.split:
            return [document.cut(at, at + limit) for at in range(0, len(document), limit)]
        if self.recipe.on_too_long != "truncate":
            return []
        if document.shown is None:
            return [document.cut(0, limit)]
        sampled = np.flatnonzero((document.roles == Role.ASSISTANT) & (document.flags & np.uint8(Flag.SAMPLED) > 0))
        for message in sorted(set(document.messages[sampled].tolist()), reverse=True):
            end = int(sampled[document.messages[sampled] == message][-1]) + 1
            if end <= limit:
                return [document.cut(0, end)]
        return []

    def loss(self, document: Expected, parts: UInt8, roles: UInt8) -> Bool:
        """[n] which tokens get loss, with these parts and roles where they have two readings."""
        verdicts: Mapping[int, int] = document.verdicts
        return self.selection.loss(
            roles, parts, document.flags, document.messages, document.weights, document.turn, verdicts
        )


def _leaf_table(data: Data) -> tuple[UInt8, UInt8, Int32, Int32]:
    """Role, part and message of each leaf, and where reasoning inside an assistant's content ends."""
    cached = data.__dict__.get("table")
    if cached is None:
        inline = [
            leaf.text.find(INLINE_END) + len(INLINE_END)
            if leaf.role == Role.ASSISTANT and leaf.part == Part.CONTENT and INLINE_END in leaf.text
            else 0
            for leaf in data.leaves
        ]
        cached = data.__dict__["table"] = (
            np.array([leaf.role for leaf in data.leaves], np.uint8),
            np.array([leaf.part for leaf in data.leaves], np.uint8),
            data.leaf_messages,
            np.array(inline, np.int32),
        )
    table: tuple[UInt8, UInt8, Int32, Int32] = cached
    return table


def _tiled(tokens: Spelled, size: int) -> tuple[Int32, Int32]:
    """Where each token begins and ends: characters that no token claims go to the one behind them, at the end to the
    last one."""
    if not len(tokens):
        return tokens.starts, tokens.ends
    reached = np.maximum.accumulate(tokens.ends)
    before = np.concatenate((np.zeros(1, np.int32), reached[:-1]))
    starts = np.minimum(np.minimum(tokens.starts, before), max(0, size - 1)).astype(np.int32)
    ends = tokens.ends.copy()
    ends[tokens.ends == reached[-1]] = size
    return starts, ends


def _as_shown(messages: list[dict[str, object]], recipe: Recipe) -> list[dict[str, object]]:
    """The messages as the recipe shows them to the template."""
    out = []
    for message in messages:
        content = message.get("content")
        if content is None and "content" in message and recipe.null_content == "empty":
            message = {**message, "content": ""}
        elif isinstance(content, list) and recipe.content_parts == "join":
            message = {**message, "content": "".join(str(part["text"]) for part in content)}
        out.append(message)
    return out
