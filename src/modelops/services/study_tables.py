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
from pathlib import Path
from typing import Any

import polars
from modelops_contracts import UniqueParameterSet

from .study import Study
from .study_folder import StudyFolder, write_whole

MAX_LISTED = 100  # failures, and losses of a target, that the summary names; the tables have them all
RANGE_BYTES = 8 << 20  # of outputs that are held at once, in a few copies
_HELD = polars.when(polars.col("ref").is_null()).then(polars.col("size")).otherwise(0)
_INT64 = range(-(2**63), 2**63)
_EXACT = 2**53  # the largest integer up to which floats hold every one


def write_tables(folder: StudyFolder, ran: Mapping[str, Any]) -> dict[str, Any]:
    """Write all tables and return the summary, which has `ran` in it: what is to be told of this start."""
    folder.flush()
    study, path = folder.study, folder.path
    simulations, losses = folder.latest("simulations"), folder.latest("losses")
    names = folder.outputs().select("index", "name", "size", "checksum", "ref", "part").sort("index", "name").collect()
    _put(path / "results.parquet", _results(study, simulations, names))
    _write_outputs(folder, simulations, names)
    _put(path / "tasks.parquet", _tasks(study, simulations, losses))
    if study.targets:
        _put(path / "losses.parquet", _losses(study, losses))
    summary = {**_summary(study, simulations, losses), "results_digest": _digest(study, simulations, names, losses)}
    text = json.dumps({**summary, **ran}, indent=2, default=str) + "\n"
    write_whole(path / "summary.json", lambda aside: aside.write_text(text, encoding="utf-8"))
    return read_summary(path)


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a study that was written below `folder`."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def _results(study: Study, simulations: polars.DataFrame, names: polars.DataFrame) -> polars.DataFrame:
    beside = polars.concat_str(polars.lit("outputs.parquet#"), "checksum")
    references = names.with_columns(reference=polars.coalesce("ref", beside))
    wide = references.pivot("name", index="index", values="reference") if len(names) else names.select("index")
    outputs = {name: f"output.{name}" for name in sorted(set(wide.columns) - {"index"})}
    return (
        _points(study)
        .join(simulations.select("index", "task_id"), on="index", how="left", maintain_order="left")
        .join(wide.select("index", *outputs).rename(outputs), on="index", how="left", maintain_order="left")
        .drop("index")
    )


def _write_outputs(folder: StudyFolder, simulations: polars.DataFrame, names: polars.DataFrame) -> None:
    """In ranges of points, so that memory holds one range; they are then joined as a stream."""
    of_task = _keys(folder.study).join(simulations.select("index", "task_id"), on="index", maintain_order="left")
    asides = []
    try:
        for first, last in _ranges(names):
            within = polars.col("index").is_between(first, last)
            parts = set(names.filter(within)["part"])
            chosen = folder.outputs(parts).filter(within).drop("part").sort("index", "name").collect()
            table = of_task.join(chosen, on="index", maintain_order="right")
            aside = folder.path / f".outputs.{first:012}.aside-range"
            asides.append(aside)
            columns = ["task_id", "param_id", "seed", *(name for name in chosen.columns if name != "index")]
            table.select(columns).write_parquet(aside)
        stream = polars.concat([polars.scan_parquet(aside, glob=False) for aside in asides])
        rows = _rows_at_once(names)
        write_whole(folder.path / "outputs.parquet", lambda aside: stream.sink_parquet(aside, row_group_size=rows))
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


def _ranges(names: polars.DataFrame) -> Iterator[tuple[int, int]]:
    """The first and last points of ranges that have at most RANGE_BYTES of outputs, unless one point has more."""
    first, size = 0, 0
    sizes = names.group_by("index").agg(_HELD.sum()).sort("index")
    for index, more in sizes.iter_rows():
        if size and size + more > RANGE_BYTES:
            yield first, index - 1
            first, size = index, 0
        size += more
    yield first, 2**63 - 1


