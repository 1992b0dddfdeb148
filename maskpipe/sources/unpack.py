"""The bytes of a file, unpacked if it is gzip or zstd, within bounds; the raw bytes are hashed on the way."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from maskpipe.errors import UsageError
from maskpipe.sources import limits


def unpacked_blocks(path: Path, digest: Any) -> Iterator[bytes]:
    """The file's bytes in pieces, unpacked if it is gzip or zstd (by its first bytes); raw bytes go to `digest`."""
    packed = unpacked = 0
    try:
        with path.open("rb") as file:
            first = file.read(4)
            file.seek(0)
            raw = hashed(file, digest)
            if first[:2] == b"\x1f\x8b":
                pieces = _gunzip(raw, path)
            elif first == b"\x28\xb5\x2f\xfd":
                pieces = _unzstd(raw, path)
            else:
                yield from raw
                return
            packed = path.stat().st_size
            for piece in pieces:
                unpacked += len(piece)
                if unpacked > limits.EXPANSION_GRACE and unpacked > packed * limits.MAX_EXPANSION:
                    raise UsageError(
                        f"{path}: compression bomb? Its {packed:,} bytes unpack to more than "
                        f"{limits.MAX_EXPANSION} times as many. If it is genuine, unpack it first"
                    )
                yield piece
    except (zlib.error, zstandard.ZstdError) as error:
        raise UsageError(f"{path}: damaged: cannot unpack after {unpacked:,} bytes: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None


def hashed(file: BinaryIO, digest: Any) -> Iterator[bytes]:
    while block := file.read(limits.READ_BYTES):
        digest.update(block)
        yield block


def _gunzip(raw: Iterable[bytes], path: Path) -> Iterator[bytes]:
    member = zlib.decompressobj(31)
    started = False
    for block in raw:
        while block:
            if not started:
                block = block.lstrip(b"\0")  # padding between members is allowed
                if not block:
                    break
            started = True
            piece = member.decompress(block, limits.READ_BYTES)
            if piece:
                yield piece
            block = member.unconsumed_tail
            if member.eof:
                block = member.unused_data
                member = zlib.decompressobj(31)
                started = False
    while started and (piece := member.decompress(b"", limits.READ_BYTES)):
        yield piece
        started = not member.eof
    if started:
        raise UsageError(f"{path}: damaged: the gzip data ends too early")


def _unzstd(raw: Iterable[bytes], path: Path) -> Iterator[bytes]:
    # 1 KiB at a time: it can unpack to at most 32 MiB, and the library has no bound of its own on a step.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = unpacker.decompressobj()
    started = False
    for block in raw:
        for start in range(0, len(block), 1024):
            step = block[start : start + 1024]
            while step:
                started = True
                piece = frame.decompress(step)
                if piece:
                    yield piece
                step = b""
                if frame.eof:
                    step = frame.unused_data
                    frame = unpacker.decompressobj()
                    started = False
    if started:
        raise UsageError(f"{path}: damaged: the zstd data ends too early")
