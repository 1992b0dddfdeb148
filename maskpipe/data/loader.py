"""The loader: datasets to batches, one process per rank, exact after any change of the run.

    global batch g = positions [g * G, (g + 1) * G)      rank r of W takes rows [r * G / W, (r + 1) * G / W) of it

A Loader is its own iterator and goes on where it stands: `for batch in loader` runs to the end of a pass (`epochs`
epochs), the next `for` begins the next pass, and after load_state_dict either goes on from the state. What threads
have read ahead shows in nothing. Threads may share a Loader: each batch goes to one of them.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from maskpipe import _core
from maskpipe.data import ranks
from maskpipe.data.ahead import Ahead, Held
from maskpipe.data.batch import Batch, Place, Run, to_tensor
from maskpipe.data.decision import decide
from maskpipe.data.order import epoch_key, shapes_of, shares_of, whole_rates
from maskpipe.data.slots import Columns, slots_for
from maskpipe.data.sources import Source, check_datasets, core_source, open_all, warn_of_small_caches
from maskpipe.data.state import SourceState, State, match
from maskpipe.errors import DatasetError, UsageError
from maskpipe.remote.cache import ShardCache
from maskpipe.remote.dataset import RemoteDataset
from maskpipe.remote.transfer import Tally
from maskpipe.shards.format import batch_rows
from maskpipe.shards.reader import REPAIR, Dataset

OPEN_FILES = 256
"""Shards kept open at the same time, at most a quarter of what the process may open; others are opened again when they
are needed."""
THREADS = 256
"""At most."""
_COLUMNS = ("labels", "targets", "position_ids", "segment_ids", "loss_weights", "role_ids")

_log = logging.getLogger(__name__)

_forks = 0
"""On the way to this process: cheaper to ask for than its number."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Loader(IterableDataset[Any]):
    """Batches of packed rows from one or many datasets.

    datasets: a directory, a URI (file, s3, gs, hf, http, https), an opened Dataset, or a list of them. All have one
        sequence_length and one vocabulary.
    global_batch_size: rows per step of all ranks together; it fixes the order, and the world size must divide it.
    batch_size: rows per batch; it must divide a rank's slice of the global batch (accumulation). None: the slice.
    rank, world_size: of the data-parallel ranks; None takes torch.distributed or RANK and WORLD_SIZE.
    shuffle: rows in random order, another one every epoch. window: 0 shuffles all of an epoch; N takes N record batches
        (about 1 MiB each) at a time, chosen at random, and shuffles those, for storage that seeks slowly.
    epochs: how often a pass delivers every row; None goes on for ever.
    mixture: weight per dataset, for endless runs; None reads each dataset to its end (in proportion to its rows).
        unit: what the weights count: "sequences", "tokens" or "loss_tokens" (means of the manifest).
    remainder: what the last global batch of a pass does when rows run out: "drop" it, or "pad" it with rows without
        loss. See dropped_rows and padded_rows; rank 0 logs a warning when a pass leaves rows out. A rank may get
        padding alone: the mean of its loss is NaN, the sum over Batch.loss_denominator is 0.
    train_on: selectors as for prepare, decided anew over the facts; None keeps the labels as they were prepared.
    weights: "role" or "role.part" → factor of the loss; 0 takes it away.
    columns: dense tensors that the core makes at once; Batch makes the others when they are used.
    device: where batches go. expand: "device" ships int32 ids and runs only, and makes everything there.
    threads: that read ahead; 0 reads when asked. prefetch: batches read ahead.
    verify: "every_read" proves each byte that is used, each time that it is read; "off" nothing.
    io: "pread"; or "mmap", which is faster but ends the process with SIGBUS when a file shrinks while it is read.
    step_totals: Batch.step, and so loss_denominator: each rank reads the facts (not the ids) of the whole global batch.
        Where datasets are remote, only if a batch is the whole global batch.
    cache_bytes: memory for decoded facts (about 100 to 200 bytes per row); what does not fit is read again.
    shard_cache: where shards of remote datasets are kept: a ShardCache, or the path of one with its defaults. What is
        needed next is fetched ahead, within a quarter of its bound. See fetched.
    yields: "batch" (Batch), "hf" (Batch.as_hf) or "padded" (Batch.as_padded).

    Under torch's DataLoader: batch_size=None, num_workers=0. Accelerate gets the Loader itself, not a DataLoader around
    it, which it would divide among the ranks once more.

    UsageError for arguments that do not fit, DatasetError for a dataset that is not what its manifest says: that error
    names shard, region and rows, and comes instead of the batch.
    """

    def __init__(
        self,
        datasets: Source | Sequence[Source],
        *,
        global_batch_size: int,
        batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 0,
        epochs: int | None = None,
        mixture: Sequence[float | Fraction] | None = None,
        unit: Literal["sequences", "tokens", "loss_tokens"] = "sequences",
        remainder: Literal["drop", "pad"] = "drop",
        train_on: str | Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
        columns: str | Sequence[str] = ("labels", "position_ids"),
        device: torch.device | str = "cpu",
        expand: Literal["host", "device"] = "host",
        threads: int = 2,
        prefetch: int = 4,
        verify: Literal["every_read", "off"] = "every_read",
        io: Literal["pread", "mmap"] = "pread",
        step_totals: bool = True,
        cache_bytes: int = 256 << 20,
        shard_cache: ShardCache | str | Path | None = None,
        yields: Literal["batch", "hf", "padded"] = "batch",
    ) -> None:
        super().__init__()
        given = [datasets] if isinstance(datasets, str | Path | Dataset) else list(datasets)
        self.datasets = open_all(given, shard_cache)
        self._manifests = [dataset.manifest for dataset in self.datasets]
        check_datasets(self.datasets)
        if shuffle:
            warn_of_small_caches(self.datasets)
        self.sequence_length = self._manifests[0].sequence_length
        self.rank, self.world_size = ranks.resolve(rank, world_size)
        _check_choices(
            unit=(unit, "sequences tokens loss_tokens"), remainder=(remainder, "drop pad"),
            expand=(expand, "host device"), verify=(verify, "every_read off"), io=(io, "pread mmap"),
            yields=(yields, "batch hf padded"),
        )  # fmt: skip
        _check_flags(shuffle=shuffle, step_totals=step_totals)
        _check_numbers(
            global_batch_size=(global_batch_size, 1), window=(window, 0), threads=(threads, 0), prefetch=(prefetch, 1),
            cache_bytes=(cache_bytes, 0), **({} if epochs is None else {"epochs": (epochs, 1)}),
            **({} if batch_size is None else {"batch_size": (batch_size, 1)}),
        )  # fmt: skip
        if type(seed) is not int:
            raise UsageError(f"seed must be a whole number, got {seed!r}")
        if threads > THREADS:
            raise UsageError(f"threads must be at most {THREADS}, got {threads}")
        if window and not shuffle:
            raise UsageError(
                f"window={window} shuffles inside windows, and shuffle=False does not; pass one of the two"
            )
        if global_batch_size % self.world_size:
            raise UsageError(
                f"global_batch_size {global_batch_size} cannot be divided among {self.world_size} ranks; "
                "choose a multiple"
            )
        self.global_batch_size = global_batch_size
        self._slice = global_batch_size // self.world_size
        self.batch_size = self._slice if batch_size is None else batch_size
        if self._slice % self.batch_size:
            raise UsageError(
                f"batch_size {self.batch_size} does not divide the {self._slice} rows that a rank has of a global "
                f"batch ({global_batch_size} rows, {self.world_size} ranks)"
            )
        if mixture is not None and epochs is not None:
            raise UsageError(
                "mixture weights and epochs exclude each other: datasets end at different times; leave one out "
                "(without weights every dataset is read to its end)"
            )
        if mixture is not None and unit == "loss_tokens" and (train_on is not None or 0 in (weights or {}).values()):
            raise UsageError(
                "unit='loss_tokens' counts labels as they were prepared; it cannot go with train_on or weights of 0"
            )
        if mixture is None and unit != "sequences":
            raise UsageError(f"unit={unit!r} is the unit of mixture weights, and there are none")
        self.seed, self.shuffle, self.window, self.epochs = seed, shuffle, window, epochs
        self.remainder = remainder
        self._shares = self._mixture(mixture, unit)
        self._decision = decide(self._manifests, train_on, weights)
        self._yields = yields
        self._device = torch.device(device)
        self._is_host = self._device.type == "cpu"  # asking a device costs as much as a tensor
        self._reading = (threads, verify, io, cache_bytes)
        self._prefetch = prefetch if threads else 1
        self._step_totals = step_totals
        self._columns = Columns(self.batch_size * self.sequence_length, _column_names(columns, expand))
        self._ended = False
        self._lock = threading.RLock()  # of where it stands
        self._stand(self._fresh())
        self._start(_place_of(self._base))
        if self.dropped_rows and self.rank == 0:
            _log.warning(
                "%d of the %d rows of a pass fill no global batch of %d and are left out; remainder='pad' keeps them",
                self.dropped_rows, self._rows_of_pass, self.global_batch_size,
            )  # fmt: skip

    def __iter__(self) -> Loader:
        """Itself. Begins the next pass when the one before has ended."""
        _check_no_worker()
        self._ended = False
        return self

    def __next__(self) -> Any:
        """The next batch. DatasetError, and no batch, when a byte of it is not what the manifest says. After Ctrl-C, or
        whatever else ends the wait, the same batch is the next one."""
        with self._lock:
            base = self._base
            try:
                if self._process != _forks:
                    self._start(self._place)
                if self._ended:
                    raise StopIteration
                held = None if self._ahead is None else self._hold_ahead()
                try:
                    batch = self._read(self._depth, to_tensor, Batch, self._run)
                except RuntimeError as error:
                    raise self._refused(error, held) from None
                if batch is None:
                    self._end_pass()
                    raise StopIteration
                if held is not None:
                    held.release()
                if not self._is_host:
                    batch = self._slots.deliver(batch) if self._slots.moves else batch.to(self._device)
                self._given += 1
            except (DatasetError, StopIteration):
                raise
            except BaseException:  # the core may have given the batch out, and nobody has it
                self._stand(base)
                self._ended = False
                self._restart(self._stream.place_after(self._given))
                raise
        if self._yields == "batch":
            return batch
        return batch.as_hf() if self._yields == "hf" else batch.as_padded(self._manifests[0].pad_id)

    def _refused(self, error: RuntimeError, held: Held | None) -> DatasetError:
        """What is said of a batch whose bytes are not what they should be. It is the next one again."""
        self._restart(self._place)
        self._close_files()
        refetched = held is not None and self._ahead is not None and self._ahead.discard(held)
        repair = "what the cache had was spoiled; it is fetched again when it is needed" if refetched else REPAIR
        if os.strerror(errno.EMFILE) in str(error):
            repair = "allow more (ulimit -n)"
        return DatasetError(f"{error}; {repair}")

    def _end_pass(self) -> None:
        self._ended = True
        self._stand(self._next_pass(self._state()))
        self._restart(_place_of(self._base))

    def __len__(self) -> int:
        """Batches of a whole pass of this rank, the same for all ranks. TypeError for an endless loader."""
        if self.epochs is None:
            raise TypeError("a loader without epochs has no length")
        whole, rest = divmod(self._rows_of_pass, self.global_batch_size)
        return (whole + (rest > 0 and self.remainder == "pad")) * (self._slice // self.batch_size)

    def __bool__(self) -> bool:
        """True, though an endless loader has no length."""
        return True

    @property
    def dropped_rows(self) -> int:
        """Rows at the end of a pass that remainder="drop" leaves out."""
        return self._rows_of_pass % self.global_batch_size if self.remainder == "drop" else 0

    @property
    def padded_rows(self) -> int:
        """Rows without loss that remainder="pad" adds at the end of a pass, over all ranks."""
        return -self._rows_of_pass % self.global_batch_size if self.remainder == "pad" else 0

    @property
    def epoch(self) -> float:
        """Rows delivered / rows of all datasets."""
        return self._place[2] / sum(map(len, self.datasets))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, after the last batch that it gave out: numbers and texts, a few hundred bytes."""
        with self._lock:
            return self._state().to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, also when iteration has begun.

        Ranks, threads, batch sizes may differ from those of the run that saved it; so may the mixture, and there may be
        datasets more: each goes on at its own count. UsageError when seed, shuffle or window differ, or when a state
        from inside a global batch meets other ranks, datasets in another order, or another end of the pass;
        DatasetError when a dataset is missing or has changed.
        """
        fitted = self._fit(State.from_dict(state))
        with self._lock:
            self._stand(fitted)
            self._ended = False
            self._restart(_place_of(self._base))

    def __reduce__(self) -> NoReturn:
        # TypeError is what those expect who only try whether a thing can be pickled.
        raise TypeError(
            "a Loader has threads and one position, so it cannot be copied or sent to another process (with a "
            "DataLoader use num_workers=0); make another one there, and give it the state_dict() of this one"
        )

    @property
    def fetched(self) -> dict[str, int]:
        """What was done for remote datasets in this process: shards_fetched, bytes_fetched, failed_tries, shards_found
        (in the cache), shards_evicted; all 0 when all are local."""
        caches = {id(d.cache): d.cache for d in self.datasets if isinstance(d, RemoteDataset)}
        return {name: sum(getattr(c.tally, name) for c in caches.values()) for name in Tally().to_dict()}

    def close(self) -> None:
        """Gives up what was read ahead, and what is being fetched. Used again, it goes on where it stands."""
        with self._lock:
            self._restart(self._place)
            if self._ahead is not None:
                self._ahead.stop()
                self._process = -1

    # The order

    @property
    def _rows_of_pass(self) -> int:
        return 0 if self.epochs is None else self.epochs * sum(map(len, self.datasets))

    def _mixture(self, weights: Sequence[float | Fraction] | None, unit: str) -> list[Fraction] | None:
        if weights is None:
            return None
        if len(weights) != len(self.datasets):
            raise UsageError(f"mixture: {len(weights)} weights for {len(self.datasets)} datasets")
        totals = [manifest.totals for manifest in self._manifests]
        rows = [len(dataset) for dataset in self.datasets]
        units = {
            "sequences": rows,
            "tokens": [total.n_tokens for total in totals],
            "loss_tokens": [total.n_loss for total in totals],
        }[unit]
        return shares_of(weights, rows, units)

    def _fresh(self) -> State:
        """The beginning of the first pass."""
        state = State(
            seed=self.seed,
            shuffle=self.shuffle,
            window=self.window,
            epochs=self.epochs,
            passes=0,
            position=0,
            within=0,
            world_size=self.world_size,
            global_batch_size=self.global_batch_size,
            sources=tuple(
                SourceState(
                    fingerprint=dataset.manifest.fingerprint,
                    name=dataset.name,
                    share="rows" if self._shares is None else str(self._shares[k]),
                    rate=0,
                    credit=0,
                    count=0,
                )
                for k, dataset in enumerate(self.datasets)
            ),
        )
        return self._with_rates(state)

    def _with_rates(self, state: State) -> State:
        """A mixture that begins here: rates anew, no credits."""
        if self._shares is not None:
            rates = whole_rates(self._shares)
        else:
            rates = self._remaining(state) if self.epochs is not None else [len(dataset) for dataset in self.datasets]
            if any(rates):
                rates = whole_rates([Fraction(rate) for rate in rates])
        sources = tuple(replace(source, rate=rate, credit=0) for source, rate in zip(state.sources, rates, strict=True))
        return replace(state, sources=sources)

    def _remaining(self, state: State) -> list[int]:
        """Rows of each dataset that the pass has still to deliver."""
        ends = (state.passes + 1) * (self.epochs or 0)
        return [ends * len(d) - source.count for d, source in zip(self.datasets, state.sources, strict=True)]

    def _next_pass(self, state: State) -> State:
        passes = state.passes + 1
        counts = [passes * (self.epochs or 0) * len(dataset) for dataset in self.datasets]
        sources = tuple(replace(s, count=count) for s, count in zip(state.sources, counts, strict=True))
        return self._with_rates(replace(state, passes=passes, within=0, sources=sources))

    def _fit(self, state: State) -> State:
        for name in ("seed", "shuffle", "window"):
            if getattr(state, name) != getattr(self, name):
                raise UsageError(
                    f"state: it was saved with {name}={getattr(state, name)!r}, the loader has "
                    f"{getattr(self, name)!r}; that would be another order: pass the same"
                )
        if state.within and (state.world_size, state.global_batch_size) != (self.world_size, self.global_batch_size):
            raise UsageError(
                f"state: it was saved inside a global batch ({state.within} rows into a rank's slice, "
                f"{state.world_size} ranks, global_batch_size {state.global_batch_size}); with {self.world_size} ranks "
                f"and {self.global_batch_size} that place does not exist: save after whole global batches"
            )
        if state.within % self.batch_size:
            raise UsageError(
                f"state: {state.within} rows into a rank's slice is no whole number of batches of {self.batch_size}"
            )
        if (state.epochs is None) != (self.epochs is None) or (state.passes and state.epochs != self.epochs):
            raise UsageError(
                f"state: it was saved with epochs={state.epochs}, the loader has {self.epochs}; pass the same"
            )
        fresh = self._fresh()
        known = match(state, [s.fingerprint for s in fresh.sources], [s.name for s in fresh.sources])
        first = state.passes * (self.epochs or 0)
        sources = tuple(
            replace(new, count=first * len(dataset)) if old is None else replace(old, name=new.name, share=new.share)
            for new, old, dataset in zip(fresh.sources, known, self.datasets, strict=True)
        )
        same = state.epochs == self.epochs and all(
            old is not None and old.share == new.share for old, new in zip(known, fresh.sources, strict=True)
        )
        fitted = replace(
            state,
            epochs=self.epochs,
            world_size=self.world_size,
            global_batch_size=self.global_batch_size,
            sources=sources,
        )
        if self.epochs is not None and min(self._remaining(fitted)) < 0:
            raise UsageError(f"state: a dataset is past the end of the {self.epochs} epochs of this loader")
        if state.within:
            moved = [s.fingerprint for s in state.sources] != [s.fingerprint for s in sources]
            if not same or moved:
                raise UsageError(
                    "state: inside a global batch the mixture cannot change, nor the order of the datasets; save after "
                    "whole global batches"
                )
            left = None if self.epochs is None else sum(self._remaining(fitted))
            if self.remainder == "drop" and left is not None and left < self.global_batch_size:
                raise UsageError(
                    "state: it was saved inside the last global batch of a pass with remainder='pad'; "
                    "remainder='drop' would leave out the rest of its rows: pass the same"
                )
        return fitted if same else self._with_rates(fitted)

    def _stand(self, state: State) -> None:
        """What holds for the pass that `state` is in."""
        self._base = state
        self._run = Run((self.batch_size, self.sequence_length), self.world_size, partial(_state_dict, state))

    @property
    def _place(self) -> Place:
        """After the last batch that was given out."""
        return self._stream.place()

    def _state(self) -> State:
        return _state_at(self._base, self._place)

    # Reading ahead

    def _start(self, place: Place) -> None:
        """Threads, memory and a plan from `place` on, in this process."""
        _check_no_worker()
        self._process = _forks
        threads, verify, io, cache_bytes = self._reading
        sources = [core_source(dataset) for dataset in self.datasets]
        scattered = self.shuffle and self.window == 0
        self._reader = _core.Reader(
            sources,
            self.sequence_length,
            threads,
            verify,
            io,
            scattered,
            cache_bytes,
            _open_files(),
            self._decision.policy,
            self._decision.weights,
        )
        self._slots = slots_for(self._columns, self._device)
        blocks = batch_rows(self.sequence_length)
        self._stream = _core.Stream(
            self._reader,
            *shapes_of([len(dataset) for dataset in self.datasets], self.window, blocks),
            self.shuffle,
            np.array([epoch_key(self.seed, manifest.fingerprint) for manifest in self._manifests], np.uint64).ravel(),
            self.global_batch_size,
            self.world_size,
            self.rank,
            self.batch_size,
            self.remainder == "pad",
            self._step_totals and (self.batch_size == self.global_batch_size or not self._is_remote),
            self._columns.places,
            self._columns.size,
            self._slots.memory,
        )
        self._read = self._stream.next
        self._held: deque[Held] = deque()
        self._ahead: Ahead[Place] | None = Ahead(self.datasets, self._reader.close_file) if self._is_remote else None
        self._depth = self._prefetch if self._ahead is None else 0  # of remote datasets it is submitted here
        self._restart(place)

    def _close_files(self) -> None:
        """What lies under the names of the shards by now is opened anew: somebody may have repaired one."""
        for source, dataset in enumerate(self.datasets):
            for number in range(len(dataset.manifest.shards)):
                self._reader.close_file(source, number)

    @property
    def _is_remote(self) -> bool:
        return any(isinstance(dataset, RemoteDataset) for dataset in self.datasets)

    def _restart(self, place: Place) -> None:
        """What was read ahead is given up; the stream goes on from `place`."""
        ends = (self._base.passes + 1) * (self.epochs or 0)
        end = -1 if self.epochs is None else ends * sum(map(len, self.datasets))
        self._stream.stand(place, np.array([source.rate for source in self._base.sources], np.int64), end)
        self._given = 0  # batches, since it stands there
        self._slots.forget()
        if self._ahead is not None:
            self._held.clear()  # after the jobs, which waited for their threads
            self._planned = place
            self._global: tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], Place] | None = None
            self._ahead.restart()

    def _hold_ahead(self) -> Held | None:
        """With remote datasets: submits what is here, and waits for the batch that is due; the shards that it holds,
        or None at the end of the pass."""
        assert self._ahead is not None
        while len(self._held) < self._prefetch:
            if self._global is None:
                self._global = self._ahead.next(self._planned, self._stream.plan)
                if self._global is None:
                    break
            sources, rows, after = self._global
            begin = self._planned[3]
            end = begin + self.batch_size
            of = sources[begin:end], rows[begin:end]
            if self._held and not self._ahead.ready(*of):
                break
            self._held.append(self._ahead.hold(*of))
            if end == self._slice:
                self._planned, self._global = after, None
            else:
                self._planned = (*self._planned[:3], end)
            self._stream.submit()
        return self._held.popleft() if self._held else None


