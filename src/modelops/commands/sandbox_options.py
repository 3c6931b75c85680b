"""What the commands that run tasks in sandboxes share: their options, and the workbench that these ask for."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import typer

from modelops.adapters.bundle import BundleError
from modelops.adapters.exec_env.runner_settings import RunnerSettings
from modelops.adapters.working_dir import WorkingDir
from modelops.debugging.policy import Policy, PolicyError, with_limits
from modelops.debugging.tasks import Task, read_task, simulation
from modelops.debugging.workbench import Workbench
from modelops.places import default_storage_dir
from modelops.services.bundles import FoundBundle, find_bundle

BUNDLE = typer.Argument(help="A bundle's directory, its reference, or its tag in a registry.", show_default=False)
Bundle = Annotated[str, BUNDLE]
Entrypoint = Annotated[str | None, typer.Option(help="What to simulate, such as sir.model/baseline.")]
Param = Annotated[list[str] | None, typer.Option(help="name=value, JSON where it parses; repeat for more.")]
Params = Annotated[str, typer.Option(help="Parameters as a JSON object, or @file.")]
Seed = Annotated[int, typer.Option(min=0, max=(1 << 64) - 1, help="The seed.")]
TaskFile = Annotated[Path | None, typer.Option("--task", help="A file with the runner's own input, of either kind.")]
Profile = Annotated[
    str | None, typer.Option(envvar="MODELOPS_SANDBOX_PROFILE", help="Name or path of the sandbox profile.")
]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds that a run may take in all.")]
Limit = Annotated[list[str] | None, typer.Option(help="A limit of the profile, such as memory=8GiB; repeat for more.")]
Repository = Annotated[
    Path | None,
    typer.Option(help="A directory of bundles, made where it is missing; else as a worker's variables say."),
]


class Opened(NamedTuple):
    """A workbench, the reference of its bundle, and the policy that the options come to."""

    bench: Workbench
    reference: str
    policy: Policy


def task_of(entrypoint: str | None, params: str, single: Sequence[str] | None, seed: int, file: Path | None) -> Task:
    """The task that the options name; ValueError where they name none or two."""
    if file is not None:
        if entrypoint is not None or single or params != "{}":
            raise ValueError("--task is the whole task; leave out --entrypoint, --param and --params")
        return read_task(file)
    if entrypoint is None:
        raise ValueError("name the task: --entrypoint with --param and --seed, or --task FILE")
    return simulation(entrypoint, params, single or (), seed)


@contextmanager
def workbench(
    bundle: str,
    repository: Path | None,
    profile: str,
    timeout: float,
    limits: Sequence[str] | None,
    reuse: bool | None = None,
) -> Iterator[Opened]:
    """The workbench of a bundle, with a folder that goes with it. BundleError or ValueError where there is none."""
    with _ended_by_sigterm():
        found = find_bundle(bundle, repository)
        yield from _opened(found, profile, timeout, limits, reuse)


def _opened(
    found: FoundBundle, profile: str, timeout: float, limits: Sequence[str] | None, reuse: bool | None
) -> Iterator[Opened]:
    settings = RunnerSettings.of(
        None,
        profile=profile,
        profiles_dir=None,
        runner_store_dir=os.environ.get("MODELOPS_RUNNER_STORE_DIR") or None,
        venvs_dir=None,
        reuse=reuse,
        env=None,
    )
    with WorkingDir(default_storage_dir() / "debugging") as working:
        bench = Workbench(settings, found.folder, working.path, timeout)
        policy = bench.policy
        if limits:
            policy = with_limits(policy, limits)
            bench = Workbench(bench.under(policy, "limits"), found.folder, working.path, timeout)
        yield Opened(bench, found.reference, policy)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: no folder is left, and the terminal is what it was."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # where another has a say
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def require_writable(*files: Path | None) -> None:
    """Before anything runs, so that no result is lost; OSError, or ValueError where two are one."""
    named = [file for file in files if file is not None]
    if len({file.resolve() for file in named}) < len(named):
        raise ValueError(f"{named[0]} can't hold two results")
    for file in named:
        is_new = not file.exists()
        with file.open("ab"):
            pass
        if is_new:
            file.unlink()


REFUSALS = (BundleError, PolicyError, ValueError, OSError)


def refuse(problem: object) -> typer.Exit:
    """Say on standard error why there was nothing to run; the exit to raise."""
    if isinstance(problem, OSError) and problem.strerror:
        problem = f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    typer.echo(f"nothing was run: {problem}", err=True)
    return typer.Exit(2)
