"""`modelops doctor`: what this machine can do."""

import json

import typer

from modelops.worker.settings import WorkerSettings

from .sandbox_options import REFUSALS, Profile, refuse


def doctor(profile: Profile = None) -> None:
    """Say what this machine can do, and what to do about the rest.

    Status 1 if it can't run sandboxes, 2 if its settings are wrong.
    """
    try:
        exec_env = WorkerSettings(profile=profile).make(threads=1)
    except REFUSALS as error:
        raise refuse(error) from None
    with exec_env:
        report = exec_env.health_check()
    print(json.dumps(report, indent=2))
    if not report["healthy"]:
        raise typer.Exit(1)
