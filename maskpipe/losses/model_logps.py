"""Log-probabilities of a plan's targets under a whole model of transformers, without its [B, L, V] logits.

    plan.rows ──▶ the body runs once ──▶ hidden [rows, H] ──▶ head, some rows at a time ──▶ log p [n]

A hook on the head gives it only the rows of the plan. Some models do more after it (a soft-cap, a scale). Which one
does is not known by name: what the model makes of a few rows is compared with the product alone, bit by bit. Only
where they are equal the rest is that product, in float32; any other model is run again for each part of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from maskpipe.data.model import accepted, first_line
from maskpipe.errors import UsageError
from maskpipe.losses.operators import chunk_rows
from maskpipe.losses.plan import LossPlan
from maskpipe.losses.softmax import Head

LOGIT_BYTES = 256 << 20
"""Memory for logits of one part of the rows, in float32."""
_COMPARED = 16


def model_logps(model: Any, inputs: Mapping[str, Any], plan: LossPlan, *, logit_bytes: int = LOGIT_BYTES) -> Tensor:
    """[n] float32 log p of each row's target, in the order of plan.rows; no gradient. The model's mode stays.

    inputs: what the model is called with, such as `batch.as_hf(labels=False)`; what its forward does not take is left
    out. Costs one forward pass, or one per `logit_bytes` of logits where the head is more than a product.
    UsageError for ids outside the model's vocabulary, and where the model cannot be run on these inputs.
    """
    given, _ = accepted(model, inputs)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    largest = max(int(given["input_ids"].max()), plan.max_target or 0) if given["input_ids"].numel() else 0
    if largest >= embeddings.weight.shape[0]:
        raise UsageError(
            f"the data holds token {largest}, the model's vocabulary has {embeddings.weight.shape[0]} entries: they "
            "are of different tokenizers"
        )
    try:
        with torch.no_grad():
            if head is None:
                return _picked(model(**given).logits.flatten(0, 1)[plan.rows], plan.targets)
            return _through_head(model, head, given, plan, logit_bytes)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        shape = tuple(given["input_ids"].shape)
        raise UsageError(f"the model could not be run on input_ids of {shape}: {first_line(error)}") from error


def _through_head(model: Any, head: Any, given: Mapping[str, Any], plan: LossPlan, logit_bytes: int) -> Tensor:
    n = plan.rows.shape[0]
    if not n:
        return torch.zeros(0, device=plan.rows.device)
    first = min(n, _COMPARED)
    hidden, logits = _rows_through(model, head, given, plan.rows[:first])
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    alone = None
    if isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == hidden.shape[1]:
        alone = F.linear(hidden[plan.rows[:first]][None], weight, bias)[0]
    if alone is not None and torch.equal(alone.float(), logits.float()):
        chunk = chunk_rows(n, hidden.shape[1], hidden.device, 1)
        options = (chunk, *Head(), False, False, False, False, plan.distinct_rows)
        logps: Tensor = torch.ops.maskpipe.linear_cross_entropy(
            hidden, weight, bias, plan.rows, plan.targets, None, *options
        )[1]
        return logps.float()
    step = max(1, logit_bytes // (4 * logits.shape[1]))
    parts = zip(torch.split(plan.rows, step), torch.split(plan.targets, step), strict=True)
    return torch.cat([_picked(_rows_through(model, head, given, rows)[1], targets) for rows, targets in parts])


def _rows_through(model: Any, head: Any, given: Mapping[str, Any], rows: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden [B·L, H] before the head, logits [rows, V] as the model makes them of these rows)."""
    seen: list[Tensor] = []

    def only_rows(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        seen.append(hidden.reshape(-1, hidden.shape[-1]))
        return seen[-1][rows][None], *arguments[1:]

    hook = head.register_forward_pre_hook(only_rows)
    try:
        logits = model(**given).logits
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0].shape[0] != given["input_ids"].numel() or logits.shape[:2] != (1, rows.shape[0]):
        raise ValueError("its head is not called once with one hidden state per token")
    return seen[0], logits[0]


def _picked(logits: Tensor, targets: Tensor) -> Tensor:
    """[n] float32 log softmax(logits)[target]."""
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def next_token_probabilities(model: Any, input_ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """[n - 1] what the model gives the true next token at every position of one document of n tokens.

    The column of the article's table; errors as in `model_logps`.
    """
    if len(input_ids) < 2:
        return np.zeros(0)
    ids = torch.from_numpy(input_ids.astype(np.int64))[None]
    plan = LossPlan.from_labels(ids).to(model.device)
    logps = model_logps(model, {"input_ids": ids.to(model.device), "use_cache": False}, plan)
    probabilities: npt.NDArray[np.float64] = np.exp(logps.cpu().numpy().astype(np.float64))
    return np.minimum(probabilities, 1.0)
