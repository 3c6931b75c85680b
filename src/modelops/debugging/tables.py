"""Tables among outputs: what is in one, and where two differ. Called by `reading`, apart."""

import math
from typing import Any

import polars

SHOWN_ROWS, SHOWN_COLUMNS, SHOWN_TEXT = 5, 50, 80
_READERS = {".arrow": polars.read_ipc, ".arrows": polars.read_ipc_stream, ".parquet": polars.read_parquet}


def describe_table(path: str, suffix: str) -> dict[str, Any]:
    """Shape, columns with their types, and the first rows as text."""
    table = _read(path, suffix)
    return {
        "rows": table.height,
        "columns": [[name, str(dtype)] for name, dtype in table.schema.items()],
        "head": [[_shown(cell) for cell in row[:SHOWN_COLUMNS]] for row in table.head(SHOWN_ROWS).rows()],
    }


def compare_tables(first: str, second: str, suffix: str) -> dict[str, Any]:
    """Where two tables differ: in their form, or the first cell by row, how many, and the largest difference."""
    one, other = _read(first, suffix), _read(second, suffix)
    if one.schema != other.schema or one.height != other.height:
        return {"form": [_form(one), _form(other)]}
    cells, largest, columns, earliest = 0, 0.0, [], (one.height, "")
    for name in one.columns:
        same = one[name].eq_missing(other[name])
        if same.all():
            continue
        rows = (~same).arg_true()
        cells += len(rows)
        columns.append(name)
        if rows[0] < earliest[0]:
            earliest = (rows[0], name)
        if one[name].dtype.is_numeric():
            gap = (one[name].cast(polars.Float64) - other[name].cast(polars.Float64)).abs().max()
            largest = max(largest, gap if isinstance(gap, float) and math.isfinite(gap) else 0.0)
    if not columns:
        return {"form": ["equal cells, other bytes", "equal cells, other bytes"]}
    row, name = earliest
    return {
        "column": name,
        "row": row,
        "values": [_shown(one[name][row]), _shown(other[name][row])],
        "cells": cells,
        "columns": columns[:SHOWN_COLUMNS],
        "largest": largest or None,
    }


def _read(path: str, suffix: str) -> polars.DataFrame:
    with open(path, "rb") as file:  # a file object, so that a hostile file is never mapped
        return _READERS[suffix](file)


def _form(table: polars.DataFrame) -> str:
    columns = ", ".join(f"{name}: {dtype}" for name, dtype in list(table.schema.items())[:SHOWN_COLUMNS])
    return f"{table.height} rows of {columns}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + ".."
