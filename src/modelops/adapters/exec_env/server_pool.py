"""The servers that are kept: a bounded number, of which the least recently used goes first."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .call import Call
from .server import Server

logger = logging.getLogger(__name__)

_SHORTEST_WAIT = 0.05  # seconds, also where servers are to go as soon as they are idle


@dataclass
class _Slot:
    """Room for one server. `server` is None while it starts."""

    bundle: str
    server: Server | None = None
    busy: bool = True
    used_at: float = field(default_factory=time.monotonic)


class ServerPool:
    """Lends servers to calls, one call at a time each; starts, keeps and closes them.

    At most `max_servers` are there at once. A server that nobody used for `idle_seconds` is closed by a
    thread that is there only while servers are.
    """

    def __init__(self, max_servers: int, idle_seconds: float) -> None:
        if max_servers < 1:
            raise ValueError("max_servers must be at least 1")
        self.max_servers, self.idle_seconds = max_servers, idle_seconds
        lock = threading.Lock()
        self._changed, self._emptied = threading.Condition(lock), threading.Condition(lock)
        self._slots: list[_Slot] = []
        self._closed = False
        self._janitor: threading.Thread | None = None

    @contextmanager
    def borrow(self, bundle: str, start: Callable[[], Server], call: Call) -> Iterator[tuple[Server, bool]]:
        """A server of `bundle`, and whether it was there before; `start` makes one where none is free."""
        slot, evicted = self._take(bundle, call)
        try:
            if evicted is not None:
                evicted.close()
            if slot.server is not None and not slot.server.is_alive():
                slot.server.close()  # it died while nobody used it
                slot.server = None
            kept = slot.server is not None
            if slot.server is None:
                slot.server = start()
            yield slot.server, kept
        finally:
            self._give_back(slot)

    def close(self) -> None:
        """Close every server. None is in use."""
        with self._changed:
            self._closed = True
            slots, self._slots = self._slots, []
            janitor = self._janitor
            self._changed.notify_all()
            self._emptied.notify_all()
        servers = [slot.server for slot in slots if slot.server is not None]
        for server in servers:
            server.begin_close()  # all at once
        for server in servers:
            server.close()
        if janitor is not None:
            janitor.join()

    def describe(self) -> list[dict[str, object]]:
        """What is there now: one entry for each server."""
        with self._changed:
            return [{"bundle": slot.bundle, "busy": slot.busy} for slot in self._slots]

    def _take(self, bundle: str, call: Call) -> tuple[_Slot, Server | None]:
        """A slot that is the caller's alone, and the server that has to be closed to make room for it."""
        with call.on_stop(self._wake_up), self._changed:
            while True:
                call.require_time()
                found = self._idle(bundle)
                if found is not None:
                    found.busy = True
                    return found, None
                if len(self._slots) < self.max_servers:
                    return self._new_slot(bundle), None
                oldest = self._oldest_idle()
                if oldest is not None:
                    self._slots.remove(oldest)
                    return self._new_slot(bundle), oldest.server
                self._changed.wait(call.remaining())

    def _wake_up(self) -> None:
        # The thread that waits holds no lock then; another is soon done with it.
        with self._changed:
            self._changed.notify_all()

    def _new_slot(self, bundle: str) -> _Slot:
        slot = _Slot(bundle)
        self._slots.append(slot)
        return slot

    def _idle(self, bundle: str) -> _Slot | None:
        """The server of this bundle that was used last: the others are then the first to go."""
        idle = [slot for slot in self._slots if not slot.busy and slot.bundle == bundle]
        return max(idle, key=lambda slot: slot.used_at, default=None)

    def _oldest_idle(self) -> _Slot | None:
        idle = [slot for slot in self._slots if not slot.busy]
        return min(idle, key=lambda slot: slot.used_at, default=None)

    def _give_back(self, slot: _Slot) -> None:
        server = slot.server
        fit = server is not None and server.usable and server.is_alive()
        with self._changed:
            fit = fit and not self._closed
            if fit:
                slot.busy, slot.used_at = False, time.monotonic()
                self._start_janitor()
            elif slot in self._slots:
                self._slots.remove(slot)
                self._emptied.notify_all()
            self._changed.notify_all()
        if server is not None and not fit:
            server.close()

    def _start_janitor(self) -> None:
        if self._janitor is None:
            self._janitor = threading.Thread(target=self._clear_idle, name="warm-servers", daemon=True)
            self._janitor.start()

    def _clear_idle(self) -> None:
        """Close servers whose time is over, until there are none. Not woken after each task, which would wait for it:
        a server that is given back meanwhile has all its time before it."""
        while True:
            with self._emptied:
                if self._closed or not self._slots:
                    self._janitor = None
                    return
                now = time.monotonic()
                ends = [self.idle_seconds + (now if slot.busy else slot.used_at) for slot in self._slots]
                expired = [slot for slot in self._slots if not slot.busy and slot.used_at + self.idle_seconds <= now]
                for slot in expired:
                    self._slots.remove(slot)
                if not expired:
                    self._emptied.wait(max(min(ends) - now, _SHORTEST_WAIT))
            for slot in expired:
                logger.info("a server of %s was idle for %g seconds and is closed", slot.bundle, self.idle_seconds)
                assert slot.server is not None
                slot.server.close()
