"""Runs in the sandbox: one task under Python's debugger, where it raises, at breakpoints, or when it takes too long.

The request: `task`; `script`, lines for the debugger, or null for the terminal; `breaks`, each a module or file and a
line; `stop_after`, seconds until the task is stopped where it stands, or null; `mode`, "debugger", "shell" or "native".
What the debugger printed comes as `transcript`, of which the bundle can forge all. A crash prints the stacks of all
threads on standard error.
"""

import bdb
import contextlib
import faulthandler
import fcntl
import importlib.util
import io
import json
import os
import pdb
import signal
import subprocess
import sys
import termios
import threading
import traceback
from typing import Any

GRACE = 3.0  # seconds from the stop to the stacks of native code that does not heed it
GDB = "/usr/bin/gdb"
RUN_TASK = """
import faulthandler, json, runpy, sys
faulthandler.enable()
child = runpy.run_path({child!r}, run_name="child")
if "/bundle" not in sys.path:
    sys.path.insert(0, "/bundle")
class Printed:
    def send(self, kind, name="", body=b""):
        if kind == child["OUTPUT"]:
            print("output", repr(name) + ":", len(body), "bytes,", body[:200])
child["run_task_code"]({{"task": json.load(open("/tmp/task.json")), "wire": {wire!r}}}, Printed())
"""


class Stopped(Exception):
    """The task was stopped where it stood."""


def main(request: dict[str, Any], pipe: Any, child: Any) -> None:
    """The instrument: see above."""
    wanted = request["task"]
    faulthandler.enable()
    if wanted["mode"] == "debugger":
        debug(request, pipe, child)
        pipe.send(child.DONE)
        return
    write_task(wanted["task"], request["wire"], child)
    if wanted["mode"] == "shell":
        take_terminal(request)
        path = f"/tmp/bin:{os.environ.get('PATH', '')}"
        print("The task is in $TASK; run-task runs it, run-task -m pdb under the debugger.", flush=True)
        subprocess.call(["/bin/sh"], env={**os.environ, "PATH": path, "TASK": "/tmp/task.json", "PS1": "sandbox$ "})
    else:
        pipe.send(child.OUTPUT, "transcript", native(wanted["stop_after"]))
    pipe.send(child.DONE)


def debug(request: dict[str, Any], pipe: Any, child: Any) -> None:
    """Run the task under pdb, and say at the end what it printed."""
    wanted, printed = request["task"], io.StringIO()
    script = wanted["script"]
    if script is None:
        take_terminal(request)
        debugger = pdb.Pdb(readrc=False, nosigint=True)  # Ctrl-C raises, and stands where the task is
    else:
        debugger = pdb.Pdb(stdin=io.StringIO("\n".join([*script, "quit", ""])), stdout=printed, readrc=False)
        debugger.use_rawinput = False
        debugger.prompt = ""
    say = printer(debugger.stdout)
    sink = Outputs(child)
    try:
        with contextlib.redirect_stdout(debugger.stdout), stopping(wanted["stop_after"]):
            run(debugger, request, child, sink, say)
    except bdb.BdbQuit:
        say("the debugger left before the task had ended")
    except child.ChildError as error:
        if error.__traceback__.tb_next.tb_next is None:  # of a breakpoint, and not of the task
            raise
        stand(debugger, error, say)
    except BaseException as error:
        stand(debugger, error, say)
    for name, size in sink.sizes.items():
        say(f"the output {name!r} has {size} bytes")
    pipe.send(child.OUTPUT, "transcript", printed.getvalue().encode("utf-8", "replace"))


def run(debugger: pdb.Pdb, request: dict[str, Any], child: Any, sink: Any, say: Any) -> None:
    """Run the task to its end, or to a breakpoint."""
    wanted = request["task"]
    call = {"task": wanted["task"], "wire": request["wire"]}
    for place, line in wanted["breaks"]:
        file = find_file(place)
        problem = debugger.set_break(file, line) if file else f"there is no module {place!r}"
        if problem:
            raise child.ChildError("entrypoint_not_found", f"no breakpoint at {place}:{line}: {problem}")
        say(f"breakpoint at {place}:{line}")
    if not wanted["breaks"]:
        child.run_task_code(call, sink)
    else:
        debugger.rcLines.append("continue")  # past the first line, at which a debugger always stops
        debugger.runcall(child.run_task_code, call, sink)
    say("the task ended without an error" if sink.is_done else "the debugger left before the task had ended")


