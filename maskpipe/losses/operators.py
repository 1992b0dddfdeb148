"""The losses as torch.library operators: opaque to compilers, with shapes that follow from shapes alone.

Each body is an ordinary function of tensors (`*_body`), so tests can run it on fake tensors and see that nothing in it
waits for a device. None of them has a gradient of its own; linear_cross_entropy.py and cross_entropy.py give them one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from maskpipe.losses import matmul
from maskpipe.losses.softmax import Head, RowLosses, softmax_losses_


def chunk_rows(rows: int, hidden_size: int, device: torch.device, buffers: int) -> int:
    """Rows of one chunk, about evenly cut; a multiple of 8, which libraries multiply up to 6 % faster.

    On the CPU their logits take at most 3/8 of a float32 dW, or 120 rows; beyond 384 rows nothing is gained, so wide
    models take 1/8 of it. At least 1,024 on an accelerator because reading and writing dW once per chunk costs 8 bytes
    an element.
    """
    if device.type == "cpu":
        most = max(120, min(384, 3 * hidden_size // 8), hidden_size // 8)
    else:
        most = max(1024, hidden_size // 8)
    most = max(8, most // buffers // 8 * 8)
    pieces = max(1, -(-rows // most))
    return max(8, -(-rows // (8 * pieces)) * 8)


def linear_cross_entropy_body(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    chunk: int,
    softcap: float,
    scale: float,
    label_smoothing: float,
    z_loss: float,
    entropy: bool,
    hidden_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    distinct_rows: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden [N, H], weight [V, H], bias [V]?, rows/targets/weights [n] -> (Σ weights · objective, logps [n], top1 [n],
    entropy [n]?, dhidden [N, H]?, dweight [V, H]? float32, dbias [V]? float32); what is not asked for has no elements.

    Gradients are those of the sum. Rows of weight 0 are replaced by zeros before anything is computed, so that NaN
    under the mask stays there. Three products per row with loss, none for the others.
    """
    head = Head(softcap, scale, label_smoothing, z_loss)
    total_rows, (vocabulary, size) = rows.shape[0], weight.shape
    wide = matmul.sum_dtype(hidden)
    gradient = hidden_gradient or weight_gradient or bias_gradient
    # Only rows used twice are added up; a single write needs no wider sum than the result.
    dhidden = hidden.new_zeros(hidden.shape if hidden_gradient else (0,), dtype=hidden.dtype if distinct_rows else wide)
    dweight = hidden.new_empty((vocabulary, size) if weight_gradient else (0,), dtype=wide)
    dbias = hidden.new_zeros(vocabulary if bias_gradient else 0, dtype=wide)
    if weight_gradient and not total_rows:
        dweight.zero_()
    losses = []
    # Autocast would round the float32 products below.
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.device.type != "cpu" and weight.dtype != hidden.dtype:
            weight = weight.to(hidden.dtype)
        buffer = hidden.new_empty((min(chunk, total_rows), vocabulary), dtype=wide)
        for where, target, each in _chunks(rows, targets, weights, chunk):
            x = hidden.index_select(0, where)
            if each is not None:
                x = torch.where((each != 0).unsqueeze(1), x, 0)
            z = buffer.narrow(0, 0, where.shape[0])
            matmul.logits(x, weight, bias, z)
            found, factor = softmax_losses_(
                z, target, each, head, gradient=gradient, entropy=entropy, defer=matmul.keeps(hidden)
            )
            losses.append(found)
            if hidden_gradient:
                dx = matmul.hidden_gradient(z, weight, factor).to(dhidden.dtype)
                if distinct_rows:
                    dhidden.index_copy_(0, where, dx)
                else:
                    dhidden.index_add_(0, where, dx)
            if weight_gradient:
                matmul.add_weight_gradient(z, x, dweight, factor, first=len(losses) == 1)
            if bias_gradient:
                dbias.add_(z.sum(0) if factor is None else torch.mv(z.t(), factor.squeeze(1)))
    return *_joined(losses, weights, hidden), dhidden.to(hidden.dtype), dweight, dbias


