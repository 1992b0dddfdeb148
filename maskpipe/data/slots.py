"""Memory that batches are read into: pieces of one size, used again when nothing refers to them any more.

A batch on the CPU *is* its piece: it goes back when the batch's last tensor is gone, so a batch that somebody keeps is
never written over. For a GPU the pieces are pinned, and go back when the copy on the side stream is done.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from maskpipe import _core
from maskpipe.data.batch import Batch

_LINE = 64

DTYPES: dict[str, type[np.generic]] = {
    "ids32": np.int32, "input_ids": np.int64, "labels": np.int64, "targets": np.int64, "position_ids": np.int64,
    "segment_ids": np.int32, "loss_weights": np.float32, "role_ids": np.uint8,
}  # fmt: skip
"""Columns that the core can fill, [rows * sequence_length] each."""


@dataclass(frozen=True)
class Columns:
    """How a piece of memory is divided."""

    tokens: int
    names: tuple[str, ...]

    @property
    def places(self) -> dict[str, int]:
        """Where each column begins, in bytes."""
        out, begin = {}, 0
        for name in self.names:
            out[name] = begin
            begin += -(-self.tokens * np.dtype(DTYPES[name]).itemsize // _LINE) * _LINE
        return out

    @property
    def size(self) -> int:
        """Bytes of a piece."""
        last = self.names[-1]
        return self.places[last] + self.tokens * np.dtype(DTYPES[last]).itemsize


class HostSlots:
    """Pieces for batches that stay on the CPU."""

    moves = False

    def __init__(self, columns: Columns) -> None:
        self.memory = _core.Pool(columns.size)
        """What the core takes pieces from."""

    def deliver(self, batch: Batch) -> Batch:
        return batch

    def forget(self) -> None:
        """Batches that were read ahead are given up."""


class DeviceSlots:
    """Pinned pieces and a side stream, for a CUDA device."""

    moves = True

    def __init__(self, columns: Columns, device: torch.device) -> None:
        self._size = columns.size
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: list[torch.Tensor] = []
        self._copying: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._taken: dict[int, torch.Tensor] = {}

    def memory(self) -> npt.NDArray[np.uint8]:
        """A piece for the core."""
        while self._copying and self._copying[0][0].query():  # type: ignore[no-untyped-call]
            self._free.append(self._copying.popleft()[1])
        piece = self._free.pop() if self._free else torch.empty(self._size, dtype=torch.uint8, pin_memory=True)
        memory: npt.NDArray[np.uint8] = piece.numpy()
        self._taken[memory.ctypes.data] = piece
        return memory

    def forget(self) -> None:
        self._taken.clear()

    def deliver(self, batch: Batch) -> Batch:
        """The batch on the device. The copy runs beside what the current stream does, which waits for it only here."""
        assert batch._given is not None
        piece = self._taken.pop(_core.delivered_address(batch._given))
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        self._copying.append((done, piece))
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for value in moved.tensors.values():
            if value.device == self._device:
                value.record_stream(current)
        return moved


def slots_for(columns: Columns, device: torch.device) -> HostSlots | DeviceSlots:
    return DeviceSlots(columns, device) if device.type == "cuda" else HostSlots(columns)
