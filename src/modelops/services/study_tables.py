"""The tables of a study, made from the results in its folder.

    results.parquet   a row for each simulation: parameters, seed, task id, and a reference to each of its outputs
    outputs.parquet   a row for each output of each simulation: size, checksum, and the bytes or their reference
    losses.parquet    a row for each parameter set and target, where the study has targets
    tasks.parquet     a row for each task, aggregations included: status, error, when, how long, metrics
    summary.json      the study in short

Rows are in the order of the study. A reference is `cas://<checksum>` for what lies in the store, and
`outputs.parquet#<checksum>` for what lies beside. The bytes of outputs are the bundle's, and nothing here reads them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from arro3.core import Array
from modelops_contracts import UniqueParameterSet

from .parquet import BOOL, BYTES, FLOAT, INT, TEXT, TIME, UINT, column, write_batches, write_table
from .study import Study
from .study_folder import StudyFolder, write_whole

MAX_LISTED = 100  # failures, and losses of a target, that the summary names; the tables have them all
RANGE_BYTES = 8 << 20  # of outputs that are held at once, in a few copies
_INT64 = range(-(2**63), 2**63)
_EXACT = 2**53  # the largest integer up to which floats hold every one
_TASK = {
    "kind": TEXT,
    "param_id": TEXT,
    "seed": UINT,
    "target": TEXT,
    "task_id": TEXT,
    "status": TEXT,
    "error_type": TEXT,
    "error": TEXT,
    "retryable": BOOL,
    "started": TIME,
    "seconds": FLOAT,
}
_LOSS = {
    "loss": FLOAT,
    "n_replicates": UINT,
    "aggregation_id": TEXT,
    "diagnostics": TEXT,
    "error_type": TEXT,
    "error": TEXT,
}
_OUTPUT = {
    "task_id": TEXT,
    "param_id": TEXT,
    "seed": UINT,
    "name": TEXT,
    "size": UINT,
    "checksum": TEXT,
    "content_type": TEXT,
    "ref": TEXT,
    "content": BYTES,
}

Columns = dict[str, Array]
Row = Mapping[str, Any]


class _Output(NamedTuple):
    point: int
    name: str
    size: int
    checksum: str
    ref: str | None

    @property
    def held(self) -> int:
        """Bytes that lie in the folder."""
        return self.size if self.ref is None else 0


@dataclass(frozen=True)
class _Results:
    """What a study found, less the bytes: results by point, losses by group and target, and who has which output."""

    simulations: Mapping[int, Row]
    losses: Mapping[tuple[int, int], Row]
    outputs: Sequence[_Output]


def write_tables(folder: StudyFolder, ran: Mapping[str, Any]) -> dict[str, Any]:
    """Write all tables and return the summary, which has `ran` in it: what is to be told of this start."""
    folder.flush()
    study, path = folder.study, folder.path
    found = _Results(
        {row["point"]: dict(row) for row in folder.latest("simulations")},
        {(row["parameters"], row["target"]): dict(row) for row in folder.latest("losses")},
        [_Output(*output) for output in folder.outputs("name", "size", "checksum", "ref")],
    )
    _put(path / "results.parquet", _results(study, found))
    rows = _rows_at_once(found.outputs)
    batches = _output_batches(folder, found)
    write_whole(path / "outputs.parquet", lambda aside: write_batches(aside, _OUTPUT, batches, rows))
    _put(path / "tasks.parquet", _tasks(study, found))
    if study.targets:
        _put(path / "losses.parquet", _losses(study, found))
    summary = {**_summary(study, found), "results_digest": _digest(study, found)}
    text = json.dumps({**summary, **ran}, indent=2, default=str) + "\n"
    write_whole(path / "summary.json", lambda aside: aside.write_text(text, encoding="utf-8"))
    return read_summary(path)


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a study that was written below `folder`."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def _results(study: Study, found: _Results) -> Columns:
    names = sorted({output.name for output in found.outputs})
    references: dict[str, list[str | None]] = {name: [None] * len(study.points) for name in names}
    for output in found.outputs:
        references[output.name][output.point] = output.ref or f"outputs.parquet#{output.checksum}"
    tasks = [found.simulations.get(point, {}).get("task_id") for point in range(len(study.points))]
    return {
        "param_id": column([point.parameters.param_id for point in study.points], TEXT),
        "seed": column([point.seed for point in study.points], UINT),
        **_parameters([point.parameters for point in study.points]),
        "task_id": column(tasks, TEXT),
        **{f"output.{name}": column(values, TEXT) for name, values in references.items()},
    }


def _output_batches(folder: StudyFolder, found: _Results) -> Iterator[Sequence[Sequence[Any]]]:
    """The columns of batches that have at most RANGE_BYTES of outputs, unless one output has more."""
    rows: list[tuple[Any, ...]] = []
    held = 0
    for output, (index, *fields) in zip(found.outputs, folder.outputs(*list(_OUTPUT)[3:]), strict=True):
        if held and held + output.held > RANGE_BYTES:
            yield list(zip(*rows, strict=True))
            rows, held = [], 0
        point = folder.study.points[index]
        rows.append((found.simulations[index]["task_id"], point.parameters.param_id, point.seed, *fields))
        held += output.held
    if rows:
        yield list(zip(*rows, strict=True))


def _rows_at_once(outputs: Sequence[_Output]) -> int:
    """How many rows a group of the file may have, so that none has more than RANGE_BYTES and one output."""
    sizes = [output.held for output in outputs]
    limit = RANGE_BYTES + max(sizes, default=0)
    rows = 1 << 16
    while rows > 1 and any(sum(sizes[first : first + rows]) > limit for first in range(0, len(sizes), rows)):
        rows //= 2
    return rows


def _tasks(study: Study, found: _Results) -> Columns:
    tasks = [
        {
            "kind": "simulation",
            "param_id": point.parameters.param_id,
            "seed": point.seed,
            **_told(found.simulations.get(index, {})),
        }
        for index, point in enumerate(study.points)
    ]
    metrics = [json.loads(task.get("metrics") or "{}") for task in tasks]
    for group, indices in enumerate(study.groups()):
        for number, target in enumerate(study.targets):
            row = _told(found.losses.get((group, number), {}))
            what = {"param_id": study.points[indices[0]].parameters.param_id, "target": target.name}
            tasks.append({**row, **what, "kind": "aggregation", "task_id": row.get("aggregation_id")})
    metrics += [{}] * (len(tasks) - len(metrics))
    measured = sorted({name for values in metrics for name in values})
    return {
        **{name: column([task.get(name) for task in tasks], kind) for name, kind in _TASK.items()},
        **{f"metric.{name}": column([values.get(name) for values in metrics], FLOAT) for name in measured},
    }


def _told(row: Row) -> dict[str, Any]:
    """A result with its status, or that there is none."""
    if not row:
        return {"status": "not run"}
    failed = row["error_type"] is not None
    retryable = None if row["retryable"] is None else bool(row["retryable"])
    return {**row, "status": "failed" if failed else "succeeded", "retryable": retryable}


def _losses(study: Study, found: _Results) -> Columns:
    groups = study.groups()
    keys = [(group, target) for group in range(len(groups)) for target in range(len(study.targets))]
    rows = [found.losses.get(key, {}) for key in keys]
    sets = [study.points[groups[group][0]].parameters for group, _ in keys]
    return {
        "param_id": column([parameters.param_id for parameters in sets], TEXT),
        **_parameters(sets),
        "target": column([study.targets[target].name for _, target in keys], TEXT),
        **{name: column([row.get(name) for row in rows], kind) for name, kind in _LOSS.items()},
    }


def _parameters(sets: Sequence[UniqueParameterSet]) -> Columns:
    names = dict.fromkeys(name for parameters in sets for name in parameters.params)
    return {f"param.{name}": _column([parameters.params.get(name) for parameters in sets]) for name in names}


def _column(values: list[Any]) -> Array:
    """A column of the narrowest type that holds all parameters of the name."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return column(values, BOOL)
    if kinds == {int} and all(value in _INT64 for value in values if value is not None):
        return column(values, INT)
    if float in kinds and kinds <= {int, float} and all(abs(value) <= _EXACT for value in values if type(value) is int):
        return column([None if value is None else float(value) for value in values], FLOAT)
    return column([value if value is None or isinstance(value, str) else json.dumps(value) for value in values], TEXT)


