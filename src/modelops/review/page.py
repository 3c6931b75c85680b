"""A report as one self-contained page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from modelops import pages

WIDTH, HEIGHT = 960, 120  # of the time line, in the units of its SVG
FAMILIES = {
    "Supply": ("package", "pth", "native_library", "console_script", "near_name"),
    "Network": ("connect", "listen", "dns", "socket", "told_lookup", "told_connect"),
    "Programs": ("execute", "execute_memory", "outlives_parent", "left_running", "told_process"),
    "Files": ("file_read", "file_write", "told_open"),
    "Kernel": (
        "refused", "kernel_call", "identity", "other_process", "signal", "executable_memory", "memory_file", "sleep",
        "process_name", "limit", "failed",
    ),
    "Code": ("told_code", "told_library", "told_import", "told_hook"),
    "Bundle": ("files", "unusual_file", "entry_point"),
}  # fmt: skip


class Row(NamedTuple):
    """One fact in a table: `number` is its place in the report, which findings link to."""

    number: int
    kind: str
    phase: str
    known: str
    text: str
    times: int
    first: str


class Line(NamedTuple):
    """One figure over the time of a phase, as the points of an SVG polyline, with its highest value."""

    name: str
    points: str
    highest: str


def render(report: Mapping[str, Any]) -> str:
    """The page of a report."""
    return pages.render(
        "modelops.review",
        "page.html",
        "page.js",
        report=report,
        families=list(families(report)),
        numbers={frozen(fact): number for number, fact in enumerate(report["facts"])},
        frozen=frozen,
        trees={phase["phase"]: list(tree(phase["processes"])) for phase in report["run"]["phases"]},
        lines={phase["phase"]: lines(phase["samples"]) for phase in report["run"]["phases"]},
        events={phase["phase"]: events(report, phase) for phase in report["run"]["phases"]},
        told=told,
        width=WIDTH,
        height=HEIGHT,
    )


def frozen(fact: Mapping[str, Any]) -> str:
    return repr(sorted((name, str(value)) for name, value in fact.items()))


def told(fact: Mapping[str, Any]) -> str:
    """A fact's values in one line."""
    return ", ".join(
        f"{name} {value}" for name, value in fact.items() if name not in ("kind", "phase", "known") and value
    )


def families(report: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """The facts by family, each with a row a fact."""
    sightings: Sequence[Mapping[str, Any]] = report["run"]["sightings"]
    for name, kinds in FAMILIES.items():
        rows = [
            Row(
                number, fact["kind"].replace("_", " "), fact["phase"], fact["known"], told(fact),
                sighting.get("count", 1),
                f"{sighting['first_seconds']:.3f}" if "first_seconds" in sighting else "",
            )
            for number, (fact, sighting) in enumerate(zip(report["facts"], sightings, strict=True))
            if fact["kind"] in kinds
        ]  # fmt: skip
        if rows:
            yield name, rows


def tree(processes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Processes with their depth, each below the one that started it."""
    below: dict[Any, list[Mapping[str, Any]]] = {}
    for process in processes:
        below.setdefault(process["parent"], []).append(process)
    waiting = [(0, process) for process in reversed(below.get(None, []))]
    while waiting:
        depth, process = waiting.pop()
        yield depth, process
        waiting += [(depth + 1, child) for child in reversed(below.get(process["number"], []))]


def lines(samples: Sequence[Mapping[str, float]]) -> list[Line]:
    """Memory, processor and process count over time."""
    found = []
    for name, key in (("memory", "memory_bytes"), ("processes", "processes"), ("processors", "cpu")):
        values = [(sample["seconds"], sample[key]) for sample in with_rates(samples)]
        top, end = max((v for _, v in values), default=0) or 1, max((t for t, _ in values), default=0) or 1
        points = " ".join(f"{t / end * WIDTH:.1f},{HEIGHT - v / top * (HEIGHT - 10):.1f}" for t, v in values)
        shown = f"{top / (1 << 20):.0f} MiB" if key == "memory_bytes" else f"{top:.3g}"
        found.append(Line(name, points, shown))
    return found


def with_rates(samples: Sequence[Mapping[str, float]]) -> Iterator[dict[str, float]]:
    """The samples with how many processors were in use since the one before."""
    seconds, used = 0.0, 0.0
    for sample in samples:
        spent = max(1e-3, sample["seconds"] - seconds)
        yield {**sample, "cpu": max(0.0, sample["cpu_seconds"] - used) / spent}
        seconds, used = sample["seconds"], sample["cpu_seconds"]


def events(report: Mapping[str, Any], phase: Mapping[str, Any]) -> list[tuple[float, str, int]]:
    """Where on the time line the evidence of findings above info lies: position, sentence, number of the fact."""
    end = max((sample["seconds"] for sample in phase["samples"]), default=0) or 1
    numbers = {frozen(fact): number for number, fact in enumerate(report["facts"])}
    found = []
    for finding in report["findings"]:
        if finding["phase"] != phase["phase"] or finding["severity"] == "info":
            continue
        for fact in finding["evidence"]:
            number = numbers[frozen(fact)]
            first = report["run"]["sightings"][number].get("first_seconds")
            if first is not None:
                found.append((min(1.0, first / end) * WIDTH, f"{finding['sentence']}: {told(fact)}", number))
    return found
