"""The loader: every row as the shards have it, the same global batches whatever changes, exact states."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskpipe
from maskpipe.errors import DatasetError, UsageError
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from tests.made_datasets import chats, publish_documents

torch = pytest.importorskip("torch")
from maskpipe.data import Batch, Loader  # noqa: E402

LONG = os.environ.get("MASKPIPE_LONG") == "1"
LENGTH, GLOBAL = 64, 24
LENGTHS = [20, 30, 64, 10, 5, 40, 33, 21, 64, 50, 7, 1, 63]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """59 rows in 9 shards; with row 2 of 3 weighted, one row in four split, and padding."""
    path = tmp_path_factory.mktemp("data") / "chats"
    manifest = publish_documents(path, chats(LENGTHS * 9), sequence_length=LENGTH, rows_per_shard=7)
    assert manifest.totals.sequences == 59
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "other"
    publish_documents(path, chats([33, 64, 12, 50] * 8), sequence_length=LENGTH, rows_per_shard=5)
    return path


def batches(loader: Loader) -> Iterator[Batch]:
    while True:
        try:
            yield next(loader)
        except StopIteration:
            return


def rows_of(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.sources.tolist(), batch.rows.tolist(), strict=True))


def content(batch: Batch) -> list[bytes]:
    """Per row, all that a model sees of it."""
    names = ("input_ids", "labels", "targets", "position_ids", "segment_ids", "loss_weights", "role_ids")
    columns = [getattr(batch, name).numpy().view(np.uint8).reshape(len(batch), -1) for name in names]
    return [row.tobytes() for row in np.concatenate(columns, 1)]


# What a batch holds


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("io", ["pread", "mmap"])
@pytest.mark.parametrize("verify", ["every_read", "off"])
@pytest.mark.parametrize("expand", ["host", "device"])
def test_every_column_is_what_the_reader_says(out: Path, threads: int, io: Any, verify: Any, expand: Any) -> None:
    dataset = maskpipe.open(out)
    columns = ("labels", "targets", "position_ids", "segment_ids", "loss_weights", "role_ids")
    for eager in (columns, ()):
        seen = []
        for batch in Loader(
            dataset, global_batch_size=6, epochs=1, threads=threads, io=io, verify=verify, expand=expand, columns=eager
        ):
            check_rows(batch, dataset)
            seen += batch.rows.tolist()
        assert len(set(seen)) == len(seen) == 54


def check_rows(batch: Batch, dataset: maskpipe.Dataset) -> None:
    assert batch.input_ids.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64
    ends = [0]
    for k in range(len(batch)):
        row = dataset[int(batch.rows[k])]
        assert batch.input_ids[k].tolist() == row.input_ids.tolist()
        assert batch.labels[k].tolist() == row.labels.tolist()
        assert batch.targets[k].tolist() == [*row.labels[1:].tolist(), -100]
        assert batch.segment_ids[k].tolist() == row.segment_ids.tolist()
        assert batch.role_ids[k].tolist() == row.role_ids.tolist()
        assert batch.part_ids[k].tolist() == row.part_ids.tolist()
        assert batch.loss_weights[k].tolist() == (row.weights * row.loss_mask).tolist()
        filled = int(row.cu_seqlens[-1])
        padding = np.arange(LENGTH - filled)  # a segment of its own
        assert batch.position_ids[k].tolist() == [*row.position_ids[:filled].tolist(), *padding.tolist()]
        ends += (k * LENGTH + row.cu_seqlens[1:]).tolist() + ([(k + 1) * LENGTH] if filled < LENGTH else [])
    assert batch.cu_seqlens.tolist() == ends
    assert batch.max_seqlen == max(np.diff(ends))
    assert batch.n_loss == int((batch.labels != -100).sum())


def test_the_first_token_of_a_document_is_never_a_target(out: Path) -> None:
    for train_on in (None, "all", ("assistant", "user")):
        for batch in Loader(out, global_batch_size=6, epochs=1, train_on=train_on):
            first = batch.cu_seqlens[:-1].long()
            assert (batch.labels.view(-1)[first] == -100).all()
            last = (batch.cu_seqlens[1:] - 1).long()
            assert (batch.targets.view(-1)[last] == -100).all()


@pytest.mark.parametrize(
    "train_on",
    [
        "assistant", "all", ("user",), ("assistant", "last_turn"), ("assistant", "turns:0,-1"),
        ("assistant", "-assistant.stop"), ("assistant.content", "user.scaffold"), ("assistant", "user", "turns:1"),
        ("-user", "all"),
    ],
)  # fmt: skip
def test_labels_are_decided_anew_as_prepare_would(out: Path, train_on: Any) -> None:
    dataset = maskpipe.open(out)
    policy = Policy.of(Recipe.from_dict({**dataset.manifest.recipe, "train_on": train_on}))
    documents = iter(dataset.documents())
    for batch in Loader(out, global_batch_size=1, epochs=1, shuffle=False, train_on=train_on):
        expected = []
        for _ in range(int((batch.segment_numbers > 0).sum())):
            document = next(documents)
            expected += np.where(policy.loss(document), document.input_ids, -100).tolist()
        expected += [-100] * (LENGTH - len(expected))
        assert batch.labels[0].tolist() == expected


def test_weights_by_role_and_part_multiply_those_of_the_data(out: Path) -> None:
    plain = next(Loader(out, global_batch_size=59, epochs=1))
    weighted = next(Loader(out, global_batch_size=59, epochs=1, weights={"assistant": 0.5, "assistant.stop": 0}))
    stop = (plain.part_ids == maskpipe.Part.STOP) & (plain.labels != -100)
    assert stop.any()
    assert torch.equal(weighted.labels, torch.where(stop, -100, plain.labels))
    assert torch.equal(weighted.loss_weights, torch.where(stop, 0, plain.loss_weights * 0.5))
    assert weighted.n_loss == plain.n_loss - int(stop.sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size must be a whole number of at least 1"),
        ({"batch_size": 5}, "batch_size 5 does not divide the 24 rows"),
        ({"rank": 0}, "belong together"),
        ({"rank": 2, "world_size": 2}, "rank 2 of world_size 2"),
        ({"rank": -1, "world_size": 2}, "rank -1 of world_size 2"),
        ({"rank": 0, "world_size": 5}, "cannot be divided among 5 ranks"),
        ({"train_on": "asistant"}, "is no selector"),
        ({"weights": {"asistant": 1.0}}, "is no role"),
        ({"weights": {"user": -1.0}}, "at least 0"),
        ({"columns": ("label",)}, "'label' is none of"),
        ({"mixture": [1], "epochs": 1}, "exclude each other"),
        ({"mixture": [1, 2]}, "2 weights for 1 datasets"),
        ({"unit": "tokens"}, "there are none"),
        ({"mixture": [1], "unit": "loss_tokens", "train_on": "all"}, "cannot go with train_on"),
        ({"mixture": [1], "unit": "loss_tokens", "weights": {"assistant.stop": 0}}, "or weights of 0"),
        ({"mixture": ["1"]}, "weight '1' of source 0 is no number"),
        ({"mixture": [True]}, "weight True of source 0 is no number"),
        ({"weights": {"user": 1e300}}, "which float32 cannot hold"),
        ({"weights": {"user": 1e-60}}, "which float32 cannot hold"),
        ({"window": 2, "shuffle": False}, "shuffle=False does not"),
        ({"shuffle": "no"}, "shuffle must be True or False"),
        ({"step_totals": None}, "step_totals must be True or False"),
        ({"threads": 257}, "threads must be at most 256"),
        ({"verify": "sometimes"}, "verify must be one of"),
        ({"seed": 1.5}, "seed must be a whole number"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(out: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Loader(out, **{"global_batch_size": GLOBAL, **arguments})


def test_datasets_that_do_not_fit_each_other_are_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds the same as"):
        Loader([out, out], global_batch_size=4)
    publish_documents(tmp_path / "long", chats([20]), sequence_length=128)
    with pytest.raises(UsageError, match="has sequence_length 128"):
        Loader([out, tmp_path / "long"], global_batch_size=4)
    publish_documents(tmp_path / "words", chats([20]), vocab_size=2000)
    with pytest.raises(UsageError, match="has vocab_size 2000"):
        Loader([out, tmp_path / "words"], global_batch_size=4)
    with pytest.raises(UsageError, match="there is none"):
        Loader([], global_batch_size=4)
    with pytest.raises(UsageError, match="there are 1025, at most 1024"):
        Loader([maskpipe.open(out)] * 1025, global_batch_size=4)


def test_ranks_come_from_the_environment(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match="WORLD_SIZE is missing"):
        Loader(out, global_batch_size=4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    loader = Loader(out, global_batch_size=4)
    assert (loader.rank, loader.world_size) == (1, 4)
    assert Loader(out, global_batch_size=4, rank=0, world_size=1).world_size == 1
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(UsageError, match="no whole number"):
        Loader(out, global_batch_size=4)


# The same global batches, whatever changes


def test_no_change_of_ranks_threads_or_cuts_changes_a_global_batch(out: Path) -> None:
    """The elastic matrix over three epochs: every world size, every number of threads, every cut point (one each
    without MASKPIPE_LONG), both ways of ending. Each rank goes on from a state that another world saved."""
    compared = 0
    for remainder, steps in (("drop", 7), ("pad", 8)):
        common: dict[str, Any] = {"global_batch_size": GLOBAL, "epochs": 3, "seed": 3, "remainder": remainder}
        whole, states = [], [Loader(out, **common).state_dict()]
        for batch in Loader(out, **common):
            whole.append(content(batch))
            states.append(json.loads(json.dumps(batch.state())))
        assert len(whole) == steps
        for world in (1, 2, 3, 4, 6, 8, 12):
            for threads in (0, 1, 2, 4):
                cuts = range(steps + 1) if LONG else range((world + threads) % 8, steps + 1, 8)
                loaders = [
                    Loader(out, rank=r, world_size=world, threads=threads, prefetch=2, **common) for r in range(world)
                ]
                assert {len(loader) for loader in loaders} == {steps}
                for cut in cuts:
                    parts = []
                    for loader in loaders:
                        loader.load_state_dict(states[cut])
                        parts.append([content(batch) for batch in batches(loader)])
                    assert {len(part) for part in parts} == {steps - cut}, "ranks have different counts"
                    for g in range(steps - cut):
                        assert [row for part in parts for row in part[g]] == whole[cut + g], (world, threads, cut, g)
                        compared += 1
    print(f"elastic matrix: {compared} global batches after a cut, all byte-identical")


def test_accumulation_splits_a_slice_and_changes_nothing_else(out: Path) -> None:
    whole = [content(batch) for batch in Loader(out, global_batch_size=GLOBAL, epochs=1)]
    for size in (1, 2, 3, 4, 6, 12):
        loader = Loader(out, global_batch_size=GLOBAL, batch_size=size, rank=1, world_size=2, epochs=1)
        parts = [content(batch) for batch in loader]
        assert len(parts) == len(loader) == len(whole) * 12 // size
        assert [row for part in parts for row in part] == [row for batch in whole for row in batch[12:]]


def test_every_row_comes_once_per_epoch_and_epochs_differ(out: Path) -> None:
    loader = Loader(out, global_batch_size=1, epochs=3)
    rows = [row for batch in loader for row in batch.rows.tolist()]
    epochs = [rows[:59], rows[59:118], rows[118:]]
    assert all(sorted(epoch) == list(range(59)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert rows != [row for batch in Loader(out, global_batch_size=1, epochs=3, seed=1) for row in batch.rows.tolist()]
    plain = Loader(out, global_batch_size=1, epochs=1, shuffle=False)
    assert [row for batch in plain for row in batch.rows.tolist()] == list(range(59))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [12, 24, 60])
def test_ranks_have_equal_counts_and_what_is_left_out_or_added_is_counted(
    out: Path, world: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    for remainder in ("drop", "pad"):
        caplog.clear()
        loaders = [
            Loader(out, global_batch_size=size, rank=r, world_size=world, epochs=1, remainder=remainder)
            for r in range(world)
        ]
        left_out = loaders[0].dropped_rows
        said = f"{left_out} of the 59 rows of a pass fill no global batch of {size} and are left out"
        assert [said in text for text in caplog.messages] == [True] * (left_out > 0), "once, by rank 0"
        parts = [list(batches(loader)) for loader in loaders]
        assert {len(part) for part in parts} == {len(loaders[0])}
        rows = [row for part in parts for batch in part for row in rows_of(batch)]
        real = [row for row in rows if row[0] >= 0]
        assert len(set(real)) == len(real) == 59 - loaders[0].dropped_rows
        padding = sum(batch.padding_rows for part in parts for batch in part)
        assert padding == len(rows) - len(real) == loaders[0].padded_rows
        for batch in (batch for part in parts for batch in part if batch.padding_rows):
            empty = batch.sources < 0
            assert (batch.labels[empty] == -100).all() and (batch.segment_ids[empty] == 0).all()
            assert (batch.input_ids[empty] == 7).all()


def test_an_endless_loader_is_something(out: Path) -> None:
    loader = Loader(out, global_batch_size=6)
    assert loader
    with pytest.raises(TypeError, match="no length"):
        len(loader)


def test_the_next_loop_is_the_next_pass(out: Path) -> None:
    loader = Loader(out, global_batch_size=8, epochs=1)
    first, second = [rows_of(b) for b in loader], [rows_of(b) for b in loader]
    assert len(first) == len(second) == len(loader) == 7
    assert first != second
    # A state from the end of a pass, or from inside the second, goes on there.
    loader = Loader(out, global_batch_size=8, epochs=1)
    states = [batch.state() for batch in loader] + [batch.state() for batch in loader]
    other = Loader(out, global_batch_size=8, epochs=1)
    other.load_state_dict(states[6])
    assert [rows_of(b) for b in other] == []
    assert [rows_of(b) for b in other] == second
    other.load_state_dict(states[8])
    assert [rows_of(b) for b in other] == second[2:]


@pytest.mark.parametrize("at", [0, 3, 7])
@pytest.mark.parametrize("threads", [0, 2])
def test_an_interrupt_while_a_batch_is_awaited_loses_nothing(
    out: Path, threads: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises it when the core has come back with the batch, or at the end of a pass."""
    run: dict[str, Any] = {"global_batch_size": 8, "epochs": 1, "threads": threads}
    whole = Loader(out, **run)
    expected = [rows_of(b) for b in whole] + [rows_of(b) for b in whole]
    loader = Loader(out, **run)
    seen = [rows_of(next(loader)) for _ in range(at)]
    state = loader.state_dict()

    def interrupted(*arguments: Any) -> Any:
        read(*arguments)
        raise KeyboardInterrupt

    read = loader._read
    monkeypatch.setattr(loader, "_read", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            next(loader)
        assert loader.state_dict() == state
    monkeypatch.setattr(loader, "_read", read)
    assert seen + [rows_of(b) for b in loader] + [rows_of(b) for b in loader] == expected


def test_a_loop_that_is_left_goes_on_where_it_was(out: Path) -> None:
    loader = Loader(out, global_batch_size=8, epochs=1)
    whole = [rows_of(b) for b in Loader(out, global_batch_size=8, epochs=1)]
    seen = []
    for batch in loader:
        seen.append(rows_of(batch))
        if len(seen) == 3:
            break
    assert seen + [rows_of(b) for b in loader] == whole


# States


def test_a_state_is_small_plain_and_says_where_the_last_batch_was(out: Path) -> None:
    loader = Loader(out, global_batch_size=8, threads=2, prefetch=6)
    for n in range(1, 5):
        batch = next(loader)
        state = loader.state_dict()
        assert state == batch.state() == json.loads(json.dumps(state))
        assert state["position"] == state["sources"][0]["count"] == 8 * n
    assert len(json.dumps(state)) < 450


def test_loading_takes_effect_on_an_iterator_that_runs(out: Path) -> None:
    whole = [rows_of(b) for b in Loader(out, global_batch_size=8, epochs=1)]
    loader = Loader(out, global_batch_size=8, epochs=1)
    iterator = iter(loader)
    start = loader.state_dict()
    assert [rows_of(next(iterator)) for _ in range(3)] == whole[:3]
    loader.load_state_dict(start)
    assert [rows_of(b) for b in iterator] == whole


def test_inside_a_global_batch_the_state_is_of_one_rank(out: Path) -> None:
    common: dict[str, Any] = {"global_batch_size": 24, "epochs": 1, "batch_size": 2}
    whole = [content(b) for b in Loader(out, rank=1, world_size=2, **common)]
    loader = Loader(out, rank=1, world_size=2, **common)
    for n in range(len(whole)):
        state = loader.state_dict()
        other = Loader(out, rank=1, world_size=2, **common)
        other.load_state_dict(state)
        assert content(next(other)) == whole[n]
        if state["within"]:
            with pytest.raises(UsageError, match="inside a global batch"):
                Loader(out, **common).load_state_dict(state)
        next(loader)
    state["within"] = 1
    with pytest.raises(UsageError, match="no whole number of batches"):
        loader.load_state_dict(state)


def test_inside_a_global_batch_its_rows_stay_the_same_or_the_state_is_refused(out: Path, other: Path) -> None:
    """Datasets in another order, or another end of the pass, would give rows of the batch twice or never."""
    run: dict[str, Any] = {"global_batch_size": 6, "batch_size": 1, "mixture": [1, 1]}
    loader = Loader([out, other], **run)
    next(loader)
    with pytest.raises(UsageError, match="inside a global batch the mixture cannot change"):
        Loader([other, out], **run).load_state_dict(loader.state_dict())
    for _ in range(5):
        next(loader)
    Loader([other, out], **run).load_state_dict(loader.state_dict())

    run = {"global_batch_size": 8, "batch_size": 2, "epochs": 1}
    loader = Loader(out, remainder="pad", **run)
    for _ in range(28):
        next(loader)
    Loader(out, remainder="drop", **run).load_state_dict(loader.state_dict())
    next(loader)
    with pytest.raises(UsageError, match="remainder='drop' would leave out the rest"):
        Loader(out, remainder="drop", **run).load_state_dict(loader.state_dict())


def test_what_would_be_another_order_is_refused(out: Path, other: Path) -> None:
    loader = Loader(out, global_batch_size=8)
    next(loader)
    state = loader.state_dict()
    for arguments in ({"seed": 1}, {"shuffle": False}, {"window": 2}, {"epochs": 1}):
        with pytest.raises(UsageError, match=f"saved with {next(iter(arguments))}="):
            Loader(out, global_batch_size=8, **arguments).load_state_dict(state)
    with pytest.raises(DatasetError) as caught:
        Loader(other, global_batch_size=8).load_state_dict(state)
    for path in (out, other):
        assert maskpipe.open(path).manifest.fingerprint in str(caught.value)
    for wrong in (
        {},
        {**state, "version": 2},
        {**state, "extra": 1},
        {**state, "position": -1},
        {**state, "seed": "0"},
        {**state, "version": True},
        {**state, "position": 9},
        {**state, "within": 8},
        {**state, "passes": 1},
        {**state, "world_size": 0},
        {**state, "sources": []},
        {**state, "sources": state["sources"] * 2},
        {**state, "sources": [{**state["sources"][0], "credit": 1}]},
        {**state, "sources": [{**state["sources"][0], "count": 2**70}]},
    ):
        with pytest.raises(UsageError, match="state"):
            loader.load_state_dict(wrong)
    assert rows_of(next(loader))  # a refused state changes nothing


def test_a_mixture_keeps_its_shares_and_can_change_without_repeating_a_row(out: Path, other: Path) -> None:
    loader = Loader([out, other], global_batch_size=10, mixture=[3, 1])
    rows = [row for _ in range(4) for row in rows_of(next(loader))]
    assert sum(source == 0 for source, _ in rows) == 30
    changed = Loader([out, other], global_batch_size=5, mixture=[1, 4])
    changed.load_state_dict(loader.state_dict())
    more = [row for _ in range(2) for row in rows_of(next(changed))]
    assert sum(source == 0 for source, _ in more) == 2
    both = rows + more
    assert len(set(both)) == len(both) == 50
    # Unchanged, it goes on with the same credits.
    again = Loader([out, other], global_batch_size=10, mixture=[3, 1])
    again.load_state_dict(loader.state_dict())
    assert rows_of(next(again)) == rows_of(next(loader))


def test_loss_tokens_are_shared_as_asked(out: Path, other: Path) -> None:
    datasets = [maskpipe.open(out), maskpipe.open(other)]
    loader = Loader(datasets, global_batch_size=1000, mixture=[1, 1], unit="loss_tokens", threads=0)
    batch = next(loader)
    mean = [dataset.manifest.totals.n_loss / len(dataset) for dataset in datasets]
    got = [int((batch.sources == s).sum()) * mean[s] for s in (0, 1)]
    assert abs(got[0] - got[1]) <= sum(mean)


def test_a_dataset_can_be_added_while_running(out: Path, other: Path) -> None:
    for epochs in (1, 2):
        loader = Loader(out, global_batch_size=8, epochs=epochs)
        rows = [row for _ in range(3) for row in rows_of(next(loader))]
        more = Loader([other, out], global_batch_size=8, epochs=epochs, remainder="pad")
        more.load_state_dict(loader.state_dict())
        for batch in more:
            rows += [(1 - source, row) for source, row in rows_of(batch) if source >= 0]
        counts = {row: rows.count(row) for row in rows}
        assert len(counts) == 59 + len(maskpipe.open(other)) and set(counts.values()) == {epochs}


RESUME = """
import json, sys
from maskpipe.data import Loader
out, state, steps, world, threads = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
run = {"global_batch_size": 24, "epochs": 3, "seed": 3, "world_size": world, "threads": threads}
loaders = [Loader(out, rank=r, **run) for r in range(world)]
rows = []
for loader in loaders:
    if state: loader.load_state_dict(state)
for _ in range(steps):
    rows += [row for loader in loaders for row in next(loader).rows.tolist()]
assert len({json.dumps({**loader.state_dict(), "world_size": 0}) for loader in loaders}) == 1
print(json.dumps([rows, loaders[0].state_dict()]))
"""


# Steps, world and threads of one process after the other: seven steps over three epochs, whose borders are inside the
# third and the fifth.
CHAINS = {
    "two": ((2, 4, 2), (5, 3, 0)),
    "five a": ((2, 1, 0), (1, 4, 2), (1, 3, 1), (2, 12, 0), (1, 2, 4)),
    "five b": ((1, 6, 4), (1, 8, 1), (1, 12, 2), (1, 1, 4), (3, 3, 1)),
    "five c": ((1, 2, 1), (2, 6, 0), (2, 8, 0), (1, 4, 4), (1, 12, 1)),
}


@pytest.mark.parametrize("chain", CHAINS if LONG else ["two"])
def test_resumes_in_a_row_in_fresh_processes_give_the_uninterrupted_order(out: Path, chain: str) -> None:
    whole = [row for batch in Loader(out, global_batch_size=24, epochs=3, seed=3) for row in batch.rows.tolist()]
    rows: list[int] = []
    state: dict[str, Any] = {}
    for steps, world, threads in CHAINS[chain]:
        done = subprocess.run(
            [sys.executable, "-c", RESUME, str(out), json.dumps(state), str(steps), str(world), str(threads)],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        part, state = json.loads(done.stdout)
        rows += part
    assert rows == whole


# Where it runs


def test_it_works_under_torchs_dataloader_and_refuses_workers(out: Path) -> None:
    from torch.utils.data import DataLoader

    whole = [rows_of(b) for b in Loader(out, global_batch_size=8, epochs=1)]
    loader = Loader(out, global_batch_size=8, epochs=1)
    wrapped = DataLoader(loader, batch_size=None)
    assert len(wrapped) == 7
    assert [rows_of(b) for b in wrapped] == whole
    with pytest.raises(UsageError, match="num_workers=0"):
        next(iter(DataLoader(Loader(out, global_batch_size=8, epochs=1), batch_size=None, num_workers=1)))


class Calls(torch.utils.data.IterableDataset[Any]):
    """Asks a loader for batches, or makes one to ask."""

    def __init__(self, loader: Loader | Path) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        yield next(Loader(self.loader, global_batch_size=8) if isinstance(self.loader, Path) else self.loader)


@pytest.mark.parametrize("made", ["outside", "inside"])
def test_workers_that_do_not_iterate_the_loader_are_refused_too(out: Path, made: str) -> None:
    """They would each give the same batches."""
    from torch.utils.data import DataLoader

    calls = Calls(Loader(out, global_batch_size=8) if made == "outside" else out)
    with pytest.raises(UsageError, match="num_workers=0"):
        next(iter(DataLoader(calls, batch_size=None, num_workers=1)))


def test_a_loader_cannot_be_sent_to_another_process(out: Path) -> None:
    with pytest.raises(TypeError, match=r"num_workers=0.*state_dict\(\) of this one"):
        pickle.dumps(Loader(out, global_batch_size=8))


def test_a_device_that_is_not_cuda_gets_its_batches_too(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    monkeypatch.setattr(Batch, "to", lambda self, device, **_: moved.append(str(device)) or self)
    next(Loader(out, global_batch_size=8))
    next(Loader(out, global_batch_size=8, device="xpu:1"))
    assert moved == ["xpu:1"]


def test_threads_that_share_a_loader_share_its_passes(out: Path) -> None:
    """Each batch goes to one of them, and a pass ends for all of them, once."""
    for trial in range(20):
        loader = Loader(out, global_batch_size=4, epochs=1, remainder="pad", threads=trial % 3)
        seen: list[int] = []

        def read(loader: Loader = loader, seen: list[int] = seen) -> None:
            for batch in batches(loader):
                seen.extend(row for row in batch.rows.tolist() if row >= 0)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert sorted(seen) == list(range(59))
        assert loader.state_dict()["passes"] == 1


def test_a_batchs_state_is_its_own_while_another_thread_loads_states(out: Path) -> None:
    common: dict[str, Any] = {"global_batch_size": 8, "epochs": 1, "columns": ()}
    loader = Loader(out, **common)
    states, rows = [], {}
    for _ in range(2):
        for batch in loader:
            states.append(batch.state())
            rows[json.dumps(batch.state())] = rows_of(batch)
    done = threading.Event()

    def load() -> None:
        for state in itertools.cycle(states):
            if done.is_set():
                return
            loader.load_state_dict(state)

    other = threading.Thread(target=load)
    other.start()
    compared = 0
    try:
        while compared < 2000:
            for batch in batches(loader):
                assert rows.get(json.dumps(batch.state())) == rows_of(batch)
                compared += 1
            loader.load_state_dict(states[0])
    finally:
        done.set()
        other.join()


def test_a_forked_process_goes_on_by_itself(out: Path) -> None:
    loader = Loader(out, global_batch_size=8, epochs=1)
    whole = [rows_of(b) for b in Loader(out, global_batch_size=8, epochs=1)]
    assert rows_of(next(loader)) == whole[0]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            rest = [rows_of(b) for b in batches(loader)]
            os.write(write, b"1" if rest == whole[1:] else b"0")
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.waitpid(child, 0)
    assert [rows_of(b) for b in batches(loader)] == whole[1:]


def test_a_batch_that_is_kept_is_never_written_over(out: Path) -> None:
    kept = []
    for batch in Loader(out, global_batch_size=6, epochs=3, threads=2):
        kept.append((batch, content(batch)))
        if len(kept) > 4:
            kept.pop(1)  # others go, and their memory comes back
    assert all(content(batch) == before for batch, before in kept)


def test_memory_comes_back_when_batches_go(out: Path) -> None:
    from maskpipe import _core

    pool = _core.Pool(1 << 16)
    first = pool.take()
    address = first.ctypes.data
    view = first[10:20]
    del first
    assert pool.take().ctypes.data != address  # the view still uses it
    del view
    assert pool.take().ctypes.data == address


def test_a_loader_can_go_while_threads_read(out: Path) -> None:
    for _ in range(30):
        loader = Loader(out, global_batch_size=12, threads=4, prefetch=8)
        next(loader)
        del loader


def test_facts_that_do_not_fit_the_cache_are_read_again(out: Path) -> None:
    common: dict[str, Any] = {"global_batch_size": 6, "epochs": 2}
    whole = [content(b) for b in Loader(out, **common)]
    small = Loader(out, cache_bytes=0, threads=3, **common)
    assert [content(b) for b in small] == whole
    assert small._reader.blocks_decoded() > 9
    large = Loader(out, threads=3, **common)
    assert [content(b) for b in large] == whole
    assert large._reader.blocks_decoded() == 9


def test_few_open_files_are_enough(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskpipe.data import loader as module

    whole = [content(b) for b in Loader(out, global_batch_size=6, epochs=1)]
    monkeypatch.setattr(module, "OPEN_FILES", 1)
    for threads in (0, 4):
        assert [content(b) for b in Loader(out, global_batch_size=6, epochs=1, threads=threads)] == whole


FEW_FILES = """
import resource, sys
from maskpipe.data import Loader
from maskpipe.errors import DatasetError
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
loader = Loader(sys.argv[1], global_batch_size=8, epochs=1)
rows = [row for batch in loader for row in batch.rows.tolist()]
print(len(set(rows)))
loader = Loader(sys.argv[1], global_batch_size=8, epochs=1)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 160))
try:
    next(loader)
except DatasetError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
print(next(loader).rows.tolist() == rows[:8])
"""


def test_a_process_that_may_open_few_files_reads_many_shards(tmp_path: Path) -> None:
    publish_documents(tmp_path / "d", chats([60] * 200), sequence_length=64, rows_per_shard=1)
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(tmp_path / "d")], capture_output=True, text=True, check=True, timeout=300
    )
    read, said, again = done.stdout.splitlines()
    assert (read, again) == ("200", "True")
    assert "Too many open files" in said and said.endswith("allow more (ulimit -n)")


def test_a_batch_of_more_shards_than_files_that_may_be_open_is_read(tmp_path: Path) -> None:
    publish_documents(tmp_path / "d", chats([60] * 400), sequence_length=64, rows_per_shard=1)
    program = (
        "import resource, sys\n"
        "from maskpipe.data import Loader\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))\n"
        "for threads in (0, 2):\n"
        "    batch = next(Loader(sys.argv[1], global_batch_size=400, threads=threads))\n"
        "    print(sorted(batch.rows.tolist()) == list(range(400)))\n"
    )
    run = [sys.executable, "-c", program, str(tmp_path / "d")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True", "True"], done.stderr
