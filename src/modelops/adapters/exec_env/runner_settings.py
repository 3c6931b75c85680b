"""Where the runner is, and how it is called.

In a checkout it is `tools/ultra_cold_runner.py`, with its profiles in `sandbox-profiles/`; a wheel has the same two
folders below `modelops/_runner/`, so that the runner finds its profiles beside itself in both.
"""

import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import modelops

StrPath = str | os.PathLike[str]
RUNNER = Path("tools") / "ultra_cold_runner.py"


def find_runner() -> Path:
    """The runner that came with this package."""
    package = Path(modelops.__file__).resolve().parent
    for base in (package / "_runner", package.parent.parent):
        if (base / RUNNER).is_file():
            return base / RUNNER
    raise FileNotFoundError(f"the runner is neither in {package / '_runner'} nor in a checkout around {package}")


@dataclass(frozen=True)
class RunnerSettings:
    """Options of every call. What is None is left to the runner and to this process's environment."""

    runner: Path
    profile: str
    profiles_dir: Path | None
    store_dir: Path | None  # where the runner keeps wheels
    venvs_dir: Path | None  # where the runner keeps environments, with `reuse`
    reuse: bool | None
    env: Mapping[str, str]  # over this process's environment

    @classmethod
    def of(
        cls,
        runner_path: StrPath | None,
        *,
        profile: str,
        profiles_dir: StrPath | None,
        runner_store_dir: StrPath | None,
        venvs_dir: StrPath | None,
        reuse: bool | None,
        env: Mapping[str, str] | None,
    ) -> Self:
        """Settings as callers of an environment give them; without a path it is this package's own runner."""
        return cls(
            runner=find_runner() if runner_path is None else Path(runner_path).absolute(),
            profile=profile,
            profiles_dir=_path(profiles_dir),
            store_dir=_path(runner_store_dir),
            venvs_dir=_path(venvs_dir),
            reuse=reuse,
            env=dict(env or {}),
        )

    def arguments(self, *more: str) -> list[str]:
        """The command line, but for what starts the runner."""
        own = ["--profile", self.profile]
        if self.profiles_dir is not None:
            own += ["--profiles-dir", str(self.profiles_dir)]
        if self.store_dir is not None:
            own += ["--store-dir", str(self.store_dir)]
        return [*own, *more]

    def environment(self) -> dict[str, str]:
        """The runner's environment, of which no task sees anything."""
        environment = {**os.environ, **self.env}
        if self.venvs_dir is not None:
            environment["VENVS_DIR"] = str(self.venvs_dir)
        if self.reuse is not None:
            environment["REUSE"] = "1" if self.reuse else "0"
        return environment


def profile_digest(profile: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """SHA-256 over a profile and the one that it extends, found as the runner does; None where they are not here."""
    beside = find_runner().parent.parent / "sandbox-profiles"
    folders = [Path(folder) for folder in (environ.get("SANDBOX_PROFILES_DIR"), beside) if folder]
    try:
        place, text = _read_profile(profile, folders)
        base = tomllib.loads(text.decode()).get("extends")
        extended = b"" if base is None else _read_profile(str(base), [place.parent, *folders])[1]
    except (OSError, ValueError):
        return None  # the runner says what is wrong with it
    return hashlib.sha256(text + b"\0" + extended).hexdigest()


def _read_profile(name: str, folders: list[Path]) -> tuple[Path, bytes]:
    by_path = "/" in name or name.endswith(".toml")
    places = [Path(name)] if by_path else [folder / f"{name}.toml" for folder in folders]
    place = next((place for place in places if place.is_file()), places[0])
    return place, place.read_bytes()


def _path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path).absolute()
