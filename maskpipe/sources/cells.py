"""Arrow values → JSON values. A struct has every key in every row (C05): null fields are taken away, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from maskpipe.errors import RecordError
from maskpipe.strict_json import parse


def json_values(column: Any, name: str, counts: Counter[str]) -> list[Any]:
    """The column's values as JSON values, or a RecordError where one cannot be read."""
    convert = _converter(column.type, counts)
    try:
        values = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        values = [_cell(entry, name) for entry in column]
    if convert is None:
        return list(values)
    cells: list[Any] = []
    for value in values:
        try:
            cells.append(value if value is None or isinstance(value, RecordError) else convert(value))
        except RecordError as error:
            cells.append(RecordError(f"column {name}: {error}", reason=error.reason))
    return cells


def _cell(value: Any, name: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return RecordError(f"column {name}: invalid UTF-8 ({error.reason})", reason="invalid_utf8")
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return RecordError(f"column {name}: {error}", reason="bad_field")


def _converter(kind: Any, counts: Counter[str]) -> Callable[[Any], Any] | None:
    """What turns pyarrow's Python value of this type into a JSON value; None where it is one already."""
    if isinstance(kind, pa.BaseExtensionType):
        return parse if kind.extension_name == "arrow.json" else _converter(kind.storage_type, counts)
    if pa.types.is_dictionary(kind):
        return _converter(kind.value_type, counts)
    if pa.types.is_map(kind):
        item = _converter(kind.item_type, counts) or _same
        return lambda pairs: {key: None if value is None else item(value) for key, value in pairs}
    if pa.types.is_struct(kind):
        fields = {entry.name: _converter(entry.type, counts) or _same for entry in kind}

        def struct(value: dict[str, Any]) -> dict[str, Any]:
            keep = "content" if "role" in value else "value" if "from" in value else None
            record = {
                key: None if entry is None else fields[key](entry)
                for key, entry in value.items()
                if entry is not None or key == keep
            }
            counts["null_struct_fields_dropped"] += len(value) - len(record)
            return record

        return struct
    if hasattr(kind, "value_type"):  # every kind of list
        inner = _converter(kind.value_type, counts)
        if inner is not None:
            return lambda values: [None if value is None else inner(value) for value in values]
    return None


def _same(value: Any) -> Any:
    return value
