"""`modelops study`: a parameter study, on this machine or on a cluster.

The summary goes to standard output as JSON; progress, log and failures go to standard error. The exit status is 1 if
any task failed, 2 if the study could not begin, and 128 and the signal's number if a signal stopped it.
"""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from modelops_contracts import ContractViolationError
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.registry import read_registry
from modelops.adapters.exec_env.runner_settings import profile_digest
from modelops.adapters.working_dir import clear_away
from modelops.places import default_storage_dir
from modelops.printable import one_line
from modelops.services.bundles import FoundBundle, find_bundle
from modelops.services.dask_simulation import DaskSimulationService
from modelops.services.preflight import Finding, check_bundle, check_parameters, names_of
from modelops.services.study import Study
from modelops.services.study_cluster import study_cluster
from modelops.services.study_folder import StudyFolder, StudyFolderError
from modelops.services.study_inputs import parameter_sets, parse_grid, parse_params, parse_seeds, read_json, read_table
from modelops.services.study_json import find_targets, read_study_json, study_of
from modelops.services.study_run import Ended, StudyRun, limit_of_failures
from modelops.services.study_tables import write_tables
from modelops.worker.settings import WorkerSettings, runner_settings

from .findings import lines_of
from .stopping import Stop, stoppable

logger = logging.getLogger(__name__)

SHOWN_FAILURES = 10
_SCHEDULER = re.compile(r"([a-z]+://)?[^/]+:[0-9]{1,5}")
REPORT_SECONDS = 30.0  # between two lines of progress where there is no terminal


