"""One record → what became of it, as values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskpipe.branches import encode_all, joined
from maskpipe.chat import Conversation, Text, read_all
from maskpipe.encoder import Encoder
from maskpipe.errors import RecordError, UsageError
from maskpipe.explain.table import PredictionTable, prediction_table
from maskpipe.explain.text import token_texts
from maskpipe.explain.why import WORDS, Why, reasons, verdict_words
from maskpipe.findings import Finding
from maskpipe.policy import Policy
from maskpipe.roles import Branch, Part, Role
from maskpipe.sources import open_sources

if TYPE_CHECKING:
    from maskpipe.document import Document
    from maskpipe.template.turn import Turn
    from maskpipe.tokenizer import Tokenizer


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
            **judged(document),
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


def judged(document: Document) -> dict[str, Any]:
    """What preference data says of the document; nothing for other data."""
    if document.branch is Branch.NONE and document.label is None:
        return {}
    return {"branch": document.branch.name.lower(), "score": document.score, "label": document.label}
