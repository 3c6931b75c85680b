"""The content of a bundle: its digest, and a copy of it.

The digest is SHA-256 over every entry in the order of its path's bytes: kind, executable bit, path, and
content. It depends on nothing else: not on times, owners, or where the bundle lies. Nothing is followed
out of the bundle, and what is neither a file nor a directory nor a link that stays inside is an error.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from .errors import BundleError

# What tools leave beside the code; never part of a bundle.
EXCLUDED = frozenset(
    {
        ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".tox", ".nox", ".mypy_cache", ".pytest_cache",
        ".ruff_cache", ".ipynb_checkpoints", "node_modules",
    }
)  # fmt: skip
_CHUNK = 1 << 20
_NO_FOLLOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Entry(NamedTuple):
    path: str
    kind: str  # "d", "f", "x" (a file that may be executed), "l"
    parent: int  # the open directory that holds it
    name: str


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest_of(folder: Path, exclude: Collection[str] = EXCLUDED) -> str:
    """The digest of a bundle, in hex, without the directories named in `exclude`.

    A copy has none of them, and is verified with an empty `exclude`: one that was put there is a change.
    """
    return _walk_and_digest(folder, None, exclude)


def copy_bundle(source: Path, target: Path) -> str:
    """Copy a bundle into the new directory `target` and return the digest of what was copied.

    The copy is what was digested, whatever happens to the source meanwhile; it is read-only.
    """
    target.mkdir()
    digest = _walk_and_digest(source, target, EXCLUDED)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o555)
    return digest


def _walk_and_digest(source: Path, target: Path | None, exclude: Collection[str]) -> str:
    digest = hashlib.sha256(b"modelops bundle content 1\n")
    try:
        top = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        problem = f"the bundle directory {str(source)!r} can't be opened: {error.strerror}"
        raise BundleError("bundle_not_found", problem) from None
    try:
        for entry in _walk(top, "", exclude):
            path = os.fsencode(entry.path)
            digest.update(b"%s %d " % (entry.kind.encode(), len(path)) + path)
            _take(entry, None if target is None else target / entry.path, digest)
    finally:
        os.close(top)
    return digest.hexdigest()


def _walk(folder: int, prefix: str, exclude: Collection[str]) -> Iterator[_Entry]:
    for name in sorted(os.listdir(folder), key=os.fsencode):
        path = prefix + name
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            yield _Entry(path, "l", folder, name)
        elif stat.S_ISREG(mode):
            yield _Entry(path, "x" if mode & 0o100 else "f", folder, name)
        elif not stat.S_ISDIR(mode):
            raise _unsafe(path, "is neither a file nor a directory nor a link")
        elif name not in exclude:
            yield _Entry(path, "d", folder, name)
            inner = _open(name, folder, path, os.O_DIRECTORY)
            try:
                yield from _walk(inner, path + "/", exclude)
            finally:
                os.close(inner)


def _take(entry: _Entry, copy: Path | None, digest: _Hash) -> None:
    """Digest one entry, and copy it where there is a copy to be made."""
    if entry.kind == "d":
        if copy is not None:
            copy.mkdir()
    elif entry.kind == "l":
        link = _inside(entry.path, os.readlink(entry.name, dir_fd=entry.parent))
        digest.update(b" %d " % len(os.fsencode(link)) + os.fsencode(link))
        if copy is not None:
            copy.symlink_to(link)
    else:
        _take_file(entry, copy, digest)


def _take_file(entry: _Entry, copy: Path | None, digest: _Hash) -> None:
    source = _open(entry.name, entry.parent, entry.path)
    target = -1
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise _unsafe(entry.path, "is not a regular file any more")
        if copy is not None:
            mode = 0o555 if entry.kind == "x" else 0o444
            target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            os.fchmod(target, mode)
        size = 0
        content = hashlib.sha256()
        while chunk := os.read(source, _CHUNK):
            size += len(chunk)
            content.update(chunk)
            if target >= 0:
                _write_all(target, chunk)
        digest.update(b" %d " % size + content.digest())
    finally:
        os.close(source)
        if target >= 0:
            os.close(target)


def _open(name: str, folder: int, path: str, flags: int = 0) -> int:
    try:
        return os.open(name, _NO_FOLLOW | flags, dir_fd=folder)
    except OSError as error:
        raise _unsafe(path, f"can't be opened: {error.strerror}") from None


def _inside(path: str, link: str) -> str:
    reached = os.path.normpath(os.path.join(os.path.dirname(path), link))
    if link.startswith("/") or reached == ".." or reached.startswith("../"):
        raise _unsafe(path, "is a link that leads out of the bundle")
    return link


def _unsafe(path: str, problem: str) -> BundleError:
    return BundleError("unsafe_file", f"{path!r} {problem}; take it out of the bundle")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
