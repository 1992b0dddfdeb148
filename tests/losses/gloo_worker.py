"""Four ranks, each with its share of a batch: its gradients against those of the whole batch on one rank.

python gloo_worker.py WORLD DIRECTORY        writes errors-RANK.json: case -> largest relative error

DIRECTORY holds two datasets of pairs, separate and shared. The ranks are forks of one process, which has
torch and torch._dynamo: DDP would import it in each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

from maskpipe.data import Batch, Loader
from maskpipe.losses import (
    LossPlan,
    PairLogps,
    document_logps,
    global_denominator,
    kto_kl,
    linear_cross_entropy,
    pair_loss,
)
from tests.losses.made import made

ROWS = 8


class Tiny(torch.nn.Module):
    """A body and a head; returns the loss, so that DDP sees every use of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 29)

    def forward(self, x: Tensor, plan: LossPlan) -> Tensor:
        return linear_cross_entropy(self.body(x).tanh(), self.head.weight, plan, bias=self.head.bias, chunk=5).loss


def gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


class Language(torch.nn.Module):
    """One layer of attention; the loss of a batch: that of its tokens, and DPO's and SimPO's of its pairs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = torch.nn.Embedding(1000, 16), torch.nn.Embedding(64, 16)
        self.mix, self.head = torch.nn.Linear(16, 48), torch.nn.Linear(16, 1000)

    def forward(self, batch: Batch, chunk: int) -> Tensor:
        x = self.tokens(batch.input_ids) + self.places(batch.position_ids)
        q, k, v = self.mix(x)[:, None].chunk(3, -1)
        seen = scaled_dot_product_attention(q, k, v, attn_mask=batch.attention_mask_4d())
        hidden, head = (x + seen[:, 0]).tanh(), (self.head.weight, LossPlan.from_batch(batch))
        tokens = linear_cross_entropy(hidden, *head, bias=self.head.bias, chunk=chunk).loss
        policy = document_logps(hidden, *head, bias=self.head.bias, chunk=chunk).pairs
        none = torch.zeros_like(policy.chosen)
        reference = PairLogps(none, none, policy.chosen_length, policy.rejected_length)
        whole: dict[str, Any] = {"denominator": batch.pair_denominator, "replicas": batch.replicas}
        dpo = pair_loss("sigmoid", policy, reference, **whole).loss
        ours: Tensor = tokens + dpo + pair_loss("simpo", policy, beta=2.0, gamma=0.5, **whole).loss
        return ours


def loader_errors(rank: int, world: int, pair: Any, data: Path) -> dict[str, float]:
    """The same on a loader's batches: what it says of the whole step is enough, nothing is communicated."""
    out = {}
    for layout in ("separate", "shared"):

        def batches(layout: str = layout, **more: Any) -> Loader:
            return Loader(data / layout, global_batch_size=4, shuffle=False, epochs=1, threads=0, **more)

        whole = Language()
        whole(next(batches(rank=0, world_size=1)), chunk=1000).backward()
        expected = gradients(whole)
        for group, size in ((None, world), (pair, 2)):
            if rank >= size:
                continue
            for micro_batches in {1, 4 // size}:
                model = Language()
                wrapped = DistributedDataParallel(model, process_group=group)
                loader = batches(rank=rank, world_size=size, batch_size=4 // size // micro_batches)
                for k in range(micro_batches):
                    with wrapped.no_sync() if k + 1 < micro_batches else nullcontext():
                        wrapped(next(loader), chunk=7).backward()
                error = (gradients(model) - expected).abs().max() / expected.abs().max()
                out[f"{layout} pairs from the loader, {size} ranks, {micro_batches} micro-batches"] = float(error)
    return out


def one_rank(rank: int, world: int, directory: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory / 'init'}", rank=rank, world_size=world)
    m = made(21, batch=ROWS, share=0.3)
    m.labels[5:] = -100  # the last ranks have little or nothing: a mean of means would be far off
    m.labels[2, 1:] = m.labels[2, 1:].clamp(min=0)
    m.segment_ids[:] = 1

    def plan(rows: slice) -> LossPlan:
        return LossPlan.from_labels(m.labels[rows], segment_ids=m.segment_ids[rows], weights=m.token_weights[rows])

    whole = Tiny()
    whole(m.hidden, plan(slice(0, ROWS))).backward()
    expected = gradients(whole)
    errors = {}
    pair = dist.new_group([0, 1])
    for name, group, size in (("4 ranks", None, world), ("2 ranks", pair, 2)):
        if rank >= size:
            continue
        for micro_batches in (1, 2):
            model = Tiny()
            wrapped = DistributedDataParallel(model, process_group=group)
            share = ROWS // size
            step = share // micro_batches
            slices = [slice(rank * share + k * step, rank * share + (k + 1) * step) for k in range(micro_batches)]
            plans = [plan(rows) for rows in slices]
            denominator = global_denominator(plans, group)
            for k, (rows, mine) in enumerate(zip(slices, plans, strict=True)):
                mine = mine.normalised_by(denominator, replicas=size)
                if k + 1 < micro_batches:
                    with wrapped.no_sync():
                        wrapped(m.hidden[rows], mine).backward()
                else:
                    wrapped(m.hidden[rows], mine).backward()
            error = (gradients(model) - expected).abs().max() / expected.abs().max()
            errors[f"{name}, {micro_batches} micro-batches"] = float(error)
            naive = Tiny()
            wrapped = DistributedDataParallel(naive, process_group=group)
            for rows, mine in zip(slices, plans, strict=True):
                (wrapped(m.hidden[rows], mine) / micro_batches).backward()
            apart = (gradients(naive) - expected).abs().max() / expected.abs().max()
            errors[f"{name}, {micro_batches} micro-batches, mean of means"] = float(apart)
    errors |= loader_errors(rank, world, pair, directory)
    ratios = torch.arange(float(rank + 1))
    z = kto_kl(ratios, torch.zeros(rank + 1))
    every = torch.cat([torch.arange(float(r + 1)) for r in range(world)]).mean()
    errors["kto_kl"] = float((z - every).abs())
    (directory / f"errors-{rank}.json").write_text(json.dumps(errors))
    # torch 2.13 ends gloo's threads while it holds the GIL, which one of them may wait for, to let go of a tensor.
    os._exit(0)


def main(world: int, directory: Path) -> int:
    torch.set_num_threads(1)
    forks = multiprocessing.get_context("fork")
    ranks = [forks.Process(target=one_rank, args=(rank, world, directory), daemon=True) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return max(abs(rank.exitcode or 0) for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
