"""Which part of every global batch is this process's? Given, or proved by torch.distributed or the environment."""

from __future__ import annotations

import os

import torch.distributed

from maskpipe.errors import UsageError


def resolve(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world_size) among the data-parallel ranks.

    Both given, or neither: then torch.distributed if it is initialised, else RANK and WORLD_SIZE of the environment,
    else (0, 1). Peers that work on the same batch (tensor, pipeline or context parallel) must be given the same rank.
    UsageError when they do not fit each other.
    """
    if (rank is None) != (world_size is None):
        raise UsageError("rank and world_size belong together: give both or neither")
    where = "given"
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size, where = torch.distributed.get_rank(), torch.distributed.get_world_size(), "of the group"
        elif "RANK" in os.environ or "WORLD_SIZE" in os.environ:
            rank, world_size, where = _environment("RANK"), _environment("WORLD_SIZE"), "in the environment"
        else:
            return 0, 1
    for name, value in (("rank", rank), ("world_size", world_size)):
        if type(value) is not int:
            raise UsageError(f"{name} {where} must be a whole number, got {value!r}")
    if world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(
            f"rank {rank} of world_size {world_size} ({where}) does not exist; ranks are 0 to world_size - 1"
        )
    return rank, world_size


def _environment(name: str) -> int:
    text = os.environ.get(name)
    if text is None:
        raise UsageError(f"the environment has only one of RANK and WORLD_SIZE; {name} is missing")
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} in the environment is {text!r}, no whole number") from None