def _chunks(
    rows: Tensor, targets: Tensor, weights: Tensor | None, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """(rows, targets, weights) of `chunk` rows each; nothing for no rows."""
    if rows.shape[0]:
        parts = [None] * -(-rows.shape[0] // chunk) if weights is None else torch.split(weights, chunk)
        yield from zip(torch.split(rows, chunk), torch.split(targets, chunk), parts, strict=True)


def _joined(losses: list[RowLosses], weights: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Σ weights · objective, logps, top1, entropy) of all chunks."""
    if not losses:
        nothing = like.new_zeros(0, dtype=matmul.sum_dtype(like))
        return nothing.sum(), nothing, nothing.to(torch.bool), nothing.clone()
    objective, logps, top1, entropy = (torch.cat(parts) for parts in zip(*losses, strict=True))
    return weighted_sum(objective, weights), logps, top1, entropy


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """0-d Σ weights · values in the dtype of values; summed in float64 on the CPU. 0 · inf under a weight of 0 is 0."""
    if weights is not None:
        values = torch.where(weights != 0, values * weights, 0)
    return values.sum(dtype=torch.float64 if values.device.type == "cpu" else values.dtype).to(values.dtype)


def cross_entropy_body(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    chunk: int,
    softcap: float,
    scale: float,
    label_smoothing: float,
    z_loss: float,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [N, V] -> (Σ weights · objective, logps [n], top1 [n], entropy [n]?), `chunk` rows at a time."""
    head = Head(softcap, scale, label_smoothing, z_loss)
    wide = matmul.sum_dtype(logits)
    losses = [
        softmax_losses_(_rows_of(logits, where, each, wide), target, each, head, gradient=False, entropy=entropy)[0]
        for where, target, each in _chunks(rows, targets, weights, chunk)
    ]
    return _joined(losses, weights, logits)


def cross_entropy_gradient_body(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    chunk: int,
    softcap: float,
    scale: float,
    label_smoothing: float,
    z_loss: float,
    distinct_rows: bool,
) -> Tensor:
    """[N, V] d(Σ weights · objective)/d(logits) in the dtype of logits; exactly 0 in rows without loss."""
    head = Head(softcap, scale, label_smoothing, z_loss)
    wide = matmul.sum_dtype(logits)
    out = logits.new_zeros(logits.shape, dtype=logits.dtype if distinct_rows else wide)
    for where, target, each in _chunks(rows, targets, weights, chunk):
        z = _rows_of(logits, where, each, wide)
        softmax_losses_(z, target, each, head, gradient=True, entropy=False)
        if distinct_rows:
            out.index_copy_(0, where, z.to(out.dtype))
        else:
            out.index_add_(0, where, z.to(out.dtype))
    return out.to(logits.dtype)


def _rows_of(logits: Tensor, rows: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A copy of these rows of logits in `dtype`; zeros where the weight is 0."""
    z = logits.index_select(0, rows).to(dtype)
    return z if weights is None else torch.where((weights != 0).unsqueeze(1), z, 0)


_linear = torch.library.custom_op("maskpipe::linear_cross_entropy", linear_cross_entropy_body, mutates_args=())
_given = torch.library.custom_op("maskpipe::cross_entropy", cross_entropy_body, mutates_args=())
_gradient = torch.library.custom_op("maskpipe::cross_entropy_gradient", cross_entropy_gradient_body, mutates_args=())


@_linear.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    chunk: int,
    softcap: float,
    scale: float,
    label_smoothing: float,
    z_loss: float,
    entropy: bool,
    hidden_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    distinct_rows: bool,
) -> tuple[Tensor, ...]:
    n, wide = rows.shape[0], matmul.sum_dtype(hidden)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(n, dtype=wide),
        hidden.new_empty(n, dtype=torch.bool),
        hidden.new_empty(n if entropy else 0, dtype=wide),
        hidden.new_empty(hidden.shape if hidden_gradient else (0,)),
        hidden.new_empty(weight.shape if weight_gradient else (0,), dtype=wide),
        hidden.new_empty(weight.shape[0] if bias_gradient else 0, dtype=wide),
    )


@_given.register_fake
def _(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    chunk: int,
    softcap: float,
    scale: float,
    label_smoothing: float,
    z_loss: float,
    entropy: bool,
) -> tuple[Tensor, ...]:
    n, wide = rows.shape[0], matmul.sum_dtype(logits)
    return (
        logits.new_empty((), dtype=wide),
        logits.new_empty(n, dtype=wide),
        logits.new_empty(n, dtype=torch.bool),
        logits.new_empty(n if entropy else 0, dtype=wide),
    )


@_gradient.register_fake
def _(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    chunk: int,
    softcap: float,
    scale: float,
    label_smoothing: float,
    z_loss: float,
    distinct_rows: bool,
) -> Tensor:
    return logits.new_empty(logits.shape)
