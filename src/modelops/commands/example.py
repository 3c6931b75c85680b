"""`modelops example`: a bundle to begin with, for a machine that has this package and no checkout."""

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from modelops.adapters.exec_env.runner_settings import find_runner

EXAMPLE = Path("tests") / "bundles" / "sir"
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")


def example(
    directory: Annotated[Path, typer.Argument(help="Where to; made, and must be empty if it is there.", metavar="DIR")],
) -> None:
    """Write an example bundle, an SIR epidemic, and say how to run it."""
    source = find_runner().parent.parent / EXAMPLE
    try:
        if directory.exists() and any(directory.iterdir()):
            raise FileExistsError(f"{directory} is not empty; name a directory that is, or a new one")
        shutil.copytree(source, directory, ignore=LEFT_OUT, dirs_exist_ok=True)
    except OSError as error:
        typer.echo(f"no example was written: {error}", err=True)
        raise typer.Exit(2) from None
    where = shlex.quote(str(directory))
    study = '--entrypoint sir.model/baseline --params \'{"population": 10000, "gamma": 0.1, "days": 120}\''
    print(f"modelops run {where} --task {shlex.quote(str(directory / 'task.json'))}")
    out = shlex.quote(f"{directory.absolute().name}.results")
    print(f"modelops study --bundle {where} --out {out} {study} --grid beta=0.2,0.3,0.4 --seeds 1-4")
