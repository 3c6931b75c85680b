"""The folder of a study while it runs: what the study is, and every result as it came. A study goes on from here.

    identity.json              what two starts must have in common
    parts/<n>.simulations.parquet   results of simulations, a row each; <n>.outputs.parquet: what they returned
    parts/<n>.losses.parquet        results of aggregations

A part appears complete, by a rename; its simulations come last, so results without their outputs are never seen. Where
two parts have a result of one task, the later one counts. Small parts are joined now and then, a few MiB at a time, so
that memory does not grow with the study. A part that a disk or a person damaged is set aside as `<name>.damaged`, and
what it had is run again.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import polars
from modelops_contracts import AggregationReturn, ErrorInfo, SimReturn, TableArtifact, digest_bytes

from modelops.adapters.exec_env.errors import RunnerError
from modelops.worker.plugin import Timed

from .study import Study

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
FLUSH_BYTES = 32 << 20  # of outputs
JOINED_PARTS, JOINED_BYTES = 64, 8 << 20  # of so many parts that take less memory, some are made one that does not

_TIMES: dict[str, Any] = {"started": polars.Datetime("us", "UTC"), "seconds": polars.Float64}
_ERROR: dict[str, Any] = {"error_type": polars.String, "error": polars.String, "retryable": polars.Boolean}
SCHEMAS: dict[str, dict[str, Any]] = {
    "outputs": {
        "index": polars.UInt64,
        "name": polars.String,
        "size": polars.UInt64,
        "checksum": polars.String,
        "content_type": polars.String,
        "ref": polars.String,
        "content": polars.Binary,
    },
    "losses": {
        "group": polars.UInt64,
        "target": polars.UInt64,
        "loss": polars.Float64,
        "n_replicates": polars.UInt64,
        "aggregation_id": polars.String,
        "diagnostics": polars.String,
        **_ERROR,
        **_TIMES,
    },
    "simulations": {
        "index": polars.UInt64,
        "task_id": polars.String,
        "metrics": polars.String,
        **_ERROR,
        **_TIMES,
    },
}
KINDS = tuple(SCHEMAS)  # in the order in which a part's files appear
_KEYS = {"simulations": ["index"], "losses": ["group", "target"]}
_OWNER = {"outputs": "simulations"}  # whose rows decide which of a kind count
_PART = re.compile(rf"[0-9]{{8,15}}\.({'|'.join(KINDS)})\.parquet")


class StudyFolderError(Exception):
    """The folder can't be read or written; the message says what to do."""


class StudyMismatch(StudyFolderError):
    """The folder is another study's, or another process writes to it."""


@dataclass
class _Pending:
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    size: int = 0


