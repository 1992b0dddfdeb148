"""Shards of remote datasets, asked for in the order in which the loader will need them, and held while it reads them.

    planner ─▶ rows of global batches to come ─▶ their shards, fetched by a few threads ─▶ held ─▶ submitted ─▶ released

The order is known, so nothing is guessed: the same plans are made, only earlier. What is fetched when shows nowhere in
the batches.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from maskpipe.remote.cache import Lease
from maskpipe.remote.dataset import RemoteDataset
from maskpipe.remote.transfer import Stopped
from maskpipe.shards.reader import Dataset

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Key = tuple[int, int]
"""(source, shard)."""
Where = TypeVar("Where")
"""A place in the order."""
Plan = tuple[Int32, Int64, Where]
"""Sources and rows of this rank's slice of one global batch, and the place after it."""

IDLE = 256
"""Leases kept by one loader on shards that no batch on its way needs; each is an open file."""
PLANS, PLANS_AT_ONCE = 4096, 64
"""Global batches looked ahead at most, and at most per batch given out."""


@dataclass
class _Held:
    lease: Lease
    users: int = 0


class _Fetching:
    """What the threads and the loader share. `changed` guards all of it."""

    def __init__(self, datasets: Sequence[Dataset], close_file: Callable[[int, int], None]) -> None:
        self.datasets = datasets
        self.close_file = close_file
        self.changed = threading.Condition()
        self.stop = threading.Event()
        self.queue: deque[Key] = deque()
        self.urgent: set[Key] = set()
        self.busy: set[Key] = set()
        self.failed: dict[Key, BaseException] = {}
        self.held: OrderedDict[Key, _Held] = OrderedDict()
        """Least recently used first."""
        self.upcoming: Counter[Key] = Counter()
        """Plans to come that need a shard."""

    def work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue or self.stop.is_set())
                if self.stop.is_set():
                    return
                key = self.queue.popleft()
                if key in self.held or key in self.busy:
                    continue
                self.busy.add(key)
                urgent = key in self.urgent
            lease, failed = None, None
            try:
                dataset = self.datasets[key[0]]
                assert isinstance(dataset, RemoteDataset)
                lease = dataset.lease(
                    key[1], stop=self.stop, wait_for_room=urgent, give_back=partial(self.give_back, urgent)
                )
            except BaseException as error:  # it is raised by whoever waits for the shard
                failed = error
            with self.changed:
                self.busy.discard(key)
                self.urgent.discard(key)
                if lease is not None and self.stop.is_set():
                    lease.release()
                elif lease is not None:
                    self.held[key] = _Held(lease)
                    self.trim()
                elif failed is not None and not isinstance(failed, Stopped):
                    self.failed[key] = failed
                self.changed.notify_all()

    def want(self, key: Key, urgent: bool) -> None:
        """With `changed` held: asks for a shard, first of all if it is urgent."""
        if key in self.held or key in self.busy:
            return
        if urgent and key not in self.urgent:
            self.urgent.add(key)
            if key in self.queue:
                self.queue.remove(key)
            self.queue.appendleft(key)
        elif key not in self.queue:
            self.queue.append(key)
        self.changed.notify_all()

    def give_back(self, all_idle: bool) -> bool:
        """Releases idle leases, those that plans need soon only with all_idle. True when there were some."""
        with self.changed:
            keys = [key for key, held in self.held.items() if not held.users and (all_idle or not self.upcoming[key])]
            for key in keys:
                self.release(key)
            return bool(keys)

    def trim(self) -> None:
        """With `changed` held: no more than IDLE leases that nobody uses, the least recently used go first."""
        idle = [key for key, held in self.held.items() if not held.users]
        if len(idle) > IDLE:
            idle.sort(key=lambda key: self.upcoming[key] > 0)
            for key in idle[: len(idle) - IDLE]:
                self.release(key)

    def release(self, key: Key) -> None:
        self.close_file(*key)
        self.held.pop(key).lease.release()


class Held:
    """Shards that stay until this is released, or gone."""

    def __init__(self, fetching: _Fetching, keys: Sequence[Key]) -> None:
        self.keys = keys
        self._fetching: _Fetching | None = fetching

    def release(self) -> None:
        fetching, self._fetching = self._fetching, None
        if fetching is None:
            return
        with fetching.changed:
            for key in self.keys:
                held = fetching.held[key]
                held.users -= 1
                if not held.users and fetching.stop.is_set():
                    fetching.release(key)
            if len(fetching.held) > IDLE:
                fetching.trim()

    def __del__(self) -> None:
        self.release()


