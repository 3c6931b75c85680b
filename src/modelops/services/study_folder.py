"""The folder of a study while it runs: what the study is, and every result as it came. A study goes on from here.

    identity.json    what two starts must have in common
    results.sqlite   a row for each result of a simulation, each output of one, and each result of an aggregation

What came at once is there at once or not at all, whatever ends the process. Rows are only ever added: where a task has
several results, the last one counts. Where a disk or a person damaged the database, it is copied to
`results.sqlite.damaged`; simulations that can still be read with all their outputs are kept, and the rest is run again.
"""

import fcntl
import json
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from modelops_contracts import AggregationReturn, ErrorInfo, SimReturn, TableArtifact, digest_bytes

from modelops.adapters.exec_env.errors import RunnerError
from modelops.worker.plugin import Timed

from .study import Study

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
FLUSH_BYTES = 32 << 20  # of outputs
WAIT_SECONDS = 60.0  # for somebody who reads the database
DATABASE = "results.sqlite"
_VERSION = 1  # of the tables below

_ENDED = {"error_type": "TEXT", "error": "TEXT", "retryable": "INTEGER", "started": "INTEGER", "seconds": "REAL"}
_TABLES = {
    "simulations": {
        "result": "INTEGER PRIMARY KEY",
        "point": "INTEGER NOT NULL",
        "task_id": "TEXT",
        "metrics": "TEXT",
        "outputs": "INTEGER",  # how many rows it has there
        **_ENDED,
    },
    "outputs": {
        "result": "INTEGER NOT NULL",
        "name": "TEXT",
        "size": "INTEGER",
        "checksum": "TEXT",
        "content_type": "TEXT",
        "ref": "TEXT",
        "content": "BLOB",  # last: SQLite reads no further than it is asked to
    },
    "losses": {
        "result": "INTEGER PRIMARY KEY",
        "parameters": "INTEGER NOT NULL",
        "target": "INTEGER NOT NULL",
        "loss": "REAL",
        "n_replicates": "INTEGER",
        "aggregation_id": "TEXT",
        "diagnostics": "TEXT",
        **_ENDED,
    },
}
_KEYS = {"simulations": "point", "losses": "parameters, target"}
_INDEXES = {**_KEYS, "outputs": "result, name"}


class StudyFolderError(Exception):
    """The folder can't be read or written; the message says what to do."""


class StudyMismatch(StudyFolderError):
    """The folder is another study's, or another process writes to it."""


@dataclass
class _Pending:
    results: list[list[tuple[str, dict[str, Any]]]] = field(default_factory=list)  # each with all its rows, by table
    size: int = 0