def find_file(place: str) -> str:
    """The file of a module, or of a path in the bundle: the one that runs, which may be installed. "" where none is."""
    parts = place.removesuffix(".py").split("/" if place.endswith(".py") else ".")
    for start in range(len(parts)):
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(".".join(parts[start:]))
            if spec is not None and spec.origin and (place.endswith(".py") or start == 0):
                return spec.origin
    if place.endswith(".py"):
        return os.path.join("/bundle", place)
    return ""


def stand(debugger: pdb.Pdb, error: BaseException, say: Any) -> None:
    """Post mortem: in the frame that raised."""
    say("".join(traceback.format_exception_only(type(error), error)).rstrip())
    debugger.reset()
    with contextlib.suppress(SystemExit):
        debugger.interaction(None, where_it_stood(error))


def where_it_stood(error: BaseException) -> Any:
    """The traceback; of a task that was stopped, less the handler of the signal that stopped it."""
    steps = []
    step = error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    if isinstance(error, Stopped) and len(steps) > 1:
        steps[-2].tb_next = None
    return error.__traceback__


@contextlib.contextmanager
def stopping(seconds: "float | None") -> Any:
    """Raise Stopped in the main thread after that time; native code that does not heed it ends with all stacks."""
    if not seconds:
        yield
        return

    def stop(*_: Any) -> None:
        raise Stopped(f"the task was stopped after {seconds:g} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


class Outputs:
    """A result pipe that keeps the sizes of the outputs, and whether they are all."""

    def __init__(self, child: Any) -> None:
        self.child = child
        self.sizes: dict[str, int] = {}
        self.is_done = False

    def send(self, kind: bytes, name: str = "", body: bytes = b"") -> None:
        """As the child's own pipe."""
        if kind == self.child.OUTPUT:
            self.sizes[name] = len(body)
        self.is_done = self.is_done or kind == self.child.DONE


def printer(stream: Any) -> Any:
    """`print` to that stream."""
    return lambda text: print(text, file=stream, flush=True)


def take_terminal(request: dict[str, Any]) -> None:
    """Make the terminal standard input, output and error; its keys make signals here, unless a session has it. Where
    native code heeds no Ctrl-C, Ctrl-\\ ends it."""
    for fd in (0, 1, 2):
        os.dup2(request["descriptors"]["terminal"], fd)
    os.setsid()
    with contextlib.suppress(OSError):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    faulthandler.register(signal.SIGQUIT, chain=True)


def write_task(task: dict[str, Any], wire: str, child: Any) -> None:
    """Write the task, a program that runs it, and a command for that."""
    os.makedirs("/tmp/bin", exist_ok=True)
    with open("/tmp/task.json", "w", encoding="utf-8") as file:
        json.dump(task, file, indent=1)
    with open("/tmp/bin/run_task.py", "w", encoding="utf-8") as file:
        file.write(RUN_TASK.format(child=child.__file__, wire=wire))
    with open("/tmp/bin/run-task", "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\nexec {sys.executable} -s "$@" /tmp/bin/run_task.py\n')
    os.chmod("/tmp/bin/run-task", 0o755)


def native(stop_after: "float | None") -> bytes:
    """Run the task under gdb, and return what it printed: native stacks, then those of Python."""
    if not os.path.exists(GDB):
        return b"gdb is not on this host, or the profile does not show /usr/bin; use --profile debug\n"
    commands = [
        "set confirm off",
        "set pagination off",
        "set print thread-events off",
        "set print raw-frame-arguments on",  # the interpreter's helpers would print whole dicts into each line
        "run",
        "bt 60",
        "py-bt",
        "continue",
    ]
    arguments = [part for command in commands for part in ("-ex", command)]
    # The interpreter's own helpers for gdb may be loaded: this is inside the sandbox.
    command = [
        GDB,
        "-nx",
        "-batch",
        "-iex",
        "set auto-load safe-path /",
        *arguments,
        "--args",
        sys.executable,
        "-s",
        "/tmp/bin/run_task.py",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    timer = threading.Timer(stop_after or 0, process.send_signal, [signal.SIGINT]) if stop_after else None
    if timer:
        timer.start()
    printed = process.communicate()[0]
    if timer:
        timer.cancel()
    return bytes(printed)
