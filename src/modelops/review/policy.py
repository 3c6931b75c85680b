"""A profile that would be enough for what was seen. What was not seen it takes away; limits keep room to breathe."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from modelops.review.facts import Fact
from modelops.review.traces import ORDINARY

ROOM = 4  # times what was seen
LEAST = {"memory_bytes": 256 << 20, "processes": 16, "wall_seconds": 60, "cpu_seconds": 60}
UNTOLD = ("/usr/lib", "/lib", *ORDINARY)  # reading below these is no fact, so that it was not seen says nothing
METRICS = {
    "memory_bytes": ("peak_memory_bytes",),
    "processes": ("peak_processes",),
    "wall_seconds": ("execute_seconds",),
    "cpu_seconds": ("cpu_user_seconds", "cpu_system_seconds"),
}


def enough(facts: Iterable[Fact], metrics: Mapping[str, float], base: Mapping[str, Any]) -> dict[str, Any]:
    """The keys in which a profile for this bundle is stricter than `base` (a whole profile, as tables)."""
    facts = list(facts)
    dependencies = {key: False for key, sources in SOURCES.items() if base["dependencies"].get(key) and not any(
        fact.kind == "package" and fact["source"].startswith(sources) for fact in facts
    )}  # fmt: skip
    seen = {fact[name] for fact in facts for name in ("path", "program") if fact["answer"] == "ok"}
    paths = base["execute"]["read_only"]
    kept = [path for path in paths if path.startswith(UNTOLD) or any(is_below(name, path) for name in seen)]
    found: dict[str, Any] = {"dependencies": dependencies, "execute": {"limits": limits(metrics, base)}}
    if kept != paths:
        found["execute"]["read_only"] = kept
    return {name: table for name, table in found.items() if table}


def is_below(name: str, pattern: str) -> bool:
    """Whether a path is one of a profile's, which may have wildcards, or lies below it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + "/*")


SOURCES = {"git": ("git+",), "direct_urls": ("https:",), "sdists": ("sdist",)}


def limits(metrics: Mapping[str, float], base: Mapping[str, Any]) -> dict[str, Any]:
    """Limits with ROOM over what was seen, in round numbers, where they are under those of `base`."""
    found: dict[str, Any] = {}
    for name, parts in METRICS.items():
        seen = sum(metrics.get(part, 0.0) for part in parts)
        wanted = max(LEAST[name], 2 ** math.ceil(math.log2(max(1.0, seen * ROOM))))
        now = base["execute"]["limits"][name]
        if wanted < size_of(now):
            found[name] = wanted
    return found


def size_of(value: Any) -> float:
    """A limit as a number: profiles write sizes as text such as `512MiB`."""
    if not isinstance(value, str):
        return float(value)
    number = value.rstrip("BKMGTi ")
    unit = value[len(number) :].strip()
    return int(number) * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]


def taken_away(stricter: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """What the stricter profile has no more, a line each."""
    lines = [f"dependencies.{key}" for key in stricter.get("dependencies", {})]
    execute = stricter.get("execute", {})
    lines += [
        f"execute.read_only: {path}"
        for path in base["execute"]["read_only"]
        if path not in execute.get("read_only", [path])
    ]
    now = base["execute"]["limits"]
    lines += [
        f"execute.limits.{key}: {value} instead of {now[key]}" for key, value in execute.get("limits", {}).items()
    ]
    return lines