class StudyFolder:
    """Takes results in and keeps them. One process has it at a time.

    `simulations` says of each point that has a result whether it succeeded, `losses` of each (group, target).
    """

    def __init__(self, path: Path, study: Study, profile: Mapping[str, Any]) -> None:
        self.path, self.study = path, study
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._pending, self._flushed_at = _Pending(), time.monotonic()
        self.simulations: dict[int, bool] = {}
        self.losses: dict[tuple[int, int], bool] = {}
        try:
            vfs = "unix" if _take(self._lock, path) else "unix-none"
            self._identify({**study.identity(), "profile": dict(profile)})
            for aside in path.glob(".*.aside-*"):
                aside.unlink(missing_ok=True)
            with _told(path / DATABASE, "opened"):
                self._db = _opened(path / DATABASE, len(study.points), vfs)
                self._next = 1 + _last_result(self._db)
                self._load()
        except BaseException:
            os.close(self._lock)
            raise

    def add_simulation(self, index: int, timed: Timed) -> None:
        """Take in the result of a point."""
        result = timed.result
        assert isinstance(result, SimReturn)
        self._add(
            "simulations",
            [{"name": name, **_artifact_fields(artifact)} for name, artifact in result.outputs.items()],
            point=index,
            task_id=result.task_id,
            metrics=json.dumps(dict(result.metrics or {})),
            outputs=len(result.outputs),
            **_ended(timed, result.error),
        )
        self._pending.size += sum(len(artifact.inline or b"") for artifact in result.outputs.values())
        self.simulations[index] = result.error is None
        self.flush_when_due()

    def add_loss(self, group: int, target: int, timed: Timed) -> None:
        """Take in the result of an aggregation, or the error that it ended with."""
        result = timed.result
        found: dict[str, Any] = dict.fromkeys(("loss", "n_replicates", "aggregation_id", "diagnostics"))
        error = None
        if isinstance(result, AggregationReturn):
            found |= {"loss": result.loss, "n_replicates": result.n_replicates, "aggregation_id": result.aggregation_id}
            found |= {"diagnostics": json.dumps(result.diagnostics, default=str)}
        else:
            assert isinstance(result, RunnerError)
            error = ErrorInfo(result.type, result.message, result.retryable)
        self._add("losses", [], parameters=group, target=target, **found, **_ended(timed, error))
        self.losses[group, target] = error is None
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
        if self._pending.results:
            with _told(self.path / DATABASE, "written"), self._db:
                written = _last_result(self._db)  # some, where an interrupt came between this and the last line
                rows = [row for result in self._pending.results for row in result if row[1]["result"] > written]
                for table in _TABLES:
                    self._db.executemany(_insert(table), [row for of, row in rows if of == table])
            self._pending = _Pending()

    def flush_when_due(self) -> None:
        """Write what has come, if the last time is a while ago or there is much of it."""
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS or self._pending.size > FLUSH_BYTES:
            self.flush()

    def latest(self, table: str) -> Iterator[sqlite3.Row]:
        """Of simulations or losses the row that counts of each task, in the order of the study."""
        with _told(self.path / DATABASE, "read"):
            yield from self._db.execute(_latest(table))

    def outputs(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """The outputs that count: the point of each and these columns, by point and name. No other column is read."""
        with _told(self.path / DATABASE, "read"):
            for row in self._db.execute(_latest("simulations", "point, result")):
                of_result = f"SELECT {', '.join(columns)} FROM outputs WHERE result = ? ORDER BY name"
                for output in self._db.execute(of_result, (row["result"],)):
                    yield row["point"], *output

    def results(self, indices: list[int]) -> dict[int, SimReturn]:
        """The results of some points as they were taken in, for an aggregation."""
        self.flush()
        with _told(self.path / DATABASE, "read"):
            return {index: self._result(index) for index in indices}

    def close(self) -> None:
        """Write what is there, and let others have the folder."""
        if self._lock >= 0:
            try:
                self.flush()
            finally:
                self._db.close()
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _identify(self, identity: dict[str, Any]) -> None:
        place = self.path / "identity.json"
        if not _has_results(self.path / DATABASE):
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

    def _add(self, table: str, artifacts: list[dict[str, Any]], **row: Any) -> None:
        rows = [(table, row), *(("outputs", artifact) for artifact in artifacts)]
        self._pending.results.append([(of, {"result": self._next, **fields}) for of, fields in rows])  # all or none
        self._next += 1

    def _load(self) -> None:
        for row in self._db.execute(_latest("simulations", "point, error_type")):
            self.simulations[row["point"]] = row["error_type"] is None
        for row in self._db.execute(_latest("losses", "parameters, target, error_type")):
            self.losses[row["parameters"], row["target"]] = row["error_type"] is None

    def _result(self, index: int) -> SimReturn:
        row, outputs = _last_of(self._db, index)
        assert row is not None, "it has ended"
        artifacts = {
            name: TableArtifact(content_type, size, content, ref, checksum)
            for _, name, size, checksum, content_type, ref, content in outputs
        }
        if row["error_type"] is None:
            return SimReturn(row["task_id"], artifacts)
        details = json.dumps({"type": row["error_type"], "error": row["error"]}).encode()
        artifact = TableArtifact("application/json", len(details), details, None, digest_bytes(details))
        info = ErrorInfo(row["error_type"], row["error"], bool(row["retryable"]))
        return SimReturn(row["task_id"], artifacts, info, artifact)


def write_whole(path: Path, write: Any) -> None:
    """Let `write` make a file beside `path`, and put it there by one rename."""
    aside = path.with_name(f".{path.name}.aside-{os.getpid()}")
    try:
        write(aside)
        os.replace(aside, path)
    except OSError as error:
        raise StudyFolderError(f"{str(path)!r} can't be written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _told(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StudyFolderError(f"{str(path)!r} can't be {doing}: {error}") from None


def _opened(path: Path, points: int, vfs: str) -> sqlite3.Connection:
    """The database, made where it is not there, and without what was damaged where it was."""
    if not path.exists():
        write_whole(path, lambda aside: _made(aside).close())
    problem = _damage(path, vfs)
    if problem:
        logger.warning("%s is damaged, and what can't be read of it is run again: %s", path, problem)
        shutil.copyfile(path, f"{path}.damaged")
        write_whole(path, lambda aside: _rescue(path, aside, points))
        Path(f"{path}-journal").unlink(missing_ok=True)
    return _connected(path, "rw", vfs)


def _connected(path: Path, mode: str, vfs: str = "unix") -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}&vfs={vfs}", WAIT_SECONDS, uri=True)
    db.row_factory = sqlite3.Row
    return db


def _made(path: Path) -> sqlite3.Connection:
    db = _connected(path, "rwc", "unix-none")  # nobody else knows of it
    with db:
        for table, columns in _TABLES.items():
            db.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
            db.execute(f"CREATE INDEX {table}_of ON {table} ({_INDEXES[table]})")
        db.execute(f"PRAGMA user_version = {_VERSION}")
    return db


def _damage(path: Path, vfs: str) -> str:
    """What is wrong with a database, or nothing."""
    try:
        with closing(_connected(path, "rw", vfs)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                return "it has other tables"
            found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        return str(error)
    return "" if found == "ok" else found.replace("\n", " ")


def _has_results(path: Path) -> bool:
    try:
        with closing(_connected(path, "ro")) as db:
            return _last_result(db) > 0
    except sqlite3.DatabaseError:  # it is not there, or damaged
        return path.exists()


def _last_result(db: sqlite3.Connection) -> int:
    return max(int(db.execute(f"SELECT coalesce(max(result), 0) FROM {table}").fetchone()[0]) for table in _KEYS)


def _rescue(damaged: Path, path: Path, points: int) -> None:
    """Make a database of the simulations of a damaged one that can be read with all outputs as they were."""
    with closing(_connected(damaged, "ro", "unix-none")) as old, closing(_made(path)) as new, new:
        for point in range(points):
            try:
                row, outputs = _last_of(old, point)
                is_whole = row is not None and len(outputs) == row["outputs"] and all(map(_is_whole, outputs))
            except (sqlite3.DatabaseError, TypeError):  # TypeError: a value of another kind than it was
                continue
            if row is not None and is_whole:
                new.execute(_insert("simulations"), {**row, "result": point + 1})
                new.executemany(_insert("outputs"), ({**output, "result": point + 1} for output in outputs))


def _last_of(db: sqlite3.Connection, point: int) -> tuple[sqlite3.Row | None, list[sqlite3.Row]]:
    """The result that counts of a point, if there is one, and its outputs."""
    last = db.execute("SELECT * FROM simulations WHERE point = ? ORDER BY result DESC LIMIT 1", (point,))
    row: sqlite3.Row | None = last.fetchone()
    of_result = "SELECT * FROM outputs WHERE result = ? ORDER BY name"
    return row, db.execute(of_result, (row["result"],)).fetchall() if row else []


def _is_whole(output: sqlite3.Row) -> bool:
    return output["content"] is None or digest_bytes(output["content"]) == output["checksum"]


def _latest(table: str, columns: str = "*") -> str:
    """Of each task the row that counts, by key."""
    keys = _KEYS[table]
    last = f"SELECT max(result) FROM {table} GROUP BY {keys}"
    return f"SELECT {columns} FROM {table} WHERE result IN ({last}) ORDER BY {keys}"


def _insert(table: str) -> str:
    return f"INSERT INTO {table} VALUES ({', '.join(f':{name}' for name in _TABLES[table])})"


def _take(lock: int, path: Path) -> bool:
    """Whether the file system has locks; StudyMismatch where another process has this one."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StudyMismatch(f"another process runs the study in {str(path)!r}") from None
    except OSError:
        return False
    return True


def _ended(timed: Timed, error: ErrorInfo | None) -> dict[str, Any]:
    return {
        "error_type": error and error.error_type,
        "error": error and error.message,
        "retryable": error and error.retryable,
        "started": round(timed.started * 1e6),
        "seconds": timed.seconds,
    }


def _artifact_fields(artifact: TableArtifact) -> dict[str, Any]:
    return {
        "size": artifact.size,
        "checksum": artifact.checksum,
        "content_type": artifact.content_type,
        "ref": artifact.ref,
        "content": artifact.inline,
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}.."
