"""What is wrong with a bundle, said before anything is run at scale: each finding with what to do.

What can be read is read as data. The rest is asked of the runner: it resolves and builds the environment, which stays
for the tasks to come, and imports what the bundle names, once, in the sandbox of a task.
"""

import asyncio
import base64
import json
import os
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distributed import Worker

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.registry import BundleRegistry, read_registry
from modelops.adapters.exec_env.call import Call
from modelops.adapters.exec_env.errors import RunnerError
from modelops.adapters.exec_env.once import ask_once
from modelops.adapters.exec_env.runner_settings import RunnerSettings
from modelops.bounded_toml import parse_toml
from modelops.worker.plugin import require_exec_env

INSIDE = Path(__file__).with_name("inside_preflight.py")
INDEX_VARIABLES = ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
LOCKS = ("uv.lock", "pylock.toml")
MAX_BYTES = 8 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_GIT_LINE = re.compile(r"git\+[^\s;'\"]+")

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """`check` is a stable name. With an error, tasks will fail; a warning says what may make them differ."""

    level: Level
    check: str
    message: str
    remedy: str


def check_bundle(
    bundle: Path,
    settings: RunnerSettings,
    *,
    entrypoints: Sequence[str] = (),
    targets: Sequence[str] = (),
    inside: bool = True,
    timeout_seconds: float = 600,
    environ: Mapping[str, str] = os.environ,
) -> list[Finding]:
    """All that is found, errors first. `entrypoints` and `targets` are looked for besides those of the registry.

    Without `inside`, only what can be read: for a machine that has no sandbox of its own.
    """
    findings = [*check_reproducibility(bundle, environ)]
    registry = BundleRegistry()
    try:
        registry = read_registry(bundle)
    except BundleError as error:
        findings.append(Finding("error", "registry", str(error), "correct the file, or take it out of the bundle"))
    findings += check_data_files(bundle, registry)
    findings += [finding for name in entrypoints for finding in check_entrypoint(registry, name)]
    if inside:
        findings += check_inside(bundle, settings, names_of(registry, entrypoints, targets), timeout_seconds)
    return sorted(findings, key=lambda finding: finding.level != "error")


def names_of(registry: BundleRegistry, entrypoints: Sequence[str], targets: Sequence[str]) -> dict[str, list[str]]:
    """What `check_inside` is to import: of a study, and of the bundle's registry."""
    entries = [
        *(name for name in entrypoints if ":" in name),
        *(model.entrypoint for model in registry.models.values()),
    ]
    named = [*targets, *(target.entrypoint for target in registry.targets.values())]
    return {"entrypoints": list(dict.fromkeys(entries)), "targets": list(dict.fromkeys(named))}


# --- what can be read


def check_reproducibility(bundle: Path, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """What may give the same bundle another environment tomorrow, or elsewhere."""
    texts = {name: _text(bundle / name) for name in ("pyproject.toml", "requirements.txt")}
    project = _toml(texts["pyproject.toml"])
    has_lock = any((bundle / name).is_file() for name in LOCKS)
    if not has_lock and _wants_something(project, texts["requirements.txt"]):
        remedy = (
            "put a lock into the bundle: run `uv lock` beside pyproject.toml, or `uv pip compile --generate-hashes`"
        )
        yield Finding("warning", "no_lock", "the versions of the dependencies are not locked", remedy)
    for name, place in _git_references(project, texts["requirements.txt"]):
        message = f"{place} follows git at {name!r}, which may be another commit tomorrow"
        yield Finding("warning", "unpinned_git", message, "name the commit by its 40 hexadecimal digits")
    for variable in INDEX_VARIABLES:
        if environ.get(variable):
            message = f"{variable} is set here: packages come from another index than where it is not"
            yield Finding("warning", "index_of_this_machine", message, f"set {variable} alike for every worker")


def check_data_files(bundle: Path, registry: BundleRegistry) -> Iterator[Finding]:
    """Files that the registry names and the bundle does not have."""
    top = bundle.resolve()
    for kind, entries in (("model", registry.models), ("target", registry.targets)):
        for name, entry in entries.items():
            for path in entry.data:
                if not _is_inside(top, path):
                    message = f"the {kind} {name!r} needs {path!r}, which is not in the bundle"
                    yield Finding("error", "data_file", message, "add the file, or take it out of registry.yaml")


def _is_inside(top: Path, path: str) -> bool:
    try:
        return (top / path).resolve(strict=True).is_relative_to(top)
    except (OSError, ValueError, RuntimeError):  # no name, one that is too long, links in a circle
        return False


def check_entrypoint(registry: BundleRegistry, entrypoint: str) -> Iterator[Finding]:
    """A task's `model/scenario` that the registry does not have. What it means is the wire function's to say."""
    model, slash, scenario = entrypoint.partition("/")
    if not slash or not registry.models:
        return
    known = [entry for name, entry in registry.models.items() if model in (name, entry.entrypoint.partition(":")[0])]
    remedy = "correct the name, or register the model and its scenarios in registry.yaml"
    if not known:
        names = ", ".join(sorted(entry.entrypoint for entry in registry.models.values()))
        yield Finding("warning", "entrypoint", f"the bundle's registry has no model {model!r}; it has {names}", remedy)
    elif all(entry.scenarios for entry in known) and not any(scenario in entry.scenarios for entry in known):
        names = ", ".join(sorted({name for entry in known for name in entry.scenarios}))
        message = f"the model {model!r} has no scenario {scenario!r} in the bundle's registry; it has {names}"
        yield Finding("warning", "entrypoint", message, remedy)


def check_parameters(
    registry: BundleRegistry, model: str, parameter_sets: Iterable[Mapping[str, Any]]
) -> list[Finding]:
    """Parameters that a model does not take, where the registry says which it takes.

    `model` is the import path or the entry point of a task's model, such as `models.sir` of `models.sir/baseline`.
    """
    path = re.split("[:/]", model)[0]
    known = [entry for entry in registry.models.values() if entry.entrypoint.partition(":")[0] == path]
    taken = {name for entry in known for name in entry.parameters}
    if not taken:
        return []
    given: dict[str, None] = {}
    for parameters in parameter_sets:
        given.update(dict.fromkeys(parameters))
    unknown = [name for name in given if name not in taken]
    if not unknown:
        return []
    message = f"the model {path} does not take {', '.join(map(repr, unknown))}; it takes {', '.join(sorted(taken))}"
    return [Finding("error", "parameters", message, "correct the names, or the model's entry in registry.yaml")]


def _wants_something(project: Mapping[str, Any], requirements: str) -> bool:
    table = project.get("project")
    wanted = isinstance(table, dict) and (table.get("dependencies") or "dependencies" in (table.get("dynamic") or []))
    if wanted:
        return True
    lines = [line.strip() for line in requirements.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return bool(lines) and "--hash=" not in requirements


def _git_references(project: Mapping[str, Any], requirements: str) -> Iterator[tuple[str, str]]:
    """Each git reference that is no commit: what it names, and where it stands."""
    for place, text in (
        ("pyproject.toml", json.dumps(project.get("project", {}), default=str)),
        ("requirements.txt", requirements),
    ):
        for found in _GIT_LINE.findall(text):
            address = found.partition("#")[0]
            _, at, reference = address.partition("://")[2].partition("/")[2].rpartition("@")
            if not (at and _COMMIT.fullmatch(reference)):
                yield reference if at else "its default branch", f"{address.rpartition('/')[2]} in {place}"
    tool = project.get("tool")
    uv = tool.get("uv") if isinstance(tool, dict) else None
    sources = uv.get("sources") if isinstance(uv, dict) else None
    for name, entry in (sources if isinstance(sources, dict) else {}).items():
        for source in entry if isinstance(entry, list) else [entry]:
            if isinstance(source, dict) and "git" in source and not _COMMIT.fullmatch(str(source.get("rev", ""))):
                reference = source.get("rev") or source.get("tag") or source.get("branch") or "its default branch"
                yield str(reference), f"{name} in tool.uv.sources"


def _text(path: Path) -> str:
    """A small file of the bundle; what is no such file has no text, and the runner says why."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _toml(text: str) -> Mapping[str, Any]:
    try:
        return parse_toml(text.encode())
    except (ValueError, RecursionError):
        return {}


# --- what the runner is asked

# The failures that mean something else than "this will happen to every task".
_CHECKS = {
    "no_wire_entry_point": "wire",
    "many_wire_entry_points": "wire",
    "no_interpreter": "python",
    "dependency_unavailable": "environment",
    "dependency_conflict": "environment",
    "dependency_refused": "environment",
}
_WIRE_REMEDY = 'give the project one entry point: [project.entry-points."modelops.wire"]'
_KINDS = {"wire": "the wire function", "entrypoint": "the entry point", "target": "the target"}


def check_inside(bundle: Path, settings: RunnerSettings, asked: Mapping[str, Any], timeout: float) -> list[Finding]:
    """What the runner says of a bundle, and what of `names_of` can't be imported in its sandbox.

    It resolves first, and what does not resolve is told before anything is downloaded.
    """
    arguments = ["--bundle-path", str(bundle), "--instrument", str(INSIDE)]
    try:
        body = ask_once(settings, arguments, json.dumps(asked).encode(), Call(timeout))
        found = json.loads(base64.b64decode(body["outputs"]["found"]["inline"]))
        return [*_of_wire(found), *_of_imports(found)]
    except RunnerError as error:
        check = _CHECKS.get(error.type, error.type)
        remedy = _WIRE_REMEDY if check == "wire" else "no task of the bundle can run before this is done"
        return [Finding("error", check, error.message, remedy)]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # The bundle's code was in the same process, and may have written it.
        message = f"what the bundle's imports left of the check can't be read: {type(error).__name__}"
        return [Finding("error", "imports", message, "look for what the bundle does when it is imported")]


def _of_wire(found: Mapping[str, Any]) -> Iterator[Finding]:
    if not found["wire"]:
        message = "neither the bundle nor its dependencies have a wire function"
        yield Finding("error", "wire", message, _WIRE_REMEDY)


def _of_imports(found: Mapping[str, Any]) -> Iterator[Finding]:
    for problem in found["problems"]:
        kind, name, error = str(problem["kind"]), str(problem["name"]), str(problem["error"])
        message = f"{_KINDS.get(kind, kind)} {name!r} can't be had: {error}"
        yield Finding("error", f"{kind}_missing", message, "correct its name, or what its import needs")


# --- workers


async def check_there(plugin: str, reference: str, asked: Mapping[str, Any], dask_worker: Worker) -> list[Finding]:
    """`check_inside` on a worker, with its interpreters, runner and repository. Dask calls it on its event loop."""
    exec_env = require_exec_env(dask_worker, plugin)

    def check() -> list[Finding]:
        try:
            bundle = exec_env.find_bundle(reference)[1]
        except RunnerError as error:
            return [Finding("error", error.type, error.message, "let the workers reach the bundle's repository")]
        return check_inside(bundle, exec_env.settings, asked, exec_env.timeout_seconds)

    return await asyncio.to_thread(check)


def one_of_each_kind(workers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """For each description of `describe_here` the first worker that has it."""
    kinds: dict[tuple[tuple[str, str], ...], str] = {}
    for address, description in workers.items():
        kinds.setdefault(tuple(sorted(description.items())), address)
    return list(kinds.values())


def describe_here() -> dict[str, str]:
    """The Python and platform of this process, which a task's environment is made for."""
    libc = " ".join(platform.libc_ver()).strip()
    return {"python": platform.python_version(), "platform": sysconfig.get_platform(), "libc": libc}


def check_workers(workers: Mapping[str, Mapping[str, str]], here: Mapping[str, str] | None = None) -> list[Finding]:
    """Where workers differ from this machine; `workers` has what `describe_here` says on each, by its address."""
    here = here or describe_here()
    findings = []
    for name, remedy in (
        ("python", "start workers and command line with one Python, or pin it with requires-python"),
        ("platform", "a lock or wheel of one platform may not fit the other; try the bundle on a worker first"),
        ("libc", "wheels for a newer libc do not load on an older one; use one image for all"),
    ):
        others: dict[str, list[str]] = {}
        for address, description in workers.items():
            value = description.get(name, "unknown")
            if _significant(name, value) != _significant(name, here[name]):
                others.setdefault(value, []).append(address)
        for value, addresses in sorted(others.items()):
            who = f"{addresses[0]} and {len(addresses) - 1} more" if len(addresses) > 1 else addresses[0]
            message = f"the {name} of {who} is {value!r}, and here it is {here[name]!r}"
            findings.append(Finding("warning", f"worker_{name}", message, remedy))
    return findings


def _significant(name: str, value: str) -> str:
    """What of a version counts: 3.11.2 and 3.11.9 have the same wheels."""
    return ".".join(value.split(".")[:2]) if name == "python" else value
