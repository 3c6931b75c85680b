"""`modelops bundle`: bundles and where they are kept. Results go to standard output, all else to standard error."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from modelops.adapters.bundle import BundleError, LocalBundleRepository
from modelops.adapters.bundle.sources import bundles_dir
from modelops.places import default_storage_dir
from modelops.printable import one_line
from modelops.services.bundles import describe_bundle, find_bundle, open_target, pull_bundle
from modelops.services.preflight import check_bundle
from modelops.worker.settings import runner_settings

from .findings import lines_of
from .sandbox_options import Profile

app = typer.Typer(
    name="bundle",
    help="Bundles: the code of tasks, addressed by the digest of its content.",
    no_args_is_help=True,
    add_completion=False,
)

# No brackets around what begins with a letter: typer would take it for markup, and leave it out.
NAME, REGISTRY_OF = "registry/repository", "Without a registry it is MODELOPS_BUNDLE_REGISTRY's."

Repository = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        "-r",
        help="Directory of the repository; by default as a worker's variables say, and made where it is missing.",
    ),
]


@app.command()
def add(
    directory: Annotated[Path, typer.Argument(help="The bundle.")],
    repository: Repository = None,
    name: Annotated[str | None, typer.Option(help="Its name; by default that of its project.")] = None,
) -> None:
    """Copy a bundle into the repository and print its reference."""
    with _refusing():
        print(open_repository(repository).add(directory, name))


@app.command("list")
def list_references(repository: Repository = None) -> None:
    """Print the reference of every bundle in the repository."""
    with _refusing():
        for reference in open_repository(repository).references():
            print(reference)


@app.command()
def verify(reference: str, repository: Repository = None) -> None:
    """Check a bundle's content against its reference, and print where its copy lies."""
    with _refusing():
        print(open_repository(repository).ensure_local(reference)[1])


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="The bundle.")],
    target: Annotated[str, typer.Argument(metavar="REF", help=f"{NAME}[:tag], by default latest. {REGISTRY_OF}")],
) -> None:
    """Send a bundle to a registry, and print its reference."""
    with saying_why():
        repository, place = open_target(target)
        if place.tag is None:
            raise BundleError("bundle_ref_invalid", f"{target!r} has a digest; a bundle is pushed to a tag")
        print(f"{place.place}@{repository.push(directory, place.tag)}")


@app.command()
def pull(
    target: Annotated[str, typer.Argument(metavar="REF", help=f"{NAME}[:tag|@sha256:..]. {REGISTRY_OF}")],
    directory: Annotated[Path | None, typer.Argument(help="Where to; by default its name, here.")] = None,
) -> None:
    """Copy a bundle from a registry into a new directory, and print its reference."""
    with saying_why():
        print(pull_bundle(target, directory))


@app.command()
def show(
    target: Annotated[str, typer.Argument(metavar="REF", help=f"{NAME}[:tag|@sha256:..]. {REGISTRY_OF}")],
) -> None:
    """Say what a registry has under a name: files and sizes, models and targets with their entry points."""
    with saying_why():
        reference, found, registry = describe_bundle(target)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    tool = found.listing.get("tool")
    tool = tool if isinstance(tool, dict) else {}
    console.print(reference)
    console.print(one_line(f"made {found.listing.get('created')} by {tool.get('name')} {tool.get('version')}"))
    for kind, entries in (("model", registry.models), ("target", registry.targets)):
        for name, entry in entries.items():
            console.print(one_line(f"{kind} {name}: {entry.entrypoint}"))
    table = Table(Column("file", overflow="fold"), Column("bytes", justify="right"), box=None, pad_edge=False)
    for path, file in sorted(found.artifact.files.items()):
        table.add_row(Text(path), str(file.size))
    table.add_row(f"{len(found.artifact.files)} files", str(found.artifact.size))
    console.print(table)


@app.command()
def check(
    bundle: Annotated[str, typer.Argument(metavar="DIR|REF", help="A bundle's directory, reference or tag.")],
    profile: Profile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Say what would fail, or differ from machine to machine, before anything is run. Status 1 if a task can't run."""
    with saying_why():
        folder = Path(bundle) if os.path.isdir(bundle) else find_bundle(bundle).folder
    findings = check_bundle(folder.absolute(), runner_settings(profile))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print("\n".join(lines_of(findings)) or "nothing found: the bundle can be run")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@contextmanager
def saying_why() -> Iterator[None]:
    """Within the block, what a repository refuses is said on standard error, and ends the command with status 1."""
    logging.basicConfig(level="WARNING", format="%(message)s")
    logging.getLogger("modelops").setLevel("INFO")  # what comes may take its time
    with _refusing():
        yield


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except BundleError as error:
        raise refused(error) from None
    except OSError as error:
        if error.filename is None:  # no file's, such as standard output's, which nobody reads any more
            raise
        raise refused(BundleError("repository_unavailable", f"{str(error.filename)!r}: {error.strerror}")) from None


def open_repository(path: Path | None) -> LocalBundleRepository:
    """The repository at `path`, or a worker's, which is made where it does not exist yet."""
    if path is None:
        path = bundles_dir(os.environ, default_storage_dir())
        path.mkdir(parents=True, exist_ok=True)
    return LocalBundleRepository(path)


def refused(error: BundleError) -> typer.Exit:
    """Say why on standard error; the exit to raise."""
    typer.echo(f"{error.type}: {error}", err=True)
    return typer.Exit(1)
