"""Where a worker has its bundles from, by the published worker's variables.

MODELOPS_BUNDLE_SOURCE is `oci`, `file`, or the name of any entry point in the group `modelops.bundle_repos`, where
ours are too. Its class is made from what the variables say, by the names of its parameters:

parameter         variable                      otherwise
registry_ref      MODELOPS_BUNDLE_REGISTRY      -
bundles_dir       MODELOPS_BUNDLES_DIR, or      `bundles` in the storage directory
                  MODELOPS_BUNDLE_REPOSITORY
cache_dir         MODELOPS_BUNDLES_CACHE_DIR    the same
insecure          MODELOPS_BUNDLE_INSECURE      False; `true` allows plain HTTP
cache_structure   -                             digest_short
default_tag       -                             latest

A source that can't be made is one BundleError, and never another source.
"""

import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from modelops_contracts import BundleRepository

from .errors import BundleError

GROUP = "modelops.bundle_repos"
SOURCE, REGISTRY = "MODELOPS_BUNDLE_SOURCE", "MODELOPS_BUNDLE_REGISTRY"
DIRECTORIES = ("MODELOPS_BUNDLE_REPOSITORY", "MODELOPS_BUNDLES_DIR")
CACHE, INSECURE = "MODELOPS_BUNDLES_CACHE_DIR", "MODELOPS_BUNDLE_INSECURE"
OURS = {
    "oci": "modelops.adapters.bundle.oci:OciBundleRepository",
    "file": "modelops.adapters.bundle.local:LocalBundleRepository",
}
_VARIABLES = {"registry_ref": REGISTRY, "bundles_dir": DIRECTORIES[1], "cache_dir": CACHE, "insecure": INSECURE}


def make_repository(
    environ: Mapping[str, str], storage: Path, directory: str | None = None, registry: str | None = None
) -> BundleRepository:
    """The repository that the variables name. What a client asks for goes before them: a directory, or a registry."""
    if registry is not None and not directory:
        named = environ.get(SOURCE, "file")
        environ = {**environ, REGISTRY: registry, SOURCE: "oci" if named in ("", "file") else named}
    source = "file" if directory else choose_source(environ)
    offered = _offered(environ, storage, directory)
    if source == "file" and not directory and _directory(environ) is None:
        Path(offered["bundles_dir"]).mkdir(parents=True, exist_ok=True)
    entry = _entry_point(source)
    where = f"the bundle source {source!r} ({entry.value})"
    try:
        factory = entry.load()
    except (Exception, SystemExit) as error:
        raise _invalid(f"{where} can't be imported: {type(error).__name__}: {error}") from error
    arguments = _arguments(factory, offered, where)
    try:
        repository = factory(**arguments)
    except BundleError:
        raise
    except (Exception, SystemExit) as error:
        raise _invalid(f"{where} can't be made: {type(error).__name__}: {error}") from error
    for method in ("ensure_local", "exists"):
        if not callable(getattr(repository, method, None)):
            raise _invalid(f"{where} is no bundle repository: it has no method {method}")
    return repository  # type: ignore[no-any-return]


def choose_source(environ: Mapping[str, str]) -> str:
    """The name of the source: what is said, else what the other variables leave no doubt of."""
    if environ.get(SOURCE):
        return environ[SOURCE]
    if not environ.get(REGISTRY):
        return "file"
    if named := [name for name in DIRECTORIES if environ.get(name)]:
        raise _invalid(f"both {REGISTRY} and {named[0]} are set; say which with {SOURCE}=oci or {SOURCE}=file")
    return "oci"


def is_insecure(environ: Mapping[str, str]) -> bool:
    """Whether plain HTTP is allowed."""
    return environ.get(INSECURE, "").lower() == "true"


def bundles_dir(environ: Mapping[str, str], storage: Path) -> Path:
    """Where the directory repository lies."""
    chosen = _directory(environ)
    return Path(chosen).absolute() if chosen else storage / "bundles"


def cache_dir(environ: Mapping[str, str], storage: Path) -> Path:
    """Where copies of a registry's bundles lie."""
    chosen = environ.get(CACHE)
    return Path(chosen).absolute() if chosen else storage / "bundles"


def _directory(environ: Mapping[str, str]) -> str | None:
    named = {environ[name] for name in DIRECTORIES if environ.get(name)}
    if len(named) > 1:
        raise _invalid(f"{' and '.join(DIRECTORIES)} name two directories; leave one of them out")
    return named.pop() if named else None


def _offered(environ: Mapping[str, str], storage: Path, directory: str | None) -> dict[str, Any]:
    return {
        "registry_ref": environ.get(REGISTRY) or None,
        "bundles_dir": str(Path(directory).absolute() if directory else bundles_dir(environ, storage)),
        "cache_dir": str(cache_dir(environ, storage)),
        "insecure": is_insecure(environ),
        "cache_structure": "digest_short",
        "default_tag": "latest",
    }


def _entry_point(source: str) -> EntryPoint:
    known = list(entry_points(group=GROUP))
    # Ours are there also where the metadata of an installation is older than they are.
    known += [EntryPoint(name, value, GROUP) for name, value in OURS.items()]
    found = {entry.value: entry for entry in known if entry.name == source}
    if not found:
        names = ", ".join(sorted({entry.name for entry in known}))
        raise _invalid(f"there is no bundle source {source!r}, which {SOURCE} names; there are {names}")
    if len(found) > 1:
        raise _invalid(f"the bundle source {source!r} is there more than once: {', '.join(sorted(found))}")
    return next(iter(found.values()))


def _arguments(factory: Any, offered: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a class takes of what there is. One that needs more, or what no variable says, is an error."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError) as error:
        raise _invalid(f"{where} does not say what it takes: {error}") from None
    arguments = {}
    for parameter in parameters:
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        value = offered.get(parameter.name) if by_name else None
        if value is not None:
            arguments[parameter.name] = value
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            variable = _VARIABLES.get(parameter.name)
            hint = f"set {variable}" if variable and by_name else f"there are {', '.join(offered)}"
            raise _invalid(f"{where} needs {parameter.name!r}, which it does not get; {hint}")
    return arguments


def _invalid(problem: str) -> BundleError:
    return BundleError("bundle_source_invalid", problem)
