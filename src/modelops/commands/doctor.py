"""`modelops doctor`: what this machine can do."""

import json
from typing import Annotated

import typer

from modelops.worker.settings import WorkerSettings


def doctor(
    profile: Annotated[str, typer.Option(help="Name or path of the sandbox profile.")] = "default",
) -> None:
    """Say what this machine can do, and what to do about the rest. Status 1 if it can't run sandboxes."""
    with WorkerSettings(profile=profile).make(threads=1) as exec_env:
        report = exec_env.health_check()
    print(json.dumps(report, indent=2))
    if not report["healthy"]:
        raise typer.Exit(1)
