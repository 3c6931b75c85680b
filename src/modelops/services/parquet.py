"""Parquet files, by arro3: Arrow's own libraries in Rust, and little else. Where they panic is known here alone."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arro3.core import Array, DataType, Field, RecordBatch, RecordBatchReader, Schema, Table
from arro3.io import read_parquet, write_parquet

UINT, INT, FLOAT, BOOL = DataType.uint64(), DataType.int64(), DataType.float64(), DataType.bool()
TEXT, BYTES, TIME = DataType.string(), DataType.binary(), DataType.timestamp("us", tz="UTC")
_COMPRESSION = "zstd(3)"


def column(values: Sequence[Any], kind: DataType) -> Array:
    """A column of one type, in which None is empty. A time is given in microseconds since 1970."""
    return Array(values, INT).cast(TIME) if kind == TIME else Array(values, kind)


def write_table(path: Path, columns: Mapping[str, Array]) -> None:
    """A file of whole columns, all of one length."""
    table = Table.from_arrays(list(columns.values()), names=list(columns))
    _write(path, lambda file: write_parquet(table, file, compression=_COMPRESSION))


def write_batches(
    path: Path, kinds: Mapping[str, DataType], batches: Iterable[Sequence[Sequence[Any]]], rows: int
) -> None:
    """A file of batches, of which one at a time is held. Each has a sequence of values for each kind; a group of the
    file has so many rows."""
    schema = Schema([Field(name, kind) for name, kind in kinds.items()])
    failures: list[Exception] = []

    def made() -> Iterator[RecordBatch]:
        try:
            for batch in batches:
                arrays = [column(values, kind) for values, kind in zip(batch, kinds.values(), strict=True)]
                yield RecordBatch.from_arrays(arrays, schema=schema)
        except Exception as error:  # arro3 would raise it as an error of its own
            failures.append(error)

    stream = RecordBatchReader.from_batches(schema, made())
    _write(path, lambda file: write_parquet(stream, file, compression=_COMPRESSION, max_row_group_size=rows))
    if failures:
        raise failures[0]


def read_table(path: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names of the columns, and the rows, of a file that fits into memory. ValueError where it is none."""
    data = path.read_bytes()
    if not data.startswith(b"PAR1") or not data.endswith(b"PAR1"):
        raise ValueError("it is not a Parquet file, or not all of one")
    try:
        table = read_parquet(io.BytesIO(data)).read_all()
        columns = [table.column(place).to_pylist() for place in range(table.num_columns)]
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"it is damaged: {error}") from None
    return table.column_names, list(zip(*columns, strict=True))


class _Untroubled(io.FileIO):
    """Keeps what goes wrong for later: where a write raises, arro3 panics."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            if self.failure is None:
                return super().write(data)
        except OSError as error:
            self.failure = error
        return len(data)


def _write(path: Path, write: Callable[[io.FileIO], None]) -> None:
    with _Untroubled(path, "wb") as file:
        write(file)
    if file.failure is not None:
        raise file.failure
