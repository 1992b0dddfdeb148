"""RefLogps: what the reference model of a preference loss gives each token with loss, computed once and kept.

    write_reference_logps("out", "ref", "./sft-model")      or: maskpipe reference-logps out ref --model ./sft-model
    reference = RefLogps.open("ref", loader)                 of the same dataset, or an error
    pair_loss("sigmoid", policy.pairs, reference.documents(batch, plan).pairs, beta=0.1)

A value belongs to a row of a dataset with this content (its fingerprint) under a model with these weights (their
SHA-256), never to a place in some order: shuffling, resuming, other ranks and batch sizes change nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpipe import commit
from maskpipe.data.batch import Batch
from maskpipe.data.isolation import probe
from maskpipe.data.loader import Loader
from maskpipe.data.model import default_device, load_model
from maskpipe.durable import sync_directory
from maskpipe.errors import DatasetError, UsageError
from maskpipe.losses.document_logps import DocumentLogps, collect_documents
from maskpipe.losses.model_logps import model_logps
from maskpipe.losses.plan import LossPlan
from maskpipe.losses.reference_shards import (
    REFERENCE,
    REFERENCE_HASH,
    ReferenceInfo,
    ReferenceShards,
    RowLogps,
    shard_entry,
    write_info,
    write_shard,
)
from maskpipe.partial import claim
from maskpipe.shards.manifest import Shard
from maskpipe.shards.reader import Dataset
from maskpipe.shards.reader import open as open_dataset

_WITHOUT_EFFECT = ("transformers_version", "use_cache", "architectures", "dtype", "torch_dtype")
"""Keys of a configuration that change no logit; so do names with a leading _ and ids of special tokens."""


class RefLogps:
    """Reference log-probabilities of the datasets of a loader. Use `open`."""

    def __init__(self, shards: Sequence[ReferenceShards]) -> None:
        self._shards = list(shards)

    @classmethod
    def open(cls, paths: str | Path | Sequence[str | Path], loader: Loader, *, model: Any = None) -> RefLogps:
        """Those in `paths`, one for each dataset of `loader`, in its order.

        model: the reference model itself, or its SHA-256, where they must be of no other. Reads the descriptions only.
        DatasetError when they are of another dataset or model, naming both fingerprints; UsageError when there are not
        as many as datasets, or not all of one model.
        """
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        if len(given) != len(loader.datasets):
            raise UsageError(f"{len(given)} reference directories for {len(loader.datasets)} datasets: give one each")
        shards = [ReferenceShards(Path(path)) for path in given]
        wanted = model if model is None or isinstance(model, str) else model_sha256(model)
        for found, dataset in zip(shards, loader.datasets, strict=True):
            here = dataset.manifest.fingerprint
            if found.info.dataset != here:
                raise DatasetError(
                    f"{found.path}: was made for the dataset {found.info.dataset[:16]}, but {dataset.path} is "
                    f"{here[:16]}; make it anew for this one"
                )
            if len(found) != len(dataset):
                raise DatasetError(f"{found.path}: has {len(found)} rows, {dataset.path} has {len(dataset)}")
            if wanted is not None and found.info.model != wanted:
                raise DatasetError(
                    f"{found.path}: was made with the model {found.info.model[:16]} ({found.info.model_name}), but "
                    f"{wanted[:16]} is asked for; make it anew with that one"
                )
            if found.info.model != shards[0].info.model:
                raise UsageError(
                    f"{found.path} was made with the model {found.info.model[:16]}, {shards[0].path} with "
                    f"{shards[0].info.model[:16]}; one loss has one reference"
                )
        return cls(shards)

    @property
    def model(self) -> str:
        """SHA-256 of the reference model."""
        return self._shards[0].info.model

    def token_logps(self, batch: Batch, plan: LossPlan) -> Tensor:
        """[n] float32 reference log p per row of `plan`, the plan of `batch`, on its device.

        Which tokens have loss is compared token by token, so for a batch on a GPU this waits for it, once.
        UsageError when a token has loss here that had none when the values were made, or the plan has other rows than
        the batch has tokens with loss; DatasetError for damaged files.
        """
        flat = [logps for _, logps in self._rows(batch)]
        values = np.concatenate([np.empty(0, np.float32), *flat])
        if plan.segments is None or len(values) != plan.rows.shape[0]:
            raise UsageError(
                f"the plan has {plan.rows.shape[0]} rows, the batch {len(values)} tokens with loss; give the plan of "
                "this batch, LossPlan.from_batch(batch), before it is padded"
            )
        out = torch.from_numpy(values).to(plan.rows.device, non_blocking=True)
        # Values are in the order of documents and, in them, of targets; a plan may be in that of predicting rows.
        order = torch.argsort(plan.segments, stable=True)
        return torch.empty_like(out).index_copy_(0, order, out)

    def documents(self, batch: Batch, plan: LossPlan) -> DocumentLogps:
        """The same per document and pair, as `document_logps` gives it for the policy, weights of the plan included."""
        return collect_documents(self.token_logps(batch, plan), plan)

    def _rows(self, batch: Batch) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
        """Per row of the batch the tokens with loss, and their values."""
        for (source, row), positions in zip(_origin(batch), _loss_positions(batch), strict=True):
            if source < 0:
                continue
            if source >= len(self._shards):
                raise UsageError(f"the batch holds rows of dataset {source}; the references are of {len(self._shards)}")
            kept = self._shards[source].row(row)
            at = np.minimum(np.searchsorted(kept.positions, positions), max(len(kept.positions) - 1, 0))
            missing = kept.positions[at] != positions if len(kept.positions) else np.ones(len(positions), bool)
            if missing.any():
                trained = "as prepared" if (made := self._shards[source].info.train_on) is None else f"{list(made)}"
                raise UsageError(
                    f"row {row} of dataset {source}: token {positions[missing][0]} has loss, but no reference "
                    f"log-probability: {self._shards[source].path} was made with other labels (train_on: {trained}); "
                    "give the loader the same train_on, or make it anew"
                )
            yield positions, kept.logps[at]


def _origin(batch: Batch) -> Iterator[tuple[int, int]]:
    return zip(batch.sources.tolist(), batch.rows.tolist(), strict=True)


def _loss_positions(batch: Batch) -> list[npt.NDArray[np.intp]]:
    """Per row, the positions of tokens with loss."""
    ends, loss = batch.run_ends.cpu().numpy(), batch.run_loss.cpu().numpy()
    dense = np.repeat(loss, np.diff(ends, prepend=0)).reshape(tuple(batch.input_ids.shape))
    return [np.flatnonzero(row) for row in dense]


def model_sha256(model: Any) -> str:
    """SHA-256 of what decides a model's logits: its configuration, and name, dtype, shape and bytes of every weight.

    The same for the same weights however they are stored on disk; another one for another dtype.
    """
    total = hashlib.sha256()
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if not name.startswith("_") and not name.endswith("_token_id") and name not in _WITHOUT_EFFECT
    }
    total.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous()
        total.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
    return total.hexdigest()


def write_reference_logps(
    dataset: str | Path | Dataset,
    out: str | Path,
    model: Any,
    *,
    packed: bool = True,
    batch_size: int = 8,
    train_on: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> ReferenceInfo:
    """Makes `out`: log p of every token with loss of `dataset` under `model`, each document seeing itself only.

    model       a directory, a hub name, or a causal language model of transformers (which is left as it was)
    packed      run rows as they are packed; the model must keep documents apart, which is probed first. False: every
                document in a row of its own, right for any model, at the cost of padding
    batch_size  rows of the dataset per forward pass
    train_on    tokens that get a value, as for the Loader; None: as the dataset was prepared
    dtype, device  of a model that is loaded; see `maskpipe.data.probe`

    Works in OUT.partial, one side shard after the other; run again after a kill, it goes on. OUT is absent or whole.
    UsageError when `out` is there, the model cannot be loaded, or it mixes packed documents; DatasetError for a damaged
    dataset.
    """
    final = Path(os.path.abspath(out))
    if final.exists() or final.is_symlink():
        raise UsageError(f"{out} is already there; nothing is overwritten: choose a new directory")
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    loaded = model
    if isinstance(model, str | Path):
        loaded = load_model(model, dtype, default_device(device), wanted_by="reference-logps")
    training = loaded.training
    loaded.train(False)
    try:
        if packed:
            _refuse_mixing(loaded, opened)
        return _write(opened, final, loaded, name, packed, batch_size, train_on)
    finally:
        loaded.train(training)


def _refuse_mixing(model: Any, dataset: Dataset) -> None:
    attention, length = model.config._attn_implementation, dataset.manifest.sequence_length
    found = probe(model, attention=[attention], sequence_length=min(max(length, 16), 256))
    apart = found.probed and not found.leaks
    batch = next(Loader(dataset, global_batch_size=1, rank=0, world_size=1, shuffle=False, device=model.device))
    if apart and batch.shared:
        # Shared prompts need another mask, so they are tried as they are, against every branch in a row of its own.
        packed, alone = _packed_logps(model, batch), _padded_logps(model, batch)
        apart = bool((packed - alone).abs().max() <= torch.finfo(model.dtype).eps ** 0.5 * alone.abs().max())
    if not apart:
        raise UsageError(
            f"this model, with attention {attention!r}, does not keep packed documents apart, so the values would be "
            "wrong: run it with one document per row (--unpacked), or see `maskpipe probe`"
        )


def _write(
    dataset: Dataset, final: Path, model: Any, name: str, packed: bool, batch_size: int, train_on: Sequence[str] | None
) -> ReferenceInfo:
    manifest, hashed = dataset.manifest, model_sha256(model)
    identity: dict[str, Any] = {
        "made_by": "reference-logps",
        "dataset": manifest.fingerprint,
        "model": hashed,
        "packed": packed,
        "train_on": None if train_on is None else list(train_on),
    }
    job = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    partial = claim(final, job, identity, [REFERENCE, REFERENCE_HASH])
    try:
        shards: list[Shard] = []
        total = 0
        values = _values(dataset, model, packed, batch_size, train_on, partial.commits, job)
        for number, rows in enumerate(values):
            task = commit.identify(job, "reference", number)
            if isinstance(rows, Mapping):
                commit.check_file(partial.dataset / rows["name"], rows["size"], rows["sha256"])
                shards.append(shard_entry(rows))
                total += rows["values"]
                continue
            made = write_shard(partial.dataset, number, rows, manifest.fingerprint, hashed, manifest.sequence_length)
            entry = {"name": made.name, "size": made.size, "sha256": made.sha256, "regions": made.regions}
            size = sum(len(row.logps) for row in rows)
            commit.commit(partial.commits, task, {**entry, "rows": made.rows, "values": size})
            shards.append(made)
            total += size
        info = ReferenceInfo(
            manifest.fingerprint, hashed, name, str(model.dtype).removeprefix("torch."),
            None if train_on is None else tuple(train_on), manifest.sequence_length, total, tuple(shards),
        )  # fmt: skip
        write_info(partial.dataset, info)
        os.rename(partial.dataset, final)
        sync_directory(final.parent)
        partial.remove()
    finally:
        partial.close()
    return info


def _values(
    dataset: Dataset,
    model: Any,
    packed: bool,
    batch_size: int,
    train_on: Sequence[str] | None,
    commits: Path,
    job: str,
) -> Iterator[list[RowLogps] | Mapping[str, Any]]:
    """Per shard of the dataset its rows' values, or what an earlier run committed for it."""
    sizes = [shard.rows for shard in dataset.manifest.shards]
    done = [commit.find(commits, commit.identify(job, "reference", number)) for number in range(len(sizes))]
    loader = Loader(
        dataset, global_batch_size=batch_size, rank=0, world_size=1, shuffle=False, epochs=1, remainder="pad",
        train_on=train_on, weights=None, device=model.device, columns=("labels", "position_ids"),
    )  # fmt: skip
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    pending: dict[int, list[RowLogps]] = {}
    given = 0
    for batch in loader:
        numbers = [int(shard_of[row]) for row in batch.rows.tolist() if row >= 0]
        if all(done[number] is not None for number in numbers):
            rows: list[RowLogps] = []
        else:
            rows = list(_of_batch(model, batch, packed))
        for number, row in zip(numbers, rows, strict=False):  # rows of padding come last
            if done[number] is None:
                pending.setdefault(number, []).append(row)
        while given < max(numbers, default=0):
            yield _finished(given, done, pending, sizes)
            given += 1
    while given < len(sizes):
        yield _finished(given, done, pending, sizes)
        given += 1
    loader.close()