def study(
    bundle: Annotated[str, typer.Option(help="A bundle's directory, its reference, or its tag in a registry.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.json]", help="A study as Calabaria writes it.", dir_okay=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for results; a study that was stopped goes on there. STUDY.results by default."),
    ] = None,
    entrypoint: Annotated[str | None, typer.Option(help="Without a file: what to simulate.")] = None,
    params: Annotated[str | None, typer.Option(help="Parameters of every task: a JSON object, or @file.")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="name=value,value,..; all combinations.")] = None,
    table: Annotated[Path | None, typer.Option(help="A CSV, Parquet or JSON file, a row per set.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of every set, such as 1-8 or 1,5,9; 1 by default.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="What evaluates each set: module:object, or a name in the bundle's registry."),
    ] = None,
    target_data: Annotated[str | None, typer.Option(help="JSON for the targets, or @file.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    max_failures: Annotated[
        str | None, typer.Option(metavar="N|P%", help="Stop when more tasks than that have failed.")
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="A directory of bundles, made where it is missing; else as a worker's variables say."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler; an embedded cluster without it.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of the embedded cluster.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each; as many as processors.")] = None,
    profile: Annotated[str | None, typer.Option(help="Name or path of the sandbox profile.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that one task may take in all.")] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Begin without looking first for what would fail.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run a parameter study of a bundle, every task in a sandbox, and write the results as they come."""
    console = _log_to_terminal(verbose)
    with stoppable() as stop:
        with _refusing():
            _check_address(scheduler)
            place, found = _out(out, file), find_bundle(bundle, repository)
            plan = _plan(_Asked(file, entrypoint, params, grid, table, seeds, target, target_data), found)
            limit = None if max_failures is None else limit_of_failures(max_failures, plan.points)
            cluster = _Cluster(plan, found, scheduler, workers, threads, profile, timeout, not no_check)
            cluster.check_here()
            folder = StudyFolder(place, plan, _profile(profile, here=scheduler is None))
        with _going_on(), folder:
            if retry_failed:
                folder.forget_failures()
            _report(folder, *_run(folder, cluster, console, limit, stop))


def _log_to_terminal(verbose: bool) -> Console:
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else logging.StreamHandler()
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[handler])
    logging.getLogger("modelops").setLevel("DEBUG" if verbose else "INFO")
    return console


@contextmanager
def _refusing() -> Iterator[None]:
    """Within the block, what keeps a study from being begun is said, and ends the command."""
    try:
        yield
    except (BundleError, ContractViolationError, StudyFolderError, ValueError, OSError) as error:
        typer.echo(f"the study can't begin: {_words(error)}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def _going_on() -> Iterator[None]:
    """The same of a cluster, and of results that can't be written."""
    try:
        yield
    except _Refused as error:
        typer.echo(f"the study can't begin: {error}", err=True)
        raise typer.Exit(2) from None
    except StudyFolderError as error:
        text = f"the study can't go on: {error}; all before is kept, and the same command goes on from there"
        typer.echo(text, err=True)
        raise typer.Exit(1) from None


class _Asked(NamedTuple):
    """What is to be run: a study's file, or the options instead of one."""

    file: Path | None
    entrypoint: str | None
    params: str | None
    grid: list[str] | None
    table: Path | None
    seeds: str | None
    target: list[str] | None
    target_data: str | None


def _plan(asked: _Asked, found: FoundBundle) -> Study:
    data = None if asked.target_data is None else read_json(asked.target_data, "--target-data")
    registry = read_registry(found.folder)
    if asked.file is not None:
        instead = {name: getattr(asked, name) for name in ("entrypoint", "params", "grid", "table", "seeds")}
        if given := [f"--{name}" for name, value in instead.items() if value not in (None, [])]:
            raise ValueError(f"{', '.join(given)} can't go with {str(asked.file)!r}, which says what is run")
        return study_of(read_study_json(asked.file), found.reference, registry, asked.target, data)
    if asked.entrypoint is None:
        raise ValueError("name a study's file, or what to simulate with --entrypoint")
    rows = None if asked.table is None else read_table(asked.table)
    return Study.product(
        found.reference,
        asked.entrypoint,
        parameter_sets(parse_params(asked.params or "{}"), parse_grid(asked.grid or ()), rows),
        parse_seeds(asked.seeds or "1"),
        targets=find_targets(asked.target or (), registry),
        target_data=data,
    )


def _out(out: Path | None, file: Path | None) -> Path:
    if out is None and file is None:
        raise ValueError("name a directory for the results with --out")
    return out if out is not None else Path(f"{file.stem}.results")  # type: ignore[union-attr]


def _check_address(scheduler: str | None) -> None:
    """Dask says that an address is none, and does not end."""
    if scheduler is not None and not _SCHEDULER.fullmatch(scheduler):
        raise ValueError(f"{scheduler!r} is no address of a Dask scheduler, such as tcp://host:8786")


class _Cluster(NamedTuple):
    """Where a study is run, and what is looked for before that."""

    plan: Study
    found: FoundBundle
    scheduler: str | None
    workers: int
    threads: int | None
    profile: str | None
    timeout: float | None
    checks: bool

    def check_here(self) -> None:
        """Tell what the preflight finds on this machine; `_Refused` where no task, or no target, could run."""
        if not self.checks:
            return
        folder, asked = self.found.folder, [self.plan.entrypoint]
        settings, inside = runner_settings(self.profile), self.scheduler is None
        findings = check_bundle(folder, settings, entrypoints=asked, targets=self._targets(), inside=inside)
        sets = (point.parameters.params for point in self.plan.points)
        _tell([*findings, *check_parameters(read_registry(folder), self.plan.entrypoint, sets)])

    def make_service(self) -> DaskSimulationService:
        """The service on this cluster, which is made where there is no scheduler."""
        settings = WorkerSettings(
            bundle_repository=self.found.directory,
            bundle_registry=self.found.registry,
            profile=self.profile,
            timeout_seconds=self.timeout,
        )
        try:
            if self.scheduler is None:
                settings.check(1)  # a worker that can't begin says so with a traceback
            return DaskSimulationService(
                self.scheduler, settings, n_workers=self.workers, threads_per_worker=self.threads
            )
        except (OSError, ValueError, BundleError) as error:
            if self.scheduler is None:
                raise _Refused(_words(error)) from None
            raise _Refused(f"the Dask scheduler {self.scheduler!r} can't be reached: {error}") from None

    def begin(self, service: DaskSimulationService) -> list[str]:
        """Tell what the preflight finds on workers elsewhere; which environment each worker has."""
        if self.scheduler is not None and self.checks:
            names = names_of(read_registry(self.found.folder), [self.plan.entrypoint], self._targets())
            _tell(service.preflight(self.found.reference, names))
        return list(service.executors().values())

    def _targets(self) -> list[str]:
        return [target.entrypoint for target in self.plan.targets]


class _Refused(ValueError):
    """The preflight found an error, or there is no cluster."""


def _tell(findings: list[Finding]) -> None:
    for line in lines_of(findings):
        typer.echo(line, err=True)
    if any(finding.level == "error" for finding in findings):
        raise _Refused("see the errors above; --no-check begins in spite of them")


def _profile(profile: str | None, *, here: bool) -> dict[str, Any]:
    name = profile or os.environ.get("MODELOPS_SANDBOX_PROFILE") or "default"
    digest = profile_digest(name)
    if digest is None and here:
        raise ValueError(f"there is no profile {name!r}, or it is not TOML; modelops doctor says more")
    return {"name": name, "sha256": digest}


def _words(error: Exception) -> str:
    """An error without its number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r}: {error.strerror}"
    return str(error)


def _run(
    folder: StudyFolder,
    cluster: _Cluster,
    console: Console,
    limit: int | None,
    stop: Stop,
) -> tuple[Ended, int, dict[str, Any]]:
    """Run what is missing: why it ended, the signal that ended it or 0, and what the summary tells of this start."""
    begun = time.monotonic()
    executors: list[str] = []
    before = len(folder.simulations) + len(folder.losses)
    total = folder.study.size
    ended = Ended.DONE
    clear_away(default_storage_dir())  # what a start that was killed left, also where nothing is left to run
    if not folder.is_done():
        if before:
            logger.info("going on with the study in %s: %d of %d tasks are done", folder.path, before, total)
        with (
            stop.as_a_request(),
            _progress(console, before, total) as advance,
            study_cluster(cluster.make_service, cluster.begin, stop.asked) as (service, executors),
        ):
            ended = StudyRun(service, folder, max_failures=limit, stop=stop.asked, progress=advance).run()
    seconds = time.monotonic() - begun
    done = len(folder.simulations) + len(folder.losses) - before
    ran = {"executors": dict(Counter(executors)), "tasks": done, "seconds": round(seconds, 3)}
    return ended, stop.number, {**ran, "tasks_per_second": round(done / seconds, 2) if done else None}


def _report(folder: StudyFolder, ended: Ended, number: int, ran: dict[str, Any]) -> None:
    planned, done = len(folder.study.points), len(folder.simulations)
    if ended in (Ended.STOPPED, Ended.CLUSTER_LOST):
        why = "stopped" if ended is Ended.STOPPED else ended.value
        text = f"{why}: {done:,} of {planned:,} simulations are in {folder.path}; the same command goes on from there"
        typer.echo(text, err=True)
        raise typer.Exit(128 + number if number else 1)
    summary = write_tables(folder, ran)
    print(json.dumps(summary, indent=2, default=str))
    for failure in summary["failures"][:SHOWN_FAILURES]:
        typer.echo(_failure_line(failure), err=True)
    if ended is Ended.TOO_MANY_FAILURES:
        left = f"{planned - done:,} of {planned:,} simulations were not run"
        typer.echo(f"stopped by --max-failures; {left}, and the same command goes on with more allowed", err=True)
    if summary["failed"]:
        typer.echo(f"{summary['failed']} of {folder.study.size} tasks failed; {folder.path} has them all", err=True)
        raise typer.Exit(1)


def _failure_line(failure: Mapping[str, Any]) -> str:
    """An entry of the summary's failures, for people."""
    what = f"seed {failure['seed']}" if "seed" in failure else f"target {failure['target']}"
    parameters = one_line(json.dumps(failure["params"], ensure_ascii=False, default=str), 200)
    why = one_line(f"{failure['error_type']}: {failure['error']}", 2000)
    return f"failed: {failure['task']} of {parameters}, {one_line(what)}: {why}"


@contextmanager
def _progress(console: Console, done: int, total: int) -> Iterator[Callable[[bool], None]]:
    """Progress with rate, failures and time left, as a bar on a terminal and as a line now and then elsewhere.

    Yields what to call as each task ends, with whether it has a result.
    """
    columns = (
        TextColumn("tasks"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    begun, told, ended, failed = time.monotonic(), time.monotonic(), 0, 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("tasks", total=total, completed=done, failed=0, rate=0.0)

        def advance(succeeded: bool) -> None:
            nonlocal told, ended, failed
            ended, failed, now = ended + 1, failed + (not succeeded), time.monotonic()
            rate = ended / max(1e-3, now - begun)
            progress.update(bar, advance=1, failed=failed, rate=rate)
            if not console.is_terminal and now - told > REPORT_SECONDS:
                told = now
                left = (total - done - ended) / rate
                logger.info("%d of %d tasks, %.1f/s, %d failed, %.0f s left", done + ended, total, rate, failed, left)

        yield advance
