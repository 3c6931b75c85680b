"""What a leak report says, in sentences: shared by the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

VERDICTS = {
    "leak": "Tasks that share a process change one another's results.",
    "no leak": "No task changes another's result.",
    "nondeterministic": "No task changes another's result; some give other results each time by themselves.",
    "could not tell": "It could not be told whether tasks change one another's results.",
}
ORDERS = {"given": "shared, in order", "reverse": "reverse", "shuffled": "shuffled", "fork": "fork"}
KNOWN = {
    "causes": "with the old value put back, the result is the cold one",
    "imports": "importing it before the task is enough",
    "suspects": "not tested, or putting them back changes nothing",
}
SHOWN_TASK = 300  # characters
GENERATORS = {"random": "Python's random module", "numpy.random": "numpy.random's global generator"}


def numbers(values: Sequence[int]) -> str:
    """`task 3`, or `tasks 2, 5 to 9`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}{', ' if len(run) == 2 else ' to '}{run[-1]}" for run in runs]
    return ("task " if len(values) == 1 else "tasks ") + ", ".join(parts)


def task(what: Mapping[str, Any]) -> str:
    """A task in one line: what it runs, with which parameters and seed."""
    if "target_entrypoint" in what:
        return f"aggregation by {what['target_entrypoint']}"
    parameters = [f"{name}={value}" for name, value in what["params"].items()]
    text = ", ".join([str(what["entrypoint"]), *parameters, f"seed {what['seed']}"])
    return text if len(text) <= SHOWN_TASK else text[:SHOWN_TASK] + ".."


def unexplained(report: Mapping[str, Any]) -> list[str]:
    """The tasks that differ, and of which no more is known."""
    said = []
    if report["not_reproduced"]:
        said.append(f"{numbers(report['not_reproduced'])} differed once, and not again: it depends on timing")
    if report["not_searched"]:
        verb = "differs" if len(report["not_searched"]) == 1 else "differ"
        said.append(f"{numbers(report['not_searched'])} {verb} too; there was no time to find out why")
    return said


def difference(gap: Mapping[str, Any]) -> str:
    """Where, what, and how much."""
    values = " instead of ".join(reversed(list(map(str, gap.get("values") or gap.get("form") or []))))
    text = f"{_place(gap)}: {values}"
    count = gap.get("cells") or gap.get("count") or 0
    if count > 1:
        text += f"; {count} {'cells' if gap['kind'] == 'table' else 'values'} differ"
    if gap.get("largest"):
        text += f", by {gap['largest']:g} at most" if count > 1 else f", by {gap['largest']:g}"
    return text if gap["output"] is None else f"{gap['output']}: {text}"


def _place(gap: Mapping[str, Any]) -> str:
    if gap["kind"] == "table":
        return f"column {gap['column']!r}, row {gap['row']}" if "column" in gap else "its form"
    if gap["kind"] == "json":
        return str(gap["path"])
    if gap["kind"] in ("text", "bytes"):
        return f"line {gap['line']}" if "line" in gap else f"byte {gap['byte']}"
    return "the output" if gap["kind"] == "presence" else "the task"


def change(what: Mapping[str, Any]) -> str:
    """Which place, and how it changed."""
    place = _place_of(what)
    if what["how"] == "added":
        return f"{place}: {what['new']}, where there was nothing"
    if what["how"] == "gone":
        return f"{place} is gone; it was {what['old']}"
    if what["kind"] == "random state":  # its numbers say nothing
        return f"{place} was drawn from, or seeded"
    part = next((part for part in what["parts"] if part[0]), None) or next(iter(what["parts"]), None)
    if part is not None and part[0]:
        return f"{place}{part[0]}: {part[1]} became {part[2]}"
    old, new = (part[1], part[2]) if part is not None else (what["old"], what["new"])
    return f"{place}: {old} became {new}" if old != new else f"{place} has another content"


def _place_of(what: Mapping[str, Any]) -> str:
    name = str(what["name"])
    if what["symbol"] or what["section"]:
        name = f"{what['symbol']} ({what['section']})" if what["symbol"] else what["section"]
    says_kind = name.startswith((f"the {what['kind']}", str(what["kind"])))  # as of the working directory
    return name if says_kind else f"{what['kind']} {name}"


def lines(what: Mapping[str, Any]) -> list[str]:
    """Where the change is made, the bundle's line first where it is one of a dependency's, as far as it is known."""
    told = what["line"]
    if not (told and told["line"]):
        return []
    caller = told.get("called_from")
    return [_line(caller), f"by {_line(told)}"] if caller and caller["line"] else [_line(told)]


def _line(told: Mapping[str, Any]) -> str:
    return f"{told['file']}:{told['line']} in {told['function']}: {told['text']}"