def _rows_at_once(names: polars.DataFrame) -> int:
    """How many rows a group of the file may have, so that none has more than RANGE_BYTES and one output."""
    sizes = names.select(_HELD).to_series()
    limit = RANGE_BYTES + max(sizes, default=0)
    rows = 1 << 16
    while rows > 1 and any(sizes.slice(first, rows).sum() > limit for first in range(0, len(sizes), rows)):
        rows //= 2
    return rows


def _tasks(study: Study, simulations: polars.DataFrame, losses: polars.DataFrame) -> polars.DataFrame:
    groups = study.groups()
    told = ["status", "error_type", "error", "retryable", "started", "seconds"]
    one = _keys(study).join(simulations, on="index", how="left", maintain_order="left")
    metrics = [json.loads(text) if text else {} for text in one["metrics"]]
    measured = [
        polars.Series(f"metric.{name}", [row.get(name) for row in metrics], dtype=polars.Float64)
        for name in sorted({name for row in metrics for name in row})
    ]
    one = one.with_columns(kind=polars.lit("simulation"), status=_status(), target=polars.lit(None, polars.String))
    one = one.select("kind", "param_id", "seed", "target", "task_id", *told).with_columns(measured)
    many = _grouped(study, groups).join(losses, on=["group", "target"], how="left", maintain_order="left")
    many = many.with_columns(kind=polars.lit("aggregation"), status=_status(), seed=polars.lit(None, polars.UInt64))
    many = many.select(
        "kind",
        "param_id",
        "seed",
        polars.col("name").alias("target"),
        polars.col("aggregation_id").alias("task_id"),
        *told,
    )
    return polars.concat([one, many], how="diagonal")


def _status() -> polars.Expr:
    failed, ran = polars.col("error_type").is_not_null(), polars.col("seconds").is_not_null()
    return (
        polars.when(failed)
        .then(polars.lit("failed"))
        .when(ran)
        .then(polars.lit("succeeded"))
        .otherwise(polars.lit("not run"))
    )


def _losses(study: Study, losses: polars.DataFrame) -> polars.DataFrame:
    groups = study.groups()
    parameters = _parameters([study.points[indices[0]].parameters for indices in groups])
    sets = parameters.with_columns(polars.int_range(len(groups), dtype=polars.UInt64).alias("group"))
    told = ["loss", "n_replicates", "aggregation_id", "diagnostics", "error_type", "error"]
    table = _grouped(study, groups).join(losses, on=["group", "target"], how="left", maintain_order="left")
    table = table.join(sets, on="group", maintain_order="left")
    values = [name for name in parameters.columns if name != "param_id"]
    return table.select("param_id", *values, polars.col("name").alias("target"), *told)


def _points(study: Study) -> polars.DataFrame:
    parameters = _parameters([point.parameters for point in study.points])
    return _keys(study).select("index", "param_id", "seed").hstack(parameters.drop("param_id"))


def _keys(study: Study) -> polars.DataFrame:
    schema = {"index": polars.UInt64, "param_id": polars.String, "seed": polars.UInt64}
    identifiers = [point.parameters.param_id for point in study.points]
    seeds = [point.seed for point in study.points]
    return polars.DataFrame({"index": range(len(seeds)), "param_id": identifiers, "seed": seeds}, schema=schema)


def _grouped(study: Study, groups: Sequence[Sequence[int]]) -> polars.DataFrame:
    """A row for each parameter set and target."""
    rows = [
        (group, target, study.points[indices[0]].parameters.param_id, study.targets[target].name)
        for group, indices in enumerate(groups)
        for target in range(len(study.targets))
    ]
    schema = {"group": polars.UInt64, "target": polars.UInt64, "param_id": polars.String, "name": polars.String}
    return polars.DataFrame(rows, schema=schema, orient="row")


def _parameters(sets: Sequence[UniqueParameterSet]) -> polars.DataFrame:
    names = dict.fromkeys(name for parameters in sets for name in parameters.params)
    identifiers = polars.Series("param_id", [parameters.param_id for parameters in sets], dtype=polars.String)
    columns = [_column(f"param.{name}", [parameters.params.get(name) for parameters in sets]) for name in names]
    return polars.DataFrame([identifiers, *columns])


