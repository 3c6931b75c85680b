"""`modelops bundle`: a bundle repository. References go to standard output, all else to standard error."""

from pathlib import Path
from typing import Annotated

import typer

from modelops.adapters.bundle import BundleError, LocalBundleRepository
from modelops.places import default_storage_dir

app = typer.Typer(help="Bundles: the code of tasks, addressed by the digest of its content.", no_args_is_help=True)

Repository = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        "-r",
        envvar="MODELOPS_BUNDLE_REPOSITORY",
        help="Directory of the repository; by default one in the storage directory, which is made.",
    ),
]


@app.command()
def add(
    directory: Annotated[Path, typer.Argument(help="The bundle.")],
    repository: Repository = None,
    name: Annotated[str | None, typer.Option(help="Its name; by default that of its project.")] = None,
) -> None:
    """Copy a bundle into the repository and print its reference."""
    try:
        print(open_repository(repository).add(directory, name))
    except BundleError as error:
        raise refused(error) from None


@app.command("list")
def list_references(repository: Repository = None) -> None:
    """Print the reference of every bundle in the repository."""
    try:
        for reference in open_repository(repository).references():
            print(reference)
    except BundleError as error:
        raise refused(error) from None


@app.command()
def verify(reference: str, repository: Repository = None) -> None:
    """Check a bundle's content against its reference, and print where its copy lies."""
    try:
        print(open_repository(repository).ensure_local(reference)[1])
    except BundleError as error:
        raise refused(error) from None


def open_repository(path: Path | None) -> LocalBundleRepository:
    """The repository at `path`, or the default one, which is made where it does not exist yet."""
    if path is None:
        path = default_storage_dir() / "bundles"
        path.mkdir(parents=True, exist_ok=True)
    return LocalBundleRepository(path)


def refused(error: BundleError) -> typer.Exit:
    """Say why on standard error; the exit to raise."""
    typer.echo(f"{error.type}: {error}", err=True)
    return typer.Exit(1)
