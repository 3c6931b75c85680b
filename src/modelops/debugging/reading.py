"""Reads what a sandbox sent, in a process of its own: a hostile file may crash or stall whoever reads it.

`python -m modelops.debugging.reading KIND`: a line of JSON in, a line of JSON out, with what was found or an error.
"""

import importlib
import json
import resource
import subprocess
import sys
from typing import Any

READERS = {
    "symbols": ("symbols", "name_ranges"),
    "table": ("tables", "describe_table"),
    "compare": ("tables", "compare_tables"),
}
SECONDS = 30.0
MEMORY = 4 << 30  # bytes of data, of which an allocator reserves more than it uses


class Unreadable(Exception):
    """The data can't be read, or not within the limits."""


def read_apart(kind: str, request: dict[str, Any]) -> Any:
    """What the reader of that kind finds, see READERS; Unreadable where it finds nothing."""
    command = [sys.executable, "-P", "-m", "modelops.debugging.reading", kind]
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, timeout=SECONDS)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise Unreadable(f"it took more than {SECONDS:g} seconds") from None
    except ValueError:
        words = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise Unreadable(f"the reader ended with status {done.returncode}: {words[:200]}") from None
    if "error" in answer:
        raise Unreadable(answer["error"])
    return answer["found"]


def main(kind: str) -> None:
    """The process apart."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(2 * SECONDS), int(2 * SECONDS)))
    module, function = READERS[kind]
    answer: dict[str, Any]
    try:
        read = getattr(importlib.import_module(f"modelops.debugging.{module}"), function)
        answer = {"found": read(**json.load(sys.stdin))}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
