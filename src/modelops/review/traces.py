"""The folder that the runner's --trace made: for each watched sandbox a trace and a note beside it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from modelops.review.behaviour import Behaviour
from modelops.review.facts import Facts, shown
from modelops.review.report import Phase
from modelops.review.strace import Reader, lines_of

# Below these a program reads itself and what it was installed with.
OWN = (
    "/bundle", "/venv/", "/runner/", "/source", "/usr/lib/", "/lib/", "/lib64/", "/usr/lib64/", "/proc/self/", "/dev/",
    "/tmp/source", "/tmp/wheel",
)  # fmt: skip
# What every program that is dynamically linked, or that Python starts, looks at.
ORDINARY = (
    "/etc/ld.so", "/etc/localtime", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/resolv.conf",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage", "/sys/fs/cgroup", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat",
    "/proc/sys/vm/overcommit_memory", "/usr/share/zoneinfo", "/usr/share/locale", "/usr/share/fonts",
    "/usr/share/ca-certificates", "/etc/ssl/",
)  # fmt: skip


def read_traces(facts: Facts, folder: Path, execute: str, builds: bool) -> Iterator[Phase]:
    """The phases of one run, in order: `build ..` where asked for, and `execute` for the last. Adds to `facts`."""
    prefix = read_note(folder / "environment.json").get("prefix", "/usr/lib/python3")
    times: Counter[str] = Counter()  # a backend that first says what it needs is started twice
    for path in sorted(folder.glob("[0-9]*.json")):
        note = read_note(path)
        if note["phase"] == "build" and not builds:
            continue
        name = execute if note["phase"] == "execute" else f"build {shown(note.get('subject') or 'the bundle')}"
        times[name] += 1
        name += f" ({times[name]})" if times[name] > 1 else ""
        behaviour, reader = Behaviour(facts, name, (*OWN, *ORDINARY, str(prefix) + "/")), Reader()
        with path.with_suffix(".strace").open("rb") as file:
            behaviour.read(reader.events(lines_of(file)))
        counts = reader.counts
        yield Phase(name, "done", behaviour.tree(), note["samples"], counts.lines, counts.unread, note["cut_bytes"])


def read_note(path: Path) -> dict[str, Any]:
    """What the runner noted; empty where it did not come so far."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def beyond(facts: Facts, phase: str, earlier: Iterable[str]) -> Facts:
    """The facts, less those of `phase` that an earlier one had as well: a task begins with the import."""
    known = {(fact.kind, fact.known, fact.values) for fact in facts.seen if fact.phase in set(earlier)}
    left = {
        fact: sighting
        for fact, sighting in facts.seen.items()
        if fact.phase != phase or (fact.kind, fact.known, fact.values) not in known
    }
    return Facts(left, facts.kinds, facts.dropped)
