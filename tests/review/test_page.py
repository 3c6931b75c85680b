"""The page of a review in a real browser: it asks for nothing, logs nothing, and runs nothing of a bundle's."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelops.review.facts import FILES, KERNEL, Facts
from modelops.review.findings import find
from modelops.review.page import render
from modelops.review.report import Phase, against, make_report

HOSTILE = "\"'><script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }}\x1b[2J"


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


def test_the_same_report_gives_the_same_page() -> None:
    assert render(report()) == render(report())


def test_what_is_new_against_an_older_one_is_on_the_page() -> None:
    new = report()
    old = {**new, "facts": new["facts"][:1], "findings": []}
    new["against"] = against(new, json.loads(json.dumps(old)))
    assert len(new["against"]["new"]) == 2 and not new["against"]["gone"]
    assert "Against the older one" in render(new)


@pytest.fixture
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """A port that all requests of the browser would go to, and what came."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096))

        threading.Thread(target=take, daemon=True).start()
        yield listener.getsockname()[1], asked


def test_a_browser_shows_it_in_silence(tmp_path: Path, proxy: tuple[int, list[bytes]]) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    port, asked = proxy
    page = tmp_path / "review.html"
    page.write_text(render(report()), encoding="utf-8")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions"]
    command = [chromium, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--proxy-server=127.0.0.1:{port}", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<title>Review of" in done.stdout and "<title>owned" not in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert not [line for line in asked if b"evil" in line], asked
    assert 'href="#fact-' in done.stdout and 'id="fact-0"' in done.stdout