def _place_of(state: State) -> Place:
    sources = state.sources
    return tuple(s.count for s in sources), tuple(s.credit for s in sources), state.position, state.within


def _state_at(base: State, place: Place) -> State:
    """The whole state: what holds for the pass, and where it stands."""
    counts, credits, position, within = place
    sources = tuple(
        replace(source, count=count, credit=credit)
        for source, count, credit in zip(base.sources, counts, credits, strict=True)
    )
    return replace(base, position=position, within=within, sources=sources)


def _state_dict(base: State, place: Place) -> dict[str, Any]:
    return _state_at(base, place).to_dict()


def _column_names(columns: str | Sequence[str], expand: str) -> tuple[str, ...]:
    names = [columns] if isinstance(columns, str) else columns
    for name in names:
        if name not in _COLUMNS:
            raise UsageError(f"columns: {name!r} is none of {', '.join(_COLUMNS)}")
    if expand == "device":
        return ("ids32",)
    return ("input_ids", *sorted(set(names)))


def _open_files() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if allowed == resource.RLIM_INFINITY else max(1, min(OPEN_FILES, allowed // 4))


def _check_no_worker() -> None:
    if get_worker_info() is not None:
        raise UsageError("the loader reads ahead in threads of its own and has one position; use it with num_workers=0")


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if type(value) is not bool:
            raise UsageError(f"{name} must be True or False, got {value!r}")


def _check_choices(**choices: tuple[str, str]) -> None:
    for name, (value, known) in choices.items():
        if value not in known.split():
            raise UsageError(f"{name} must be one of {', '.join(known.split())}; got {value!r}")


def _check_numbers(**numbers: tuple[Any, int]) -> None:
    for name, (value, least) in numbers.items():
        if type(value) is not int or value < least:
            raise UsageError(f"{name} must be a whole number of at least {least}, got {value!r}")
