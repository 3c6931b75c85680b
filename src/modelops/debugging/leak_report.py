"""What a search for leaks found, as plain data: the JSON of `modelops leaks --json`, from which every report is made.

    version         1; a field may be added without another number
    bundle          its reference
    profile         the sandbox profile
    verdict         "leak", "no leak", "nondeterministic" or "could not tell"; status is the exit status with it
    tasks           number (from 1), task, verdict of the cold runs ("stable", "hash seed", "nondeterministic",
                    "unknown"), failure (its type) and error (its words) or null, unstable (names of outputs),
                    differences (with `by`: what by, "nondeterministic" or "hash seed"), unseeded
    orders          by name: tasks in their order, and which differ from cold; "fork" are forks of the warm server
    leaks           polluters and victims (numbers), examined (the victim that was looked at), differences,
                    causes and suspects (changes), imports (modules whose import alone is enough), note
    fork            task and differences of each that is not as cold in a fork of the warm server
    not_reproduced, not_searched    victims whose set of polluters was not found, or not sought for want of time
    problems        what could not be run, in words
    run             runs, seconds

A difference has output, kind ("table", "json", "text", "bytes", "presence", "failure") and values, cold's first; and
where it is, by its kind. It is measured: the runner makes the checksums. A change has key, kind, name, how ("added",
"gone", "rebound", "content"), own, old, new, parts; of native data library, section, symbol and points (it looks like
an address); and line or null: file, line, function, text, and of a dependency's line `called_from`, the bundle's that
led there. These the process told of itself. That a change is a cause is measured: with the old value put back, the
outputs are cold's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .findings import Cold, Findings, Leak
from .frames import own_path
from .shared import Change
from .tasks import Task

VERSION = 1
VERDICTS = {0: "no leak", 1: "leak", 2: "could not tell", 3: "nondeterministic"}
MAX_SUSPECTS = 50
MAX_ERROR = 500  # characters of a task's error

Report = dict[str, Any]


def leak_report(found: Findings, tasks: Sequence[Task], bundle: str, folder: Path, profile: str) -> Report:
    """The report. `folder` is the bundle's, by which lines are named as in its source."""
    orders = {name: {"tasks": _numbers(order), "differ": _numbers(found.differs.get(name, ()))}
              for name, order in found.orders.items()}  # fmt: skip
    forks = range(len(found.cold))
    return {
        "version": VERSION,
        "bundle": bundle,
        "profile": profile,
        "verdict": VERDICTS[found.status],
        "status": found.status,
        "tasks": [
            _task(number, task, cold) for number, (task, cold) in enumerate(zip(tasks, found.cold, strict=False), 1)
        ],
        "orders": {**orders, "fork": {"tasks": _numbers(forks), "differ": _numbers(found.differs.get("fork", ()))}},
        "leaks": [_leak(leak, folder) for leak in found.leaks],
        "fork": [{"task": number + 1, "differences": gaps} for number, gaps in sorted(found.fork.items())],
        "not_reproduced": _numbers(found.not_reproduced),
        "not_searched": _numbers(found.not_searched),
        "problems": found.problems,
        "run": {"runs": found.runs, "seconds": round(found.seconds, 3)},
    }


def could_not_tell(problem: str, bundle: str, profile: str) -> Report:
    """The report where no task could be run."""
    empty = leak_report(Findings(problems=[problem]), (), bundle, Path(), profile)
    return {**empty, "verdict": VERDICTS[2], "status": 2}


def _numbers(numbers: Iterable[int]) -> list[int]:
    return [number + 1 for number in numbers]


def _task(number: int, task: Task, cold: Cold) -> Mapping[str, Any]:
    failure = cold.outcome.failure
    return {
        "number": number,
        "task": task if "target_entrypoint" not in task else {"target_entrypoint": task["target_entrypoint"]},
        "verdict": cold.verdict,
        "failure": failure and failure.get("type"),
        "error": failure and str(failure.get("error", ""))[:MAX_ERROR],
        "unstable": sorted({*cold.unstable, *cold.by_hash_seed}),
        "differences": cold.differences,
        "unseeded": cold.unseeded,
    }


def _leak(leak: Leak, folder: Path) -> Mapping[str, Any]:
    return {
        "polluters": _numbers(leak.polluters),
        "victims": _numbers(sorted([leak.victim, *leak.others])),
        "examined": leak.victim + 1,
        "also_explained": _numbers(victim for victim, cured in sorted(leak.others.items()) if cured),
        "differences": leak.differences,
        "causes": [_change(cause.change, cause.line, folder) for cause in leak.causes],
        "imports": leak.imports,
        "suspects": [_change(change, None, folder) for change in leak.suspects[:MAX_SUSPECTS]],
        "suspects_left_out": max(0, len(leak.suspects) - MAX_SUSPECTS),
        "note": leak.note,
    }


def _change(change: Change, line: Mapping[str, Any] | None, folder: Path) -> Mapping[str, Any]:
    fields = asdict(change)
    fields["parts"] = [list(part) for part in change.parts]
    return {**fields, "line": None if line is None else _line(line, folder)}


def _line(line: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    caller = line.get("called_from")
    named = {**line, "file": own_path(line["file"], folder) or line["file"]}
    return {**named, "called_from": None if caller is None else _line(caller, folder)}
