"""Tasks that share one process in a sandbox: what is asked of `inside.leaks`, and what it says, taken as hostile."""

import json
import os
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelops_contracts import digest_bytes

from .inside.causes import Cure
from .inside.fingerprints import plain_result
from .policy import Policy, scaled
from .reading import Unreadable, read_apart
from .tasks import Task
from .workbench import Outcome, Output, Workbench

PER_TASK = ("wall_seconds", "cpu_seconds", "output_bytes", "stderr_bytes")  # limits that are of each task
INSIDE = Path(__file__).with_name("inside")
PACKAGE = "modelops_inside"  # its name in the sandbox, where no module of a bundle is called so
TRIALS = 20  # tasks whose limits a process has for its trials in forks
MAX_TEXT, MAX_CHANGES, MAX_HEAD = 2000, 2000, 4 << 20


@dataclass(frozen=True)
class Change:
    """A place that is not as it was before the tasks. The process told it of itself.

    `parts` are the first parts of its content that differ: path, before, after. `symbol` and `section` are of native
    data, by the library that the process sent.
    """

    key: str
    kind: str
    name: str
    how: str  # added, gone, rebound, content
    own: bool  # the bundle's own, and not a dependency's
    old: str
    new: str
    parts: tuple[tuple[str, str, str], ...] = ()
    library: str = ""
    symbol: str = ""
    section: str = ""
    points: bool = False  # whether native data looks like an address

    @property
    def can_be_put_back(self) -> bool:
        """Whether the process knows how to undo it."""
        return self.kind not in ("thread", "open descriptors", "functions at exit")

    @property
    def is_near(self) -> bool:
        """Whether it is the bundle's own, or one of the things that a process has once: not a dependency's."""
        return self.own or not self.key.startswith(("attribute:", "class:", "abc:", "function:", "cache:", "native:"))

    @property
    def is_native(self) -> bool:
        """Whether it lies in a library's data."""
        return self.kind == "native data"


@dataclass(frozen=True)
class Shared:
    """What one shared process said: an outcome for each task that ended, and what was asked for besides."""

    outcomes: list[Outcome]
    modules: list[str] = field(default_factory=list)  # that were imported before the last task began, after the first
    changes: list[Change] = field(default_factory=list)
    complete: bool = True  # whether the look could take everything in
    native: str = ""
    cures: list[Cure] | None = None  # None where forks could not tell
    lines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: Mapping[str, Any] | None = None  # of the process itself


