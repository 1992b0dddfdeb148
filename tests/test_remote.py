"""Remote datasets: the same batches as from a directory, whatever the network does; a cache that holds only whole
files, within its bound, shared by any number of processes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskpipe
from maskpipe.errors import DatasetError, UsageError
from maskpipe.remote.cache import ShardCache
from maskpipe.remote.storage import clean, parse
from maskpipe.shards.format import REGION_SIZE
from tests.made_datasets import chats, publish_documents
from tests.storage_server import (
    ACCESS,
    SECRET,
    Proxy,
    Request,
    child_environment,
    environment,
    s3_server,
    upload,
    uri,
)

torch = pytest.importorskip("torch")
from maskpipe.data import Loader  # noqa: E402

LENGTHS = [20, 30, 64, 10, 5, 40, 33, 21, 64, 50, 7, 1, 63]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """59 rows in 9 shards of one region."""
    path = tmp_path_factory.mktemp("data") / "chats"
    publish_documents(path, chats(LENGTHS * 9), sequence_length=64, rows_per_shard=7)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 shards of 10 regions or more: more than one range."""
    path = tmp_path_factory.mktemp("data") / "large"
    documents = chats([4096] * 1240)
    manifest = publish_documents(path, documents, sequence_length=4096, rows_per_shard=620)
    assert [shard.size > 9 * REGION_SIZE for shard in manifest.shards] == [True, True]
    return path


@pytest.fixture(scope="module")
def server(out: Path, large: Path) -> Iterator[Proxy]:
    with s3_server() as proxy:
        upload(proxy, out, "chats")
        upload(proxy, large, "large")
        yield proxy


