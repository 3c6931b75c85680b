"""The command `modelops`."""

import json
import sys
from typing import Annotated

import typer

from modelops.adapters.bundle.command import app as bundle_app
from modelops.services.study_command import study

app = typer.Typer(help="Run simulation bundles in sandboxes.", no_args_is_help=True, add_completion=False)
app.add_typer(bundle_app, name="bundle")
app.command("study")(study)


@app.command()
def doctor(
    profile: Annotated[str, typer.Option(help="Name or path of the sandbox profile.")] = "default",
) -> None:
    """Say what this machine can do, and what to do about the rest. Status 1 if it can't run sandboxes."""
    from modelops.worker.settings import WorkerSettings

    with WorkerSettings(profile=profile).make(threads=1) as exec_env:
        report = exec_env.health_check()
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["healthy"] else 1)


def main() -> None:
    """The entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
