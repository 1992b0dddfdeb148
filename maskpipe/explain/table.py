"""The table of predictions: what the model reads at each position, what it must predict, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskpipe.errors import UsageError
from maskpipe.explain.why import Why, reasons
from maskpipe.policy import Policy

if TYPE_CHECKING:
    from maskpipe.document import Document


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