def _finished(
    number: int, done: list[Any], pending: dict[int, list[RowLogps]], sizes: list[int]
) -> list[RowLogps] | Mapping[str, Any]:
    if done[number] is not None:
        found: Mapping[str, Any] = done[number]
        return found
    rows = pending.pop(number, [])
    if len(rows) != sizes[number]:
        raise DatasetError(f"shard {number} has {sizes[number]} rows, but {len(rows)} were read; nothing was published")
    return rows


def _of_batch(model: Any, batch: Batch, packed: bool) -> Iterator[RowLogps]:
    positions = _loss_positions(batch)
    logps = (_packed_logps if packed else _padded_logps)(model, batch).cpu().numpy()
    if len(logps) != sum(map(len, positions)):
        raise DatasetError(
            f"{sum(map(len, positions))} tokens have loss, but {len(logps)} can be predicted; please report this"
        )
    ends = np.cumsum([len(each) for each in positions])
    for each, end in zip(positions, ends.tolist(), strict=True):
        yield RowLogps(each.astype(np.int32), logps[end - len(each) : end])


def _packed_logps(model: Any, batch: Batch) -> Tensor:
    """[n] in the order of targets."""
    plan = LossPlan.from_batch(batch)
    assert plan.segments is not None
    inputs = batch.as_hf(labels=False, mask_dtype=model.dtype if batch.shared else None)
    return model_logps(model, inputs, plan)[torch.argsort(plan.segments, stable=True)]


def _padded_logps(model: Any, batch: Batch) -> Tensor:
    """The same with one document per row, as many tokens at a time as the batch has."""
    padded = batch.as_padded()
    documents, longest = padded["input_ids"].shape
    step = max(1, batch.input_ids.numel() // max(longest, 1))
    parts = []
    for first in range(0, documents, step):
        inputs = {key: value[first : first + step] for key, value in padded.items()}
        plan = LossPlan.from_labels(inputs.pop("labels").cpu()).to(batch.device)
        parts.append(model_logps(model, {**inputs, "use_cache": False}, plan))
    return torch.cat(parts) if parts else torch.zeros(0)
