"""`modelops run`: one task in its sandbox, and what came of it for a person to read.

The result goes to standard output, phases and the task's own words to standard error. The exit status is the
runner's, and 2 where nothing could be run.
"""

import json
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from rich.console import Console

from modelops.adapters.exec_env.failed_task import failed_task
from modelops.debugging.outputs import write_outputs
from modelops.debugging.tasks import Task
from modelops.debugging.workbench import INLINE_MAX, Outcome

from .run_report import Phases, debug_command, show_failure, show_result
from .sandbox_options import (
    REFUSALS,
    Bundle,
    Entrypoint,
    Limit,
    Opened,
    Param,
    Params,
    Profile,
    Repository,
    Seed,
    TaskFile,
    Timeout,
    refuse,
    task_of,
    workbench,
)
from .terminal import consoles


def run(
    bundle: Bundle,
    entrypoint: Entrypoint = None,
    param: Param = None,
    params: Params = "{}",
    seed: Seed = 1,
    task: TaskFile = None,
    profile: Profile = None,
    timeout: Timeout = 3600,
    limit: Limit = None,
    out: Annotated[Path | None, typer.Option(help="Write each output to a file in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runner's line of JSON as it is.")] = False,
    print_policy: Annotated[bool, typer.Option(help="Print the resulting profile and run nothing.")] = False,
    repository: Repository = None,
) -> None:
    """Run one task in a sandbox and show what came of it, or why nothing did."""
    results, progress = consoles()
    try:
        wanted = None if print_policy else task_of(entrypoint, params, param, seed, task)
        if out is not None and not print_policy:
            out.mkdir(parents=True, exist_ok=True)
        with workbench(bundle, repository, profile or "default", timeout, limit) as opened:
            if wanted is None:
                print(tomli_w.dumps(opened.policy), end="")
                return
            status = _run(opened, wanted, profile or "default", out, as_json, results, progress)
    except REFUSALS as error:
        raise refuse(error) from None
    if status:
        raise typer.Exit(status)


def _run(
    opened: Opened, task: Task, profile: str, out: Path | None, as_json: bool, results: Console, progress: Console
) -> int:
    with Phases(progress) as phases:
        outcome = opened.bench.task(task, log=phases.log, inline_max=1 << 62 if as_json else INLINE_MAX)
    written = {} if out is None or outcome.failure else write_outputs(outcome.outputs, out)
    if as_json:
        print(json.dumps(_line(outcome, opened.reference, task, profile)))
    elif outcome.failure:
        command = debug_command(opened.reference, task, outcome.failure)
        show_failure(results, outcome.failure, opened.bench.bundle, command)
    else:
        show_result(results, outcome, written)
    return 0 if outcome.failure is None else int(outcome.failure.get("code", 70))


def _line(outcome: Outcome, reference: str, task: Task, profile: str) -> dict[str, object]:
    """The runner's answer; a failure with what `modelops debug` needs besides."""
    if outcome.failure is None:
        return dict(outcome.body)
    return {"_fatal_error": {**outcome.failure, "debug": failed_task(reference, task, profile)}}
