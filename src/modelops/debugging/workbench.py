"""Where the runs of one bundle take place: tasks and instruments, each in a sandbox of its own, and their outcomes."""

import base64
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple, TypeVar

from modelops.adapters.exec_env.call import Call
from modelops.adapters.exec_env.errors import RunnerError, numbers
from modelops.adapters.exec_env.once import ask_once
from modelops.adapters.exec_env.payload import encode
from modelops.adapters.exec_env.process import log_stderr
from modelops.adapters.exec_env.runner_settings import RunnerSettings
from modelops.adapters.exec_env.server import Server, ServerDied

from .policy import Policy, read_policy, write_policy
from .tasks import Task, is_aggregation

INLINE_MAX = 64 * 1024  # bytes; a larger output lies in a file
LONGEST_WAIT = 0.2  # seconds that the main thread waits without a look at signals

T = TypeVar("T")


def result_of(run: "Future[T]") -> T:
    """Its result, waited for in parts: of a signal that comes just before the main thread waits for a lock, or to
    another thread, Python's handler is called when that wait is over."""
    while not wait([run], LONGEST_WAIT).done:
        pass
    return run.result()


class Output(NamedTuple):
    """One output: bytes, their BLAKE2b-256, and where they are."""

    size: int
    checksum: str
    content: bytes | Path

    def read(self) -> bytes:
        """Its bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """Within the block, a file with its bytes."""
        if isinstance(self.content, Path):
            yield self.content
            return
        with NamedTemporaryFile() as file:
            file.write(self.content)
            file.flush()
            yield Path(file.name)


@dataclass(frozen=True)
class Outcome:
    """What came of one run: outputs, or the runner's `_fatal_error`; `body` is the runner's answer."""

    outputs: Mapping[str, Output] = field(default_factory=dict)
    failure: Mapping[str, Any] | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """What the runner measured."""
        return numbers((self.failure or self.body).get("metrics"))


class Workbench:
    """Runs tasks of the bundle in `bundle`, a folder. `folder` takes outputs and derived profiles, and outlives them.

    Any number of threads may run at once.
    """

    def __init__(self, settings: RunnerSettings, bundle: Path, folder: Path, timeout_seconds: float) -> None:
        self.settings, self.bundle, self.folder = settings, bundle, folder
        self.timeout_seconds = timeout_seconds
        self._policy: Policy | None = None
        self._calls: set[Call] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def policy(self) -> Policy:
        """The profile that the runs are under."""
        self._policy = self._policy or read_policy(self.settings)
        return self._policy

    def under(self, policy: Policy, name: str) -> RunnerSettings:
        """The settings for runs under another policy, which is kept as a profile of that name."""
        path = write_policy(policy, self.folder / f"{name}.toml")
        return replace(self.settings, profile=str(path))

    def task(
        self,
        task: Task,
        settings: RunnerSettings | None = None,
        log: Callable[[bytes], None] = log_stderr,
        inline_max: int = INLINE_MAX,
    ) -> Outcome:
        """Run one task cold."""
        arguments = ["--aggregation"] if is_aggregation(task) else []
        return self._run(settings or self.settings, [*arguments, "--inline-max", str(inline_max)], task, log)

    def instrument(
        self,
        program: Path,
        request: Mapping[str, Any],
        settings: RunnerSettings | None = None,
        log: Callable[[bytes], None] = log_stderr,
        timeout: float | None = None,
        options: Sequence[str] = (),
    ) -> Outcome:
        """Run a program of ours where a task would run. What it sent is there although it failed.

        `options` are further flags of the runner.
        """
        arguments = ["--instrument", str(program), "--inline-max", str(INLINE_MAX), *options]
        return self._run(settings or self.settings, arguments, request, log, timeout)

    def serve(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run tasks one after the other in forks of one warm server."""
        with self._call(self.timeout_seconds * (len(tasks) + 1)) as call:
            place = _made(self.folder / "served")
            server = Server(self.settings, self.bundle, self.folder / "learned", place, call)
            try:
                for task in tasks:
                    try:
                        # Its files go with the server.
                        yield _kept(server.ask(task, call), server.out_dir, self.folder)
                    except RunnerError as error:
                        yield Outcome(failure=error.fatal_error)
                    except ServerDied as error:
                        yield Outcome(failure=RunnerError.of("host", "runner_died", str(error), True).fatal_error)
                        return
            finally:
                server.close()

    def stop(self) -> None:
        """End all runs; later ones are refused. Any thread may ask."""
        with self._lock:
            self._stopped = True
            calls = list(self._calls)
        for call in calls:
            call.stop("cancelled")

    def _run(
        self,
        settings: RunnerSettings,
        arguments: list[str],
        request: Mapping[str, Any],
        log: Callable[[bytes], None],
        timeout: float | None = None,
    ) -> Outcome:
        place = ["--bundle-path", str(self.bundle), "--out-dir", str(_made(self.folder / "outputs"))]
        try:
            with self._call(timeout) as call:
                body = ask_once(settings, [*place, *arguments], encode(request), call, log)
            return Outcome(_outputs(body), body=body)
        except RunnerError as error:
            return Outcome(_outputs(error.fatal_error), error.fatal_error, {"_fatal_error": error.fatal_error})

    @contextmanager
    def _call(self, timeout: float | None = None) -> Iterator[Call]:
        call = Call(timeout or self.timeout_seconds)
        with self._lock:
            self._calls.add(call)
            if self._stopped:
                call.stop("cancelled")
        try:
            yield call
        finally:
            with self._lock:
                self._calls.discard(call)


def _outputs(body: Mapping[str, Any]) -> dict[str, Output]:
    found = body.get("outputs")
    entries = found.items() if isinstance(found, Mapping) else ()
    return {
        name: Output(
            entry["size"],
            entry["checksum"],
            Path(entry["path"]) if "path" in entry else base64.b64decode(entry["inline"]),
        )
        for name, entry in entries
        if isinstance(entry, Mapping) and "checksum" in entry
    }


def _kept(body: Mapping[str, Any], served: Path, folder: Path) -> Outcome:
    outputs = {}
    for name, output in _outputs(body).items():
        if isinstance(output.content, Path):
            kept = _made(folder / "outputs") / output.checksum
            os.replace(output.content, kept)
            output = output._replace(content=kept)
        outputs[name] = output
    return Outcome(outputs, body=body)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