def _column(name: str, values: list[Any]) -> polars.Series:
    """A column of the narrowest type that holds all parameters of the name."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return polars.Series(name, values, dtype=polars.Boolean)
    if kinds == {int} and all(value in _INT64 for value in values if value is not None):
        return polars.Series(name, values, dtype=polars.Int64)
    if float in kinds and kinds <= {int, float} and all(abs(value) <= _EXACT for value in values if type(value) is int):
        floats = [None if value is None else float(value) for value in values]
        return polars.Series(name, floats, dtype=polars.Float64)
    texts = [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
    return polars.Series(name, texts, dtype=polars.String)


def _summary(study: Study, simulations: polars.DataFrame, losses: polars.DataFrame) -> dict[str, Any]:
    groups = study.groups()
    failures = [*_failed_simulations(study, simulations), *_failed_aggregations(study, groups, losses)]
    return {
        "bundle": study.bundle_ref,
        "entrypoint": study.entrypoint,
        "targets": {target.name: target.entrypoint for target in study.targets},
        "parameter_sets": len(groups),
        "simulations": _counts(len(study.points), simulations),
        "aggregations": _counts(len(groups) * len(study.targets), losses),
        "failed": len(failures),
        "failures": failures[:MAX_LISTED],
        "losses": {target.name: _best(study, groups, number, losses) for number, target in enumerate(study.targets)},
    }


def _counts(planned: int, rows: polars.DataFrame) -> dict[str, int]:
    failed = len(rows) - rows["error_type"].null_count()
    return {"succeeded": len(rows) - failed, "failed": failed, "not_run": planned - len(rows)}


def _failed_simulations(study: Study, simulations: polars.DataFrame) -> Iterator[dict[str, Any]]:
    failed = simulations.filter(polars.col("error_type").is_not_null())
    for index, kind, error in failed.select("index", "error_type", "error").iter_rows():
        point = study.points[index]
        what = {"task": "simulation", "seed": point.seed, **_identity(point.parameters)}
        yield {**what, "error_type": kind, "error": error}


def _failed_aggregations(
    study: Study, groups: Sequence[Sequence[int]], losses: polars.DataFrame
) -> Iterator[dict[str, Any]]:
    failed = losses.filter(polars.col("error_type").is_not_null())
    for group, target, kind, error in failed.select("group", "target", "error_type", "error").iter_rows():
        what = {"task": "aggregation", "target": study.targets[target].name}
        parameters = study.points[groups[group][0]].parameters
        yield {**what, **_identity(parameters), "error_type": kind, "error": error}


def _best(study: Study, groups: Sequence[Sequence[int]], target: int, losses: polars.DataFrame) -> list[dict[str, Any]]:
    """The parameter sets with the least losses."""
    of_target = losses.filter((polars.col("target") == target) & polars.col("loss").is_not_null())
    best = of_target.sort("loss", "group").head(MAX_LISTED).select("group", "loss").iter_rows()
    return [{**_identity(study.points[groups[group][0]].parameters), "loss": loss} for group, loss in best]


def _identity(parameters: UniqueParameterSet) -> dict[str, Any]:
    return {"param_id": parameters.param_id, "params": dict(parameters.params)}


def _digest(study: Study, simulations: polars.DataFrame, names: polars.DataFrame, losses: polars.DataFrame) -> str:
    """Of all results and of no measurement: equal studies have equal digests, warm or cold, at once or in pieces."""
    digest = hashlib.blake2b(digest_size=32)
    for index, task_id, kind in simulations.select("index", "task_id", "error_type").iter_rows():
        point = study.points[index]
        digest.update(f"{point.parameters.param_id} {point.seed} {kind or task_id}\n".encode())
    for row in names.select("index", "name", "checksum").iter_rows():
        digest.update(f"{row!r}\n".encode())
    for group, target, loss, kind in losses.select("group", "target", "loss", "error_type").iter_rows():
        digest.update(f"{group} {target} {kind if loss is None else loss.hex()}\n".encode())
    return digest.hexdigest()


def _put(path: Path, table: polars.DataFrame) -> None:
    write_whole(path, table.write_parquet)
