"""Runs in the sandbox: several tasks in one process, as a plain warm worker does, and a look at what they leave there.

The last task is the victim; what is looked at, put back or watched is what the tasks before it change. The request:

    tasks      the tasks, in their order
    preload    modules to import before the first look, so that importing them is no change
    look       compare the state of the process before the first task and before the victim: true, or the keys of the
               places that are compared
    restore    keys of places whose old value is put back before the victim
    trials     find the fewest changes that, put back, make outputs as cold, in forks: `portions` of keys, the likeliest
               first; `left`, the outputs that differ; `cold`, the victim's fingerprint; `unstable`, outputs that are
               not compared; `seconds` that it may take
    each       put it back before every task but the first
    watch      keys of places for which the line is sought that changes them
    seed       modules whose global generator is seeded before the victim

It sends a frame `task.N` for each task (a length, JSON, outputs), `changes`, `cures` and `lines` (JSON), and
`library.N` for the native libraries that changed. The bundle shares this process: it can forge all of it.
"""

import importlib
import os
import sys
import time
from contextlib import suppress
from json import dumps
from typing import Any

from .look import Look, likelihood, look_at, native_changes, python_changes, thread_change
from .process import Process, put_back, save
from .tasks import frame, run
from .trials import Forks
from .watcher import Watcher

PATIENCE = 10.0  # seconds, and three times those of the earlier tasks, that a victim may take in a fork
CHANGES, MODULES, LIBRARIES, LIBRARY_BYTES = 1000, 5000, 16, 64 << 20  # that are sent


def main(request: dict[str, Any], pipe: Any, child: Any) -> None:
    """The instrument: see above."""
    wanted, wire = request["task"], request["wire"]
    process = Process(child)
    prepare(wanted.get("preload", ()), wire, process, child)
    keys, ask = wanted.get("look"), wanted.get("trials")
    before = look_at(process, keys) if keys else None
    saved = save([key for part in ask["portions"] for key in part] if ask else wanted.get("restore", ()), process)
    watcher = Watcher(process, wanted["watch"]) if wanted.get("watch") else None
    known = set(sys.modules)
    *earlier, victim = wanted["tasks"]
    begun = time.monotonic()
    for number, task in enumerate(earlier):
        if number and wanted.get("each"):
            put_back(saved, process)
            saved = save(saved, process)
        send_task(number, run(task, wire, child), known, pipe, child)
    if watcher:
        send_json(pipe, child, "lines", watcher.stop())
    if before is not None:
        report_changes(before, look_at(process, keys), pipe, child)
    if ask:
        forks = Forks(ask, saved, process, PATIENCE + 3 * (time.monotonic() - begun))
        send_json(pipe, child, "cures", forks.search(victim, wire, child))
    else:
        put_back(saved, process)
    seed_generators(wanted.get("seed", ()))
    send_task(len(earlier), run(victim, wire, child), known, pipe, child)
    pipe.send(child.DONE)


def prepare(preload: "list[str]", wire: str, process: Process, child: Any) -> None:
    """Import what is not to be seen as a change."""
    if wire:
        with suppress(BaseException):  # each task will meet it again, and report it
            child.load_object(wire)
    for name in preload:
        with suppress(BaseException):
            importlib.import_module(name)
    if process.load_libraries():  # one of them may draw from the C library's generator
        with suppress(Exception):
            importlib.import_module("ctypes")


def send_task(
    number: int, outcome: "tuple[str | None, dict[str, bytes]]", known: "set[str]", pipe: Any, child: Any
) -> None:
    """A task's outcome, with the modules that were imported since."""
    modules = sorted(set(sys.modules) - known)[:MODULES]
    pipe.send(child.OUTPUT, f"task.{number}", frame(*outcome, modules))


def report_changes(before: Look, after: Look, pipe: Any, child: Any) -> None:
    """Send what differs, the bundle's own first, and the libraries whose data changed."""
    python = python_changes(before, after)
    native = native_changes(before, after)
    started = [thread_change(ident, thread) for ident, thread in after.threads.items() if ident not in before.threads]
    for number, path in enumerate(sorted({change["library"] for change in native})):
        if os.path.getsize(path) <= LIBRARY_BYTES and number < LIBRARIES:
            with open(path, "rb") as file:
                pipe.send(child.OUTPUT, f"library.{number}", file.read())
            for change in native:
                if change["library"] == path:
                    change["file"] = number
    changes = sorted([*started, *python, *native], key=likelihood)
    report = {"changes": changes[:CHANGES], "left_out": max(0, len(changes) - CHANGES)}
    report["complete"] = before.complete and after.complete
    report["native"] = "looked at" if os.access("/proc/self/maps", os.R_OK) else "no /proc in this sandbox"
    send_json(pipe, child, "changes", report)


def send_json(pipe: Any, child: Any, name: str, value: Any) -> None:
    """One frame of JSON."""
    pipe.send(child.OUTPUT, name, dumps(value, default=repr).encode("utf-8", "replace"))


def seed_generators(names: "list[str]") -> None:
    """Seed the global generators of `random` and `numpy.random`, as far as they are asked for."""
    for name in names:
        if name in sys.modules:
            sys.modules[name].seed(0)
