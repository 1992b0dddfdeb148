"""Memory that batches are read into: pieces of one size, used again when nothing refers to them any more.

A batch on the CPU *is* its piece: it goes back when the batch's last tensor is gone, so a batch that somebody keeps is
never written over. For a GPU the pieces are pinned, and go back when the copy on the side stream is done.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskpipe import _core
from maskpipe.data.batch import Batch

_LINE = 64

DTYPES: dict[str, type[np.generic]] = {
    "ids32": np.int32, "ids": np.int64, "labels": np.int64, "targets": np.int64, "positions": np.int64,
    "segments": np.int32, "weights": np.float32, "roles": np.uint8,
}  # fmt: skip
"""Columns that the core can fill, [rows * sequence_length] each."""


@dataclass(frozen=True)
class Columns:
    """How a piece of memory is divided."""

    tokens: int
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of a piece."""
        return self._ends[-1][2] if self._ends else _LINE

    def split(self, memory: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any] | None]:
        """Every column of DTYPES: a view of the memory, or None."""
        out: dict[str, npt.NDArray[Any] | None] = dict.fromkeys(DTYPES)
        for name, begin, _, size in self._ends:
            out[name] = memory[begin : begin + size].view(DTYPES[name])
        return out

    @cached_property
    def _ends(self) -> list[tuple[str, int, int, int]]:
        """Name, begin, end (of whole lines) and bytes of each column."""
        out, begin = [], 0
        for name in self.names:
            size = self.tokens * np.dtype(DTYPES[name]).itemsize
            end = begin + -(-size // _LINE) * _LINE
            out.append((name, begin, end, size))
            begin = end
        return out


class HostSlots:
    """Pieces for batches that stay on the CPU."""

    def __init__(self, columns: Columns) -> None:
        self._pool = _core.Pool(columns.size)

    def take(self) -> npt.NDArray[np.uint8]:
        return self._pool.take()

    def deliver(self, batch: Batch, memory: npt.NDArray[np.uint8]) -> Batch:
        return batch


class DeviceSlots:
    """Pinned pieces and a side stream, for a CUDA device."""

    def __init__(self, columns: Columns, device: torch.device) -> None:
        self._size = columns.size
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: list[torch.Tensor] = []
        self._copying: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._taken: dict[int, torch.Tensor] = {}

    def take(self) -> npt.NDArray[np.uint8]:
        while self._copying and self._copying[0][0].query():  # type: ignore[no-untyped-call]
            self._free.append(self._copying.popleft()[1])
        piece = self._free.pop() if self._free else torch.empty(self._size, dtype=torch.uint8, pin_memory=True)
        memory: npt.NDArray[np.uint8] = piece.numpy()
        self._taken[memory.ctypes.data] = piece
        return memory

    def deliver(self, batch: Batch, memory: npt.NDArray[np.uint8]) -> Batch:
        """The batch on the device. The copy runs beside what the current stream does, which waits for it only here."""
        piece = self._taken.pop(memory.ctypes.data)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        self._copying.append((done, piece))
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for value in (moved.input_ids, *moved.flat.values(), *moved.dense.values()):
            value.record_stream(current)
        return moved


def slots_for(columns: Columns, device: torch.device) -> HostSlots | DeviceSlots:
    return DeviceSlots(columns, device) if device.type == "cuda" else HostSlots(columns)
