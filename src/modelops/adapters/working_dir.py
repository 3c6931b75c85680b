"""Directories that belong to one process while it works, and that a later one clears away if it died."""

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Self

_PREFIX = ".working-"
_open_here: set[Path] = set()


class WorkingDir:
    """A new directory below `parent`, locked by this process and removed by `close`.

    The lock lies on the directory itself, so it ends with the process and leaves nothing. Directories
    that dead processes left below the same parent are removed first; where the file system has no locks,
    none is.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        self.path, self._lock = _make(parent)

    def close(self) -> None:
        """Remove the directory, where it is still there. Closing twice is harmless."""
        if self._lock >= 0:
            if self.path.exists():
                remove_tree(self.path)
            os.close(self._lock)
            self._lock = -1
            _open_here.discard(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_empty(folder: Path) -> bool:
    """Whether it is a directory with nothing in it, but for what processes work in."""
    return folder.is_dir() and all(path.name.startswith(_PREFIX) for path in folder.iterdir())


def open_here() -> list[Path]:
    """The directories of this process that are not closed, or being made."""
    return list(_open_here)


def clear_away(storage: Path) -> None:
    """Remove what dead processes left in any folder of `storage`, as far as this user may."""
    for parent in {path.parent for path in storage.glob(f"*/{_PREFIX}*")}:
        with suppress(PermissionError):
            _sweep(parent)


def remove_tree(folder: Path) -> None:
    """Remove a directory with all that is in it, whose directories may be read-only."""
    for *_, fd in os.fwalk(folder):  # and not by name, in whose place a link may come meanwhile
        os.fchmod(fd, 0o700)
    shutil.rmtree(folder)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        path = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        _open_here.add(path)  # before it is there: a signal may end the process at any moment
        path.mkdir(0o700)
        lock = _open(path)
        if lock is not None:
            _lock(lock, wait=True)
            if _is_still(path, lock):
                return path, lock
            os.close(lock)  # swept before it was locked
        _open_here.discard(path)


def _sweep(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        lock = _open(path)
        if lock is None:
            continue
        try:
            if _lock(lock, wait=False) and _is_still(path, lock):
                remove_tree(path)
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
