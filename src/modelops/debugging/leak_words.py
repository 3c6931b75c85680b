"""What a leak report says, in sentences: shared by the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

VERDICTS = {
    "leak": "Tasks that share a process change one another's results.",
    "no leak": "No task changes another's result.",
    "nondeterministic": "No task changes another's result; some give other results each time by themselves.",
    "could not tell": "It could not be told whether tasks change one another's results.",
}
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
    name = what["name"]
    if what["symbol"] or what["section"]:
        name = f"{what['symbol']} ({what['section']})" if what["symbol"] else what["section"]
    if what["how"] == "added":
        return f"{what['kind']} {name}: {what['new']}, where there was nothing"
    if what["how"] == "gone":
        return f"{what['kind']} {name} is gone; it was {what['old']}"
    part = next((part for part in what["parts"] if part[0]), None) or next(iter(what["parts"]), None)
    if part is not None and part[0]:
        return f"{what['kind']} {name}{part[0]}: {part[1]} became {part[2]}"
    old, new = (part[1], part[2]) if part is not None else (what["old"], what["new"])
    return f"{what['kind']} {name}: {old} became {new}"


def line(what: Mapping[str, Any]) -> str:
    """Where the change is made, or nothing."""
    told = what["line"]
    return f"{told['file']}:{told['line']} in {told['function']}: {told['text']}" if told and told["line"] else ""


def known(leak: Mapping[str, Any]) -> str:
    """How the cause is known."""
    if leak["causes"]:
        return "with the old value put back, the result is the cold one"
    if leak["imports"]:
        return "importing it before the task is enough"
    return "not tested, or putting them back changes nothing"
