"""Does a model keep packed documents apart? Tokens of one document are changed, the logits of all others must stay.

    row 0   A A A B B B C .        A changed  ->  B, C, D, E as they were        B changed  ->  A, C, D, E as they were
    row 1   D D D D E E E E        padding changed, or nothing: what still differs is noise

The model is called with what Batch.as_hf() gives: that decides. Beside it stand the ways in which trainers undo it (an
all-ones attention_mask, no position_ids, a cache) and the ways that may help (a 4-D mask, seq_idx). As a second,
independent proof the logits of packed documents are compared with those of each document alone in its row.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from maskpipe.data.batch import Batch, Numbers, Run
from maskpipe.data.model import accepted, default_device, first_line, load_model
from maskpipe.errors import UsageError
from maskpipe.roles import Part, Role

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2")
"""What is probed when nothing is asked for, where it is available."""
Verdict = Literal["isolated", "leaks", "differs", "refused", "unavailable"]

_AS_HF = "as_hf()"
_MASK_4D = "as_hf(), 4-D mask"
_BLOCK_MASK = "as_hf(), block mask"
_SEQ_IDX = "as_hf(seq_idx=True)"
_TRAPS = {
    "all-ones attention_mask": "as_hf() and an all-ones 2-D attention_mask, as some collators and trainers add it",
    "no position_ids": "as_hf() without position_ids: positions do not restart",
    "use_cache=True": "as_hf() with a cache, which models have by default",
}


@dataclass(frozen=True)
class Measured:
    """One way to call the model, with one attention implementation."""

    attention: str
    inputs: str
    verdict: Verdict
    """isolated · leaks: other documents' logits change · differs: they do not, but are not those of the documents
    alone · refused: the model raises · unavailable: this machine or model has no such implementation."""
    change: float | None = None
    """max |Δlogit| of documents that were not changed."""
    noise: float | None = None
    """The same when nothing, or only padding, was changed."""
    tokens: int = 0
    """Positions of unchanged documents whose logits changed by more than noise."""
    from_alone: float | None = None
    """max |Δlogit| to the documents alone, one per row."""
    detail: str = ""


@dataclass(frozen=True)
class Isolation:
    """What probe() found."""

    model: str
    dtype: str
    device: str
    measured: tuple[Measured, ...]
    advice: tuple[str, ...]

    @property
    def leaks(self) -> bool:
        """Does as_hf() leak, or give other logits than the documents alone, with any implementation?"""
        return any(m.verdict in ("leaks", "differs") for m in self.measured if m.inputs == _AS_HF)

    @property
    def probed(self) -> bool:
        """Could as_hf() be run with any implementation?"""
        return any(m.change is not None for m in self.measured if m.inputs == _AS_HF)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "leaks": self.leaks, "probed": self.probed}

    def __str__(self) -> str:
        lines = [f"{self.model}, {self.dtype}, {self.device}: max |Δlogit| of documents that were not changed", ""]
        head = ("attention", "inputs", "verdict", "change", "noise", "positions", "to alone")
        rows = [head, *(_row(m) for m in self.measured)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        details = dict.fromkeys(f"{m.attention}: {m.detail}" for m in self.measured if m.detail)
        return "\n".join([*lines, *([""] if details else []), *details, "", *self.advice])


def probe(
    model: Any,
    *,
    attention: str | Sequence[str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    random_init: bool = False,
    sequence_length: int = 128,
    seed: int = 0,
) -> Isolation:
    """Whether a causal language model of transformers keeps packed documents apart, per attention implementation.

    model: a directory, a name on the hub, or a model (which is left as it was). attention: implementations to probe;
    None takes those of ATTENTION that the model and this machine have. dtype: of the weights when they are loaded:
    float32, bfloat16, float16 or auto (as stored). device: CUDA where there is one by default.
    random_init: weights made at random for the model's config, not loaded. sequence_length: tokens per probed row, at
    least 16; longer than a sliding window or chunk to probe those too.

    Costs about 30 forward passes of 2 rows per implementation. Draws its tokens from `seed`; global random state stays.
    On the CPU flex_attention runs uncompiled, which takes seconds where compiling takes minutes: the same masks.
    UsageError when the model cannot be loaded, or an implementation that was asked for cannot be had.
    """
    if type(sequence_length) is not int or sequence_length < 16:
        raise UsageError(f"sequence_length must be a whole number of at least 16, got {sequence_length!r}")
    asked = [attention] if isinstance(attention, str) else attention
    loaded = model
    if isinstance(model, str | Path):
        loaded = load_model(model, dtype, default_device(device), wanted_by="probe", random_init=random_init, seed=seed)
    config = loaded.config.get_text_config()
    batch = _packed(config, sequence_length, seed).to(loaded.device)
    training, before = loaded.training, loaded.config._attn_implementation
    measured: list[Measured] = []
    try:
        loaded.train(False)
        for name in asked or ATTENTION:
            reason = _choose(loaded, name)
            if reason and asked:
                raise UsageError(f"attention implementation {name!r} cannot be had: {reason}")
            if reason:
                measured.append(Measured(name, _AS_HF, "unavailable", detail=reason))
                continue
            with _uncompiled(name, loaded.device):
                measured += _probe_one(loaded, name, batch)
    finally:
        loaded.train(training)
        if loaded.config._attn_implementation != before:
            loaded.set_attn_implementation(before)
    return Isolation(
        model=str(model) if isinstance(model, str | Path) else type(model).__name__,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        measured=tuple(measured),
        advice=tuple(_advice(measured)),
    )


# The model


def _choose(model: Any, attention: str) -> str:
    """Sets the implementation. Why it cannot be had; empty when it can."""
    if attention == "flash_attention_2":
        checks: Any = importlib.import_module("transformers.utils")
        if model.device.type != "cuda" or not checks.is_flash_attn_2_available():  # else it would be downloaded
            return "needs CUDA and the package flash-attn"
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError, RuntimeError, KeyError) as error:
        return first_line(error)
    actual = model.config.get_text_config()._attn_implementation
    return "" if actual == attention else f"the model does not have it, and goes on with {actual}"


@contextmanager
def _uncompiled(attention: str, device: torch.device) -> Iterator[None]:
    if attention == "flex_attention" and device.type == "cpu":
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            yield
    else:
        yield


# The rows


def _packed(config: Any, length: int, seed: int) -> Batch:
    """Two rows of documents A B C . and D E, of ids that mean nothing special."""
    first, second, third = length * 3 // 8, length * 6 // 8, length * 7 // 8
    ends = [first, second, third, length, length + length // 2, 2 * length]
    flat = {
        "cu_seqlens": torch.tensor([0, *ends], dtype=torch.int32),
        "segment_numbers": torch.tensor([1, 2, 3, 0, 1, 2], dtype=torch.int32),
        "branches": torch.zeros(6, dtype=torch.uint8),
        "pairs": torch.full((6,), -1),
        "parents": torch.zeros(6, dtype=torch.int32),
        "scores": torch.full((6,), torch.nan),
        "desirable": torch.full((6,), -1, dtype=torch.int8),
        "run_ends": torch.tensor([2 * length], dtype=torch.int32),
        "run_roles": torch.full((1,), int(Role.TEXT), dtype=torch.uint8),
        "run_parts": torch.full((1,), int(Part.CONTENT), dtype=torch.uint8),
        "run_loss": torch.ones(1, dtype=torch.uint8),
        "run_weights": torch.ones(1),
    }
    known = Numbers(max_seqlen=max(end - start for start, end in pairwise([0, *ends])), n_loss=2 * length)
    return Batch(Run((2, length)), known, {"input_ids": _draw(config, 2 * length, seed).view(2, length), **flat})


def _draw(config: Any, count: int, seed: int) -> Tensor:
    special: set[int] = set()
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_index")):
            special |= {v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)}
    kept = torch.ones(config.vocab_size, dtype=torch.bool)
    kept[[i for i in special if 0 <= i < config.vocab_size]] = False
    usable = kept.nonzero().view(-1)
    if len(usable) < 2:
        raise UsageError(f"the model has a vocabulary of {config.vocab_size}, too few to change tokens")
    return usable[torch.randint(len(usable), (count,), generator=torch.Generator().manual_seed(seed))]


def _changed(batch: Batch, segment: int, config: Any, seed: int) -> tuple[Tensor, Tensor]:
    """input_ids with every token of one segment another one, and [B, L] where documents stay."""
    start, end = batch.cu_seqlens[segment : segment + 2].tolist()
    ids = batch.input_ids.clone().view(-1)
    for attempt in range(seed, seed + 64):
        same = ids[start:end] == batch.input_ids.view(-1)[start:end]
        if not same.any():
            break
        ids[start:end] = torch.where(same, _draw(config, end - start, attempt).to(ids.device), ids[start:end])
    stays = (batch.segment_ids > 0).view(-1).clone()
    stays[start:end] = False
    return ids.view(batch.input_ids.shape), stays.view(batch.input_ids.shape)


# One implementation


def _probe_one(model: Any, attention: str, batch: Batch) -> list[Measured]:
    given = batch.as_hf()
    alone = _alone(model, batch)
    found = [_measure(model, attention, _AS_HF, batch, given, alone)]
    traps: Mapping[str, dict[str, Any]] = {
        "all-ones attention_mask": {**given, "attention_mask": torch.ones_like(batch.input_ids)},
        "no position_ids": {name: value for name, value in given.items() if name != "position_ids"},
        "use_cache=True": {**given, "use_cache": True},
    }
    found += [_measure(model, attention, name, batch, inputs, alone) for name, inputs in traps.items()]
    if attention == "flex_attention":
        block = {**given, "attention_mask": batch.block_mask()}
        found.append(_measure(model, attention, _BLOCK_MASK, batch, block, alone))
    elif not attention.startswith("flash"):
        mask = {**given, "attention_mask": batch.attention_mask_4d(model.dtype)}
        found.append(_measure(model, attention, _MASK_4D, batch, mask, alone))
    if found[0].verdict != "isolated":
        found.append(_measure(model, attention, _SEQ_IDX, batch, batch.as_hf(seq_idx=True), alone))
    return found


def _measure(
    model: Any, attention: str, name: str, batch: Batch, inputs: Mapping[str, Any], alone: Tensor | str
) -> Measured:
    config = model.config.get_text_config()
    taken, left_out = accepted(model, inputs)
    detail = f"the model takes no {', '.join(left_out)}" if left_out else ""

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(**{**taken, "input_ids": ids}).logits
        if logits.shape[:2] != ids.shape:
            raise ValueError(f"logits of shape {tuple(logits.shape)} for ids of {tuple(ids.shape)}")
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("logits are not finite")
        return logits.float()

    seed = 1
    try:
        base = run(batch.input_ids)
        noise = _largest(run(batch.input_ids), base, torch.ones_like(batch.input_ids, dtype=torch.bool))
        padding, stays = _changed(batch, 3, config, seed)
        by_padding = _largest(run(padding), base, stays)
        scale, eps = float(base.abs().max()), torch.finfo(model.dtype).eps
        limit = max(8 * noise, 4 * eps * scale)
        if by_padding <= 64 * eps * scale:  # more than rounding is no noise: padding reaches documents
            noise, limit = max(noise, by_padding), max(limit, min(8 * by_padding, eps**0.5 * scale))
        change, touched = by_padding, torch.zeros_like(stays)
        for segment in (0, 1):
            ids, stays = _changed(batch, segment, config, seed)
            delta = (run(ids) - base).abs().amax(-1).where(stays, torch.zeros(()).to(base))
            change, touched = max(change, float(delta.max())), touched | (delta > limit)
    except Exception as error:  # whatever a model raises on these inputs is the finding
        return Measured(attention, name, "refused", detail=first_line(error))
    from_alone = None if isinstance(alone, str) else _largest(base, alone, batch.segment_ids > 0)
    verdict: Verdict = "leaks" if change > limit else "isolated"
    if verdict == "isolated" and from_alone is not None and from_alone > max(8 * noise, eps**0.5 * scale):
        verdict = "differs"
    if isinstance(alone, str):
        detail = "; ".join(filter(None, [detail, f"documents alone could not be run: {alone}"]))
    return Measured(attention, name, verdict, change, noise, int(touched.sum()), from_alone, detail)


def _alone(model: Any, batch: Batch) -> Tensor | str:
    """Logits [B, L, V] of every document alone in its row, put where it stands in the packed rows; or why not."""
    starts, lengths = batch.cu_seqlens[:-1].long(), batch.cu_seqlens.diff().long()
    out: Tensor | None = None
    try:
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            ids = batch.input_ids.view(1, -1)[:, start : start + length]
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits.float()
            if out is None:
                out = logits.new_zeros(batch.input_ids.numel(), logits.shape[-1])
            out[start : start + length] = logits[0]
    except Exception as error:
        return first_line(error)
    assert out is not None
    return out.view(*batch.input_ids.shape, -1)


def _largest(a: Tensor, b: Tensor, where: Tensor) -> float:
    return float((a - b).abs().amax(-1)[where].max())


# What it says


def _row(m: Measured) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2g}"

    positions = "" if m.change is None else str(m.tokens)
    return m.attention, m.inputs, m.verdict, number(m.change), number(m.noise), positions, number(m.from_alone)


def _advice(measured: Sequence[Measured]) -> Iterator[str]:
    by_name = {(m.attention, m.inputs): m for m in measured}
    good = [m.attention for m in measured if m.inputs == _AS_HF and m.verdict == "isolated"]
    bad = [m.attention for m in measured if m.inputs == _AS_HF and m.verdict in ("leaks", "differs")]
    if good:
        yield f"Keeps documents apart with batch.as_hf(): attn_implementation={' or '.join(map(repr, good))}."
    for name in bad:
        others = [
            m.inputs for m in measured if m.attention == name and m.verdict == "isolated" and m.inputs not in _TRAPS
        ]
        if _SEQ_IDX in others:
            yield f"LEAKS with {name!r} and batch.as_hf(): pass batch.as_hf(seq_idx=True), with which it does not."
        elif _BLOCK_MASK in others:
            yield f"LEAKS with {name!r} and batch.as_hf(): add attention_mask=batch.block_mask()."
        elif others:
            yield f"LEAKS with {name!r} and batch.as_hf(): add attention_mask=batch.attention_mask_4d(dtype)."
        elif good:
            yield f"LEAKS with {name!r}: do not train packed rows with it."
        else:
            yield (
                f"LEAKS with {name!r}: packed rows are not safe with this model here. Train one document per row: "
                "Loader(yields='padded'), or prepare with --packing none."
            )
    if not good and not bad:
        yield "batch.as_hf() could not be run. Train one document per row: Loader(yields='padded')."
    for trap, what in _TRAPS.items():
        hit = [name for name in good if by_name[name, trap].verdict in ("leaks", "differs")]
        if hit:
            yield f"Never: {what} (leaks with {', '.join(hit)})."
