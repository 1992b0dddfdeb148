"""Usual records: what the core settles by itself, from the line to the facts and the loss of its tokens.

    line ─read─▶ Draft ─(ids)─▶ settle ─▶ a document in Documents        csrc/chat_line.h, csrc/usual_record.h
    Conversation ─draft─▶ the same

Only speed is different: encoder.py says what becomes of a record, and does it for any other one. What the core settles
is compared with it: the first records of a chunk, and one in so many as the run goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.chat import Conversation, Text
from maskpipe.chat.conversation import MAX_MESSAGES
from maskpipe.chat.messages import OTHER_COLUMNS
from maskpipe.encoder import MAX_OUTPUT, Encoded, Encoder, shown_messages
from maskpipe.errors import MaskpipeError
from maskpipe.roles import Verdict, verdict_name
from maskpipe.template.lost import printed_as_python
from maskpipe.template.render import COMPARED_ONE_IN, ENGINE, wrap

FIRST_COMPARED = 16
"""So many records are compared before the first is not."""


class UsualRecords:
    """Those of one encoder."""

    def __init__(self, encoder: Encoder, core: _core.UsualRecords) -> None:
        self._encoder = encoder
        self._core = core
        self._compared = 0
        recipe = encoder.recipe
        self._kwargs = recipe.chat_template_kwargs
        self.reads_lines = not (recipe.columns or recipe.roles or recipe.chat_template_kwargs)
        """Whether `read` may be asked."""
        self._habits = self._habits_of({}) if self.reads_lines else None

    @staticmethod
    def of(encoder: Encoder) -> UsualRecords | None:
        """None where this recipe, tokenizer or template has none."""
        recipe, policy = encoder.recipe, encoder.policy
        if recipe.objective != "sft" or policy.trains_everything or not policy.trains_turns or not encoder.has_template:
            return None
        program, alphabet = encoder.template.engine.program, encoder.tokenizer.alphabet
        if program is None or alphabet is None:
            return None
        core = _core.UsualRecords(
            program,
            alphabet,
            policy.rule,
            policy.turns,
            policy.trains_others,
            recipe.control_tokens_in_content == "keep",
            recipe.sequence_length,
            MAX_OUTPUT,
            COMPARED_ONE_IN,
            sorted(OTHER_COLUMNS),
            MAX_MESSAGES,
        )
        return UsualRecords(encoder, core)

    def _habits_of(self, kwargs: dict[str, Any]) -> _core.TurnHabits:
        sampling = self._encoder.template.sampling
        return sampling.in_core(sampling.habits(kwargs)).habits

    def read(self, line: bytes) -> _core.Draft | None:
        """The draft of a JSON text that holds a usual chat; only where `reads_lines`."""
        assert self._habits is not None
        return self._core.read(line, self._habits)

    def draft(self, item: Conversation | Text) -> _core.Draft | None:
        """The draft of a usual conversation."""
        if not isinstance(item, Conversation) or item.side is not None:
            return None
        if not all(weight is None or weight == 1 for weight in item.weights):
            return None
        kwargs = {**self._kwargs, **item.chat_template_kwargs}
        messages = shown_messages(item.messages, self._encoder.recipe)
        wrapped = wrap(messages, tools=item.tools, documents=item.documents, kwargs=kwargs)
        draft = self._core.draft(wrapped.input, self._habits_of(kwargs))
        if draft is not None and printed_as_python(messages, draft.text()):
            return None  # the encoder looks closer
        return draft

    def settle(self, draft: _core.Draft, ids: Any, documents: _core.Documents) -> bool:
        """Adds the document that the draft becomes with these ids; False, and nothing added, where it is not usual."""
        return self._core.settle(draft, ids, documents)

    def must_compare(self, draft: _core.Draft) -> bool:
        """Is the record that was settled last among those to compare?"""
        self._compared += 1
        return self._compared <= FIRST_COMPARED or draft.is_chosen(COMPARED_ONE_IN)

    def compare(self, draft: _core.Draft, documents: _core.Documents, whole: Encoded, place: str) -> None:
        """MaskpipeError unless the last document is the one, and the only one, that the encoder made of the record."""
        same = whole.refused is None and len(whole.documents) == 1
        if same:
            document = whole.documents[0]
            dense: tuple[npt.NDArray[Any], ...] = (
                document.input_ids, document.role_ids, document.part_ids, document.flags, document.message_ids,
            )  # fmt: skip
            settled: tuple[npt.NDArray[Any], ...] = documents.last()
            same = all(np.array_equal(*pair) for pair in zip(settled, dense, strict=True))
            same = same and document.weights is None and document.turn == -1
            same = same and draft.turns() == sorted(document.verdicts)
            same = same and set(document.verdicts.values()) <= {Verdict.EXACT}
        if not same:
            raise MaskpipeError(
                f"{place}: the core encodes this record otherwise than Python does; nothing it made can be trusted. "
                f"Set {ENGINE}=python in the environment, and please report the record with its template"
            )

    def counts(self) -> tuple[dict[str, int], int]:
        """(what the settled records add to the counts of a run, tokens with loss), since this was asked last."""
        tokens, loss, straddling, parts, marks, turns = self._core.counted()
        if not tokens:
            return {}, 0
        counts = {"tokens": tokens, "straddling_tokens": straddling, "straddling_parts": parts}
        if marks:
            counts["marks"] = marks
        if turns:
            counts["turns_" + verdict_name(Verdict.EXACT)] = turns
        return counts, loss