def _summary(study: Study, found: _Results) -> dict[str, Any]:
    groups = study.groups()
    failures = [*_failed_simulations(study, found), *_failed_aggregations(study, found)]
    return {
        "bundle": study.bundle_ref,
        "entrypoint": study.entrypoint,
        "targets": {target.name: target.entrypoint for target in study.targets},
        "parameter_sets": len(groups),
        "simulations": _counts(len(study.points), found.simulations),
        "aggregations": _counts(len(groups) * len(study.targets), found.losses),
        "failed": len(failures),
        "failures": failures[:MAX_LISTED],
        "losses": {target.name: _best(study, number, found) for number, target in enumerate(study.targets)},
    }


def _counts(planned: int, rows: Mapping[Any, Row]) -> dict[str, int]:
    failed = sum(row["error_type"] is not None for row in rows.values())
    return {"succeeded": len(rows) - failed, "failed": failed, "not_run": planned - len(rows)}


def _failed_simulations(study: Study, found: _Results) -> Iterator[dict[str, Any]]:
    for index, row in found.simulations.items():
        if row["error_type"] is not None:
            point = study.points[index]
            what = {"task": "simulation", "seed": point.seed, **_identity(point.parameters)}
            yield {**what, "error_type": row["error_type"], "error": row["error"]}


def _failed_aggregations(study: Study, found: _Results) -> Iterator[dict[str, Any]]:
    groups = study.groups()
    for (group, target), row in found.losses.items():
        if row["error_type"] is not None:
            what = {"task": "aggregation", "target": study.targets[target].name}
            parameters = study.points[groups[group][0]].parameters
            yield {**what, **_identity(parameters), "error_type": row["error_type"], "error": row["error"]}


def _best(study: Study, target: int, found: _Results) -> list[dict[str, Any]]:
    """The parameter sets with the least losses."""
    groups = study.groups()
    losses = [
        (row["loss"], group) for (group, of), row in found.losses.items() if of == target and row["loss"] is not None
    ]
    best = sorted(losses)[:MAX_LISTED]
    return [{**_identity(study.points[groups[group][0]].parameters), "loss": loss} for loss, group in best]


def _identity(parameters: UniqueParameterSet) -> dict[str, Any]:
    return {"param_id": parameters.param_id, "params": dict(parameters.params)}


def _digest(study: Study, found: _Results) -> str:
    """Of all results and of no measurement: equal studies have equal digests, warm or cold, at once or in pieces."""
    digest = hashlib.blake2b(digest_size=32)
    for index, row in found.simulations.items():
        point = study.points[index]
        digest.update(f"{point.parameters.param_id} {point.seed} {row['error_type'] or row['task_id']}\n".encode())
    for output in found.outputs:
        digest.update(f"{(output.point, output.name, output.checksum)!r}\n".encode())
    for (group, target), row in found.losses.items():
        told = row["error_type"] if row["loss"] is None else row["loss"].hex()
        digest.update(f"{group} {target} {told}\n".encode())
    return digest.hexdigest()


def _put(path: Path, columns: Columns) -> None:
    write_whole(path, lambda aside: write_table(aside, columns))
