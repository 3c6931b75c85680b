"""`modelops leaks`: do tasks that share a process change one another's results, which ones, and through what?

The report goes to standard output, progress to standard error. Exit status: 0 no leak, 1 a leak, 3 nondeterministic
tasks, 2 could not tell.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from modelops.adapters.bundle.registry import read_registry
from modelops.adapters.exec_env.payload import plain_simulation
from modelops.debugging import leaks as search
from modelops.debugging.leak_page import leak_page
from modelops.debugging.leak_report import Report, could_not_tell, leak_report
from modelops.debugging.tasks import Task, read_tasks, tasks_of_grid
from modelops.services.study_json import read_study_json, study_of

from .leak_text import show_leaks
from .sandbox_options import (
    REFUSALS,
    Bundle,
    Entrypoint,
    Limit,
    Opened,
    Params,
    Profile,
    Repository,
    Timeout,
    refuse,
    require_writable,
    workbench,
)
from .terminal import consoles

_STAGES = {"cold": "cold runs", "shared": "shared processes", "bisect": "earlier tasks", "examine": "causes"}


def leaks(
    bundle: Bundle,
    tasks: Annotated[Path | None, typer.Option(help="A file with one task a line, as the runner takes it.")] = None,
    study: Annotated[Path | None, typer.Option(help="A study as Calabaria writes it.")] = None,
    entrypoint: Entrypoint = None,
    params: Params = "{}",
    grid: Annotated[list[str] | None, typer.Option(help="name=value,value,..; all combinations.")] = None,
    table: Annotated[Path | None, typer.Option(help="A CSV, Parquet or JSON file, a row per set.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every set, such as 1-8 or 1,5,9.")] = "1-4",
    profile: Profile = None,
    timeout: Timeout = 600,
    limit: Limit = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Sandboxes at once; by default what memory allows.")] = None,
    shuffle_seed: Annotated[int, typer.Option(help="Seed of the shuffled order.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON to this file.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write the report as a page to this file.")] = None,
    repository: Repository = None,
) -> None:
    """Find out whether tasks that share a process change one another's results, which ones, and through what."""
    results, progress = consoles()
    try:
        if sum(source is not None for source in (tasks, study, entrypoint)) != 1:
            raise ValueError("name the tasks: --tasks FILE, --study FILE, or --entrypoint with --grid and --seeds")
        require_writable(json_file, html_file)
        named: list[Task] = []
        if tasks:
            named = read_tasks(tasks)
        elif entrypoint:
            named = tasks_of_grid(entrypoint, params, grid or (), table, seeds)
        with workbench(bundle, repository, profile or "default", timeout, limit, reuse=True) as opened:
            wanted = named if study is None else _tasks_of_study(study, opened)
            if len(wanted) < 2:
                raise ValueError("there is one task, and a leak needs two; name more with --seeds or --grid")
            report = _search(opened, wanted, jobs, shuffle_seed, profile or "default", progress)
        if json_file:
            json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if html_file:
            html_file.write_text(leak_page(report), encoding="utf-8")
    except REFUSALS as error:
        raise refuse(error) from None
    show_leaks(results, report)
    if report["status"]:
        raise typer.Exit(report["status"])


def _tasks_of_study(file: Path, opened: Opened) -> list[Task]:
    plan = study_of(read_study_json(file), opened.reference, read_registry(opened.bench.bundle))
    return [plain_simulation(plan.task(index)) for index in range(len(plan.points))]


def _search(opened: Opened, tasks: list[Task], jobs: int | None, seed: int, profile: str, console: Console) -> Report:
    many = jobs or search.jobs_for(opened.bench, os.cpu_count() or 1, psutil.virtual_memory().available)
    with _bars(console) as advance:
        try:
            found = search.LeakSearch(opened.bench, tasks, seed, many, advance).run()
        except search.CouldNotTell as error:
            return could_not_tell(str(error), opened.reference, profile)
    return leak_report(found, tasks, opened.reference, opened.bench.bundle, profile)


@contextmanager
def _bars(console: Console) -> Iterator[search.Progress]:
    """A bar for each stage on a terminal, and nothing elsewhere."""
    columns = (TextColumn("{task.description:<17}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {name: progress.add_task(text, total=None, start=False) for name, text in _STAGES.items()}

        def advance(stage: str, done: int, total: int) -> None:
            progress.start_task(bars[stage])
            progress.update(bars[stage], completed=done, total=total)

        yield advance
