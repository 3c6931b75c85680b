"""The leak report on a terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from modelops.debugging import leak_words as words
from modelops.debugging.leak_report import Report

from .terminal import plain, seconds

_STYLES = {
    "leak": "bold red",
    "no leak": "bold green",
    "nondeterministic": "bold yellow",
    "could not tell": "bold yellow",
}
_SHOWN = 8


def show_leaks(console: Console, report: Report) -> None:
    """Which tasks, how they differ, what caused it, and which line."""
    console.print(Text(words.VERDICTS[report["verdict"]], _STYLES.get(report["verdict"], "bold yellow")))
    for problem in report["problems"]:
        console.print(plain(problem, "yellow"))
    inputs = {entry["number"]: words.task(entry["task"]) for entry in report["tasks"]}
    for leak in report["leaks"]:
        _show_leak(console, leak, inputs)
    for entry in report["fork"]:
        for gap in entry["differences"]:
            text = f"task {entry['task']} is not as cold in a fork of the warm server: {words.difference(gap)}"
            console.print(plain(text, "red"))
    for sentence in words.unexplained(report):
        console.print(plain(sentence, "yellow"))
    _show_unstable(console, report)
    console.print()
    run = report["run"]
    told = f"{len(report['tasks'])} tasks, {run['runs']} runs, {seconds(run['seconds'])}"
    console.print(plain(f"{told}; names, values and lines are what the process told of itself", "dim"))


def _show_leak(console: Console, leak: Report, inputs: Mapping[int, str]) -> None:
    verb = "changes" if len(leak["polluters"]) == 1 else "together change"
    console.print()
    console.print(plain(f"{words.numbers(leak['polluters'])} {verb} {words.numbers(leak['victims'])}", "bold"))
    for number in [*leak["polluters"][:_SHOWN], leak["examined"]]:
        _line(console, f"task {number}: {inputs[number]}", style="dim")
    for gap in leak["differences"]:
        _line(console, f"task {leak['examined']}, {words.difference(gap)}")
    if leak["causes"]:
        console.print(Text("  cause: ", "bold red") + Text(words.KNOWN["causes"], "dim"))
        for cause in leak["causes"]:
            _line(console, words.change(cause), indent=4)
            for line in words.lines(cause):
                _line(console, line, indent=6, style="cyan")
    if leak["imports"]:
        console.print(Text("  cause: ", "bold red") + Text(words.KNOWN["imports"], "dim"))
        _line(console, f"importing {', '.join(leak['imports'])}", indent=4)
    if leak["suspects"]:
        console.print(Text("  suspects: ", "bold yellow") + Text(words.KNOWN["suspects"], "dim"))
        for suspect in leak["suspects"][:_SHOWN]:
            _line(console, words.change(suspect), indent=4)
        more = len(leak["suspects"]) + leak["suspects_left_out"] - _SHOWN
        if more > 0:
            _line(console, f"and {more} more (--json has them)", indent=4, style="dim")
    if leak["note"]:
        _line(console, leak["note"], style="yellow")


def _show_unstable(console: Console, report: Report) -> None:
    failed = [entry for entry in report["tasks"] if entry["failure"] and entry["verdict"] != "unknown"]
    if failed:
        kinds = ", ".join(sorted({entry["failure"] for entry in failed}))
        console.print()
        console.print(
            plain(f"{words.numbers([entry['number'] for entry in failed])}: no result cold ({kinds})", "yellow")
        )
        _line(console, f"task {failed[0]['number']}: {failed[0]['error']}")
    for verdict, text in (
        ("nondeterministic", "other results in each cold run, so by itself no leak"),
        (
            "hash seed",
            "other results with another PYTHONHASHSEED: the order of a set is in the output",
        ),
        ("unknown", "it could not be run"),
    ):
        found = [entry for entry in report["tasks"] if entry["verdict"] == verdict]
        if not found:
            continue
        console.print()
        console.print(plain(f"{words.numbers([entry['number'] for entry in found])}: {text}", "yellow"))
        for gap in found[0]["differences"]:
            alone = "" if gap["by"] == verdict else f" (by the {gap['by']} alone)"
            _line(console, f"task {found[0]['number']}, {words.difference(gap)}{alone}")
        for name in found[0]["unseeded"]:
            _line(console, f"nothing seeds {words.GENERATORS[name]}; seeded, the result is the same each time")


def _line(console: Console, text: str, indent: int = 2, style: str = "") -> None:
    console.print(plain(" " * indent + text, style))
