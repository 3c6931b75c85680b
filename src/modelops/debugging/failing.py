"""The calls of a task that failed, as the trace of its sandbox tells them: the kernel's telling, not the code's."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from modelops.review.behaviour import Behaviour
from modelops.review.facts import Facts
from modelops.review.strace import Event, Reader, lines_of

LAST = 30  # distinct failing calls that are told
# Where every program looks in vain as it starts: the loader's variants, locales, and compiled modules.
LOOKS = re.compile(
    r'/glibc-hwcaps/|/tls/|/x86_64/lib[^/"]*"|ld\.so\.preload|/usr/(lib|share)/locale/|/inputrc"|/\.inputrc"'
    r'|\._pth"|/pybuilddir\.txt"|/__pycache__/'
)
# Answers that say "not yet" and "again", not that something was wrong.
PASSING = {"EAGAIN", "EINTR", "EINPROGRESS", "ECHILD"}


class FailingCall(NamedTuple):
    """One call with its arguments as strace writes them, and the errno; `times` of it, the last at `seconds`.

    Seconds are since the interpreter began, `process` is the program that called.
    """

    seconds: float
    process: str
    name: str
    arguments: str
    error: str
    times: int


def failing_calls(folder: Path, last: int = LAST) -> list[FailingCall]:
    """The last distinct failing calls of the task whose traces are in `folder`, in the order of their last times."""
    kept: dict[tuple[str, str, str, str], FailingCall] = {}
    behaviour = Behaviour(Facts(), "task", ())

    def noted(events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            yield event
            process = behaviour.processes.get(event.pid)
            if process is None or behaviour.begun is None or not is_failure(event):
                continue
            key = (process.program, event.name, event.arguments, event.error)
            before = kept.pop(key, None)
            seconds = round(event.time - behaviour.begun, 3)
            kept[key] = FailingCall(seconds, *key, before.times + 1 if before else 1)
            if len(kept) > last:
                del kept[next(iter(kept))]

    for path in sorted(folder.glob("*-execute.strace")):
        with path.open("rb") as file:
            behaviour.read(noted(Reader().events(lines_of(file))))
    return list(kept.values())


def is_failure(event: Event) -> bool:
    """Whether the kernel said no. That a path is no symbolic link, and an earlier try to begin, are no failures."""
    if event.kind != "call" or not event.error or event.error in PASSING or event.error.startswith("ERESTART"):
        return False
    if event.error == "ENOENT" and LOOKS.search(event.arguments):
        return False
    return not (event.name in ("readlink", "readlinkat") and event.error == "EINVAL")
