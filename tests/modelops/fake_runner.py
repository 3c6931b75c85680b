"""A runner that misbehaves as FAKE_MODE says: what the adapters meet when the real one is broken or killed.

It speaks both ways of the runner, one shot and --serve. The task's `params` say what each task does.
"""

import base64
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def say(body: object) -> None:
    os.write(1, (body if isinstance(body, str) else json.dumps(body)).encode() + b"\n")


def output(data: bytes, **changed: object) -> dict[str, object]:
    checksum = hashlib.blake2b(data, digest_size=32).hexdigest()
    return {"size": len(data), "checksum": checksum, "inline": base64.b64encode(data).decode(), **changed}


def result(task: dict[str, object]) -> dict[str, object]:
    return {
        "task_id": "t" * 64,
        "outputs": {"out": output(str(task.get("seed")).encode())},
        "metrics": {"wall_seconds": 1},
    }


def fatal(type: str, **more: object) -> dict[str, object]:
    return {"_fatal_error": {"code": 8, "phase": "execute", "type": type, "error": "words", "retryable": False, **more}}


def file_of(data: bytes, claim: bytes) -> dict[str, object]:
    entry = output(claim)
    del entry["inline"]
    path = os.path.join(option("--out-dir"), str(entry["checksum"]))
    with open(path, "wb") as file:
        file.write(data)
    return {**entry, "path": path}


def with_output(entry: object) -> dict[str, object]:
    return {"task_id": "t" * 64, "outputs": {"out": entry}, "metrics": {}}


def answer(task: dict[str, Any]) -> object:
    """The answer to one task, or no answer at all."""
    params = task.get("params", {})
    what = params.get("do", "")
    answers: dict[str, Callable[[], object]] = {
        "wrong_checksum": lambda: with_output(output(b"data", checksum="0" * 64)),
        "wrong_size": lambda: with_output(output(b"data", size=5)),
        "not_base64": lambda: with_output(output(b"data", inline="*")),
        "wrong_file": lambda: with_output(file_of(b"x" * 600_000, b"y" * 600_000)),
        "short_file": lambda: with_output(file_of(b"x", b"x" * 600_000)),
        "foreign_path": lambda: with_output({**output(b""), "inline": None, "path": "/etc/passwd"}),
        "missing_file": lambda: with_output(
            {"size": 1, "checksum": "0" * 64, "path": option("--out-dir") + "/" + "0" * 64}
        ),
        "no_outputs": lambda: {"task_id": "t", "outputs": {}, "metrics": {}},
        "no_task_id": lambda: {"outputs": {"out": output(b"")}, "metrics": {}},
        "list": lambda: [1],
        "nan": lambda: '{"task_id": NaN}',
        "two_lines": lambda: "{}\n{}",
        "text": lambda: "hello",
        "fatal": lambda: fatal("some_type", retryable=True, metrics={"wall_seconds": 2.5}),
        "long_fatal": lambda: fatal("long", traceback="\x01" * 200_000, stderr="\x02" * 200_000),
        "bad_fatal": lambda: {"_fatal_error": "words"},
        "env": lambda: with_output(
            output(json.dumps({k: os.environ.get(k) for k in ("FAKE_MODE", "REUSE", "VENVS_DIR")}).encode())
        ),
        "other_id": lambda: {**result(task), "id": "other"},
        "pid": lambda: with_output(output(str(os.getpid()).encode())),
    }
    if what in answers:
        return answers[str(what)]()
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if what == "die_once" and not os.path.exists(params["mark"]):
        open(params["mark"], "w").close()
        os._exit(3)
    if what == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if what == "sleep":
        time.sleep(600)
    return result(task)


def stop(*_: object) -> None:
    say(fatal("killed", phase="host", stderr="tail", metrics={"wall_seconds": 9.0}))
    os._exit(143)


def serve() -> None:
    if os.environ.get("FAKE_MODE") == "refuse":
        say(fatal("no_wire_entry_point"))
        sys.exit(4)
    if os.environ.get("FAKE_MODE") == "mute":
        time.sleep(600)
    if os.environ.get("FAKE_MODE") == "vanish":
        print("gone", file=sys.stderr, flush=True)
        sys.exit(5)
    say({"serving": {}} if os.environ.get("FAKE_MODE") != "odd" else {"hello": 1})
    for line in sys.stdin:
        task = json.loads(line)
        if "cancel" not in task:
            body = answer(task)
            say({**body, "id": body.get("id", task["id"])} if isinstance(body, dict) else body)
    if os.environ.get("FAKE_MODE") == "clinging":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


def main(_: list[str]) -> int:
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    if "--doctor" in sys.argv:
        modes: dict[str, Callable[[], object]] = {
            "mute": lambda: "",
            "sick": lambda: {"doctor": {"ok": False}},
            "refuse": lambda: fatal("host"),
        }
        say(modes.get(os.environ.get("FAKE_MODE", ""), lambda: {"doctor": {"ok": True}})())
    elif "--serve" in sys.argv:
        serve()
    else:
        body = answer(json.load(sys.stdin))
        say(body)
        return int(isinstance(body, dict) and "_fatal_error" in body)
    return 0
