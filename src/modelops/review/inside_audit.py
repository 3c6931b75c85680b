"""A program for the runner's `--instrument`: import the wire function, run the task, tell what Python did meanwhile.

It runs in the sandbox, in the process of the code that it watches, which can therefore silence or forge it. Its
request's task is `{"task": a task or null}`. Output: `audit.N`, JSON arrays of `{event, what, place, phase}`.
"""

import json
import os
import sys
from typing import Any

WATCHED = {
    "compile", "exec", "ctypes.dlopen", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
    "socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "open", "import", "sys.addaudithook",
    "sys.setprofile", "sys.settrace",
}  # fmt: skip
OWN = ("/venv/", "/bundle", "/usr/", "/runner/", "/proc/self/", "/lib")
MOST, PART, TEXT = 5_000, 200, 2_000  # distinct events, events a part, characters of one


class Recorder:
    """Notes each event once. Sent in parts as they come: the process may end without a word."""

    def __init__(self, pipe: Any, output: bytes, prefixes: "tuple[str, ...]") -> None:
        self.pipe, self.output, self.prefixes = pipe, output, prefixes
        self.phase, self.number, self.inside = "import", 0, False
        self.seen: set[tuple[str, str, str]] = set()
        self.waiting: list[dict[str, str]] = []
        self.process = os.getpid()

    def hook(self, event: str, arguments: "tuple[Any, ...]") -> None:
        if event not in WATCHED or self.inside or os.getpid() != self.process:
            return
        self.inside = True
        try:
            what = self.described(event, arguments)
            if what is not None:
                self.note(event, what, place())
        except Exception:
            pass  # an event that can't be described is none of the task's business
        finally:
            self.inside = False

    def described(self, event: str, arguments: "tuple[Any, ...]") -> "str | None":
        first: Any = arguments[0] if arguments else ""
        if event == "compile":
            source, name = arguments
            named = name if isinstance(name, str) else os.fsdecode(name) if isinstance(name, bytes) else "?"
            if source is None or not named.startswith("<"):
                return None  # a module, from its file
            return source.decode("utf-8", "replace") if isinstance(source, bytes) else str(source)
        if event == "exec":
            return None if not str(first.co_filename).startswith("<") else "code object " + str(first.co_filename)
        if event == "import":
            return str(first).partition(".")[0]
        if event == "open":
            path = os.fsdecode(first) if isinstance(first, (str, bytes)) else None
            return None if path is None or path.startswith((*OWN, *self.prefixes)) else path + " " + str(arguments[1])
        if event == "subprocess.Popen":
            return " ".join(map(str, arguments[1])) if not isinstance(arguments[1], (str, bytes)) else str(arguments[1])
        return " ".join(str(argument) for argument in arguments[:3])

    def note(self, event: str, what: str, place: str) -> None:
        key = (event, what[:TEXT], place)
        if key in self.seen or len(self.seen) >= MOST:
            return
        self.seen.add(key)
        self.waiting.append({"event": event, "what": what[:TEXT], "place": place, "phase": self.phase})
        if len(self.waiting) >= PART:
            self.send()

    def send(self) -> None:
        if self.waiting:
            body = json.dumps(self.waiting).encode("utf-8", "replace")
            self.pipe.send(self.output, "audit." + str(self.number), body)
            self.number, self.waiting = self.number + 1, []


def place() -> str:
    """File and line of the code that caused the event: the nearest frame that is not of importlib or of this file."""
    frame = sys._getframe(2)
    while frame and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith("<frozen")):
        frame = frame.f_back  # type: ignore[assignment]
    return frame.f_code.co_filename + ":" + str(frame.f_lineno) if frame else ""


def main(request: "dict[str, Any]", pipe: Any, child: Any) -> None:
    """Called by the child; see the runner's `instrument`."""
    recorder = Recorder(pipe, child.OUTPUT, (sys.base_prefix, os.path.realpath(sys.base_prefix)))
    sys.addaudithook(recorder.hook)
    try:
        if not request["wire"]:
            raise ValueError("the bundle has no entry point in the group modelops.wire: nothing was imported or run")
        child.load_object(request["wire"])
        recorder.send()
        recorder.phase = "task"
        if request["task"]["task"] is not None:
            child.run_task_code({"task": request["task"]["task"], "wire": request["wire"]}, Quiet(pipe, child))
    finally:
        recorder.inside = True
        recorder.send()
    pipe.send(child.DONE)


class Quiet:
    """The result pipe as the task sees it: its end is not the end, for the rest of the events comes behind it."""

    def __init__(self, pipe: Any, child: Any) -> None:
        self.pipe, self.done = pipe, child.DONE

    def send(self, kind: bytes, name: str = "", body: bytes = b"") -> None:
        if kind != self.done:
            self.pipe.send(kind, name, body)
