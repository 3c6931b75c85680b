"""The page of a review in a real browser: it asks for nothing, logs nothing, and runs nothing of a bundle's."""

import json
from pathlib import Path
from typing import Any

from browser import page_as_shown

from modelops.review.facts import FILES, KERNEL, Facts
from modelops.review.findings import find
from modelops.review.page import render
from modelops.review.report import Phase, against, make_report

HOSTILE = (
    "\"'><script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }}\x1b[2J\u202e"
)


def report() -> dict[str, Any]:
    """A report in which everything that a bundle may choose tries to be more than text."""
    facts = Facts()
    facts.add("dns", "task", KERNEL, {"name": HOSTILE, "server": "127.0.0.1:53"}, 0.5, 1, HOSTILE)
    facts.add("file_write", "task", KERNEL, {"path": f"/tmp/{HOSTILE}", "action": "write", "answer": "ok"}, 1.5, 2)
    facts.add("unusual_file", "bundle", FILES, {"path": HOSTILE, "what": "native code"})
    processes = [
        {"number": 1, "parent": None, "program": HOSTILE, "arguments": [HOSTILE],
         "started": 0.0, "ended": 2.0, "outcome": ""},
        {"number": 2, "parent": 1, "program": "sh", "arguments": [], "started": 1.0, "ended": None, "outcome": HOSTILE},
    ]  # fmt: skip
    samples = [
        {"seconds": t / 10, "memory_bytes": t << 20, "cpu_seconds": t / 20, "processes": 2} for t in range(1, 21)
    ]
    run = {"made": "now", "seconds": 1.0, "profile": HOSTILE, "python": "3.11", "task": {"entrypoint": HOSTILE}}
    bundle = {"digest": "sha256:0", "project": HOSTILE, "version": HOSTILE, "entry_points": [HOSTILE]}
    policy = {"toml": HOSTILE, "takes_away": [HOSTILE]}
    return make_report(bundle, [Phase("task", "done", processes, samples)], facts, find(facts.seen), policy, run)


def test_nothing_of_a_bundle_is_markup() -> None:
    page = render(report())
    assert (
        "<script>document" not in page and "<img" not in page and "49" not in page.split("</style>")[1].split("<h2")[0]
    )
    assert page.count("<script>") == 1 and "http://evil.example" in page  # as text
    assert "default-src &#39;none&#39;" in page and "unsafe" not in page
    assert "\x1b" not in page and "\u202e" not in page and "\\u202e" in page


def test_the_same_report_gives_the_same_page() -> None:
    assert render(report()) == render(report())


def test_what_is_new_against_an_older_one_is_on_the_page() -> None:
    new = report()
    old = {**new, "facts": new["facts"][:1], "findings": []}
    new["against"] = against(new, json.loads(json.dumps(old)))
    assert len(new["against"]["new"]) == 2 and not new["against"]["gone"]
    assert "Against the older one" in render(new)


def test_a_browser_shows_it_in_silence(tmp_path: Path) -> None:
    shown = page_as_shown(render(report()), tmp_path)
    assert "<title>Review of" in shown and "<title>owned" not in shown
    assert 'href="#fact-' in shown and 'id="fact-0"' in shown
