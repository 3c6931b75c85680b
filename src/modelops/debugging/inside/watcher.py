"""The line that changes a place."""

import sys
import time
from typing import Any

from .look import called
from .places import Attribute, Cache, FunctionState, Place, Registry
from .process import Process
from .values import TEXT

WATCH_SECONDS, WATCH_EVENTS = 20.0, 2_000_000  # of processor time


class Watcher:
    """Looks at some places after every line of the bundle's code; of a dependency's too, where a place is its own."""

    def __init__(self, process: Process, keys: "list[str]") -> None:
        self.places = {key: place for key in keys if (place := process.place(key))}
        self.state = {key: self.glance(place) for key, place in self.places.items()}
        self.lines: dict[str, dict[str, Any]] = {}
        self.last: tuple[Any, int] | None = None
        self.events, self.deadline = 0, time.process_time() + WATCH_SECONDS
        kinds = (Attribute, FunctionState, Cache, Registry)
        theirs = any(isinstance(place, kinds) and not place.own for place in self.places.values())
        self.is_own = process.is_own_file
        self.is_watched = process.is_theirs if theirs else self.is_own
        sys.settrace(self.on_event)

    @staticmethod
    def glance(place: Place) -> Any:
        """Enough of a value to see that it changes."""
        try:
            return place.leaves(time.process_time() + 1).digest
        except Exception:
            return None

    def on_event(self, frame: Any, event: str, _: Any) -> Any:
        """Called by the interpreter."""
        if not self.is_watched(frame.f_code.co_filename):
            return None
        self.events += 1
        if self.events > WATCH_EVENTS or time.process_time() > self.deadline or len(self.lines) == len(self.places):
            sys.settrace(None)
            return None
        self.check(frame)
        if event == "return":
            caller = frame.f_back
            watched = caller is not None and self.is_watched(caller.f_code.co_filename)
            self.last = (caller.f_code, caller.f_lineno) if watched else self.last
        else:
            self.last = (frame.f_code, frame.f_lineno)
        return self.on_event

    def check(self, frame: Any) -> None:
        """Charge what changed since the last line to that line, and to the bundle's line that led there."""
        for key, place in self.places.items():
            now = None if key in self.lines else self.glance(place)
            if now is not None and now != self.state[key]:  # it is None where there is no stack left to look
                self.state[key] = now
                if self.last:
                    code, line = self.last
                    led = None if self.is_own(code.co_filename) else self.own_frame(frame)
                    by = led and told(led.f_code, led.f_lineno)
                    self.lines[key] = {**told(code, line), "called_from": by}

    def own_frame(self, frame: Any) -> Any:
        """The innermost frame of the bundle's; None where there is none."""
        while frame is not None and not self.is_own(frame.f_code.co_filename):
            frame = frame.f_back
        return frame

    def stop(self) -> dict[str, Any]:
        """The line of each key for which there is one."""
        goes_on = sys.gettrace() == self.on_event  # Python ends it where there is no stack left for it
        sys.settrace(None)
        if goes_on:
            self.check(None)
        return self.lines


def told(code: Any, line: int) -> dict[str, Any]:
    """A line of a function, for people."""
    file = code.co_filename
    return {"file": file, "line": line, "function": called(code), "text": source_line(file, line)}


def source_line(file: str, number: int) -> str:
    """A line of a source file."""
    try:
        with open(file, encoding="utf-8", errors="replace") as source:
            for count, line in enumerate(source, 1):
                if count == number:
                    return line.strip()[:TEXT]
    except OSError:
        pass
    return ""
