"""The warm environment, which is the default: sandboxes that are kept, and a fork in one for every task."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from modelops_contracts import BundleRepository

from modelops.adapters.working_dir import WorkingDir

from .answer import Answer
from .call import Call
from .errors import RunnerError
from .runner_settings import RunnerSettings, StrPath
from .sandboxed import SandboxedExecEnv
from .server import Server, ServerDied
from .server_pool import ServerPool

logger = logging.getLogger(__name__)


class IsolatedWarmExecEnv(SandboxedExecEnv):
    """Keeps serving runners, each with the sandbox and the environment of one bundle, and sends them tasks.

    At most `max_servers` are kept, by default as many as the machine has processors and at least four;
    the least recently used one makes room for another bundle's. One that is idle for `idle_seconds` is
    closed. Every task is a fork of a process that has run no task, so nothing passes from one to the
    next. The runner keeps finished environments in `venvs_dir`, so that a bundle's next server starts
    faster. A bundle is verified when a server starts; after that the server's own copy is what runs. The
    other arguments are those of `ColdDebugExecEnv`.
    """

    name = "warm"

    def __init__(
        self,
        bundle_repo: BundleRepository,
        venvs_dir: StrPath | None = None,
        storage_dir: StrPath | None = None,
        *,
        runner_path: StrPath | None = None,
        timeout_seconds: float = 600,
        env: Mapping[str, str] | None = None,
        profile: str = "default",
        out_dir: StrPath | None = None,
        profiles_dir: StrPath | None = None,
        runner_store_dir: StrPath | None = None,
        max_servers: int | None = None,
        idle_seconds: float = 300,
    ) -> None:
        settings = RunnerSettings.of(
            runner_path,
            profile=profile,
            profiles_dir=profiles_dir,
            runner_store_dir=runner_store_dir,
            venvs_dir=venvs_dir,
            reuse=True,
            env=env,
        )
        super().__init__(
            bundle_repo, settings, timeout_seconds=timeout_seconds, storage_dir=storage_dir, out_dir=out_dir
        )
        self._pool = ServerPool(max_servers or max(4, os.cpu_count() or 1), idle_seconds)
        self._digests: dict[str, str] = {}
        self._learned: WorkingDir | None = None

    def health_check(self) -> dict[str, Any]:
        """The runner's `--doctor`, and the servers that are there."""
        return {
            **super().health_check(),
            "servers": self._pool.describe(),
            "max_servers": self._pool.max_servers,
        }

    @contextmanager
    def _answer(self, bundle_ref: str, payload: dict[str, Any], call: Call) -> Iterator[Answer]:
        digest = self._digest(bundle_ref)
        start = partial(self._start, bundle_ref, digest, call)
        retried = False
        while True:
            with self._pool.borrow(digest, start, call) as (server, kept):
                try:
                    body = server.ask(payload, call)
                except ServerDied as error:
                    # A kept server may have died of something else than this task.
                    if retried or not kept:
                        raise RunnerError.of("host", "runner_died", str(error), True) from None
                    logger.warning("%s; the task is sent to another server", error)
                    retried = True
                    continue
                try:
                    yield Answer(body, server.out_dir)
                finally:
                    _empty(server.out_dir)
                return

    def _digest(self, bundle_ref: str) -> str:
        """The digest of a bundle, asked of the repository once: the reference names the content."""
        if bundle_ref not in self._digests:
            self._digests[bundle_ref] = self.find_bundle(bundle_ref)[0]
        return self._digests[bundle_ref]

    def _start(self, bundle_ref: str, digest: str, call: Call) -> Server:
        _, bundle = self.find_bundle(bundle_ref)
        logger.info("starting a server of %s", bundle_ref)
        learned = self._learned_dir() / hashlib.sha256(digest.encode()).hexdigest()
        return Server(self.settings, bundle, learned, Path(tempfile.mkdtemp(dir=self._incoming_dir())), call)

    def _learned_dir(self) -> Path:
        """Where the servers of one bundle leave for each other what they learned of its tasks: bytes of hostile
        processes, which nobody but the runner reads."""
        with self._lock:
            if self._learned is None:
                self._learned = WorkingDir(self._out_dir.parent / "learned")
            return self._learned.path

    def _release(self) -> None:
        self._pool.close()
        if self._learned is not None:
            self._learned.close()


def _empty(folder: Path) -> None:
    """Remove outputs that the task did not ask for."""
    for entry in os.scandir(folder):
        os.unlink(entry.path)