class SharedProcess:
    """Runs tasks in one process, under the workbench's profile with the limits of as many tasks."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def run(self, tasks: Sequence[Task], policy: Policy | None = None, **asked: Any) -> Shared:
        """One process. `asked` is what `inside.leaks` has besides the tasks."""
        count = len(tasks) + 2 + (TRIALS if "trials" in asked else 0)
        wider = scaled(policy or self._bench.policy, PER_TASK, count)
        settings = self._bench.under(wider, f"shared-{count}")
        outcome = self._bench.instrument(
            packed(self._bench.folder),
            {"tasks": list(tasks), **asked},
            settings,
            timeout=self._bench.timeout_seconds * count,
        )
        return parse_shared(outcome, len(tasks))


def packed(folder: Path) -> Path:
    """The program for the sandbox, as one file that Python runs: a zip archive of `inside`."""
    path = folder / "inside.zip"
    if not path.exists():
        aside = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
        with zipfile.ZipFile(aside, "w") as archive:
            for source in sorted(INSIDE.glob("*.py")):
                archive.write(source, f"{PACKAGE}/{source.name}")
            archive.writestr("__main__.py", f"from {PACKAGE}.leaks import main as main\n")
        os.replace(aside, path)
    return path


def parse_shared(outcome: Outcome, count: int) -> Shared:
    """What a process of so many tasks sent, as far as it is in its form."""
    outcomes: list[Outcome] = []
    modules: list[str] = []
    for number in range(count):
        output = outcome.outputs.get(f"task.{number}")
        if output is None:
            break
        try:
            found, head = _task(output)
        except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
            failure = {"type": "bad_result", "error": f"the shared process sent no task: {error}"}
            return Shared(outcomes, failure=failure)
        outcomes.append(found)
        if number < count - 1:
            named = head.get("modules")
            modules = [name for name in named if isinstance(name, str)][:5000] if isinstance(named, list) else []
    if len(outcomes) < count and is_of_task(outcome.failure):
        outcomes.append(Outcome(failure=outcome.failure))
    told = _json(outcome.outputs.get("changes"))
    return Shared(
        outcomes,
        modules,
        _changes(told, outcome.outputs),
        told.get("complete") is not False and not told.get("left_out"),
        str(told.get("native", ""))[:MAX_TEXT],
        _cures(_json(outcome.outputs.get("cures"))),
        {str(k): _line(v) for k, v in _json(outcome.outputs.get("lines")).items() if isinstance(v, dict)},
        outcome.failure,
    )


def _task(output: Output) -> tuple[Outcome, Mapping[str, Any]]:
    """One frame: a length, JSON, and the outputs one after the other."""
    data = output.read()
    (length,) = struct.unpack_from(">I", data)
    if length > MAX_HEAD:
        raise ValueError("its head is too long")
    head = json.loads(data[4 : 4 + length])
    if head["failure"] is not None:
        told = json.loads(head["failure"])
        exception = {key: str(told["exception"][key]) for key in ("type", "message")}
        failure = {"type": str(told["type"]), "exception": exception, "traceback": str(told["traceback"])}
        return Outcome(failure={**failure, "error": f"{exception['type']}: {exception['message']}"}), head
    at, outputs = 4 + length, {}
    for name, size in head["outputs"]:
        content = data[at : at + size]
        if not isinstance(name, str) or not isinstance(size, int) or not 0 <= size == len(content):
            raise ValueError("its sizes are not those of its outputs")
        content = plain_result(content) if name == "result" and len(head["outputs"]) == 1 else content
        outputs[name] = Output(len(content), digest_bytes(content), content)
        at += size
    return Outcome(outputs), head


def is_of_task(failure: Mapping[str, Any] | None) -> bool:
    """Whether it is the task that failed, and not what its run needs."""
    of_caller = ("cancelled", "shut_down", "runner_died", "runner_protocol", "output_unwritable")
    return failure is not None and failure.get("phase") in ("execute", "result") and failure["type"] not in of_caller


def _json(output: Output | None) -> dict[str, Any]:
    try:
        value = json.loads(output.read()) if output is not None and output.size <= 64 << 20 else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _cures(told: Mapping[str, Any]) -> list[Cure] | None:
    """What the forks found; None where they could not tell, or it is not in its form."""
    entries = told.get("cures")
    if told.get("problem") or not isinstance(entries, list):
        return None
    try:
        return [Cure([str(key) for key in keys], {str(name) for name in outputs}) for keys, outputs in entries]
    except (TypeError, ValueError):
        return None


def _line(told: Mapping[str, Any]) -> dict[str, Any]:
    line = told.get("line")
    texts = {name: str(told.get(name, ""))[:MAX_TEXT] for name in ("file", "function", "text")}
    caller = told.get("called_from")
    led = {"called_from": _line({**caller, "called_from": None})} if isinstance(caller, dict) else {}
    return {**texts, "line": line if isinstance(line, int) else 0, **led}


def _changes(told: Mapping[str, Any], outputs: Mapping[str, Output]) -> list[Change]:
    entries = told.get("changes")
    entries = [entry for entry in entries if isinstance(entry, dict)][:MAX_CHANGES] if isinstance(entries, list) else []
    names = _native_names(entries, outputs)
    found = []
    for number, entry in enumerate(entries):
        texts = {n: str(entry.get(n, ""))[:MAX_TEXT] for n in ("key", "kind", "name", "how", "old", "new", "library")}
        parts = entry.get("parts") if isinstance(entry.get("parts"), list) else []
        triples = tuple(tuple(str(t)[:MAX_TEXT] for t in p) for p in parts or () if isinstance(p, list) and len(p) == 3)
        told_of = {name: entry.get(name) is True for name in ("own", "points")}
        found.append(Change(**texts, **told_of, parts=triples, **names.get(number, {})))  # type: ignore[arg-type]
    return found


def _native_names(entries: Sequence[Mapping[str, Any]], outputs: Mapping[str, Output]) -> dict[int, dict[str, str]]:
    """Section and symbol of each native change, by its number, from the libraries that came along."""
    named: dict[int, dict[str, str]] = {}
    files: dict[Any, list[int]] = {}
    for number, entry in enumerate(entries):
        if all(isinstance(entry.get(name), int) for name in ("file", "offset", "size")):
            files.setdefault(entry["file"], []).append(number)
    for file, numbers in files.items():
        output = outputs.get(f"library.{file}")
        if output is None:
            continue
        ranges = [[entries[n]["offset"], entries[n]["size"]] for n in numbers]
        try:
            with output.as_file() as path:
                told = read_apart("symbols", {"path": str(path), "ranges": ranges})
            named.update({n: _name(entries[n], name) for n, name in zip(numbers, told, strict=True)})
        except Unreadable:
            continue
    return named


def _name(entry: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, str]:
    library = re.sub(r".*/", "", str(entry.get("library", "")))
    place = f"{library} {told['section'] or '?'}+{told['section_offset']:#x}"
    guards = [name for name in told["symbols"] if name.startswith("guard variable")]
    names = [name for name in told["symbols"] if name not in guards] or guards  # the guards of a name tell no more
    return {"section": place, "symbol": ", ".join(names)}
