"""The cold environment: a runner, a sandbox and an environment of its own for every task."""

import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelops_contracts import INLINE_CAP, BundleRepository

from .answer import Answer, parse_line, require_result
from .call import Call
from .errors import RunnerError
from .payload import encode
from .process import Ending, log_stderr, start
from .runner_settings import RunnerSettings, StrPath
from .sandboxed import SandboxedExecEnv


class ColdDebugExecEnv(SandboxedExecEnv):
    """Runs every task as a user of the shell would: the runner's command line, one task in, one line out.

    `timeout_seconds` covers a whole call. `env` is laid over this process's environment for the runner;
    tasks see neither. `storage_dir` holds the store of large outputs, and `out_dir` is where they lie
    until they are moved there. `reuse` decides whether the runner keeps environments (REUSE=1); None
    leaves it to the environment.
    """

    name = "cold"

    def __init__(
        self,
        bundle_repo: BundleRepository,
        runner_path: StrPath | None = None,
        timeout_seconds: float = 600,
        env: Mapping[str, str] | None = None,
        *,
        profile: str = "default",
        storage_dir: StrPath | None = None,
        out_dir: StrPath | None = None,
        profiles_dir: StrPath | None = None,
        runner_store_dir: StrPath | None = None,
        venvs_dir: StrPath | None = None,
        reuse: bool | None = None,
    ) -> None:
        settings = RunnerSettings.of(
            runner_path,
            profile=profile,
            profiles_dir=profiles_dir,
            runner_store_dir=runner_store_dir,
            venvs_dir=venvs_dir,
            reuse=reuse,
            env=env,
        )
        super().__init__(
            bundle_repo, settings, timeout_seconds=timeout_seconds, storage_dir=storage_dir, out_dir=out_dir
        )

    @contextmanager
    def _answer(self, bundle_ref: str, payload: dict[str, Any], call: Call) -> Iterator[Answer]:
        line = encode(payload)
        _, bundle = self.find_bundle(bundle_ref)
        with tempfile.TemporaryDirectory(dir=self._incoming_dir()) as folder:
            arguments = ["--bundle-path", str(bundle), "--out-dir", folder, "--inline-max", str(INLINE_CAP)]
            if "target_entrypoint" in payload:
                arguments.append("--aggregation")
            yield Answer(ask_once(self.settings, arguments, line, call), Path(folder))


def ask_once(
    settings: RunnerSettings,
    arguments: list[str],
    payload: bytes,
    call: Call,
    log: Callable[[bytes], None] = log_stderr,
) -> dict[str, Any]:
    """Run the runner once and return its result. However it goes, the runner has ended when this returns.

    `log` is given each line of the runner's log as it comes, on a thread of its own.
    """
    call.require_time()
    process = start(settings, arguments)
    ending = Ending(process)
    reader = _LogReader(process, log)
    try:
        with call.on_stop(ending.begin):
            try:
                stdout, _ = process.communicate(payload, timeout=call.remaining())
            except subprocess.TimeoutExpired:
                ending.begin()
                stdout, _ = process.communicate()
    finally:
        ending.finish()
        tail = reader.close()
    if not stdout:
        if call.is_over():
            raise call.failure({})
        problem = f"the runner ended with status {process.returncode} and without an answer; something killed it"
        raise RunnerError.of("host", "runner_died", problem, True, stderr=tail)
    try:
        return require_result(parse_line(stdout))
    except RunnerError as error:
        if error.type == "killed" and call.is_over():
            raise call.failure(error.fatal_error) from None
        raise


class _LogReader:
    """Takes the standard error of a runner from it, and hands it on line by line."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Callable[[bytes], None]) -> None:
        assert process.stderr is not None
        self._stream, process.stderr = process.stderr, None
        self._log, self._tail = log, deque[bytes](maxlen=50)
        self._thread = threading.Thread(target=self._read, name=f"runner-{process.pid}-log", daemon=True)
        self._thread.start()

    def close(self) -> str:
        """Wait for the rest, now that the runner has ended, and return the last lines."""
        self._thread.join()
        self._stream.close()
        return b"".join(self._tail).decode("utf-8", "replace")[-4000:]

    def _read(self) -> None:
        for line in self._stream:
            self._tail.append(line)
            self._log(line)
