"""What strace wrote, as records. Everything in it may be shaped by a hostile process.

strace quotes every string that a traced process gives it (print_quoted_string in its util.c), so a line is a line,
and what looks like syntax inside quotes or angle brackets is none. A line that fits no form is counted, not guessed at.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

LINE_BYTES = 64 * 1024  # a longer line is no line of ours: strace cuts strings
PENDING = 4096  # calls that have begun and not ended, one for each thread at most

HEAD = re.compile(r"(\d{1,10})\s+(\d{1,12}\.\d{1,9}) (.*)", re.DOTALL)
HIDDEN = re.compile(r'"(?:[^"\\]|\\.)*"(?:\.\.\.)?|<[^<>]*>')
CALL = re.compile(r"([a-z0-9_]{1,40})\(")
RESUMED = re.compile(r"<\.\.\. ([a-z0-9_]{1,40}) resumed>")
ENDED = re.compile(r"\)\s+= ")
RESULT = re.compile(r"(?:(-?\d+)|(0x[0-9a-f]+)|\?)(?: (E[A-Z0-9]{1,20}))?")
TOOK = re.compile(r"<(\d{1,9}\.\d{1,9})>$")
FORKED = re.compile(r"/\* (\d+) in strace's PID NS \*/")
EXITED = re.compile(r"\+\+\+ exited with (\d{1,3}) \+\+\+")
KILLED = re.compile(r"\+\+\+ killed by (SIG[A-Z0-9+]{1,12})")
SIGNAL = re.compile(r"--- (SIG[A-Z0-9+]{1,12}) ")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?')
ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-f]{2})|(.))", re.DOTALL)
NAMED = {"n": b"\n", "t": b"\t", "r": b"\r", "f": b"\f", "v": b"\v", '"': b'"', "\\": b"\\"}


@dataclass(slots=True)
class Event:
    """One line. `pid` is a thread as the tracer numbers it, `time` in seconds since the epoch.

    `kind` is `call`, `exit`, `killed` or `signal`; `name` the system call's or the signal's. `result` is the number
    that a call returned (None where it never did) or the exit status, `error` the name of its errno or "".
    `child` is the pid that a fork made, as the tracer numbers it. `seconds` is how long a call took, where it returned.
    """

    pid: int
    time: float
    kind: str
    name: str
    arguments: str = ""
    result: int | None = None
    error: str = ""
    child: int = 0
    seconds: float | None = None


@dataclass
class Counts:
    """What was read, and what could not be."""

    lines: int = 0
    unread: int = 0


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a trace, none of them held beyond LINE_BYTES: of a longer one only its beginning."""
    while line := file.readline(LINE_BYTES + 1):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(LINE_BYTES + 1)


@dataclass
class Reader:
    """Reads the lines of one trace. Holds one line, and one begun call for each thread."""

    counts: Counts = field(default_factory=Counts)
    begun: dict[int, tuple[float, str, str]] = field(default_factory=dict)

    def events(self, lines: Iterable[bytes]) -> Iterator[Event]:
        """The events of `lines` (each with or without its line end), in order of their ends."""
        for line in lines:
            self.counts.lines += 1
            event = self.event(line)
            if event is not None:
                yield event

    def event(self, line: bytes) -> Event | None:
        head = HEAD.fullmatch(line.rstrip(b"\n").decode("utf-8", "replace")) if len(line) <= LINE_BYTES else None
        if head is None:
            self.counts.unread += 1
            return None
        pid, time, text = int(head[1]), float(head[2]), head[3]
        if text.startswith(("+++", "---")):
            return self._ending(pid, time, text)
        if text.startswith("<..."):
            return self._resumed(pid, text)
        name = CALL.match(text)
        if name is None:
            self.counts.unread += 1
            return None
        if text.endswith("<unfinished ...>"):
            if len(self.begun) < PENDING:
                self.begun[pid] = (time, name[1], text[name.end() : -len("<unfinished ...>")])
            return None
        return self._call(pid, time, name[1], text[name.end() :])

    def _ending(self, pid: int, time: float, text: str) -> Event | None:
        self.begun.pop(pid, None)
        for pattern, kind in ((EXITED, "exit"), (KILLED, "killed"), (SIGNAL, "signal")):
            match = pattern.match(text)
            if match:
                number = int(match[1]) if kind == "exit" else None
                return Event(pid, time, kind, "" if kind == "exit" else match[1], text, number)
        return None  # superseded by execve, and the like

    def _resumed(self, pid: int, text: str) -> Event | None:
        match, begun = RESUMED.match(text), self.begun.pop(pid, None)
        if match is None or begun is None or begun[1] != match[1]:
            self.counts.unread += 1
            return None
        return self._call(pid, begun[0], begun[1], begun[2] + text[match.end() :])

    def _call(self, pid: int, time: float, name: str, rest: str) -> Event | None:
        arguments, found, result = split_result(rest)
        if not found:
            self.counts.unread += 1
            return None
        match, forked, took = RESULT.match(result), FORKED.search(result), TOOK.search(result)
        number = None if match is None else int(match[1]) if match[1] else int(match[2], 16) if match[2] else None
        error = match[3] or "" if match else ""
        child, seconds = int(forked[1]) if forked else 0, float(took[1]) if took else None
        return Event(pid, time, "call", name, arguments, number, error, child, seconds)


def split_result(rest: str) -> tuple[str, bool, str]:
    """The arguments of a call, whether it has a result, and the result, from the text behind its opening bracket."""
    ends = list(ENDED.finditer(hide(rest)))
    return (rest[: ends[-1].start()], True, rest[ends[-1].end() :]) if ends else (rest, False, "")


def hide(text: str) -> str:
    """The text with every quoted string and path blanked, place by place: what is left is strace's own."""
    return HIDDEN.sub(lambda match: "_" * len(match[0]), text)


def split_arguments(text: str) -> list[str]:
    """The arguments of a call, at the commas that stand outside of brackets and quotes."""
    hidden, depth, begun, found = hide(text), 0, 0, []
    for at, character in enumerate(hidden):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            found.append(text[begun:at].strip())
            begun = at + 1
    return [*found, text[begun:].strip()] if text.strip() else []


def strings(text: str) -> list[bytes]:
    """The quoted strings in an argument, as the process gave them; one that strace cut ends with an ellipsis."""
    return [unquote(match[1]) + (b"\xe2\x80\xa6" if match[2] else b"") for match in STRING.finditer(text)]


def unquote(text: str) -> bytes:
    """The bytes that strace wrote as a C string."""
    found, last = bytearray(), 0
    for match in ESCAPE.finditer(text):
        found += text[last : match.start()].encode("utf-8", "surrogateescape")
        octal, hexadecimal, named = match.groups()
        if named is not None:
            found += NAMED.get(named, named.encode())
        else:
            found.append(int(octal, 8) & 255 if octal else int(hexadecimal, 16))
        last = match.end()
    return bytes(found + text[last:].encode("utf-8", "surrogateescape"))
