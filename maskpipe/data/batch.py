"""A Batch: packed rows as tensors, boundaries said once, and the forms that models take.

    row 0   A A A A B B . .     cu_seqlens 0 4 6 8 | 12 16     segment_ids  1 1 1 1 2 2 0 0
    row 1   C C C C D D D D     position_ids 0 1 2 3 0 1 0 1   (padding counts as a segment of its own)

Ids and what was asked for are made by the core; every other dense tensor is derived from the runs by a few torch
operations on whatever device the batch is on, when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from maskpipe import _core
from maskpipe.errors import UsageError

IGNORE = -100
"""The label of a token without loss: what torch and transformers ignore."""

# The public function asks a capsule for what only other tensors have, which costs as much as all the rest.
to_tensor: Callable[[Any], Tensor] = getattr(torch._C, "_from_dlpack", from_dlpack)

_HOST = ("sources", "rows")
_FLAT = (
    "cu_seqlens", "segment_numbers", "branches", "pairs", "parents", "scores", "desirable", "run_ends", "run_roles",
    "run_parts", "run_loss", "run_weights",
)  # fmt: skip


class Step(NamedTuple):
    """What a whole global batch holds, over all ranks and micro-batches; the same number on every rank."""

    tokens: int
    """With loss."""
    pairs: int
    weight: float
    """Of the loss of all tokens: Σ loss_weights."""
    rated: int = 0
    """Documents of which the data says whether they are wanted."""


Place = tuple[tuple[int, ...], tuple[int, ...], int, int]
"""Where a loader stands, as the core says it: counts and credits of the sources, position, within."""


class Numbers(NamedTuple):
    """What is known of a batch without looking at a tensor; see the properties of Batch."""

    max_seqlen: int
    n_loss: int
    shared: bool = False
    step: Step | None = None
    place: Place | None = None


class Run(NamedTuple):
    """What all batches of a pass have in common."""

    shape: tuple[int, int]
    replicas: int = 1
    state_at: Callable[[Place], dict[str, Any]] | None = None


def _fact(name: str, doc: str | None = None) -> cached_property[Tensor]:
    """What the core knows of rows, segments and runs."""

    def make(batch: Batch) -> Tensor:
        assert batch._given is not None, name
        return to_tensor(_core.delivered_fact(batch._given, name))

    make.__doc__ = doc
    return cached_property(make)


class Batch:
    """B packed rows of L tokens. S segments are the documents of all rows in order, and padding at the end of a row.

    Dense tensors, [B, L] each:
      input_ids     int64
      labels        int64    the token's own id where it has loss, else -100; not shifted, as transformers wants them
      targets       int64    labels of the next token: what the logits at this place predict; -100 at the end of a row
      position_ids  int64    from 0 in every segment, padding included
      segment_ids   int32    1, 2, … per document of a row, 0 in padding
      loss_weights  float32  weight of the loss of `labels` at the same place; 0 where there is none
      role_ids      uint8    roles.Role;  part_ids  uint8  roles.Part

    The first token of a document is never a label, so no target crosses from one document into the next.

    Where pairs share their prompt (`shared`), it stands once, as a segment of its own, before both branches:

      segment_ids   1 1 1 1 2 2 2 3 3     prompt, chosen, rejected
      position_ids  0 1 2 3 4 5 6 4 5     both branches go on from the prompt, and see it
      predictors   -1 0 1 2 3 4 5 3 7     [B, L] int64: the place that predicts the token, -1 for none

    There the first token of a branch may be a label: the last token of the prompt predicts it, in both branches.
    LossPlan.from_batch reads that from `predictors`; labels that are only shifted cannot say it.

    Of the segments:
      cu_seqlens       int32 [S + 1]  over the batch as one line of B * L tokens: 0, then the end of every segment
      segment_numbers  int32 [S]      number of the document in its row from 1; 0 for padding
      branches         uint8 [S]      format.Branch: 0 none, 1 prompt, 2 chosen, 3 rejected
      pairs            int64 [S]      number of the preference pair in its dataset, -1 for none
      parents          int32 [S]      0, or how many segments before a branch the prompt stands that it continues
      scores           float32 [S]    what the data says of the answer, NaN where it says nothing; where the data has
                                      only a margin, that of the chosen branch, and 0 of the rejected one
      desirable        int8 [S]       the thumb of an answer without a rival (KTO): 1 up, 0 down, -1 none
    Of the runs, stretches of equal facts:
      run_ends int32 [R] over the batch as one line;  run_roles, run_parts, run_loss (0 or 1) uint8 [R];
      run_weights float32 [R]

    What the loader was asked for (Loader: columns) comes with the batch, as its threads wrote it; what else is used is
    made then, by a few torch operations. A batch is read-only; its tensors may be written to like any others.
    """

    _run: Run
    _given: Any = None
    """What the loader read. Its batches are made by the core, attributes and all (Stream.next)."""

    def __init__(self, run: Run, numbers: Numbers, tensors: dict[str, Tensor]) -> None:
        """Of no loader. In `tensors` is what others cannot be derived from."""
        self.__dict__.update(tensors, _run=run, _numbers=numbers)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a Batch is read-only; write to its tensors, or collect new ones of your own")

    @cached_property
    def input_ids(self) -> Tensor:
        ids: Tensor = self.__dict__["ids32"]
        return ids.long()

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest segment."""
        return self._numbers.max_seqlen

    @property
    def n_loss(self) -> int:
        """Tokens with loss: labels that are not -100."""
        return self._numbers.n_loss

    @property
    def shared(self) -> bool:
        """Does any segment continue a prompt that stands before it?"""
        return self._numbers.shared

    @property
    def step(self) -> Step | None:
        """Of the whole global batch that this batch is a part of; None where the loader does not know it."""
        return self._numbers.step

    @property
    def replicas(self) -> int:
        """Ranks that share the global batch."""
        return self._run.replicas

    def state(self) -> dict[str, Any]:
        """The loader's state after this batch, whatever was read ahead since. UsageError for a batch of no loader."""
        if self._run.state_at is None or self._numbers.place is None:
            raise UsageError("this batch comes from no loader, so there is no state after it")
        return self._run.state_at(self._numbers.place)

    cu_seqlens = _fact("cu_seqlens")
    segment_numbers = _fact("segment_numbers")
    branches = _fact("branches")
    pairs = _fact("pairs")
    parents = _fact("parents")
    scores = _fact("scores")
    desirable = _fact("desirable")
    run_ends = _fact("run_ends")
    run_roles = _fact("run_roles")
    run_parts = _fact("run_parts")
    run_loss = _fact("run_loss")
    run_weights = _fact("run_weights")
    sources = _fact("sources", "[B] int32 index of the dataset, -1 for a row of padding; on the CPU.")
    rows = _fact("rows", "[B] int64 row of the dataset, -1 for a row of padding; on the CPU.")

    @cached_property
    def labels(self) -> Tensor:
        return torch.where(self._runs(self.run_loss).bool(), self.input_ids, IGNORE)

    @property
    def targets(self) -> Tensor:
        """UsageError where a shared prompt predicts the first tokens of two branches, which one target cannot say."""
        self._check_shifted("targets")
        tensor: Tensor | None = self.__dict__.get("targets")
        if tensor is None:
            tensor = torch.full_like(self.input_ids, IGNORE)
            tensor[:, :-1] = self.labels[:, 1:]
            self.__dict__["targets"] = tensor
        return tensor

    @cached_property
    def position_ids(self) -> Tensor:
        line = torch.arange(self.input_ids.numel(), device=self.device)
        first = self.cu_seqlens[:-1].long()
        if self.shared:
            prompts = torch.arange(len(first), device=self.device) - self.parents
            first = first - torch.where(self.parents > 0, self.cu_seqlens.diff()[prompts], 0)
        return (line - self._segments(first).view(-1)).view(self.input_ids.shape)

    @cached_property
    def segment_ids(self) -> Tensor:
        return self._segments(self.segment_numbers)

    @cached_property
    def prompt_ids(self) -> Tensor:
        """[B, L] int32: the segment_id of the prompt that the token's segment continues; 0 for none."""
        return self._segments(torch.where(self.parents > 0, self.segment_numbers - self.parents, 0))

    @cached_property
    def predictors(self) -> Tensor | None:
        """[B, L] int64: the place in the row that predicts the token; -1 for the first of a document and in padding.
        None where no prompt is shared: then it is always the place before."""
        if not self.shared:
            return None
        rows, length = self.input_ids.shape
        out = torch.arange(-1, length - 1, device=self.device).repeat(rows)
        starts = self.cu_seqlens[:-1].long()
        prompts = torch.arange(len(starts), device=self.device) - self.parents
        out[starts] = torch.where(self.parents > 0, (self.cu_seqlens[1:].long()[prompts] - 1) % length, -1)
        return torch.where(self.segment_ids > 0, out.view(rows, length), -1)

    @property
    def loss_denominator(self) -> float | None:
        """Σ loss_weights of the whole global batch, over all ranks and micro-batches: what LossPlan.from_batch divides
        by. None where the loader does not know it."""
        return None if self.step is None else self.step.weight

    @property
    def pair_denominator(self) -> int | None:
        """Preference pairs of the whole global batch, likewise."""
        return None if self.step is None else self.step.pairs

    @property
    def thumb_denominator(self) -> int | None:
        """Documents with a thumb (`desirable`) of the whole global batch, likewise: for unpaired_loss."""
        return None if self.step is None else self.step.rated

    @cached_property
    def loss_weights(self) -> Tensor:
        return self._runs(self.run_weights)

    @cached_property
    def role_ids(self) -> Tensor:
        return self._runs(self.run_roles)

    @cached_property
    def part_ids(self) -> Tensor:
        return self._runs(self.run_parts)

    @property
    def device(self) -> torch.device:
        ids: Tensor | None = self.__dict__.get("ids32")
        return (self.input_ids if ids is None else ids).device

    @property
    def padding_rows(self) -> int:
        """Rows that hold no document, added so that all ranks have equal batches."""
        return int((self.sources < 0).sum())

    @property
    def weighted(self) -> bool:
        """Has any token with loss another weight than 1?"""
        return bool(((self.run_loss > 0) & (self.run_weights != 1)).any())

    def __len__(self) -> int:
        return self._run.shape[0]

    def __repr__(self) -> str:
        rows, length = self._run.shape
        return f"Batch({rows} rows of {length} tokens, {self.n_loss} with loss)"

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device; what is not asked for later is not made there."""
        for name in (*_FLAT, *_HOST) if self._given is not None else ():
            getattr(self, name)
        moved = {
            name: value if name in _HOST else value.to(device, non_blocking=non_blocking)
            for name, value in self.tensors.items()
        }
        return Batch(self._run, self._numbers, moved)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those made so far, by name."""
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor)}

    def as_hf(
        self,
        *,
        labels: bool = True,
        ignore_weights: bool = False,
        seq_idx: bool = False,
        mask_dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments of a transformers model, padding-free: input_ids, labels and position_ids [B, L],
        cu_seq_lens_q and cu_seq_lens_k int32 [S + 1], max_length_q and max_length_k. Flash attention takes the
        boundaries from cu_seq_lens; sdpa, eager and flex_attention from position_ids. There is no attention_mask:
        beside packed rows an all-ones mask would switch the boundaries off. So would a key-value cache, which models
        make by default, also in training (sdpa, eager and flex_attention look for boundaries only without one), hence
        use_cache=False. `seq_idx` adds int32 [B, L], which linear attention wants.

        mask_dtype, the model's floating dtype, says the boundaries by attention_mask_4d instead of cu_seq_lens, for
        sdpa and eager. That is the only way where prompts are shared, so without it such a batch is a UsageError.

        A batch of padding alone has no label, and the mean of its loss is NaN (0 / 0) unless the model is told how many
        labels the whole step has (num_items_in_batch).

        labels=False leaves them out, for a loss of your own. transformers' loss knows no weights: UsageError for labels
        of a batch that has some, unless they are to be ignored.
        """
        if labels and not ignore_weights and self.weighted:
            raise UsageError(
                "as_hf: this batch has loss weights other than 1, which a transformers model would not see; compute "
                "the loss from batch.targets and batch.loss_weights, or pass ignore_weights=True"
            )
        if labels:
            self._check_shifted("as_hf")
        if mask_dtype is not None and not mask_dtype.is_floating_point:
            raise UsageError(f"as_hf: mask_dtype is the model's floating dtype, got {mask_dtype}")
        if self.shared and (mask_dtype is None or seq_idx):
            raise UsageError(
                "as_hf: this batch has prompts that two branches share, which boundaries cannot say; pass mask_dtype= "
                "the model's dtype (sdpa, eager; no seq_idx), give batch.block_mask() to flex_attention, or prepare "
                "the pairs as separate documents"
            )
        out: dict[str, Any] = {
            "input_ids": self.input_ids,
            **({"labels": self.labels} if labels else {}),
            "position_ids": self.position_ids,
            "use_cache": False,
        }
        if mask_dtype is not None:
            out["attention_mask"] = self.attention_mask_4d(mask_dtype)
        else:
            out |= {
                "cu_seq_lens_q": self.cu_seqlens,
                "cu_seq_lens_k": self.cu_seqlens,
                "max_length_q": self.max_seqlen,
                "max_length_k": self.max_seqlen,
            }
        if seq_idx:
            numbers = torch.arange(len(self.segment_numbers), dtype=torch.int32, device=self.device)
            out["seq_idx"] = self._segments(numbers)
        return out

    def as_padded(self, pad_id: int = 0) -> dict[str, Tensor]:
        """One document per row, for models that cannot take packed rows: input_ids, attention_mask (1 on documents),
        labels and position_ids, int64 [documents, longest], padded on the right. Rows of padding give no document;
        where there is nothing else, one row of one padding token without a label, as models take no empty batch. A
        shared prompt stands before each of its branches and in no row of its own."""
        starts, lengths = self.cu_seqlens[:-1].long(), self.cu_seqlens.diff().long()
        real = self.segment_numbers > 0
        before = torch.arange(len(starts), device=self.device) - self.parents  # the prompt, or the segment itself
        prompt_lengths = torch.where(self.parents > 0, lengths[before], 0)
        if self.shared:
            real = real.index_fill(0, before[self.parents > 0], False)
        if not bool(real.any()):
            zero = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
            ids, labels = zero + pad_id, zero + IGNORE
            return {"input_ids": ids, "attention_mask": zero + 1, "labels": labels, "position_ids": zero}
        prompts, starts, in_prompt, lengths = (x[real] for x in (starts[before], starts, prompt_lengths, lengths))
        longest = int((in_prompt + lengths).max())
        place = torch.arange(longest, device=self.device)
        inside = place < (in_prompt + lengths)[:, None]
        at = torch.where(place < in_prompt[:, None], prompts[:, None], (starts - in_prompt)[:, None]) + place
        at = torch.where(inside, at, 0)

        def gather(values: Tensor, padding: int) -> Tensor:
            return torch.where(inside, values.reshape(-1)[at], padding)

        return {
            "input_ids": gather(self.input_ids, pad_id),
            "attention_mask": inside.long(),
            "labels": gather(self.labels, IGNORE),
            "position_ids": torch.where(inside, place, 0),
        }

    def attention_mask_4d(self, dtype: torch.dtype | None = None) -> Tensor:
        """[B, 1, L, L]: may the query (dim 2) see the key (dim 3)? Its own document and the prompt that it continues,
        not the future. Bool, or with a floating `dtype` 0 where it may and that type's lowest number where not. Padding
        sees padding, so that no row of the softmax is empty."""
        segments = self.segment_ids
        causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=self.device).tril()
        seen = segments[:, :, None] == segments[:, None, :]
        if self.shared:
            prompts = self.prompt_ids[:, :, None]
            seen |= (prompts > 0) & (prompts == segments[:, None, :])
        seen = (seen & causal)[:, None]
        if dtype is None:
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, torch.finfo(dtype).min)

    def block_mask(self, block_size: int = 128) -> Any:
        """The same for torch's FlexAttention: a BlockMask of [B, 1, L, L]."""
        from torch.nn.attention.flex_attention import create_block_mask  # late: it loads the compiler

        segments = self.segment_ids

        def own(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (segments[b, q] == segments[b, k])

        def own_and_prompt(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            key = segments[b, k]
            return (q >= k) & ((segments[b, q] == key) | ((prompts[b, q] > 0) & (prompts[b, q] == key)))

        prompts = self.prompt_ids if self.shared else segments
        rows, length = segments.shape
        return create_block_mask(
            own_and_prompt if self.shared else own,
            rows,
            None,
            length,
            length,
            device=str(self.device),
            BLOCK_SIZE=block_size,
        )

    def _check_shifted(self, what: str) -> None:
        if self.shared:
            firsts = self.cu_seqlens[:-1].long()[self.parents > 0]
            if bool((self.labels.view(-1)[firsts] != IGNORE).any()):
                raise UsageError(
                    f"{what}: this batch has prompts whose last token predicts the first tokens of two branches, which "
                    "shifted labels cannot say; make the loss from LossPlan.from_batch(batch)"
                )

    @cached_property
    def _numbers(self) -> Numbers:
        assert self._given is not None
        whole = _core.delivered_whole(self._given)
        step = None if whole is None else Step(*whole)
        return Numbers(*_core.delivered_numbers(self._given), step, _core.delivered_place(self._given))

    def _runs(self, values: Tensor) -> Tensor:
        return self._spread(values, self.run_ends.diff(prepend=self.run_ends.new_zeros(1)))

    def _segments(self, values: Tensor) -> Tensor:
        return self._spread(values, self.cu_seqlens.diff())

    def _spread(self, values: Tensor, lengths: Tensor) -> Tensor:
        size = self.input_ids.numel()
        return torch.repeat_interleave(values, lengths, output_size=size).view(self.input_ids.shape)
