"""Parameter sets and seeds, as people write them on a command line and in tables."""

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelops_contracts import ContractViolationError, Scalar, UniqueParameterSet

from modelops.strict_json import parse_json

# What all cells of a CSV file's column may be, and what they then are.
_CELLS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (re.compile(r"[+-]?[0-9]+"), int),
    (re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"), float),
    (re.compile(r"true|false", re.IGNORECASE), lambda cell: cell.lower() == "true"),
]


def parameter_sets(
    fixed: Mapping[str, Scalar],
    grid: Mapping[str, Sequence[Scalar]],
    table: Iterable[Mapping[str, Scalar]] | None,
) -> list[UniqueParameterSet]:
    """Every row of the table with every point of the grid, over the fixed parameters. Equal sets are one."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    found: dict[str, UniqueParameterSet] = {}
    try:
        for row in [{}] if table is None else table:
            for point in points:
                parameters = UniqueParameterSet.from_dict({**fixed, **row, **point})
                found.setdefault(parameters.param_id, parameters)
    except ContractViolationError as error:
        raise ValueError(str(error)) from None
    return list(found.values())


def parse_params(text: str) -> dict[str, Scalar]:
    """A JSON object, or `@` and the path of a file with one."""
    value = read_json(text, "--params")
    if not isinstance(value, dict):
        raise ValueError("the parameters must be a JSON object")
    return value


def read_json(text: str, option: str) -> Any:
    """JSON, or `@` and the path of a file with some."""
    is_file = text.startswith("@")
    content = Path(text[1:]).read_bytes() if is_file else text
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{option}{f' {text}' if is_file else ''} is not JSON: {error}") from None


def parse_grid(items: Iterable[str]) -> dict[str, list[Scalar]]:
    """`name=value,value,..` each; what is not a JSON number, boolean or string stands for itself."""
    grid: dict[str, list[Scalar]] = {}
    for item in items:
        name, equals, values = item.partition("=")
        if not (name and equals and values) or name in grid:
            raise ValueError(f"{item!r} is not name=value,value,.. with a name of its own")
        grid[name] = [_scalar(value) for value in values.split(",")]
    return grid


def read_table(path: Path) -> list[dict[str, Scalar]]:
    """The rows of a CSV, Parquet or JSON file; empty cells are left out of their set."""
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_json_rows}
    if path.suffix not in readers:
        raise ValueError(f"{str(path)!r} is none of {', '.join(readers)}")
    try:
        rows = readers[path.suffix](path)
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} can't be read: {error}") from None
    if not rows:
        raise ValueError(f"{str(path)!r} has no rows")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Columns of whole numbers, of numbers or of booleans where all of their cells are such, else of text."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names, *lines = list(csv.reader(file, strict=True)) or [[]]
    lines = [line for line in lines if line]
    _refuse_twice(names)
    if wrong := next((number for number, line in enumerate(lines, 2) if len(line) != len(names)), None):
        raise ValueError(f"row {wrong} has not as many cells as the first, which has the columns' names")
    columns = [_typed([line[place] for line in lines]) for place in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _typed(cells: list[str]) -> list[Any]:
    for pattern, kind in _CELLS:
        if all(cell == "" or pattern.fullmatch(cell) for cell in cells):
            return [None if cell == "" else kind(cell) for cell in cells]
    return [cell or None for cell in cells]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    from .parquet import read_table  # 0.2 seconds, which most tasks of a person need not wait for

    names, rows = read_table(path)
    _refuse_twice(names)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _read_json_rows(path: Path) -> list[dict[str, Any]]:
    rows = parse_json(path.read_bytes())
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ValueError("it is not a list of objects")
    return rows


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"it has a column twice: {', '.join(map(repr, twice))}")


def parse_seeds(text: str) -> list[int]:
    """`1-8`, `1,5,9`, or both; equal seeds are one."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise ValueError(f"{text!r} is not a list of seeds such as 1-8 or 1,5,9") from None
        if high < low or high - low >= 1_000_000:
            raise ValueError(f"{part!r} is not a range of at most a million seeds")
        seeds.update(dict.fromkeys(range(low, high + 1)))
    return list(seeds)


def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text
