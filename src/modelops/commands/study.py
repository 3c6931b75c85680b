"""`modelops study`: a parameter study, on this machine or on a cluster.

The summary goes to standard output as JSON; progress, log and failures go to standard error. The exit
status is 1 if any task failed, and 2 if the study could not begin.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from modelops_contracts import ContractViolationError
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from modelops.adapters.bundle import BundleError
from modelops.services.bundles import find_bundle
from modelops.services.dask_simulation import DaskSimulationService
from modelops.services.study import Study, run_study
from modelops.services.study_files import write_study
from modelops.services.study_inputs import parameter_sets, parse_grid, parse_params, parse_seeds, read_json, read_table
from modelops.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

SHOWN_FAILURES = 10


def study(
    bundle: Annotated[str, typer.Option(help="A bundle's directory, its reference, or its tag in a registry.")],
    entrypoint: Annotated[str, typer.Option(help="What to simulate, such as sir.model/baseline.")],
    out: Annotated[Path, typer.Option(help="Directory for the tables and the summary.")],
    params: Annotated[str, typer.Option(help="Parameters of every task: a JSON object, or @file.")] = "{}",
    grid: Annotated[list[str] | None, typer.Option(help="name=value,value,..; all combinations.")] = None,
    table: Annotated[Path | None, typer.Option(help="A CSV, Parquet or JSON file, a row per set.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every set, such as 1-8 or 1,5,9.")] = "1",
    target: Annotated[str | None, typer.Option(help="module:object that evaluates each set.")] = None,
    target_data: Annotated[str | None, typer.Option(help="JSON for the target, or @file.")] = None,
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
    timeout: Annotated[float | None, typer.Option(help="Seconds that one task may take in all.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run a parameter study of a bundle, every task in a sandbox, and write the results."""
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else logging.StreamHandler()
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[handler])
    logging.getLogger("modelops").setLevel("DEBUG" if verbose else "INFO")
    try:
        found = find_bundle(bundle, repository)
        plan = Study(
            bundle_ref=found.reference,
            entrypoint=entrypoint,
            parameter_sets=parameter_sets(
                parse_params(params), parse_grid(grid or ()), None if table is None else read_table(table)
            ),
            seeds=parse_seeds(seeds),
            target_entrypoint=target,
            target_data=None if target_data is None else read_json(target_data),
        )
        next(plan.tasks())  # what the contract refuses is refused now
    except (BundleError, ContractViolationError, ValueError, OSError) as error:
        typer.echo(f"the study can't begin: {error}", err=True)
        raise typer.Exit(2) from None
    settings = WorkerSettings(
        bundle_repository=found.directory,
        bundle_registry=found.registry,
        profile=profile,
        timeout_seconds=timeout,
    )
    service = DaskSimulationService(scheduler, settings=settings, n_workers=workers, threads_per_worker=threads)
    with service, progress_bar(console, plan.size) as advance:
        results = run_study(service, plan, advance)
    summary = write_study(results, out)
    print(json.dumps(summary, indent=2, default=str))
    for failure in summary["failures"][:SHOWN_FAILURES]:
        typer.echo(f"failed: {json.dumps(failure, default=str)}", err=True)
    if summary["failed"]:
        typer.echo(f"{summary['failed']} of {plan.size} tasks failed; {out} has them all", err=True)
        raise typer.Exit(1)


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Callable[[bool], None]]:
    """A progress bar on a terminal, and nothing elsewhere; yields what to call as each task ends."""
    columns = (
        TextColumn("tasks"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )
    failed = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("tasks", total=total, failed=0)

        def advance(succeeded: bool) -> None:
            nonlocal failed
            failed += not succeeded
            progress.update(bar, advance=1, failed=failed)

        yield advance
