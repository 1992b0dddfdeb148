"""Hashes of a shard's record batches without their ids (F37), so that who wants one row reads its facts and its ids and
can prove both.

    shard = what stands before │ metadata │ ids of its rows │ facts │ metadata │ ids │ facts │ … │ footer
            └───────────── batch 0 ─────┘ └ ids_xxh3 each ┘ └─────┘ └ batch 1 ─┘     └─────┘     └ regions ┘
"""

from __future__ import annotations

from collections.abc import Callable

import xxhash

from maskpipe import _core

_TAIL = 10
"""Bytes at the end of an Arrow file: the length of its footer and "ARROW1"."""


def batch_hashes(pread: Callable[[int, int], bytes], size: int) -> str:
    """xxh3_64 of each record batch without its ids, 16 hex digits each, of a shard of `size` bytes; pread(n, offset)
    gives n of them.

    ValueError when it is no Arrow file, or none with the columns of F10.
    """
    footer = _core.footer_size(pread(min(_TAIL, size), max(0, size - _TAIL)), size)
    begin = size - _TAIL - footer
    hashes, end = [], 0
    for offset, metadata, body in _core.read_footer(pread(footer, begin), begin):
        ids = offset + metadata
        head = pread(ids - end, end)
        at, length = _core.ids_place(head[offset - end :], body)
        end = ids + body
        rest = pread(at, ids), pread(body - at - length, ids + at + length)
        hashes.append(xxhash.xxh3_64_hexdigest(b"".join((head, *rest))))
    return "".join(hashes)
