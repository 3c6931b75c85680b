"""Directories that belong to one process while it works, and that a later one clears away if it died."""

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self
from weakref import WeakSet

_PREFIX = ".working-"
_open_here: "WeakSet[WorkingDir]" = WeakSet()
_being_made: set[Path] = set()  # a signal may end the process before they are open
_making = threading.RLock()  # entered again where a signal's handler ends the process
_ending = False


class WorkingDir:
    """A new directory below `parent`, locked by this process and removed by `close`.

    The lock lies on the directory itself, so it ends with the process and leaves nothing. Directories
    that dead processes left below the same parent are removed first; where the file system has no locks,
    none is.
    """

    def __init__(self, parent: Path, remove: Callable[[Path], None] = shutil.rmtree) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self._remove = remove
        _sweep(parent, remove)
        self.path, self._lock = _make(parent)
        _open_here.add(self)
        _being_made.discard(self.path)

    def close(self) -> None:
        """Remove the directory, where it is still there. Closing twice is harmless."""
        if self._lock >= 0:
            if self.path.exists():
                self._remove(self.path)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_empty(folder: Path) -> bool:
    """Whether it is a directory with nothing in it, but for what processes work in."""
    return folder.is_dir() and all(path.name.startswith(_PREFIX) for path in folder.iterdir())


def close_all() -> None:
    """Remove the directories of this process, which ends now: whatever keeps one, a later process clears it away.

    Another thread that still begins something makes none from here on: RuntimeError.
    """
    global _ending
    with _making:
        _ending = True
    begun = list(_being_made)  # asked first: one that is opened meanwhile is among the open ones
    for working in list(_open_here):
        for _ in range(10):
            with suppress(OSError):  # a thread still puts or removes something there
                working.close()
                break
    for path in begun:
        shutil.rmtree(path, ignore_errors=True)


def clear_away(storage: Path) -> None:
    """Remove what dead processes left in any folder of `storage`, as far as this user may."""
    for parent in {path.parent for path in storage.glob(f"*/{_PREFIX}*")}:
        with suppress(PermissionError):
            _sweep(parent, shutil.rmtree)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        path = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        with _making:
            if _ending:
                raise RuntimeError("this process ends")
            _being_made.add(path)
            path.mkdir(0o700)
        lock = _open(path)
        if lock is not None:
            _lock(lock, wait=True)
            if _is_still(path, lock):
                return path, lock
            os.close(lock)  # swept before it was locked
        _being_made.discard(path)


def _sweep(parent: Path, remove: Callable[[Path], None]) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        lock = _open(path)
        if lock is None:
            continue
        try:
            if _lock(lock, wait=False) and _is_still(path, lock):
                remove(path)
        except FileNotFoundError:
            pass  # another process sweeps as well
        finally:
            os.close(lock)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None


def _lock(fd: int, wait: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False  # held by a living process, or a file system without locks
    return True


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
