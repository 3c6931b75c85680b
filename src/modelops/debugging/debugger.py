"""One task under a debugger in its sandbox, and what the debugger printed: the data of a hostile process."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from modelops.adapters.exec_env.process import Ending, start

from .tasks import Task, check_task, read_text
from .terminal import inner_terminal, relay
from .workbench import Outcome, Workbench, result_of

PROGRAM = Path(__file__).with_name("inside") / "debug.py"
PROFILE = "debug"
MAX_FAILURE = 64 << 20  # bytes of a file


class FailedTask(NamedTuple):
    """What an error carries under `debug`: see `adapters.exec_env.failed_task`."""

    bundle: str
    task: Task | None
    profile: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Session:
    """What is asked of the debugger. `script` are its commands; None is the caller's terminal."""

    task: Task
    script: Sequence[str] | None = None
    breaks: Sequence[tuple[str, int]] = ()
    stop_after: float | None = None
    mode: str = "debugger"  # or "shell", "native"

    def request(self) -> dict[str, Any]:
        """As `inside.debug` takes it."""
        script = None if self.script is None else list(self.script)
        breaks = [list(place) for place in self.breaks]
        return {"task": self.task, "script": script, "breaks": breaks, "stop_after": self.stop_after, "mode": self.mode}


def run_session(bench: Workbench, session: Session, options: Sequence[str] = ()) -> Outcome:
    """Run it without a terminal; the transcript is the output of that name. `options` are flags of the runner."""
    return bench.instrument(PROGRAM, session.request(), options=options)


def run_on_terminal(bench: Workbench, session: Session, options: Sequence[str] = ()) -> Outcome:
    """Run it on the caller's terminal; its end is what there is to say. NoTerminal where there is none."""
    place = ["--bundle-path", str(bench.bundle), "--instrument", str(PROGRAM), "--shell"]
    with inner_terminal() as inner:
        request = json.dumps(session.request()).encode()
        process = start(bench.settings, [*place, *options], request, inner.theirs)
        os.close(inner.theirs)
        ending = Ending(process)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="runner-answer") as pool:
                answer = pool.submit(process.output)
                relay(inner, ending.begin)
                stdout = result_of(answer)
        finally:
            ending.finish()
    body = json.loads(stdout or b"{}")
    return Outcome(failure=body.get("_fatal_error"), body=body)


def parse_breaks(items: Sequence[str]) -> list[tuple[str, int]]:
    """`module:line` or `path/of/file.py:line` each."""
    found = []
    for item in items:
        place, _, line = item.rpartition(":")
        if not place or not line.isdecimal():
            raise ValueError(f"{item!r} is not module:line, such as sir.model:12")
        found.append((place, int(line)))
    return found


def read_failure(path: Path, number: int = 1) -> FailedTask:
    """The failed task in a file: a line of `modelops run --json`, error_details, or a study's summary.json.

    Of several the one with that number, from 1.
    """
    if path.stat().st_size > MAX_FAILURE:
        raise ValueError(f"{path} is too large to be a failure")
    text = read_text(path)
    try:
        bodies = [json.loads(text)]
    except ValueError:
        try:
            bodies = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    found = [failed for body in bodies for failed in _find(body, 0)]
    if len(found) < number:
        raise ValueError(f"{path} holds {len(found)} failed tasks with what it takes to run them again")
    debug = found[number - 1]
    task = debug.get("task")
    checked = None if task is None else check_task(task, str(path))
    return FailedTask(
        str(debug["bundle"]), checked, str(debug.get("profile", "default")), dict(debug.get("versions") or {})
    )


def _find(value: Any, depth: int) -> list[dict[str, Any]]:
    """Every `debug` object in an answer, an error, or a list of them."""
    if depth > 4:
        return []
    if isinstance(value, list):
        return [found for item in value for found in _find(item, depth + 1)]
    if not isinstance(value, dict):
        return []
    own = value.get("debug")
    if isinstance(own, dict) and isinstance(own.get("bundle"), str):
        return [own]
    if isinstance(value.get("bundle"), str) and isinstance(value.get("failures"), list):
        return [_of_study(value, failure) for failure in value["failures"] if isinstance(failure, dict)]
    inner = (value.get(name) for name in ("_fatal_error", "error_details"))
    return [found for item in inner for found in _find(item, depth + 1)]


def _of_study(summary: Mapping[str, Any], failure: Mapping[str, Any]) -> dict[str, Any]:
    """A failure that a study's summary names; of an aggregation it has no inputs."""
    is_simulation = failure.get("task") == "simulation"
    task = {"entrypoint": summary.get("entrypoint"), "params": failure.get("params"), "seed": failure.get("seed")}
    return {"bundle": summary["bundle"], "task": task if is_simulation else None}
