"""A sandbox on the caller's terminal, through one of its own: keys go in, text comes out.

The runner and the sandbox see the inner terminal alone, so that nothing in there can set, read or write the caller's.
Its line discipline makes signals of keys, for what runs in the sandbox; until something does, Ctrl-C stops the run.
"""

import fcntl
import os
import pty
import re
import select
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

INTERRUPT = b"\x03"


class NoTerminal(ValueError):
    """The process has none."""


class Filter:
    """What a sandbox writes to a terminal, less control strings (ECMA-48, 5.6): OSC, DCS, SOS, PM and APC.

    By these a program sets titles and clipboards, sends files and asks questions. Colours and moves stay.
    """

    _START = re.compile(rb"\x1b[\]PX^_]|\xc2[\x90\x98\x9d\x9e\x9f]")
    _END = re.compile(rb"\x07|\x1b\\|\xc2\x9c|[\x18\x1a]")
    _HALF = (b"\x1b", b"\xc2")  # may begin either, in the bytes that are yet to come

    def __init__(self) -> None:
        self._inside, self._half = False, b""

    def take(self, data: bytes) -> bytes:
        """The next bytes; half of a start or end waits for the rest."""
        data, shown = self._half + data, b""
        self._half = data[-1:] if data.endswith(self._HALF) else b""
        data = data[: len(data) - len(self._half)]
        while found := (self._END if self._inside else self._START).search(data):
            shown += b"" if self._inside else data[: found.start()]
            data, self._inside = data[found.end() :], not self._inside
        return shown if self._inside else shown + data


class Inner(NamedTuple):
    """Descriptors: the inner terminal, for whoever uses it and for us, and the caller's, which is raw meanwhile."""

    theirs: int
    ours: int
    outer: int


@contextmanager
def inner_terminal() -> Iterator[Inner]:
    """Within the block there is one; whoever takes `theirs` closes it. NoTerminal where the caller has none."""
    try:
        outer = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise NoTerminal("there is no terminal to stand on; --script FILE needs none") from None
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(outer)
    try:
        with following(outer, ours):
            tty.setraw(outer)
            yield Inner(theirs, ours, outer)
    finally:
        termios.tcsetattr(outer, termios.TCSADRAIN, before)
        for fd in (outer, ours):
            os.close(fd)


@contextmanager
def following(outer: int, inner: int) -> Iterator[None]:
    """Within the block the inner terminal has the size of the outer one."""

    def copy_size(*_: Any) -> None:
        fcntl.ioctl(inner, termios.TIOCSWINSZ, fcntl.ioctl(outer, termios.TIOCGWINSZ, bytes(8)))

    copy_size()
    before = signal.signal(signal.SIGWINCH, copy_size)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def relay(inner: Inner, stop: Callable[[], None]) -> None:
    """Pass on what is typed and what is written, until nobody has the inner terminal open any more."""
    shown = Filter()
    while True:
        ready, _, _ = select.select([inner.ours, inner.outer], [], [])
        if inner.ours in ready:
            try:
                written = shown.take(os.read(inner.ours, 1 << 16))
            except OSError:  # EIO: it is closed
                return
            while written:
                written = written[os.write(inner.outer, written) :]
        if inner.outer in ready:
            keys = os.read(inner.outer, 1 << 10)
            if INTERRUPT in keys and not os.tcgetpgrp(inner.ours):
                stop()
            os.write(inner.ours, keys)
