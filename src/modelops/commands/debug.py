"""`modelops debug`: one task in its sandbox, and the engineer where it raises.

What the debugger prints goes to standard output. Exit status: 0 where the session came to its end, however the task
fared; the runner's where it did not; 2 where nothing could be run.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modelops.debugging.debugger import (
    PROFILE,
    FailedTask,
    Session,
    parse_breaks,
    read_failure,
    run_on_terminal,
    run_session,
)
from modelops.debugging.failing import failing_calls
from modelops.debugging.tasks import read_text
from modelops.debugging.workbench import Outcome

from .run_report import show_failure
from .sandbox_options import (
    REFUSALS,
    Entrypoint,
    Limit,
    Param,
    Params,
    Repository,
    Seed,
    TaskFile,
    Timeout,
    refuse,
    task_of,
    workbench,
)
from .terminal import consoles, plain

Subject = Annotated[
    str,
    typer.Argument(
        help="A bundle; or what a failure left: run --json, error_details, summary.json.", show_default=False
    ),
]


def debug(
    subject: Subject,
    entrypoint: Entrypoint = None,
    param: Param = None,
    params: Params = "{}",
    seed: Seed = 1,
    task: TaskFile = None,
    number: Annotated[int, typer.Option(min=1, help="Which failed task of a file with several.")] = 1,
    shell: Annotated[bool, typer.Option("--shell", help="A shell, with the task in $TASK and run-task.")] = False,
    breaks: Annotated[list[str] | None, typer.Option("--break", help="module:line; repeat for more.")] = None,
    script: Annotated[Path | None, typer.Option(help="Debugger commands, a line each; no terminal is needed.")] = None,
    native: Annotated[bool, typer.Option("--native", help="Under gdb: C and Python stacks of a crash.")] = False,
    stop_after: Annotated[
        float | None, typer.Option(help="Stop the task after these seconds, where it stands.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Watch it with strace, and tell the calls that failed.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Name or path of the sandbox profile.")] = PROFILE,
    timeout: Timeout = 28_800,
    limit: Limit = None,
    repository: Repository = None,
) -> None:
    """Run one task under the debugger, in its sandbox, and stand where it raises."""
    results, progress = consoles()
    try:
        failed = read_failure(Path(subject), number) if Path(subject).is_file() else None
        wanted = failed.task if failed else task_of(entrypoint, params, param, seed, task)
        if failed and (entrypoint or task):
            wanted = task_of(entrypoint, params, param, seed, task)
        if wanted is None:
            raise ValueError("the failed task was too large to go along with its error; give it with --task")
        if native and trace:
            raise ValueError("--native has the task traced by gdb, and a process has one tracer: leave out --trace")
        session = Session(
            wanted,
            None if script is None else read_text(script).splitlines(),
            parse_breaks(breaks or ()),
            stop_after,
            "shell" if shell else "native" if native else "debugger",
        )
        if failed:
            _tell(progress, failed)
        with workbench(failed.bundle if failed else subject, repository, profile, timeout, limit) as opened:
            on_terminal = shell or (script is None and not native)
            watched = [] if trace is None else ["--trace", str(trace.absolute())]
            outcome = (run_on_terminal if on_terminal else run_session)(opened.bench, session, watched)
            _show(results, outcome, opened.bench.bundle)
        if trace is not None and trace.is_dir():
            _show_failing(results, trace)
    except REFUSALS as error:
        raise refuse(error) from None
    if outcome.failure:
        raise typer.Exit(int(outcome.failure.get("code", 70)))


def _tell(console: Console, failed: FailedTask) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in failed.versions.items())
    with_versions = f" with {versions}" if versions else ""
    console.print(plain(f"{failed.bundle}, which failed under the profile {failed.profile}{with_versions}", "dim"))


def _show(console: Console, outcome: Outcome, bundle: Path) -> None:
    transcript = outcome.outputs.get("transcript")
    if transcript is not None:
        console.print(plain(transcript.read().decode("utf-8", "replace").rstrip()))
    if outcome.failure:
        show_failure(console, outcome.failure, bundle, "")


def _show_failing(console: Console, folder: Path) -> None:
    """What the kernel said no to, the last calls last."""
    calls = failing_calls(folder)
    console.print(plain(f"the last {len(calls)} calls that failed, as strace saw them; all are in {folder}", "dim"))
    for call in calls:
        times = f" ({call.times} times)" if call.times > 1 else ""
        arguments = call.arguments if len(call.arguments) <= 200 else call.arguments[:200] + " ..."
        console.print(plain(f"{call.seconds:8.3f} s  {call.name}({arguments}) = {call.error}{times}"))
