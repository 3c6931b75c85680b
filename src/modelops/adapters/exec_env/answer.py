"""What the runner answers: its one line of JSON as contract objects. Nothing in it is taken on trust."""

import base64
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modelops_contracts import (
    INLINE_CAP,
    AggregationReturn,
    AggregationTask,
    ContractViolationError,
    ErrorInfo,
    SimReturn,
    SimTask,
    TableArtifact,
    digest_bytes,
)

from modelops.adapters.artifact_store import ArtifactDamaged, ArtifactStore

from .errors import RunnerError, numbers

logger = logging.getLogger(__name__)

LARGE_OUTPUT = 1 << 20  # bytes; an output above is worth a warning: it travels and is kept
_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"


class Answer(NamedTuple):
    """A successful answer, and the folder that holds the outputs that were too large for it."""

    body: Mapping[str, Any]
    folder: Path


def parse_line(line: bytes) -> dict[str, Any]:
    """One line of JSON with an object in it, or a RunnerError of type `runner_protocol`."""
    try:
        if line.count(b"\n") != 1 or not line.endswith(b"\n"):
            raise ValueError("it is not one line")
        body = json.loads(line, parse_constant=_refuse_constant)
        if not isinstance(body, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise _protocol(f"{error}; it begins with {line[:200]!r}") from None
    return body


def require_result(body: dict[str, Any]) -> dict[str, Any]:
    """The answer, where it is a result; the RunnerError of its `_fatal_error` where it is not."""
    fatal = body.get("_fatal_error")
    if fatal is None:
        return body
    if not isinstance(fatal, dict):
        raise _protocol("its _fatal_error is not an object")
    raise RunnerError(fatal)


def sim_return(task: SimTask, answer: Answer, store: ArtifactStore) -> SimReturn:
    """The result of a simulation, with the outputs that the task asks for."""
    found = _mapping(answer.body, "outputs")
    if not found:
        raise _protocol("it has no outputs, which the runner takes for a failed task")
    wanted = _wanted(task, found)
    files = _Files(answer.folder, store)
    outputs = {name: _artifact(name, found[name], files) for name in wanted}
    task_id = answer.body.get("task_id")
    if not isinstance(task_id, str) or not task_id:
        raise _protocol("it has no task_id")
    return SimReturn(task_id=task_id, outputs=outputs, metrics=numbers(answer.body.get("metrics")))


def error_return(task: SimTask, error: RunnerError) -> SimReturn:
    """The result of a simulation that has none."""
    text = f"{task.params.param_id[:16]}-{task.seed}-error"
    return SimReturn(
        task_id=hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest(),
        outputs={},
        error=ErrorInfo(error.type, error.message, error.retryable),
        error_details=_details(error.fatal_error),
        metrics=error.metrics,
    )


def aggregation_return(task: AggregationTask, answer: Answer, store: ArtifactStore) -> AggregationReturn:
    """The result of an aggregation.

    The target's `diagnostics` come with whatever else its dict has, except the metrics of the run: equal
    aggregations give equal returns.
    """
    body = dict(answer.body)
    body.pop("metrics", None)
    body.pop("n_replicates", None)
    loss, given, outputs = (
        body.pop("loss", None),
        body.pop("diagnostics", {}),
        body.pop("outputs", None) or {},
    )
    diagnostics = {**body, **given} if isinstance(given, dict) else {**body, "diagnostics": given}
    files = _Files(answer.folder, store)
    try:
        return AggregationReturn(
            aggregation_id=task.aggregation_id(),
            loss=float(loss),
            diagnostics=diagnostics,
            outputs={name: _artifact(name, entry, files) for name, entry in outputs.items()},
            n_replicates=len(task.sim_returns),
        )
    except (TypeError, ValueError, AttributeError, ContractViolationError) as error:
        raise RunnerError.of(
            "result", "bad_result", f"the target's result does not fit the contract: {error}"
        ) from None


def _wanted(task: SimTask, found: Mapping[str, Any]) -> Collection[str]:
    if task.outputs is None:
        return found.keys()
    missing = [name for name in task.outputs if name not in found]
    if missing:
        known = ", ".join(map(repr, sorted(found)))
        problem = f"the task has no output {', '.join(map(repr, missing))}; it has {known}"
        raise RunnerError.of("result", "missing_output", problem)
    return task.outputs


class _Files:
    """Moves outputs that came as files into the store; equal contents share one file, which moves once."""

    def __init__(self, folder: Path, store: ArtifactStore) -> None:
        self._folder, self._store = folder, store
        self._taken: dict[str, str] = {}
        self._types: dict[str, str] = {}

    def take(self, path: str, size: int, checksum: str) -> tuple[str, str]:
        """The reference and the content type of a file that the runner wrote."""
        file = self._folder / checksum
        if Path(path) != file:
            raise _protocol(f"it names the file {path!r}, not {str(file)!r}")
        if checksum not in self._taken:
            if file.stat().st_size != size:
                raise ArtifactDamaged(f"its file has {file.stat().st_size} bytes, not {size}")
            with file.open("rb") as opened:
                self._types[checksum] = _content_type(opened.read(8))
            self._taken[checksum] = self._store.adopt(file, checksum)
        return self._taken[checksum], self._types[checksum]

    def put(self, content: bytes, checksum: str) -> str:
        """The reference of content that came inline."""
        return self._store.put(content, checksum)


def _artifact(name: str, entry: Any, files: _Files) -> TableArtifact:
    """One output: its bytes are what its size and checksum say, or there is no result."""
    try:
        size, checksum = entry["size"], entry["checksum"]
        if size > LARGE_OUTPUT:
            logger.warning(
                "the output %r has %.1f MB; outputs over 1 MB are slow to move and to keep", name, size / 1e6
            )
        if "path" in entry:
            ref, content_type = files.take(entry["path"], size, checksum)
            return TableArtifact(content_type=content_type, size=size, ref=ref, checksum=checksum)
        content = base64.b64decode(entry["inline"], validate=True)
        if len(content) != size or digest_bytes(content) != checksum:
            raise ArtifactDamaged(f"its {len(content)} bytes are not the {size} of the checksum {checksum}")
        if size > INLINE_CAP:
            ref = files.put(content, checksum)
            return TableArtifact(content_type=_content_type(content), size=size, ref=ref, checksum=checksum)
        return TableArtifact(content_type=_content_type(content), size=size, inline=content, checksum=checksum)
    except ArtifactDamaged as error:
        raise RunnerError.of("result", "checksum_mismatch", f"the output {name!r} is damaged: {error}", True) from None
    except OSError as error:
        problem = f"the output {name!r} can't be moved into the store: {error}"
        raise RunnerError.of("result", "output_unwritable", problem, True) from None
    except (KeyError, TypeError, ValueError, ContractViolationError) as error:
        raise _protocol(f"the output {name!r} is not valid: {error}") from None


def _content_type(start: bytes) -> str:
    if start.startswith(_ARROW_FILE):
        return "application/vnd.apache.arrow.file"
    if start.startswith(_ARROW_STREAM):
        return "application/vnd.apache.arrow.stream"
    return "application/octet-stream"


def _details(fatal_error: Mapping[str, Any]) -> TableArtifact:
    """The runner's error as an inline artifact; its long texts are cut where it would not fit, its task never."""
    room = INLINE_CAP
    content = json.dumps(fatal_error, default=str).encode()
    said = {name: value for name, value in fatal_error.items() if name != "debug"}
    whole = {"debug": fatal_error["debug"]} if "debug" in fatal_error else {}
    while len(content) > INLINE_CAP:
        room //= 2
        content = json.dumps({**_clipped(said, room), **whole}, default=str).encode()
    return TableArtifact(
        content_type="application/json", size=len(content), inline=content, checksum=digest_bytes(content)
    )


def _clipped(value: Any, room: int) -> Any:
    """The ends of texts and the beginnings of lists: the last lines of a traceback say most."""
    if isinstance(value, str):
        return value if len(value) <= room else f"[... cut ...]{value[-room:]}"
    if isinstance(value, Mapping):
        return {str(key)[:room]: _clipped(item, room) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clipped(item, room) for item in value[:room]]
    return value


def _mapping(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key)
    if not isinstance(value, Mapping):
        raise _protocol(f"it has no {key}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _protocol(problem: str) -> RunnerError:
    return RunnerError.of("host", "runner_protocol", f"the runner's answer is not one of its contract: {problem}", True)
