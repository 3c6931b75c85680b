"""Bundles as people name them: a directory, a reference, or a tag in a registry."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from modelops.adapters.bundle import BundleError, LocalBundleRepository, parse_reference
from modelops.adapters.bundle.oci import Description, OciBundleRepository
from modelops.adapters.bundle.references import Target, names_registry, parse_place, parse_target
from modelops.adapters.bundle.registry import BundleRegistry, parse_registry
from modelops.adapters.bundle.sources import (
    REGISTRY,
    bundles_dir,
    cache_dir,
    choose_source,
    is_insecure,
    make_repository,
)
from modelops.adapters.working_dir import WorkingDir, is_empty
from modelops.places import default_storage_dir


class FoundBundle(NamedTuple):
    """A bundle that is there, and what workers must be told to find it; None where their own variables say it."""

    reference: str
    folder: Path
    directory: str | None = None
    registry: str | None = None


def find_bundle(text: str, directory: Path | None = None, environ: Mapping[str, str] = os.environ) -> FoundBundle:
    """The bundle that a person names, with the copy that would be run.

    A directory is added to the directory repository, which is `directory`, or the default one. A tag is looked up
    now, and the reference has the digest that it had. BundleError where there is no such bundle.
    """
    storage = default_storage_dir(environ)
    source = "file" if directory else choose_source(environ)
    told = None if directory is None else str(directory.absolute())
    if os.path.isdir(text):
        place = directory or bundles_dir(environ, storage)
        place.mkdir(parents=True, exist_ok=True)
        reference = LocalBundleRepository(place, cache_dir=cache_dir(environ, storage)).add(text)
        folder = make_repository(environ, storage, str(place)).ensure_local(reference)[1]
        return FoundBundle(reference, folder, told if source == "file" else str(place))
    if source == "oci" or (source == "file" and not directory and names_registry(text)):
        return _in_registry(text, environ)
    try:
        reference = str(parse_reference(text, str))
    except BundleError as error:
        raise BundleError(error.type, f"there is no directory {text[:200]!r}, and {error}") from None
    return FoundBundle(reference, make_repository(environ, storage, told).ensure_local(reference)[1], told)


def _in_registry(text: str, environ: Mapping[str, str]) -> FoundBundle:
    repository, target = resolve_target(text, environ)
    configured = environ.get(REGISTRY)
    is_known = bool(configured) and parse_place(str(configured)).holds(str(target.place))
    registry = None if is_known else str(target.place)
    return FoundBundle(str(target), repository.ensure_local(str(target))[1], registry=registry)


def open_target(text: str, environ: Mapping[str, str] = os.environ) -> tuple[OciBundleRepository, Target]:
    """The repository of what a person names in a registry, and what it is there: a tag or a digest."""
    target = parse_target(text, environ.get(REGISTRY))
    cache = cache_dir(environ, default_storage_dir(environ))
    return OciBundleRepository(str(target.place), cache, insecure=is_insecure(environ), environ=environ), target


def resolve_target(text: str, environ: Mapping[str, str] = os.environ) -> tuple[OciBundleRepository, Target]:
    """As `open_target`, and what was a tag is the digest that it has now."""
    repository, target = open_target(text, environ)
    if target.digest is None:
        target = target._replace(digest=repository.resolve(target.reference).removeprefix("sha256:"))
    return repository, target


def pull_bundle(text: str, directory: Path | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Copy a bundle from a registry to a directory that is new or empty; its reference.

    The files may be written. A new directory appears by one rename, with all of them; one that is there stays the
    same one, as somebody may be in it, or it may be where a volume is mounted.
    """
    repository, target = resolve_target(text, environ)
    place = (directory or Path(target.place.repository.rpartition("/")[2])).absolute()
    if place.exists() and not is_empty(place):
        raise BundleError("directory_not_empty", f"{str(place)!r} is there, and not an empty directory; name a new one")
    reference = str(target)
    _, folder = repository.ensure_local(reference)
    try:
        is_there = place.exists()
        beside = place if is_there else place.parent
        beside.mkdir(parents=True, exist_ok=True)
        with WorkingDir(beside) as working:
            aside = working.path / "bundle"
            shutil.copytree(folder, aside, copy_function=shutil.copyfile, symlinks=True)
            for parent, _, _ in os.walk(aside):
                os.chmod(parent, 0o755)
            for name in os.listdir(aside) if is_there else ():
                os.rename(aside / name, place / name)
            if not is_there:
                os.rename(aside, place)
    except OSError as error:
        raise BundleError("directory_unwritable", f"{str(place)!r} can't be written: {error.strerror}") from None
    return reference


def describe_bundle(text: str, environ: Mapping[str, str] = os.environ) -> tuple[str, Description, BundleRegistry]:
    """The reference of a bundle in a registry, and what the registry and the bundle say of it; no other file comes."""
    repository, target = resolve_target(text, environ)
    found = repository.describe(target.reference)
    return str(target), found, parse_registry(found.registry_file or b"")
