"""The three products with an lm_head, float32 in and out of the sum whatever the inputs are.

    logits   z  = x Wᵀ + b        [k, V]
    hidden   dx = dz W            [k, H]
    weight   dW += dzᵀ x          [V, H], always kept in float32: adding rounded chunks biases training (N11)

The rows of dz may come with a factor each that is still to be applied: to dx and x, which are narrower than dz.

float32 and float64 go straight to the library. For bfloat16 and float16, CUDA multiplies as they are and gives float32;
the CPU has no such product, so there a slice of the vocabulary at a time (1/16 of W) is widened: exact products.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLICES = 16


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """float64 stays, everything else is summed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def keeps(tensor: Tensor) -> bool:
    """Whether rows of this dtype times a factor enter the products unrounded."""
    return tensor.device.type == "cpu" or tensor.dtype == sum_dtype(tensor)


def _slices(size: int) -> list[tuple[int, int]]:
    step = max(1, -(-size // SLICES))
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]


def logits(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out [k, V] = x [k, H] weightᵀ + bias, in the dtype of out."""
    if x.dtype == weight.dtype == out.dtype:
        torch.mm(x, weight.t(), out=out)
    elif x.device.type == "cpu":
        wide = x.to(out.dtype)
        for begin, end in _slices(weight.shape[0]):
            out[:, begin:end] = wide @ weight[begin:end].to(out.dtype).t()
    else:
        torch.mm(x, weight.t(), out_dtype=out.dtype, out=out)
    if bias is not None:
        out.add_(bias)


def hidden_gradient(dz: Tensor, weight: Tensor, factor: Tensor | None = None) -> Tensor:
    """[k, H] = factor [k, 1] · dz [k, V] weight [V, H], in the dtype of dz."""
    if dz.dtype == weight.dtype:
        out = dz @ weight
    elif dz.device.type == "cpu":
        out = dz.new_zeros(dz.shape[0], weight.shape[1])
        for begin, end in _slices(weight.shape[0]):
            out.addmm_(dz[:, begin:end], weight[begin:end].to(dz.dtype))
    else:
        out = torch.mm(dz.to(weight.dtype), weight, out_dtype=dz.dtype)
    return out if factor is None else out.mul_(factor)


def add_weight_gradient(dz: Tensor, x: Tensor, out: Tensor, factor: Tensor | None = None, *, first: bool) -> None:
    """out [V, H] (+)= dzᵀ [V, k] (factor [k, 1] · x [k, H]), in the dtype of out; with `first`, out is overwritten.

    Raises ValueError for a factor that would be rounded (`keeps`).
    """
    if factor is not None and not keeps(x):
        raise ValueError(f"x in {x.dtype} cannot carry a factor on {x.device.type}.")
    if dz.dtype == x.dtype or dz.device.type == "cpu":
        wide = x.to(out.dtype)
        if factor is not None:
            wide = wide * factor
        if first:
            torch.mm(dz.t(), wide, out=out)
        else:
            out.addmm_(dz.t(), wide)
        return
    step = max(1, -(-out.shape[0] // SLICES))
    for part, into in zip(torch.split(dz.to(x.dtype), step, 1), torch.split(out, step), strict=True):
        if first:
            torch.mm(part.t(), x, out_dtype=out.dtype, out=into)
        else:
            into.add_(torch.mm(part.t(), x, out_dtype=out.dtype))
