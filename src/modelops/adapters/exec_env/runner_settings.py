"""How the runner is called."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .runner_location import find_runner


@dataclass(frozen=True)
class RunnerSettings:
    """Options of every call. What is None is left to the runner and to this process's environment."""

    runner: Path = field(default_factory=find_runner)
    profile: str = "default"
    profiles_dir: Path | None = None
    store_dir: Path | None = None  # where the runner keeps wheels
    venvs_dir: Path | None = None  # where the runner keeps environments, with `reuse`
    reuse: bool | None = None
    env: Mapping[str, str] = field(default_factory=dict)  # over this process's environment

    def command(self, *arguments: str) -> list[str]:
        """The command line, of a runner that is stopped when the calling thread or process dies."""
        command = [sys.executable, "-P", str(self.runner), "--profile", self.profile]
        command += ["--die-with-parent", str(os.getpid())]
        if self.profiles_dir is not None:
            command += ["--profiles-dir", str(self.profiles_dir)]
        if self.store_dir is not None:
            command += ["--store-dir", str(self.store_dir)]
        return [*command, *arguments]

    def environment(self) -> dict[str, str]:
        """The runner's environment, of which no task sees anything."""
        environment = {**os.environ, **self.env}
        if self.venvs_dir is not None:
            environment["VENVS_DIR"] = str(self.venvs_dir)
        if self.reuse is not None:
            environment["REUSE"] = "1" if self.reuse else "0"
        return environment
