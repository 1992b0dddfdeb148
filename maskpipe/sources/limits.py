"""How much is read at once, and how much is too much. Used as `limits.NAME`, so that a test can set them."""

from __future__ import annotations

CHUNK_BYTES = 4 << 20
"""A chunk ends with the record that reaches this many bytes (Arrow: in memory; everything else: as JSON text)."""
MAX_LINE_BYTES = 64 << 20
"""A longer record is a RecordError, too_long_line."""
MAX_EXPANSION = 250
"""Compressed files may unpack to this many times their size; real chats stay below 60."""
EXPANSION_GRACE = 64 << 20
"""...but this many bytes are always allowed."""
READ_BYTES = 1 << 20
"""Read from a file at once."""
ARROW_ROWS = 256
"""Rows of an Arrow batch that are handled as one."""