@pytest.fixture
def s3(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    server.clear()
    yield server
    server.release.set()
    server.clear()


def cache_at(path: Path, **settings: Any) -> ShardCache:
    return ShardCache(path, **{"pause": 0.001, "timeout": 5.0, **settings})


def bits(loader: Iterable[Any]) -> list[tuple[bytes, ...]]:
    return [
        (b.input_ids.numpy().tobytes(), b.labels.numpy().tobytes(), b.cu_seqlens.numpy().tobytes(),
         b.rows.numpy().tobytes(), json.dumps(b.state()).encode())
        for b in loader
    ]  # fmt: skip


def stored(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.path.glob("*/*") if path.parent.name != "uris")


def all_whole(cache: ShardCache, dataset: Path) -> int:
    """Shards in the cache; each must be the one that was prepared."""
    shards = [*cache.path.glob("*/part-*.arrow")]
    for path in shards:
        assert path.read_bytes() == (dataset / path.name).read_bytes()
    return len(shards)


# The same as from a directory


@pytest.mark.parametrize("settings", [{}, {"window": 2}, {"shuffle": False}, {"threads": 0}], ids=str)
def test_batches_order_and_states_are_those_of_the_directory(
    s3: Proxy, out: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run = {"global_batch_size": 12, "epochs": 2, "remainder": "pad", **settings}
    local = bits(Loader(out, **run))
    remote = Loader(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache"), **run)
    assert bits(remote) == local
    assert remote.fetched["shards_fetched"] == 9
    assert all_whole(cache_at(tmp_path / "cache"), out) == 9


def test_ranks_and_mixtures_with_local_data_resume_across_the_network(
    s3: Proxy, out: Path, large: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    publish_documents(other, chats([50] * 40), sequence_length=64, rows_per_shard=9)
    cache = cache_at(tmp_path / "cache")
    for rank in range(2):
        run = {"global_batch_size": 8, "batch_size": 2, "rank": rank, "world_size": 2, "mixture": [3, 1]}
        local, remote = Loader([out, other], **run), Loader([uri(s3, "chats"), other], shard_cache=cache, **run)
        for _ in range(10):
            assert next(local).input_ids.equal(next(remote).input_ids)
        state = json.loads(json.dumps(local.state_dict()))
        assert state == remote.state_dict()
        again = Loader([uri(s3, "chats"), other], shard_cache=cache, **run)
        again.load_state_dict(state)
        for _ in range(10):
            assert next(local).input_ids.equal(next(again).input_ids)
        for loader in (local, remote, again):
            loader.close()


def test_a_closed_loader_goes_on_where_it_stands(s3: Proxy, out: Path, tmp_path: Path) -> None:
    run = {"global_batch_size": 12, "epochs": 1}
    whole = bits(Loader(out, **run))
    loader = Loader(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache"), **run)
    first = next(loader)
    loader.close()
    assert [(first.input_ids.numpy().tobytes()), *(b[0] for b in bits(loader))] == [b[0] for b in whole]


def test_open_reads_rows_through_the_cache(s3: Proxy, out: Path, tmp_path: Path) -> None:
    local = maskpipe.open(out)
    with maskpipe.open(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache")) as remote:
        assert repr(remote).startswith("Dataset('s3://data/chats': 59 sequences")
        for index in (0, 58, 7, 20):
            assert remote[index].input_ids.tobytes() == local[index].input_ids.tobytes()
        copy = pickle.loads(pickle.dumps(remote))
        assert copy[3].labels.tobytes() == local[3].labels.tobytes() and copy.cache.patience == remote.cache.patience
        with pytest.raises(UsageError, match="only shards are fetched"):
            remote.verify()


class Quiet(SimpleHTTPRequestHandler):
    """Knows no ranges: it sends whole files."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_web_servers_file_uris_and_filesystem_objects_give_the_same(large: Path, out: Path, tmp_path: Path) -> None:
    import fsspec
    from pyarrow import fs

    row = maskpipe.open(large)[700].input_ids.tobytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(large.parent)))
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    web = f"http://127.0.0.1:{server.server_address[1]}/large"
    assert maskpipe.open(web, shard_cache=cache_at(tmp_path / "web"))[700].input_ids.tobytes() == row
    with pytest.raises(
        DatasetError, match=r"nothing/manifest.sha256: cannot be fetched \(1 try\): Refused: HTTP status 404"
    ):
        maskpipe.open(web.replace("large", "nothing"), shard_cache=cache_at(tmp_path / "web"))
    server.shutdown()
    server.server_close()
    memory = fsspec.filesystem("memory")
    for path in large.iterdir():
        memory.pipe_file(f"/somewhere/{path.name}", path.read_bytes())
    for name, filesystem, path in (("a", fs.LocalFileSystem(), str(large)), ("b", memory, "/somewhere")):
        remote = maskpipe.open(path, filesystem=filesystem, shard_cache=cache_at(tmp_path / name))
        assert remote[700].input_ids.tobytes() == row
        with pytest.raises(UsageError, match="cannot be sent to another process"):
            pickle.dumps(remote)
    assert bits(Loader(out.as_uri(), global_batch_size=12, epochs=1)) == bits(
        Loader(out, global_batch_size=12, epochs=1)
    )


# Faults of the network


@pytest.mark.parametrize("kind", ["reset", "truncate", "flip", "500", "slow"])
def test_a_fault_that_passes_costs_tries_and_nothing_else(s3: Proxy, out: Path, tmp_path: Path, kind: str) -> None:
    seen: dict[tuple[str, str], int] = {}

    def fault(request: Request) -> str | None:
        key = (request.method, request.name)
        seen[key] = seen.get(key, 0) + 1
        return kind if seen[key] <= 2 and (kind in ("reset", "500") or request.method == "GET") else None

    s3.fault = fault
    loader = Loader(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache"), global_batch_size=12, epochs=1)
    assert bits(loader) == bits(Loader(out, global_batch_size=12, epochs=1))
    failed = loader.fetched["failed_tries"]
    assert failed == 0 if kind == "slow" else failed >= 2 * 9
    assert loader.fetched["bytes_fetched"] == sum(p.stat().st_size for p in out.glob("part-*"))
    assert all_whole(cache_at(tmp_path / "cache"), out) == 9


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("reset", "cannot be fetched (3 tries): OSError"), ("truncate", "cannot be fetched"),
        ("flip", "cannot be fetched whole (3 tries): region 0 (bytes 0 to"), ("500", "(3 tries): OSError"),
        ("403", "cannot be fetched (1 try): "), ("hang", "cannot be fetched (3 tries): OSError"),
    ],
)  # fmt: skip
def test_a_fault_that_stays_is_a_clear_error_and_the_loader_goes_on_once_it_is_gone(
    s3: Proxy, out: Path, tmp_path: Path, kind: str, says: str
) -> None:
    settings = {"tries": 3, **({"timeout": 0.3} if kind == "hang" else {})}
    loader = Loader(
        uri(s3, "chats"),
        shard_cache=cache_at(tmp_path / "cache", **settings),
        global_batch_size=7,
        epochs=1,
        shuffle=False,
    )
    names = [shard.name for shard in loader.datasets[0].manifest.shards]
    s3.fault = lambda request: kind if request.name == names[4] else None
    whole, got = bits(Loader(out, global_batch_size=7, epochs=1, shuffle=False)), []
    with pytest.raises(DatasetError) as caught:
        got += [batch.input_ids.numpy().tobytes() for batch in iter(lambda: got.append(next(loader)) or got[-1], None)]
    assert f"s3://data/chats/{names[4]}: " in str(caught.value) and says in str(caught.value)
    assert ACCESS not in str(caught.value) and SECRET not in str(caught.value)
    assert [b.input_ids.numpy().tobytes() for b in got] == [b[0] for b in whole[:4]], "all before it came"
    assert not [*(tmp_path / "cache").glob(f"*/{names[4]}")]
    s3.fault = lambda request: None
    s3.release.set()
    assert [b[0] for b in bits(loader)] == [b[0] for b in whole[4:]]


def test_nobody_there_is_said_with_the_uri_and_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    nobody = "s3://data/chats?region=us-east-1&scheme=http&endpoint_override=127.0.0.1%3A9"
    with pytest.raises(
        DatasetError, match=r"s3://data/chats/manifest.sha256: cannot be fetched \(2 tries\): OSError"
    ) as caught:
        maskpipe.open(nobody, shard_cache=cache_at(tmp_path / "cache", tries=2, timeout=1.0))
    error = caught.value
    assert error.__context__ is None and error.__cause__ is None, "nothing of the client's own errors is kept"


def test_a_shard_that_breaks_off_again_and_again_arrives_in_pieces(s3: Proxy, large: Path, tmp_path: Path) -> None:
    s3.fault = lambda request: "truncate" if request.end - request.begin >= 2 * REGION_SIZE else None
    remote = maskpipe.open(uri(s3, "large"), shard_cache=cache_at(tmp_path / "cache", tries=4))
    assert remote[3].input_ids.tobytes() == maskpipe.open(large)[3].input_ids.tobytes()
    assert remote.cache.tally.bytes_fetched == remote.manifest.shards[0].size


def test_another_manifest_than_its_hash_says_is_refused(s3: Proxy, tmp_path: Path) -> None:
    s3.fault = lambda request: "flip" if request.name == "manifest.json" and request.method == "GET" else None
    with pytest.raises(
        DatasetError, match=r"manifest.json: cannot be fetched whole \(6 tries\): it is not what manifest.sha256"
    ):
        maskpipe.open(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache"))


# The cache


def test_offline_all_that_is_cached_is_enough_and_nothing_else_is_asked(s3: Proxy, out: Path, tmp_path: Path) -> None:
    run = {"global_batch_size": 12, "epochs": 1}
    with pytest.raises(DatasetError, match=r"manifest is not in the cache .* and offline=True"):
        Loader(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache", offline=True), **run)
    one_by_one = {"global_batch_size": 7, "epochs": 1, "shuffle": False, "remainder": "pad"}
    half = Loader(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache"), **one_by_one)
    whole = bits(half)
    before = len(s3.requests)
    there = cache_at(tmp_path / "cache", offline=True)
    assert bits(Loader(uri(s3, "chats"), shard_cache=there, **run)) == bits(Loader(out, **run))
    assert len(s3.requests) == before
    [victim] = (tmp_path / "cache").glob(f"*/{half.datasets[0].manifest.shards[4].name}")
    victim.unlink()
    loader = Loader(uri(s3, "chats"), shard_cache=there, **one_by_one)
    assert [next(loader).input_ids.numpy().tobytes() for _ in range(4)] == [b[0] for b in whole[:4]]
    with pytest.raises(DatasetError, match=rf"s3://data/chats/{victim.name}: is not in the cache .* offline=True"):
        next(loader)
    s3.fault = lambda request: "reset"  # not offline, but nobody is there: the cache is enough, and it is said
    with pytest.warns(
        UserWarning, match=r"manifest.sha256: cannot be fetched \(2 tries\).*Going on with what the cache"
    ):
        dataset = maskpipe.open(uri(s3, "chats"), shard_cache=cache_at(tmp_path / "cache", tries=2))
    assert len(dataset[0]) == 64


def test_the_bound_holds_and_what_is_not_its_own_stays(s3: Proxy, out: Path, tmp_path: Path) -> None:
    sizes = sorted(path.stat().st_size for path in out.glob("part-*"))
    manifest = (out / "manifest.json").stat().st_size + (out / "manifest.sha256").stat().st_size
    cache = cache_at(tmp_path / "cache", max_bytes=manifest + 3 * sizes[-1])
    loader = Loader(uri(s3, "chats"), shard_cache=cache, global_batch_size=7, epochs=3, shuffle=False, prefetch=1)
    foreign = cache.directory(loader.datasets[0].path.name) / "notes.txt"  # type: ignore[attr-defined]
    foreign.write_text("mine")
    (cache.path / "uris" / ("0" * 64)).mkdir()
    whole, most = bits(Loader(out, global_batch_size=7, epochs=3, shuffle=False)), 0
    for batch, expected in zip(loader, whole, strict=True):
        assert batch.input_ids.numpy().tobytes() == expected[0]
        most = max(most, stored(cache) - 4)
    assert sizes[-1] * 2 <= most - manifest and most <= cache.max_bytes
    assert loader.fetched["shards_evicted"] >= 3 * 9 - 9
    assert foreign.read_text() == "mine"
    with pytest.warns(UserWarning, match="in random order each shard is fetched many times"):
        Loader(uri(s3, "chats"), shard_cache=cache, global_batch_size=7).close()


def test_what_is_used_longest_ago_goes_first_and_never_what_is_in_use(out: Path, tmp_path: Path) -> None:
    from pyarrow import fs

    shards = maskpipe.open(out).manifest.shards
    cache = cache_at(tmp_path / "cache", room_wait=0.1)
    remote: Any = maskpipe.open(str(out), filesystem=fs.LocalFileSystem(), shard_cache=cache)
    here = lambda: {int(p.name[5:10]) for p in cache.path.glob("*/part-*")}  # noqa: E731
    cache.max_bytes = stored(cache) + 4 * max(s.size for s in shards)
    leases = [remote.lease(k) for k in range(3)]
    for k in (1, 0):
        leases[k].release()
        time.sleep(0.01)
    fourth = remote.lease(3)
    assert here() == {0, 1, 2, 3}
    fifth = remote.lease(4)
    assert here() == {0, 2, 3, 4}, "1 was released first"
    sixth = remote.lease(5)
    assert here() == {2, 3, 4, 5}, "2 is used longest ago, but in use"
    with pytest.raises(
        DatasetError, match=r"no room in the cache .* are in use by running processes, [\d,]+ are needed"
    ):
        remote.lease(6)
    assert remote.lease(6, wait_for_room=False) is None and here() == {2, 3, 4, 5}
    for lease in (leases[2], fourth, fifth, sixth):
        assert lease.path.read_bytes() == (out / lease.path.name).read_bytes()
        lease.release()
    assert remote.lease(6) is not None
    cache.max_bytes = 1000
    with pytest.raises(DatasetError, match="raise max_bytes"):
        remote.lease(7)


def test_a_spoiled_copy_in_the_cache_is_found_and_fetched_anew(s3: Proxy, out: Path, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "cache")
    run = {"global_batch_size": 7, "epochs": 1, "shuffle": False, "remainder": "pad", "shard_cache": cache}
    whole = bits(Loader(uri(s3, "chats"), **run))
    paths = sorted(cache.path.glob("*/part-*"))
    with open(paths[2], "r+b") as file:
        file.seek(3000)
        file.write(b"\x55\xaa\x55")
    os.truncate(paths[5], 100)
    loader = Loader(uri(s3, "chats"), **run)
    assert [next(loader).input_ids.numpy().tobytes() for _ in range(2)] == [b[0] for b in whole[:2]]
    with pytest.raises(DatasetError, match=rf"{paths[2].name}: region 0 .*it is fetched again when it is needed"):
        next(loader)
    assert [b[0] for b in bits(loader)] == [b[0] for b in whole[2:]]
    assert all_whole(cache, out) == 9


@pytest.mark.parametrize("what", ["all", "datasets", "lock", "pressure", "shard"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_cache_that_is_deleted_while_it_is_used_is_made_anew(
    out: Path, tmp_path: Path, what: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tag says that it may be. What is needed is fetched again, after at most one error, which says so."""
    from pyarrow import fs

    monkeypatch.setattr("maskpipe.data.loader.OPEN_FILES", 1)  # what is open goes on
    whole = bits(Loader(out, global_batch_size=7, epochs=2))
    cache = cache_at(tmp_path / "cache")
    remote = maskpipe.open(str(out), filesystem=fs.LocalFileSystem(), shard_cache=cache)
    loader = Loader(remote, global_batch_size=7, epochs=2, threads=threads)
    seen = [bits(itertools.islice(loader, 1))[0] for _ in range(3)]
    if what == "all":
        shutil.rmtree(cache.path)
    elif what == "datasets":
        for manifest in cache.path.glob("*/manifest.json"):
            shutil.rmtree(manifest.parent)
    elif what == "shard":
        next(cache.path.glob("*/part-*")).unlink()
    else:
        (cache.path / what).unlink()
    try:
        for batch in loader:
            seen += bits([batch])
    except DatasetError as error:
        assert "it is fetched again when it is needed" in str(error)
        seen += bits(loader)
    assert [b[:4] for b in seen] == [b[:4] for b in whole]


def test_shards_are_fetched_in_the_order_in_which_they_are_needed(s3: Proxy, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "cache", downloads=1)
    loader = Loader(uri(s3, "chats"), shard_cache=cache, global_batch_size=2, epochs=1, seed=5, prefetch=2)
    ends = [7 * k for k in range(1, 10)]
    needed: list[int] = []
    for batch in loader:
        for number in sorted({sum(row >= end for end in ends) for row in batch.rows.tolist()}):
            if number not in needed:
                needed.append(number)
    asked = [int(request.name[5:10]) for request in s3.gets()]
    # the threads may begin while the first plans are made, so what the first batch needs may come in any order
    assert asked[2:] == needed[2:] and sorted(asked[:2]) == sorted(needed[:2])


CHILD = """
import os, sys, threading, time
import maskpipe
from maskpipe.remote.cache import ShardCache
uri, path, shard = sys.argv[1:]
dataset = maskpipe.open(uri, shard_cache=ShardCache(path, pause=0.001))
print("open", flush=True)
sys.stdin.readline()
lease = dataset.lease(int(shard))
print(os.path.getsize(lease.path), dataset.cache.tally.shards_fetched, flush=True)
"""


def child(s3: Proxy, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, uri(s3, "large"), str(cache), "0"], cwd=ROOT, env=child_environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def test_processes_that_want_the_same_shard_fetch_it_once(s3: Proxy, large: Path, tmp_path: Path) -> None:
    s3.fault = lambda request: "slow" if request.name.endswith(".arrow") else None
    racers = [child(s3, tmp_path / "cache") for _ in range(3)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "open\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0].split() for racer in racers]
    size = next(iter(sorted(large.glob("part-*")))).stat().st_size
    assert [int(s[0]) for s in said] == [size] * 3 and sum(int(s[1]) for s in said) == 1
    ranges = [request.begin for request in s3.gets()]
    assert len(ranges) == len(set(ranges)), "no range was asked for twice"


def test_a_killed_download_is_never_served_and_goes_on(s3: Proxy, large: Path, tmp_path: Path) -> None:
    s3.fault = lambda request: "hang" if request.method == "GET" and request.begin > 0 else None
    killed = child(s3, tmp_path / "cache")
    assert killed.stdin is not None
    killed.stdin.write("go\n")
    killed.stdin.flush()
    until = time.monotonic() + 60
    while not any(request.begin > 0 for request in s3.gets()):
        assert time.monotonic() < until and killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(20)
    killed.stdin.close()
    assert killed.stdout is not None
    killed.stdout.close()
    cache = cache_at(tmp_path / "cache")
    assert not [*cache.path.glob("*/part-*")] and len([*cache.path.glob("*/.part-*.fetching")]) == 1
    s3.clear()
    remote = maskpipe.open(uri(s3, "large"), shard_cache=cache)
    assert remote[5].input_ids.tobytes() == maskpipe.open(large)[5].input_ids.tobytes()
    assert 0 not in [request.begin for request in s3.gets()], "what had come was not asked for again"
    assert all_whole(cache, large) == 1 and not [*cache.path.glob("*/.part-*")]


STRESS = """
import hashlib, random, sys
import pyarrow.fs
import maskpipe
from maskpipe.remote.cache import ShardCache
out, path, bound, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dataset = maskpipe.open(out, filesystem=pyarrow.fs.LocalFileSystem(), shard_cache=ShardCache(path, max_bytes=bound))
chance, shards = random.Random(seed), dataset.manifest.shards
for _ in range(150):
    number = chance.randrange(len(shards))
    lease = dataset.lease(number)
    with open(lease.path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == shards[number].sha256
    lease.release()
print(dataset.cache.tally.shards_evicted)
"""


def test_many_processes_in_a_small_cache_see_only_whole_shards_within_the_bound(out: Path, tmp_path: Path) -> None:
    shards = sorted(path.stat().st_size for path in out.glob("part-*"))
    bound = shards[-1] * 4 + sum((out / name).stat().st_size for name in ("manifest.json", "manifest.sha256"))
    cache = ShardCache(tmp_path / "cache", max_bytes=bound)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", STRESS, str(out), str(cache.path), str(bound), str(seed)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE,
        )
        for seed in range(3)
    ]  # fmt: skip
    most = 0
    while any(racer.poll() is None for racer in racers):
        with cache._locked():  # room is made under the lock, so what is seen under it is what counts
            stays, entries = cache._list()
        most = max(most, stays + sum(entry.size for entry in entries))
        time.sleep(0.002)
    said = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert sum(map(int, said)) > 50, "they did evict"
    assert bound // 2 < most <= bound


def test_a_directory_that_is_no_cache_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(UsageError, match="is not empty and no cache of maskpipe"):
        ShardCache(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]
    for wrong in ({"max_bytes": 0}, {"tries": 0}, {"downloads": True}, {"timeout": 0}, {"pause": -1}):
        with pytest.raises(UsageError, match="must be"):
            ShardCache(tmp_path / "new", **wrong)
    with pytest.raises(UsageError, match="shard_cache is for"):
        maskpipe.open(tmp_path, shard_cache=tmp_path / "new")


# URIs and secrets


@pytest.mark.parametrize(
    "text",
    [
        "ssh://host/x", "simplecache::s3://bucket/x", "S3::x", "ftp://host/x", "github://o:r@x/y", "jar:file://x", "data://x",
        "s3://key:{0}@bucket/x", "https://user:{0}@host/x", "https://host/x?token={0}", "http://host/../x", "s3://bucket//x",
        "s3://bucket/x?access_key={0}", "s3://bucket/x?region=a&region=b", "s3://bucket/x#{0}", "https://host/a b",
    ],
)  # fmt: skip
def test_uris_that_are_refused_and_do_not_repeat_secrets(text: str) -> None:
    with pytest.raises(UsageError, match="URI") as caught:
        parse(text.format("hunter2hunter2"))
    assert "hunter2" not in str(caught.value)


def test_uris_that_are_known() -> None:
    location = parse("s3://bucket/a/b/?region=eu-central-1")
    assert (location.uri, location.path, location.name) == ("s3://bucket/a/b", "bucket/a/b", "b")
    assert location.key != parse("s3://bucket/a/b").key
    assert parse("hf://datasets/me/chats").path == "datasets/me/chats"


@given(st.text("abcXYZ019+/=_-", min_size=8, max_size=40), st.sampled_from(["key", "token", "header", "user", "env"]))
def test_no_secret_passes_into_an_error(secret: str, where: str) -> None:
    secret = f"s{secret}"
    text = {
        "key": f"GET https://host/x?a=1&X-Amz-Signature={secret}&b=2 failed", "token": f"url?token={secret}",
        "header": f"Authorization: Bearer {secret}", "user": f"http://me:{secret.replace('/', '')}@host/x",
        "env": f"signed with {secret}",
    }[where]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        if where == "env":
            patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        assert secret.replace("/", "") not in clean(OSError(text)).replace("/", "")


def test_states_and_files_of_the_cache_hold_no_secret(s3: Proxy, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "cache")
    loader = Loader(uri(s3, "chats"), shard_cache=cache, global_batch_size=12, epochs=1)
    next(loader)
    texts = [json.dumps(loader.state_dict()), repr(loader.datasets[0]), repr(pickle.dumps(loader.datasets[0]))]
    texts += [path.read_bytes().decode("latin-1") for path in cache.path.rglob("*") if path.is_file()]
    loader.close()
    assert not [text for text in texts if ACCESS in text or SECRET in text]
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in "".join(texts)
