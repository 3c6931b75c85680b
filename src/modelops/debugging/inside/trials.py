"""Old values put back, each time in a fork of the one process in which the polluters have run, and the victim after.

A fork is not in all the process that it came from: it has no thread but one, and shares open files with its siblings.
So first and last the victim runs in one with nothing put back. Where that does not differ from cold as it should, there
is no answer, and each trial needs a process of its own. The cures are tried again in one either way.
"""

import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from json import dump, loads  # bound before a bundle can patch them
from typing import Any

from .causes import NO_RESULT, find_cures
from .fingerprints import unlike
from .places import files
from .process import Process, put_back
from .tasks import fingerprint, run
from .values import MISSING


class Forks:
    """Trials in forks. `ask` holds portions, left, cold, unstable and seconds: see `leaks`."""

    def __init__(self, ask: Mapping[str, Any], saved: Mapping[str, Any], process: Process, patience: float) -> None:
        self.ask, self.saved, self.process = ask, saved, process
        self.deadline, self.patience = time.monotonic() + ask["seconds"], patience
        self.files = [(place, place.get()) for place in files()]
        self.problem = ""

    def search(self, task: dict[str, Any], wire: str, child: Any) -> dict[str, Any]:
        """The cures, or the problem because of which forks can't tell."""
        left = set(self.ask["left"])

        def trial(keys: "list[str]") -> "set[str] | None":
            return None if self.problem else self.fork(keys, lambda: fingerprint(*run(task, wire, child)))

        def control() -> bool:
            return trial([]) == left

        cures = find_cures(self.ask["portions"], left, trial) if control() else []
        if not self.problem and not control():
            self.problem = "the victim does not differ so in a fork"
        return {"problem": self.problem, "cures": [[cure.keys, sorted(cure.outputs)] for cure in cures]}

    def fork(self, keys: "list[str]", run: Any) -> "set[str] | None":
        """The outputs that are not as cold once these are put back; None, and the problem, where it can't be told."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.answer(keys, run, writer)
        os.close(writer)
        try:
            answer = self.read(reader)
        finally:
            os.close(reader)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        try:
            self.put_files_back()
        except (OSError, TypeError) as error:
            self.problem = f"files can't be put back: {error}"
        if self.problem:
            return None
        return set(unlike(self.ask["cold"], loads(answer), self.ask["unstable"])) if answer else set(NO_RESULT)

    def answer(self, keys: "list[str]", run: Any, writer: int) -> None:
        """In the fork: it ends here, whatever happens."""
        try:
            put_back({key: self.saved[key] for key in keys if key in self.saved}, self.process)
            with open(writer, "w", encoding="utf-8", errors="surrogatepass") as file:
                dump(run(), file)
        finally:
            os._exit(0)

    def read(self, reader: int) -> bytes:
        """What the fork says until it ends; nothing, and the problem, where that takes too long."""
        ends, answer = min(self.deadline, time.monotonic() + self.patience), b""
        poll = select.poll()
        poll.register(reader)
        while (rest := ends - time.monotonic()) > 0:
            if poll.poll(rest * 1000):
                part = os.read(reader, 1 << 16)
                if not part:
                    return answer
                answer += part
        self.problem = "a fork did not end in time"
        return b""

    def put_files_back(self) -> None:
        """What lies where a task can write is all that a fork changes for the next one."""
        known = {place.key for place, _ in self.files}
        for place in reversed(files()):  # files before their folders
            if place.key not in known:
                with suppress(FileNotFoundError):
                    place.put(MISSING)
        for place, value in self.files:
            if place.get() != value:
                place.put(value)