class Ahead(Generic[Where]):
    """Looks ahead for one loader, of whose datasets at least one is remote.

    close_file(source, shard): gives up the reader's open file, before the shard may be evicted.
    """

    def __init__(self, datasets: Sequence[Dataset], close_file: Callable[[int, int], None]) -> None:
        self._ends = [np.cumsum([shard.rows for shard in dataset.manifest.shards]) for dataset in datasets]
        self._remote = [isinstance(dataset, RemoteDataset) for dataset in datasets]
        caches = [dataset.cache for dataset in datasets if isinstance(dataset, RemoteDataset)]
        self._caches = list({id(cache): cache for cache in caches}.values())
        self._sizes = [[shard.size for shard in dataset.manifest.shards] for dataset in datasets]
        self._room = min(cache.max_bytes for cache in self._caches) // 4
        """Bytes of shards to be fetched before they are needed."""
        self._pressure = [cache.pressure() for cache in self._caches]
        self._fetching = _Fetching(datasets, close_file)
        threads = [
            threading.Thread(target=self._fetching.work, name="maskpipe-fetch", daemon=True)
            for _ in range(max(cache.downloads for cache in self._caches))
        ]
        for thread in threads:
            thread.start()
        self.stop = weakref.finalize(self, _stop, self._fetching, threads, os.getpid())
        self._plans: deque[tuple[Plan[Where], tuple[Key, ...]]] = deque()
        self._bytes = 0

    def restart(self) -> None:
        """What was planned is of no use any more."""
        with self._fetching.changed:
            self._plans.clear()
            self._fetching.upcoming.clear()
            self._fetching.queue.clear()
            self._fetching.urgent.clear()
            self._fetching.failed.clear()
        self._bytes = 0

    def next(self, place: Where, plan_after: Callable[[Where], Plan[Where] | None]) -> Plan[Where] | None:
        """The plan after `place`, which follows the one given out before; `plan_after` makes plans, None where a pass
        ends."""
        self._look(place, plan_after)
        if not self._plans:
            return None
        plan, keys = self._plans.popleft()
        with self._fetching.changed:
            for key in keys:
                self._fetching.upcoming[key] -= 1
                if not self._fetching.upcoming[key]:
                    del self._fetching.upcoming[key]
                    self._bytes -= self._sizes[key[0]][key[1]]
        return plan

    def ready(self, sources: Int32, rows: Int64) -> bool:
        """Are the shards of these rows all here? Asks for those that are not."""
        with self._fetching.changed:
            missing = [key for key in self._keys(sources, rows) if key not in self._fetching.held]
            for key in missing:
                if key not in self._fetching.failed:
                    self._fetching.want(key, urgent=False)
        return not missing

    def hold(self, sources: Int32, rows: Int64) -> Held:
        """The shards of these rows, waited for. What went wrong with one of them is raised, once: the next call tries
        it again."""
        fetching, keys = self._fetching, self._keys(sources, rows)
        self._look_at_pressure()
        got: list[Key] = []
        try:
            with fetching.changed:
                while len(got) < len(keys):
                    missing = []
                    for key in keys:
                        if key in fetching.failed:
                            raise fetching.failed.pop(key).with_traceback(None)
                        if key not in fetching.held:
                            missing.append(key)
                        elif key not in got:
                            fetching.held[key].users += 1  # at once, so that it stays while others are waited for
                            fetching.held.move_to_end(key)
                            got.append(key)
                    for key in reversed(missing):
                        fetching.want(key, urgent=True)
                    if missing:
                        fetching.changed.wait(0.1)
        except BaseException:
            Held(fetching, got).release()
            raise
        return Held(fetching, keys)

    def discard(self, held: Held) -> bool:
        """Looks at shards that were not what they should be, and which nothing else here holds: those of the cache that
        are spoiled are removed. True when there were some."""
        fetching = self._fetching
        held.release()
        with fetching.changed:
            for key in held.keys:
                if key in fetching.held and not fetching.held[key].users:
                    fetching.release(key)
            for key in [key for key, other in fetching.held.items() if not other.users and other.lease.deleted]:
                fetching.release(key)
        spoiled = 0
        for source, number in held.keys:
            dataset = fetching.datasets[source]
            spoiled += isinstance(dataset, RemoteDataset) and dataset.recheck(number)
        return spoiled > 0

    def _look(self, place: Where, plan_after: Callable[[Where], Plan[Where] | None]) -> None:
        """Plans on until enough is asked for."""
        fetching = self._fetching
        if self._plans:
            place = self._plans[-1][0][2]
        for _ in range(PLANS_AT_ONCE):
            if self._plans and (self._bytes >= self._room or len(self._plans) >= PLANS):
                return
            plan = plan_after(place)
            if plan is None:
                return
            place, keys = plan[2], self._keys(plan[0], plan[1])
            self._plans.append((plan, keys))
            with fetching.changed:
                for key in keys:
                    if not fetching.upcoming[key]:
                        self._bytes += self._sizes[key[0]][key[1]]
                        if key not in fetching.failed:
                            fetching.want(key, urgent=False)
                    fetching.upcoming[key] += 1

    def _look_at_pressure(self) -> None:
        now = [cache.pressure() for cache in self._caches]
        if now != self._pressure:
            self._pressure = now
            self._fetching.give_back(all_idle=True)

    def _keys(self, sources: Int32, rows: Int64) -> tuple[Key, ...]:
        keys: list[Key] = []
        for source in self._sources_in(sources):
            numbers = np.searchsorted(self._ends[source], rows[sources == source], side="right")
            keys += [(source, number) for number in np.unique(numbers).tolist()]
        return tuple(keys)

    def _sources_in(self, sources: Int32) -> Iterable[int]:
        return (source for source in np.unique(sources).tolist() if source >= 0 and self._remote[source])


def _stop(fetching: _Fetching, threads: Sequence[threading.Thread], process: int) -> None:
    if os.getpid() != process:  # in a forked process the threads are missing, and locks may be theirs
        return
    fetching.stop.set()
    with fetching.changed:
        fetching.changed.notify_all()
    until = time.monotonic() + 10
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    with fetching.changed:
        for key in [key for key, held in fetching.held.items() if not held.users]:
            fetching.release(key)
