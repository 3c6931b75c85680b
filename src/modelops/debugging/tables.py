"""Tables among outputs: what is in one, and where two differ. Called by `reading`, apart."""

import math
from typing import Any, NamedTuple

from arro3.core import ChunkedArray, DataType
from arro3.io import read_ipc, read_ipc_stream, read_parquet

SHOWN_ROWS, SHOWN_COLUMNS, SHOWN_TEXT = 5, 50, 80
_READERS = {".arrow": read_ipc, ".arrows": read_ipc_stream, ".parquet": read_parquet}


class _Table(NamedTuple):
    columns: list[tuple[str, str]]  # names and types; a name may come twice
    cells: list[ChunkedArray]
    rows: int


def describe_table(path: str, suffix: str) -> dict[str, Any]:
    """Shape, columns with their types, and the first rows as text."""
    table = _read(path, suffix)
    rows = min(SHOWN_ROWS, table.rows)
    shown = [cells.slice(0, rows).to_pylist() for cells in table.cells[:SHOWN_COLUMNS]]
    return {
        "rows": table.rows,
        "columns": [list(column) for column in table.columns],
        "head": [[_shown(cell) for cell in row] for row in zip(*shown, strict=True)],
    }


def compare_tables(first: str, second: str, suffix: str) -> dict[str, Any]:
    """Where two tables differ: in their form, or the first cell by row, how many, and the largest difference."""
    one, other = _read(first, suffix), _read(second, suffix)
    if (one.columns, one.rows) != (other.columns, other.rows):
        return {"form": [_form(one), _form(other)]}
    count, largest, columns, earliest = 0, 0.0, [], (one.rows, "", (None, None))
    for (name, _), ours, theirs in zip(one.columns, one.cells, other.cells, strict=True):
        gaps = [] if ours == theirs else _gaps(ours, theirs)
        if not gaps:
            continue
        count += len(gaps)
        columns.append(name)
        largest = max(largest, *(_distance(*values) for _, values in gaps), 0.0)
        if gaps[0][0] < earliest[0]:
            earliest = (gaps[0][0], name, gaps[0][1])
    if not columns:
        return {"form": ["equal cells, other bytes", "equal cells, other bytes"]}
    row, name, values = earliest
    return {
        "column": name,
        "row": row,
        "values": [_shown(value) for value in values],
        "cells": count,
        "columns": columns[:SHOWN_COLUMNS],
        "largest": largest or None,
    }


def _read(path: str, suffix: str) -> _Table:
    with open(path, "rb") as file:  # a file object, so that a hostile file is never mapped
        table = _READERS[suffix](file).read_all()
    places = range(table.num_columns)
    columns = [(field.name, _type(field.type)) for field in map(table.field, places)]
    return _Table(columns, [table.column(place) for place in places], table.num_rows)


def _gaps(ours: ChunkedArray, theirs: ChunkedArray) -> list[tuple[int, tuple[Any, Any]]]:
    """The rows in which two columns differ, with both values."""
    rows = enumerate(zip(ours.to_pylist(), theirs.to_pylist(), strict=True))
    return [(row, values) for row, values in rows if not _equal(*values)]


def _type(kind: DataType) -> str:
    """`Int64`, of what prints as `arro3.core.DataType<Int64>`."""
    return str(kind).strip().removeprefix("arro3.core.DataType<").removesuffix(">")


def _equal(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both_nan or bool(one == other)


def _distance(one: Any, other: Any) -> float:
    """By how much two values differ, if they are numbers."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        gap = abs(float(one) - float(other))
        return gap if math.isfinite(gap) else 0.0
    return 0.0


def _form(table: _Table) -> str:
    columns = ", ".join(f"{name}: {kind}" for name, kind in table.columns[:SHOWN_COLUMNS])
    return f"{table.rows} rows of {columns}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + ".."
