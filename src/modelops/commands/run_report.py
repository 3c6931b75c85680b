"""What `modelops run` shows: phases as they go, then the result, or the failure with its place in the bundle."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelops.debugging.frames import is_own_file
from modelops.debugging.kinds import JSON, TABLES, TEXT, Kind, kind_of
from modelops.debugging.reading import Unreadable, read_apart
from modelops.debugging.tasks import Task, is_aggregation
from modelops.debugging.workbench import Outcome, Output
from modelops.printable import printable

from .terminal import amount, plain, size

_WORDS = {"fetch": "fetching dependencies", "build": "building", "compile": "installing", "execute": "running the task"}
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line \d+')
_SHOWN_TEXT = 300


class Phases:
    """Says on the terminal what the runner does just now; elsewhere a line for each phase."""

    def __init__(self, console: Console) -> None:
        self._console, self._phase = console, ""
        self._status = console.status("preparing") if console.is_terminal else None

    def log(self, line: bytes) -> None:
        """Take one line of the runner's log."""
        text = line.decode("utf-8", "replace").rstrip()
        if text.startswith("phase: "):
            phase = text.removeprefix("phase: ")
            if phase == self._phase:
                return
            self._phase = phase
            if self._status:
                self._status.update(_WORDS.get(phase, phase))
            else:
                self._console.print(plain(_WORDS.get(phase, phase), "dim"))
        else:
            self._console.print(plain(text, "dim"))

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._status:
            self._status.stop()


def show_result(console: Console, outcome: Outcome, written: Mapping[str, Path]) -> None:
    """Outputs, or an aggregation's result, and the metrics."""
    if "loss" in outcome.body:
        body = {name: value for name, value in outcome.body.items() if name != "metrics"}
        console.print(plain(json.dumps(body, indent=2)))
    else:
        table = Table("output", "kind", "size", "BLAKE2b-256", *(["file"] if written else []), box=None, pad_edge=False)
        for column in table.columns[1:4]:
            column.no_wrap = True
        for name, output in outcome.outputs.items():
            file = [plain(written[name])] if name in written else []
            table.add_row(plain(name, "bold"), kind_of(output).name, size(output.size), output.checksum[:16], *file)
        console.print(table)
        for name, output in outcome.outputs.items():
            _show_content(console, name, output)
    _show_metrics(console, outcome.metrics)


def _show_content(console: Console, name: str, output: Output) -> None:
    kind = kind_of(output)
    if kind in TABLES:
        console.print()
        try:
            _show_table(console, name, read_table(output, kind))
        except Unreadable as error:
            console.print(plain(f"{name}: it begins as {kind.name} and can't be read: {error}", "yellow"))
    elif kind in (JSON, TEXT):
        text = output.read()[: 4 * _SHOWN_TEXT].decode("utf-8", "replace")[:_SHOWN_TEXT].rstrip()
        more = ".." if output.size > len(text.encode()) + 1 else ""
        console.print()
        if "\n" in text:
            console.print(plain(f"{name}:", "bold"))
            console.print(Padding(plain(text + more), (0, 0, 0, 2)))
        else:
            console.print(plain(f"{name}: ", "bold") + plain(text + more))


def read_table(output: Output, kind: Kind) -> dict[str, Any]:
    """What `tables.describe_table` finds in an output; Unreadable where it finds nothing."""
    with output.as_file() as path:
        return dict(read_apart("table", {"path": str(path), "suffix": kind.suffix}))


def _show_table(console: Console, name: str, found: Mapping[str, Any]) -> None:
    columns = found["columns"]
    console.print(plain(name, "bold") + Text(f": {found['rows']} rows, {len(columns)} columns", "dim"))
    shown = columns[: max(1, min(len(columns), console.width // 12))]
    table = Table(box=None, pad_edge=False)
    for column, dtype in shown:
        table.add_column(plain(f"{column}\n{dtype}"))
    for row in found["head"]:
        table.add_row(*(plain(cell) for cell in row[: len(shown)]))
    if found["rows"] > len(found["head"]):
        table.add_row(*[".."] * len(shown))
    console.print(Padding(table, (0, 0, 0, 2)))
    if len(columns) > len(shown):
        rest = ", ".join(f"{column}: {dtype}" for column, dtype in columns[len(shown) :])
        console.print(Padding(plain(f"and {rest}", "dim"), (0, 0, 0, 2)))


def _show_metrics(console: Console, metrics: Mapping[str, float]) -> None:
    shown = [f"{_spoken(name)} {amount(name, value)}" for name, value in metrics.items() if value]
    if shown:
        console.print()
        console.print(Text(", ".join(shown), "dim"))


def _spoken(name: str) -> str:
    return name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " ")


def show_failure(console: Console, failure: Mapping[str, Any], bundle: Path, command: str) -> None:
    """What went wrong, what to do, where in the bundle, and how to stand there."""
    console.print(Text("failed ", "bold red") + plain(f"{failure.get('phase')}: {failure.get('type')}", "bold"))
    console.print(plain(failure.get("error", "")))
    for name, title in (("hint", "hint"), ("limit", "limit")):
        if failure.get(name):
            value = failure[name]
            words = value if isinstance(value, str) else ", ".join(f"{key} {item}" for key, item in value.items())
            console.print(Text(f"{title}: ", "bold") + plain(words))
    if failure.get("traceback"):
        console.print()
        console.print(marked_traceback(str(failure["traceback"]), bundle))
    if failure.get("stderr"):
        console.print()
        console.print(Text("last on standard error:", "dim"))
        console.print(plain(str(failure["stderr"])[-4000:].rstrip(), "dim"))
    _show_metrics(console, failure.get("metrics") or {})
    if command and failure.get("phase") in ("execute", "result"):
        console.print()
        console.print(Text("to stand there: ", "bold") + plain(command))


def marked_traceback(text: str, bundle: Path) -> Text:
    """The traceback with `>` before the bundle's own frames, which are bright; all else is dim."""
    marked, own = Text(), False
    for line in printable(text.rstrip()).splitlines():
        frame = _FRAME.match(line)
        if frame:
            own = is_own_file(frame["file"], bundle)
        elif not line.startswith(" "):
            own = False
        style = "" if own or not line.startswith(" ") else "dim"
        marked.append(("> " if own and frame else "  ") + line + "\n", style)
    marked.rstrip()
    return marked


def debug_command(reference: str, task: Task, failure: Mapping[str, Any]) -> str:
    """The command line that runs the same task under the debugger, under gdb where a signal ended it."""
    words = ["modelops", "debug", reference]
    if failure.get("type") == "crashed":
        words.append("--native")
    if is_aggregation(task):
        return shlex.join([*words, "--task", "FILE"])
    words += ["--entrypoint", task["entrypoint"], "--params", json.dumps(task["params"]), "--seed", str(task["seed"])]
    return shlex.join(words)
