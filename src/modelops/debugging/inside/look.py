"""The state of the process before and after, and what differs."""

import os
import struct
import sys
import time
from contextlib import suppress
from typing import Any

from .native import changed_ranges
from .places import Attribute, Cache, FunctionState, Place, Registry, Setting
from .process import Process, threads
from .values import MISSING, TEXT, WORD, Known, Leaves, attribute_of, shown

CARRIED = (FunctionState, Registry)  # places that come with a function or a class, and are no news by themselves
LOOK_SECONDS = 20.0  # of processor time: a busy machine hides nothing


class Look:
    """The state of the process at one moment. It holds what it saw, so that no identity is used twice."""

    def __init__(self, process: Process, places: "list[Place]", with_native: bool) -> None:
        deadline = time.process_time() + LOOK_SECONDS
        self.places: dict[str, Place] = {}
        self.values: dict[str, Any] = {}
        self.leaves: dict[str, Leaves] = {}
        known = Known()
        for place in places:
            with suppress(Exception):
                if place.key not in self.places:
                    self.values[place.key] = value = place.get()
                    self.places[place.key] = place
                    if isinstance(place, Attribute):
                        known.roots.setdefault(id(value), place.key)
        for key, value in self.values.items():
            self.leaves[key] = Leaves(value, deadline, key, known)
        self.complete = time.process_time() < deadline
        self.threads = threads()
        libraries = process.load_libraries() if with_native else []
        self.images = {library.path: (library, library.image()) for library in libraries}


def look_at(process: Process, keys: Any) -> Look:
    """The state of the process now: of the places of these keys, of all where `keys` is true."""
    places = process.places() if keys is True else [place for key in keys if (place := process.place(key))]
    return Look(process, places, keys is True)


def likelihood(change: "dict[str, Any]") -> "tuple[bool, int]":
    """What comes first: the bundle's own, then what a process has once, and caches before native data."""
    ranks = {"attribute": 2, "class": 2, "abc": 2, "function": 3, "cache": 4, "native": 5}
    return not change["own"], ranks.get(change["key"].partition(":")[0], 1)


def python_changes(before: Look, after: Look) -> "list[dict[str, Any]]":
    """Places that are new, gone, bound to something else, or changed in content; one object counts once."""
    found, told = [], set()
    for key in [*after.places, *(key for key in before.places if key not in after.places)]:
        old, new = before.values.get(key, MISSING), after.values.get(key, MISSING)
        place = after.places.get(key) or before.places[key]
        leaves = [look.leaves[key].found if key in look.leaves else {} for look in (before, after)]
        digests = [look.leaves[key].digest if key in look.leaves else b"" for look in (before, after)]
        if digests[0] == digests[1] or (key not in before.places and isinstance(place, CARRIED)):
            continue
        owner = key.split(":")[1] if key.startswith(("attribute:", "class:")) else ""
        if owner and key not in before.places and not any(k.startswith(f"attribute:{owner}:") for k in before.places):
            continue  # a module that was imported meanwhile
        if key.startswith("module:") and old is MISSING and attribute_of(new, "__spec__") is not None:
            continue  # likewise, and not put there by hand
        if id(new) in told and old is new:
            continue
        told.add(id(new))
        how = "added" if key not in before.places else "gone" if key not in after.places else \
            "content" if old is new or isinstance(place, (*CARRIED, Setting, Cache)) else "rebound"  # fmt: skip
        parts = [] if how in ("added", "gone") else different_leaves(*leaves)
        found.append({"key": key, "kind": place.kind, "name": place.name, "how": how, "own": place.own,
                      "old": shown(old), "new": shown(new), "parts": parts})  # fmt: skip
    return found


def different_leaves(old: dict[str, str], new: dict[str, str]) -> "list[list[str]]":
    """The first parts that differ: path, old, new."""
    found = []
    for path in [*old, *(path for path in new if path not in old)]:
        if old.get(path) != new.get(path):
            found.append([path[:TEXT], old.get(path, "nothing"), new.get(path, "nothing")])
            if len(found) >= 5:
                break
    return found


def native_changes(before: Look, after: Look) -> "list[dict[str, Any]]":
    """Ranges of writable data that differ, by library and address in its file."""
    found = []
    for path, (library, image) in after.images.items():
        old = dict(before.images[path][1]) if path in before.images else {}
        for address, data in image:
            if address in old:
                for offset, size in changed_ranges(old[address], data):
                    at = address + offset
                    both = [part[offset : offset + size] for part in (old[address], data)]
                    values = [hexed(part) for part in both]
                    found.append({"key": f"native:{path}:{at:x}:{size}", "kind": "native data", "how": "content",
                                  "name": f"{os.path.basename(path)} +{at:#x}", "own": library.own,
                                  "old": values[0], "new": values[1], "parts": [], "library": path,
                                  "offset": at, "size": size,
                                  "points": any(map(points, both))})  # fmt: skip
    return found


def points(data: bytes) -> bool:
    """Whether one of the words looks like an address: what an allocator keeps, and harm to put back."""
    words = (int.from_bytes(data[at : at + WORD], "little") for at in range(0, len(data), WORD))
    return any(0x5000_0000_0000 <= word < 0x8000_0000_0000 for word in words)


def hexed(data: bytes) -> str:
    """Bytes, as the numbers that they are where they are some."""
    if len(data) > WORD and len(data) % WORD == 0:
        words = [hexed(data[at : at + WORD]) for at in range(0, min(len(data), 3 * WORD), WORD)]
        return ", ".join(words) + (f" .. ({len(data) // WORD} words)" if len(data) > 3 * WORD else "")
    if len(data) == WORD:
        whole, real = int.from_bytes(data, "little"), struct.unpack("<d", data)[0]
        if whole < 1 << 40:
            return str(whole)
        if 1e-12 < abs(real) < 1e15:
            return f"{real!r} (as a double)"
    return data[:24].hex(" ", 8) + (" .." if len(data) > 24 else "")


def thread_change(ident: int, thread: Any) -> "dict[str, Any]":
    """A thread that goes on, and where it stands."""
    frame = sys._current_frames().get(ident)
    lines: list[str] = []
    while frame is not None and len(lines) < 20:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {called(frame.f_code)}")
        frame = frame.f_back
    theirs = [line for line in lines if line.startswith(("/bundle", "/venv", "/tmp"))]
    return {"key": f"thread:{thread.name}", "kind": "thread", "name": f"the thread {thread.name!r}", "how": "added",
            "own": True, "old": "nothing", "new": (theirs or lines or ["nowhere"])[0][:TEXT], "parts": []}  # fmt: skip


def called(code: Any) -> str:
    """The name of a function, with its class where this Python knows it."""
    return str(getattr(code, "co_qualname", code.co_name))
