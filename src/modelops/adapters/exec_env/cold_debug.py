"""The cold environment: a runner, a sandbox and an environment of its own for every task."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelops_contracts import INLINE_CAP, BundleRepository

from .answer import Answer
from .call import Call
from .once import ask_once
from .payload import encode
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
