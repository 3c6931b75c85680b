"""Where a run is that takes long: one live line on a terminal, a line a phase in a log, one line of JSON on stdout."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Runner, parse_line
from servers import LocalServer, late, wheel

WIRE = "import one, two\ndef wire(*task):\n    return {'out': one.x + two.x}\n"


@pytest.fixture
def slow_index() -> Iterator[LocalServer]:
    """Each file comes over a second late, so that a run with it is a long one on any machine."""
    with LocalServer() as server:
        for name in ("one", "two"):
            file, data = wheel(name, "1.0", {f"{name}.py": f"x = {name!r}\n"})
            server.add(file, data)
            server.behave(f"/files/{file}", late(1.2, data))
        yield server


def on_terminal(run: Runner, bundle: Path, env: dict[str, str]) -> tuple[bytes, bytes]:
    """Standard output, and what a terminal was sent."""
    terminal, end = os.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(terminal, 1 << 16):
                seen.extend(data)
        except OSError:  # the last holder of the other end is gone
            pass

    process = subprocess.Popen(
        run.command("--bundle-path", str(bundle), "--no-cache"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=end, env=run.environment(env),
    )  # fmt: skip
    os.close(end)
    reader = threading.Thread(target=read)
    reader.start()
    stdout, _ = process.communicate(json.dumps({"entrypoint": "main", "params": {}, "seed": 1}).encode(), timeout=300)
    reader.join()
    os.close(terminal)
    return stdout, bytes(seen)


def test_on_a_terminal_one_line_is_live_and_gone_in_the_end(
    run: Runner, bundle: Callable[..., Path], slow_index: LocalServer
) -> None:
    stdout, seen = on_terminal(run, bundle(WIRE, needs=["one", "two"]), slow_index.environment())
    assert "outputs" in parse_line(stdout)
    live = [part for part in seen.split(b"\r\x1b[K") if re.search(rb"\d+ of \d+ packages, ", part)]
    assert live and all(b"\n" not in part for part in live), seen
    assert any(re.fullmatch(rb"fetch: \d of [23] packages, 0 MiB, \d+ s", part) for part in live), seen
    assert seen.rpartition(live[-1])[2].startswith(b"\r\x1b[K"), seen  # the last one was wiped


def test_a_log_has_a_line_a_phase_and_nothing_that_moves(
    run: Runner, bundle: Callable[..., Path], slow_index: LocalServer
) -> None:
    done = run(bundle(WIRE, needs=["one", "two"]), None, "--no-cache", env=slow_index.environment())
    assert done.outputs["out"] == b"onetwo"
    lines = done.stderr.splitlines()
    assert (
        "\r" not in done.stderr
        and "\x1b" not in done.stderr
        and " packages, " not in done.stderr.partition(": 2 packages, ")[0]
    )
    assert [line for line in lines if line.startswith("phase: ")] == ["phase: fetch", "phase: execute"]