class StudyFolder:
    """Takes results in and keeps them. One process has it at a time.

    `simulations` says of each point that has a result whether it succeeded, `losses` of each (group, target).
    """

    def __init__(self, path: Path, study: Study, profile: Mapping[str, Any]) -> None:
        self.path, self.study = path, study
        self.parts = path / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.parts, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._pending, self._flushed_at = _Pending(), time.monotonic()
        try:
            _take(self._lock, path)
            self._identify({**study.identity(), "profile": dict(profile)})
            self._remove_unfinished()
            self._set_damaged_aside()
            self._next = 1 + max((_number(part) for part in self._files()), default=0)
            self._small = {number: size for number, size in self._sizes() if size < JOINED_BYTES}
            self.simulations: dict[int, bool] = {}
            self.losses: dict[tuple[int, int], bool] = {}
            self._load()
        except BaseException:
            os.close(self._lock)
            raise

    def add_simulation(self, index: int, timed: Timed) -> None:
        """Take in the result of a point."""
        result = timed.result
        assert isinstance(result, SimReturn)
        self._pending.rows["simulations"].append(
            {
                "index": index,
                "task_id": result.task_id,
                "metrics": json.dumps(dict(result.metrics or {})),
                **_error_fields(result.error),
                **_times(timed),
            }
        )
        for name, artifact in sorted(result.outputs.items()):
            self._pending.rows["outputs"].append({"index": index, "name": name, **_artifact_fields(artifact)})
            self._pending.size += len(artifact.inline or b"")
        self.simulations[index] = result.error is None
        self.flush_when_due()

    def add_loss(self, group: int, target: int, timed: Timed) -> None:
        """Take in the result of an aggregation, or the error that it ended with."""
        result = timed.result
        row: dict[str, Any] = {"group": group, "target": target, **_times(timed)}
        if isinstance(result, AggregationReturn):
            row |= {"loss": result.loss, "n_replicates": result.n_replicates, "aggregation_id": result.aggregation_id}
            row |= {"diagnostics": json.dumps(result.diagnostics, default=str)}
        else:
            assert isinstance(result, RunnerError)
            row |= _error_fields(ErrorInfo(result.type, result.message, result.retryable))
        self._pending.rows["losses"].append(row)
        self.losses[group, target] = isinstance(result, AggregationReturn)
        self.flush_when_due()

    def forget_failures(self) -> None:
        """Let failed tasks count as not run, and the losses of their parameter sets with them."""
        for group, indices in enumerate(self.study.groups()):
            failed = [index for index in indices if self.simulations.get(index) is False]
            for index in failed:
                del self.simulations[index]
            for target in range(len(self.study.targets)):
                if failed or not self.losses.get((group, target), True):
                    self.losses.pop((group, target), None)

    def is_done(self) -> bool:
        """Whether every task has a result."""
        return len(self.simulations) + len(self.losses) == self.study.size

    def flush(self) -> None:
        """Write what has come since the last time."""
        self._flushed_at = time.monotonic()
        rows = self._pending.rows
        if any(rows.values()):
            self._write_part({kind: polars.DataFrame(rows[kind], schema=SCHEMAS[kind]) for kind in KINDS if rows[kind]})
            self._pending = _Pending()
            self._join_small_parts()

    def flush_when_due(self) -> None:
        """Write what has come, if the last time is a while ago or there is much of it."""
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS or self._pending.size > FLUSH_BYTES:
            self.flush()

    def latest(self, kind: str) -> polars.DataFrame:
        """Of simulations or losses the row that counts of each task, in the order of the study."""
        keys = _KEYS[kind]
        found = self._scan(kind).collect().sort(*keys, "part")
        return found.unique(keys, keep="last", maintain_order=True)

    def outputs(self, parts: Container[int] | None = None) -> polars.LazyFrame:
        """The outputs that count, of some parts or all, in no order. What is not selected is not read."""
        return self._scan("outputs", parts).join(self._counting("simulations"), on=["index", "part"], how="semi")

    def results(self, indices: list[int]) -> dict[int, SimReturn]:
        """The results of some points as they were taken in, for an aggregation."""
        self.flush()
        outputs: dict[int, dict[str, TableArtifact]] = {index: {} for index in indices}
        found = self.outputs().filter(polars.col("index").is_in(indices)).sort("name").collect()
        for row in found.iter_rows(named=True):
            artifact = TableArtifact(row["content_type"], row["size"], row["content"], row["ref"], row["checksum"])
            outputs[row["index"]][row["name"]] = artifact
        rows = self.latest("simulations").filter(polars.col("index").is_in(indices))
        return {row["index"]: _sim_return(row, outputs[row["index"]]) for row in rows.iter_rows(named=True)}

    def close(self) -> None:
        """Write what is there, and let others have the folder."""
        if self._lock >= 0:
            try:
                self.flush()
            finally:
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _identify(self, identity: dict[str, Any]) -> None:
        place = self.path / "identity.json"
        if not self._files():
            write_whole(place, lambda aside: aside.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8"))
            return
        try:
            known = json.loads(place.read_text(encoding="utf-8"))
            if not isinstance(known, dict):
                raise ValueError("it is not an object")
        except (OSError, ValueError, RecursionError) as error:
            problem = f"{str(self.path)!r} has results, and {place.name}, which says of what study, can't be read"
            raise StudyMismatch(f"{problem}: {error}; choose another --out") from None
        for key, value in identity.items():
            if known.get(key) != value:
                raise StudyMismatch(
                    f"{str(self.path)!r} holds a study with another {key.replace('_', ' ')}: it has "
                    f"{_short(known.get(key))}, and this one {_short(value)}; choose another --out"
                )

    def _remove_unfinished(self) -> None:
        for path in [*self.path.glob(".*.aside-*"), *self.parts.glob(".*.aside-*")]:
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The files of all parts."""
        return [path for path in self.parts.iterdir() if _PART.fullmatch(path.name)]

    def _set_damaged_aside(self) -> None:
        """Let parts that can't be read, or lack outputs of their simulations, count as not there."""
        parts: dict[int, dict[str, Path]] = {}
        for path in self._files():
            parts.setdefault(_number(path), {})[_kind(path)] = path
        for number, files in sorted(parts.items()):
            problem = _damage(files)
            if problem:
                logger.warning("part %d of %s is damaged, and what it had is run again: %s", number, self.path, problem)
                for path in files.values():
                    path.rename(path.with_name(f"{path.name}.damaged"))

    def _load(self) -> None:
        for row in self.latest("simulations").select("index", "error_type").iter_rows():
            self.simulations[row[0]] = row[1] is None
        for group, target, error_type in self.latest("losses").select("group", "target", "error_type").iter_rows():
            self.losses[group, target] = error_type is None

    def _write_part(self, frames: Mapping[str, polars.DataFrame]) -> None:
        number, self._next = self._next, self._next + 1
        for kind in KINDS:
            if kind in frames:
                write_whole(self.parts / f"{number:08}.{kind}.parquet", frames[kind].write_parquet)
        size = sum(int(frame.estimated_size()) for frame in frames.values())
        if size < JOINED_BYTES:
            self._small[number] = size

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """The number of each part that is there, and about how many bytes its rows take in memory."""
        sizes: Counter[int] = Counter()
        for path in self._files():
            rows = polars.scan_parquet(path, glob=False)
            if _kind(path) == "outputs":
                held = rows.select(polars.col("size").filter(polars.col("ref").is_null()).sum()).collect().item()
                sizes[_number(path)] += held
                rows = rows.drop("content")
            sizes[_number(path)] += int(rows.collect().estimated_size())
        yield from sizes.items()

    def _join_small_parts(self) -> None:
        """Bound the number of files: some small parts become one, which counts before the old ones are removed."""
        if len(self._small) < JOINED_PARTS:
            return
        old, size = set(), 0
        for number, more in sorted(self._small.items(), key=itemgetter(1)):
            old.add(number)
            size += more
            if size >= JOINED_BYTES:
                break
        frames = {}
        for kind in KINDS:  # without what is of no account: the new part is later than the one that has what counts
            keys = [*_KEYS[_OWNER.get(kind, kind)], "part"]
            counting = self._counting(_OWNER.get(kind, kind))
            frames[kind] = self._scan(kind, old).join(counting, on=keys, how="semi").drop("part").collect()
        self._write_part({kind: frame for kind, frame in frames.items() if len(frame)})
        paths = [path for path in self._files() if _number(path) in old]
        for path in sorted(paths, key=lambda path: KINDS.index(_kind(path)), reverse=True):
            path.unlink()
        for number in old:
            del self._small[number]

    def _counting(self, kind: str) -> polars.LazyFrame:
        """Of simulations or losses, the part that has the row that counts of each task."""
        keys = _KEYS[kind]
        return self._scan(kind).select(*keys, "part").group_by(keys).agg(polars.col("part").max())

    def _scan(self, kind: str, parts: Container[int] | None = None) -> polars.LazyFrame:
        """The rows of a kind in some parts, or in all, with the number of their part."""
        empty = polars.LazyFrame(schema={**SCHEMAS[kind], "part": polars.UInt64})
        frames = [
            polars.scan_parquet(path, glob=False).with_columns(part=polars.lit(_number(path), polars.UInt64))
            for path in self._files()
            if _kind(path) == kind and (parts is None or _number(path) in parts)
        ]
        return polars.concat([empty, *frames])


def write_whole(path: Path, write: Any) -> None:
    """Let `write` make a file beside `path`, and put it there by one rename."""
    aside = path.with_name(f".{path.name}.aside-{os.getpid()}")
    try:
        write(aside)
        os.replace(aside, path)
    except polars.exceptions.PolarsError as error:
        is_full = os.statvfs(path.parent).f_bavail == 0
        raise _unwritable(path, "no space left on device" if is_full else str(error)) from None
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None
    finally:
        aside.unlink(missing_ok=True)


def _unwritable(path: Path, why: str) -> StudyFolderError:
    return StudyFolderError(f"{str(path)!r} can't be written: {why}")


def _damage(files: Mapping[str, Path]) -> str:
    """What is wrong with the files of a part, or nothing. Outputs are not read, but for whose they are."""
    try:
        found = {kind: polars.scan_parquet(path, glob=False) for kind, path in files.items()}
        for kind, frame in found.items():
            if frame.collect_schema() != polars.Schema(SCHEMAS[kind]):
                return f"{files[kind].name} has other columns"
        for kind in _KEYS.keys() & found.keys():
            found[kind].collect()
        outputs = found.get("outputs", polars.LazyFrame(schema=SCHEMAS["outputs"])).select("index").collect()
        if "simulations" in found:
            good = found["simulations"].filter(polars.col("error_type").is_null()).select("index").collect()
            if len(good.join(outputs, on="index", how="anti")):
                return "it lacks outputs"
    except (polars.exceptions.PolarsError, OSError) as error:
        return str(error)
    return ""


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StudyMismatch(f"another process runs the study in {str(path)!r}") from None
    except OSError:
        pass  # a file system without locks


def _number(path: Path) -> int:
    with suppress(ValueError):
        return int(path.name.partition(".")[0])
    return 0


def _kind(path: Path) -> str:
    return path.name.split(".")[1]


def _times(timed: Timed) -> dict[str, Any]:
    return {"started": round(timed.started * 1e6), "seconds": timed.seconds}


def _error_fields(error: ErrorInfo | None) -> dict[str, Any]:
    if error is None:
        return {}
    return {"error_type": error.error_type, "error": error.message, "retryable": error.retryable}


def _artifact_fields(artifact: TableArtifact) -> dict[str, Any]:
    return {
        "size": artifact.size,
        "checksum": artifact.checksum,
        "content_type": artifact.content_type,
        "ref": artifact.ref,
        "content": artifact.inline,
    }


def _sim_return(row: Mapping[str, Any], outputs: Mapping[str, TableArtifact]) -> SimReturn:
    if row["error_type"] is None:
        return SimReturn(row["task_id"], outputs)
    details = json.dumps({"type": row["error_type"], "error": row["error"]}).encode()
    artifact = TableArtifact("application/json", len(details), details, None, digest_bytes(details))
    info = ErrorInfo(row["error_type"], row["error"], row["retryable"])
    return SimReturn(row["task_id"], outputs, info, artifact)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}.."
