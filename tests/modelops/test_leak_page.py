"""The page of a leak report: everything on it, nothing of a bundle's more than text, and silence in a browser."""

from pathlib import Path
from typing import Any

from browser import page_as_shown

from modelops.debugging.findings import NONDETERMINISTIC, UNKNOWN, Cause, Cold, Findings, Leak
from modelops.debugging.leak_page import leak_page
from modelops.debugging.leak_report import could_not_tell, leak_report
from modelops.debugging.shared import Change
from modelops.debugging.workbench import Outcome

HOSTILE = (
    "\"'><script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }}\x1b[2J\u202e"
)


def report() -> dict[str, Any]:
    """A report with each of its parts, in which everything that a bundle may choose tries to be more than text."""
    gap = {
        "output": HOSTILE,
        "kind": "json",
        "path": f"$.{HOSTILE}",
        "values": ["1", HOSTILE],
        "count": 7,
        "largest": 6,
    }
    parts = ((f"[{HOSTILE}]", "nothing", HOSTILE),)
    content = Change("a", "module attribute", HOSTILE, "content", True, HOSTILE, HOSTILE, parts)
    native = Change("n", "native data", HOSTILE, "content", True, "0", "1", (), HOSTILE, HOSTILE, f"{HOSTILE} .bss+0x8")
    thread = Change("t", "thread", f"the thread {HOSTILE!r}", "added", True, "nothing", HOSTILE)
    gone = Change("g", "environment variable", HOSTILE, "gone", False, HOSTILE, "nothing")
    line = {"file": HOSTILE, "line": 3, "function": HOSTILE, "text": HOSTILE}
    failed = Outcome(failure={"type": HOSTILE, "error": HOSTILE})
    by_seed = {**gap, "by": "hash seed"}
    found = Findings(
        cold=[Cold(Outcome()), Cold(Outcome(), NONDETERMINISTIC, [HOSTILE], [], [by_seed], 1.0, ["random"]),
              Cold(failed), Cold(failed, UNKNOWN)],
        orders={"given": [0, 1, 2], "reverse": [2, 1, 0]},
        differs={"given": [1], "reverse": [], "fork": [2]},
        fork={2: [gap]},
        leaks=[
            Leak([0], 1, [gap], [Cause(content, line), Cause(native)], note=HOSTILE),
            Leak([0, 1], 2, [gap], suspects=[thread, gone] * 30),
            Leak([0], 2, [gap], imports=[HOSTILE]),
        ],
        not_reproduced=[0],
        not_searched=[1],
        problems=[HOSTILE],
    )  # fmt: skip
    tasks = [{"entrypoint": HOSTILE, "params": {HOSTILE: HOSTILE}, "seed": seed} for seed in range(3)]
    return leak_report(found, [*tasks, {"target_entrypoint": HOSTILE}], HOSTILE, Path("/nowhere"), HOSTILE)


def test_nothing_of_a_bundle_is_markup() -> None:
    page = leak_page(report())
    for start in ("<script", "<img"):
        assert start not in page
    assert page.count("<section") == 4 and "&lt;script&gt;" in page and "http://evil.example" in page  # as text
    assert "\x1b" not in page and "\u202e" not in page and r"\u202e" in page
    assert "default-src &#39;none&#39;" in page and "unsafe" not in page and "script-src" not in page


def test_everything_that_was_found_is_on_the_page() -> None:
    page = leak_page(report())
    for words in (
        "Task 1 changes task 2", "Tasks 1, 2 together change task 3", "importing", "and 10 more", "became",
        "where there was nothing", "is gone; it was", "Task 3 is not as cold in a fork", "task 1 differed once",
        "task 2 differs too", "nothing seeds Python&#39;s random module", "nondeterministic",
        "by the hash seed alone", "aggregation by",
    ):  # fmt: skip
        assert words in page, words


def test_a_search_that_could_not_begin_has_a_page() -> None:
    page = leak_page(could_not_tell(HOSTILE, "probe@sha256:0", "default"))
    assert "could not be told" in page and "&lt;script&gt;" in page and "<td" not in page


def test_a_browser_shows_it_in_silence(tmp_path: Path) -> None:
    shown = page_as_shown(leak_page(report()), tmp_path)
    assert "<title>Leaks: " in shown and "<title>owned" not in shown and shown.count("<section") == 4
