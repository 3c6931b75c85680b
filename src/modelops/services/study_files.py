"""The files of a study.

results.parquet   one row for each simulation: parameters, seed, task id, error, metrics outputs.parquet
one row for each output of each simulation: size, checksum, and the bytes or their reference
losses.parquet    one row for each parameter set, where the study has a target summary.json      the study
in short

The bytes of outputs are written as they are: they are the bundle's, and nothing here reads them.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars
from modelops_contracts import SimReturn, SimTask, UniqueParameterSet

from .study import Loss, StudyResults

_TYPES: dict[str, Any] = {
    "task_id": polars.String,
    "param_id": polars.String,
    "seed": polars.UInt64,
    "name": polars.String,
    "size": polars.UInt64,
    "checksum": polars.String,
    "content_type": polars.String,
    "ref": polars.String,
    "content": polars.Binary,
    "error_type": polars.String,
    "error": polars.String,
    "retryable": polars.Boolean,
    "loss": polars.Float64,
    "n_replicates": polars.UInt64,
    "aggregation_id": polars.String,
    "diagnostics": polars.String,
}
_INT64 = range(-(2**63), 2**63)
_EXACT = 2**53  # up to here every int is a float


def write_study(results: StudyResults, folder: Path) -> dict[str, Any]:
    """Write all files below `folder`, which is made, and return the summary. Each file appears complete."""
    folder.mkdir(parents=True, exist_ok=True)
    simulations = [_simulation(task, result) for task, result in results.simulations]
    _write_table(folder / "results.parquet", simulations)
    outputs = [row for task, result in results.simulations for row in _outputs(task, result)]
    _write_table(folder / "outputs.parquet", outputs, ["task_id", "param_id", "seed", "name"])
    if results.losses:
        _write_table(folder / "losses.parquet", [_loss(loss) for loss in results.losses])
    summary = results.summary()
    text = json.dumps(summary, indent=2, default=str) + "\n"
    _put(folder / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
    return summary


def _simulation(task: SimTask, result: SimReturn) -> dict[str, Any]:
    error = result.error
    return {
        "task_id": result.task_id,
        "param_id": task.params.param_id,
        "seed": task.seed,
        **_parameters(task.params),
        "error_type": error and error.error_type,
        "error": error and error.message,
        "retryable": error and error.retryable,
        **{f"metric.{name}": float(value) for name, value in (result.metrics or {}).items()},
    }


def _outputs(task: SimTask, result: SimReturn) -> Iterable[dict[str, Any]]:
    for name, artifact in sorted(result.outputs.items()):
        yield {
            "task_id": result.task_id,
            "param_id": task.params.param_id,
            "seed": task.seed,
            "name": name,
            "size": artifact.size,
            "checksum": artifact.checksum,
            "content_type": artifact.content_type,
            "ref": artifact.ref,
            "content": artifact.inline,
        }


def _loss(loss: Loss) -> dict[str, Any]:
    result, error = loss.result, loss.error
    return {
        "param_id": loss.parameters.param_id,
        **_parameters(loss.parameters),
        "loss": result and result.loss,
        "n_replicates": result and result.n_replicates,
        "aggregation_id": result and result.aggregation_id,
        "diagnostics": result and json.dumps(result.diagnostics),
        "error_type": error and error.type,
        "error": error and error.message,
    }


def _parameters(parameters: UniqueParameterSet) -> dict[str, Any]:
    return {f"param.{name}": value for name, value in parameters.params.items()}


def _write_table(path: Path, rows: list[dict[str, Any]], columns: Iterable[str] = ()) -> None:
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    series = [_column(name, [row.get(name) for row in rows]) for name in names]
    frame = polars.DataFrame(series)
    _put(path, lambda aside: frame.write_parquet(aside))


def _column(name: str, values: list[Any]) -> polars.Series:
    """A column of the known type, or of the narrowest that holds all parameters of the name."""
    if name in _TYPES:
        return polars.Series(name, values, dtype=_TYPES[name])
    given = [value for value in values if value is not None]
    kinds = {type(value) for value in given}
    if kinds <= {bool}:
        return polars.Series(name, values, dtype=polars.Boolean)
    if kinds == {int} and all(value in _INT64 for value in given):
        return polars.Series(name, values, dtype=polars.Int64)
    if float in kinds and kinds <= {int, float} and all(abs(value) <= _EXACT for value in given if type(value) is int):
        floats = [None if value is None else float(value) for value in values]
        return polars.Series(name, floats, dtype=polars.Float64)
    texts = [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
    return polars.Series(name, texts, dtype=polars.String)


def _put(path: Path, write: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_summary(folder: Path) -> Mapping[str, Any]:
    """The summary of a study that was written below `folder`."""
    summary: Mapping[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary
