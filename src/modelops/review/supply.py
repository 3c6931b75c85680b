"""What a bundle brings along: packages, where they came from, and what of them starts by itself or can't be read."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from modelops.bounded_toml import parse_toml
from modelops.review.facts import FILES, RUNNER, Facts
from modelops.review.traces import read_note

PHASE = "supply"
LIBRARIES = (".so", ".dylib", ".pyd")


def read_supply(facts: Facts, bundle: Path, traces: Path) -> dict[str, Any]:
    """Facts about each package of the environment. Returns what the report says of the bundle and its interpreter.

    `traces` is the folder of a run: the runner's `environment.json` in it names the packages and where they lie.
    """
    environment = read_note(traces / "environment.json")
    for package in environment.get("packages", []):
        read_package(facts, package)
    for group, name, value in environment.get("entry_points", []):
        facts.add("entry_point", PHASE, RUNNER, {"group": group, "name": name, "object": value})
    project = read_project(bundle)
    return {
        "project": str(project.get("name", "")),
        "version": str(project.get("version", "")),
        "entry_points": [f"{name} = {value}" for _, name, value in environment.get("entry_points", [])],
        "python": environment.get("python", ""),
    }


def read_package(facts: Facts, package: Mapping[str, Any]) -> None:
    name, tree = str(package["name"]), Path(package["tree"])
    told = ("version", "sha256", "bytes", "source")
    facts.add("package", PHASE, RUNNER, {"name": name, **{key: package.get(key, "") for key in told}})
    like = near(name)
    if like:
        facts.add("near_name", PHASE, RUNNER, {"name": name, "like": like})
    for path in package["files"]:
        base = path.rpartition("/")[2]
        if path.endswith(".pth") and path.count("/") == 3:  # of lib/pythonX.Y/site-packages, where site reads it
            for line in code_lines(tree / path):
                facts.add("pth", PHASE, FILES, {"package": name, "path": base, "line": line})
        elif path.endswith(LIBRARIES) or ".so." in base:
            facts.add("native_library", PHASE, FILES, {"package": name, "path": path})
        elif path.startswith("bin/"):
            facts.add("console_script", PHASE, FILES, {"package": name, "path": path})


def code_lines(path: Path) -> Iterator[str]:
    """The lines of a .pth file that Python runs at its start (the site module's documentation)."""
    with path.open("rb") as file:
        for line in file.read(64 << 10).decode("utf-8", "replace").splitlines()[:100]:
            if line.startswith(("import ", "import\t")):
                yield line


def near(name: str) -> str:
    """A much-used package whose name is one edit away, where the name itself is none."""
    plain = name.lower().replace("_", "-")
    if plain in popular() or len(plain) < 4:
        return ""
    return next((other for other in sorted(popular()) if len(other) > 3 and one_edit(plain, other)), "")


def one_edit(first: str, second: str) -> bool:
    """Whether one letter more, less, another, or two swapped make the one of the other (Damerau-Levenshtein 1)."""
    if first == second or abs(len(first) - len(second)) > 1:
        return False
    start = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    rest, other = first[start:], second[start:]
    swapped = rest[:2] == other[1::-1] and len(rest) > 1 and len(other) > 1 and rest[2:] == other[2:]
    return rest[1:] == other[1:] or rest[1:] == other or rest == other[1:] or swapped


@cache
def popular() -> frozenset[str]:
    text = files("modelops.review").joinpath("popular.txt").read_text(encoding="utf-8")
    return frozenset(text.split())


def read_project(bundle: Path) -> Mapping[str, Any]:
    """The [project] table of a bundle, as data; empty where there is none."""
    try:
        table = parse_toml((bundle / "pyproject.toml").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    project = table.get("project")
    return project if isinstance(project, dict) else {}
