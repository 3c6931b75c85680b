"""What the tests measured, as the tables of tests/security/MEASURED.md: a pytest plugin.

A test tells by properties: `family`, `profile` and `account` of an escape probe; `host` and `verdict` of a host
or a condition of one; `fault` and `verdict` of a fault. With `--evidence FILE` the tables go to FILE as Markdown.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pytest

# Fewer where the machine can't have all: PROBE_PROFILES=container in an ordinary container.
PROFILES = tuple((os.environ.get("PROBE_PROFILES") or "default,strict,container,debug").split(","))
# The profiles of the tests are one of those, with a change.
EXTENDS = dict.fromkeys(("small-no-proc", "brief-no-proc"), "container")
EXTENDS |= dict.fromkeys(("local", "small", "brief", "twelve-seconds", "minute"), "default")
EXTENDS |= dict.fromkeys(("init-in-reach", "init-may-stay", "init-open"), "default")
NO_CONTROL: dict[str, str] = {}  # probe to why it can't be shown to succeed with the protection off
CONTROLS_DONE: set[str] = set()
TRIED: list[dict[str, Any]] = []  # one entry for each hostile bundle


class Row(NamedTuple):
    """One test that ran: whether it held, and what it said of itself."""

    test: str
    held: bool
    said: Mapping[str, str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", metavar="FILE", help="write the tables of tests/security/MEASURED.md to FILE")
    parser.addoption("--probe-report", metavar="FILE", help="write each hostile bundle's JSON line to FILE")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests under a profile that is not one of PROFILES."""
    left_out = [item for item in items if profile_of(item) not in (None, *PROFILES)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def profile_of(item: pytest.Item) -> str | None:
    hostile = getattr(item, "callspec", None) and item.callspec.params.get("hostile")  # type: ignore[attr-defined]
    return EXTENDS.get(hostile[1], hostile[1]) if hostile else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker gives what its tests told to the process that writes the tables."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["evidence"] = json.dumps([NO_CONTROL, sorted(CONTROLS_DONE), TRIED])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of xdist: a worker has ended. One that crashed gave nothing; its test has failed."""
    without, done, tried = json.loads(getattr(node, "workeroutput", {}).get("evidence", "[{}, [], []]"))
    NO_CONTROL.update(without)
    CONTROLS_DONE.update(done)
    TRIED.extend(tried)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = list(rows_of(terminalreporter.stats))
    if rows:
        terminalreporter.section("what was tried, and what held")
        terminalreporter.write_line(document(rows))
    if NO_CONTROL:
        terminalreporter.section("probes whose control can't succeed on this host")
        for name, why in sorted(NO_CONTROL.items()):
            terminalreporter.write_line(f"{name}: {why}")
    write(config.getoption("--evidence"), document(rows))
    write(config.getoption("--probe-report"), "".join(json.dumps(entry) + "\n" for entry in TRIED))


def write(path: str | None, text: str) -> None:
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def rows_of(stats: Mapping[str, Iterable[Any]]) -> Iterable[Row]:
    for outcome in ("passed", "failed"):
        for report in stats.get(outcome, ()):
            said = dict(report.user_properties)
            if report.when == "call" and said.keys() & {"family", "host", "fault"}:
                yield Row(report.nodeid, outcome == "passed", said)


def document(rows: list[Row]) -> str:
    """The tables there is something for."""
    parts = [probe_table(rows), *(verdict_table(rows, kind) for kind in ("host", "fault"))]
    return "\n\n".join(part for part in parts if part) + "\n"


def probe_table(rows: list[Row]) -> str:
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    names: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        family = row.said.get("family")
        if family:
            profile = EXTENDS.get(row.said.get("profile", "default"), row.said.get("profile", "default"))
            for column in (profile, "all"):
                counts[family][column][0] += row.held
                counts[family][column][1] += 1
            names[family].add(probe_name(row))
    if not counts:
        return ""
    columns = (*PROFILES, "all")
    lines = [["family", "probes", *columns]]
    for family in sorted(counts):
        cells = [outcome_cell(*counts[family][column]) for column in columns]
        lines.append([family, str(len(names[family])), *cells])
    totals = [[sum(counts[family][column][part] for family in counts) for part in (0, 1)] for column in columns]
    probes = sum(len(found) for found in names.values())
    lines.append(["all", str(probes), *(outcome_cell(*total) for total in totals)])
    note = f"Controls that succeeded with the protection off: {len(CONTROLS_DONE)}; that can't here: {len(NO_CONTROL)}."
    return table(lines, 1) + "\n\n" + note


def outcome_cell(held: int, tried: int) -> str:
    return f"{held:,} of {tried:,}" if tried else "none"


def probe_name(row: Row) -> str:
    """The test without who ran it, and under what."""
    name = row.test
    for kind in ("account", "profile", "mode"):
        name = re.sub(rf"(?<=[\[-]){re.escape(row.said.get(kind, '?'))}(?=[\]-])", "", name)
    return name


def verdict_table(rows: list[Row], kind: str) -> str:
    """One line for each host or fault: what came of it, and for whom."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if kind in row.said:
            name, _, who = row.said[kind].partition(" as ")
            found[name][row.said.get("verdict", "") if row.held else "FAILED"].append(who)
    lines = [[name, "; ".join(outcome(*entry) for entry in outcomes.items())] for name, outcomes in found.items()]
    return table([[kind, "outcome"], *lines], 2) if lines else ""


def outcome(text: str, accounts: list[str]) -> str:
    return f"{text} ({', '.join(accounts)})" if any(accounts) else text


def table(lines: list[list[str]], text_columns: int) -> str:
    """A table in Markdown: the head, the rule, the rest; the first columns are text, the others numbers."""
    head, *rest = lines
    rule = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in [head, rule, *rest])
