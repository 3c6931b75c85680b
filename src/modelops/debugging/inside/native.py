"""The writable data of loaded libraries, as their program headers say where it lies."""

import os
import struct
from collections.abc import Collection
from typing import Any

from .values import WORD

PAGE, RANGES = 4096, 256


class Library:
    """A loaded shared library: where its writable data lies in memory, by its own program headers.

    The memory is opened each time: a fork that has it from its parent would read and write the parent's.
    """

    def __init__(self, path: str, start: int, own: bool) -> None:
        self.path, self.own = path, own
        self.segments, self.bias = writable_segments(path, start)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an address of the file's own numbering."""
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, self.bias + offset)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes back."""
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), data, self.bias + offset)

    def image(self) -> "list[tuple[int, bytes]]":
        """All writable data, a page at most at a time where some of it can't be read."""
        found = []
        for address, size in self.segments:
            try:
                found.append((address, self.read(address, size)))
            except OSError:
                continue
        return found


def writable_segments(path: str, start: int) -> "tuple[list[tuple[int, int]], int]":
    """Address and size of each writable PT_LOAD less its PT_GNU_RELRO, and what to add for an address in memory."""
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            return [], 0
        at, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        file.seek(at)
        table = file.read(size * min(count, 64))
    loads, relro = [], (0, 0)
    for index in range(min(count, 64)):
        kind, flags, _, address, _, _, length, _ = struct.unpack_from("<IIQQQQQQ", table, index * size)
        if kind == 1:
            loads.append((address, length, flags))
        elif kind == 0x6474E552:
            relro = (address, address + length)
    lowest = min((address for address, _, _ in loads), default=0)
    found = []
    for address, length, flags in loads:
        if flags & 2 and length <= 256 << 20:
            first = max(address, relro[1]) if relro[0] <= address < relro[1] else address
            found.append((first, address + length - first))
    return [entry for entry in found if entry[1] > 0], start - lowest // PAGE * PAGE


def load_libraries(own: "Collection[Any]") -> "list[Library]":
    """The libraries of the bundle's environment, the `own` files first. The interpreter, libc and allocators are left
    out."""
    starts: dict[str, int] = {}
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                parts = line.split(None, 5)
                if len(parts) == 6 and parts[5].startswith(("/venv/", "/bundle/", "/tmp/")):
                    path = parts[5].rstrip("\n")
                    starts.setdefault(path, int(parts[0].partition("-")[0], 16))
    except OSError:
        return []
    left_out = ("libpython", "libjemalloc", "libmimalloc", "libtcmalloc")
    found = []
    for path, start in starts.items():
        if ".so" in os.path.basename(path) and not os.path.basename(path).startswith(left_out):
            try:
                found.append(Library(path, start, path in own or path.startswith("/bundle/")))
            except (OSError, struct.error):
                continue
    return sorted(found, key=lambda library: not library.own)


def changed_ranges(old: bytes, new: bytes) -> "list[tuple[int, int]]":
    """Offset and size of what differs: pages first, words in those, neighbours as one."""
    found: list[tuple[int, int]] = []
    for page in range(0, min(len(old), len(new)), PAGE):
        if old[page : page + PAGE] == new[page : page + PAGE]:
            continue
        for word in range(page, min(page + PAGE, len(new)), WORD):
            if old[word : word + WORD] != new[word : word + WORD]:
                size = min(WORD, len(new) - word)
                if found and sum(found[-1]) == word:
                    found[-1] = (found[-1][0], found[-1][1] + size)
                else:
                    found.append((word, size))
                    if len(found) >= RANGES:
                        return found
    return found
