"""The state of a loader: a small plain dict, from which any run over the same datasets goes on exactly.

    {"version": 1, "seed": 0, …, "pass": 0, "within": 0, "sources": [{"fingerprint": …, "count": 96, …}]}

It says how many rows of each dataset were delivered, and nothing about ranks or threads: those may change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from maskpipe.errors import DatasetError, UsageError

VERSION = 1


@dataclass(frozen=True)
class SourceState:
    """Where one dataset stands."""

    fingerprint: str
    name: str
    """For people: the directory's name."""
    share: str
    """What the mixture gives to it, as a fraction; "rows" when datasets are simply read to their ends."""
    rate: int
    credit: int
    count: int


@dataclass(frozen=True)
class State:
    """Where a run stands, after whole global batches and `within` more rows of one rank's slice."""

    seed: int
    shuffle: bool
    window: int
    epochs: int | None
    passes: int
    """Complete passes over `epochs` epochs."""
    position: int
    """Rows delivered by all ranks together; of the global batch that has begun, none."""
    within: int
    """Rows of the rank's slice of that global batch that it has got."""
    world_size: int
    global_batch_size: int
    sources: tuple[SourceState, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self), "sources": [asdict(source) for source in self.sources]}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> State:
        """UsageError for anything but what to_dict gave."""
        try:
            plain = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            raise UsageError("state: it is no plain dict of numbers and texts") from None
        version = plain.get("version") if isinstance(plain, dict) else None
        if type(version) is not int or version != VERSION:
            raise UsageError(f"state: version {version!r} is not known to this maskpipe, which reads {VERSION}")
        del plain["version"]
        fields = _demand(plain, _STATE, "state")
        sources = tuple(
            SourceState(**_demand(entry, _SOURCE, f"state: sources[{k}]")) for k, entry in enumerate(fields["sources"])
        )
        state = State(**{**fields, "sources": sources})
        _check_sums(state)
        return state


_SOURCE: dict[str, tuple[type, ...]] = {
    "fingerprint": (str,), "name": (str,), "share": (str,), "rate": (int,), "credit": (int,), "count": (int,),
}  # fmt: skip
_STATE: dict[str, tuple[type, ...]] = {
    "seed": (int,), "shuffle": (bool,), "window": (int,), "epochs": (int, type(None)), "passes": (int,),
    "position": (int,), "within": (int,), "world_size": (int,), "global_batch_size": (int,), "sources": (list,),
}  # fmt: skip


def _demand(value: Any, kinds: Mapping[str, tuple[type, ...]], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise UsageError(f"{where}: expected the keys {', '.join(kinds)}")
    for key, kind in kinds.items():
        entry = value[key]
        if type(entry) not in kind or (type(entry) is int and key != "seed" and not _fits(key, entry)):
            raise UsageError(f"{where}: {key} is {entry!r}")
    return value


def _fits(key: str, number: int) -> bool:
    return (number >= 0 or key == "credit") and abs(number) < 2**62


def _check_sums(state: State) -> None:
    """What no loader writes would repeat or lose rows, so it is refused."""
    sources, ranks = state.sources, max(1, state.world_size)
    total = sum(source.rate for source in sources)
    wrong = {
        "it has no sources": not sources,
        "a source stands in it twice": len({source.fingerprint for source in sources}) < len(sources),
        "its credits do not add up": sum(s.credit for s in sources) != 0 or any(abs(s.credit) > total for s in sources),
        "its position is behind its counts": state.position > sum(source.count for source in sources),
        "it has passes without epochs": state.epochs is None and state.passes > 0,
        "its global batch is no multiple of its ranks": state.world_size < 1
        or state.global_batch_size < 1
        or state.global_batch_size % ranks > 0,
        "it stands outside its global batch": state.within > 0 and state.within >= state.global_batch_size // ranks,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise UsageError(f"state: {what}; it was changed after it was saved")


def match(state: State, fingerprints: Sequence[str], names: Sequence[str]) -> list[SourceState | None]:
    """The state of each dataset of a loader, None for one that is new. DatasetError, with both fingerprints, when the
    state knows a dataset that the loader does not have."""
    known = {source.fingerprint: source for source in state.sources}
    missing = [source for source in state.sources if source.fingerprint not in set(fingerprints)]
    if missing:
        here = ", ".join(f"{name!r} with {fingerprint}" for name, fingerprint in zip(names, fingerprints, strict=True))
        gone = missing[0]
        raise DatasetError(
            f"state: it was saved over a dataset {gone.name!r} with fingerprint {gone.fingerprint}; the loader has "
            f"{here}. A changed dataset has another order: start anew, or load the dataset that the state belongs to "
            "(in a mixture, weight 0 leaves one out)"
        )
    return [known.get(fingerprint) for fingerprint in fingerprints]
