"""Bundles of a registry on this machine. Nothing in it is used that is not what its digest says, each time.

Below the root:

    blobs/<hex>      a manifest, an index or a file of a bundle, named by the SHA-256 of its content
    bundles/<hex>/   a bundle, named by the digest of its manifest, or the first characters of it; read-only, its
                     files are hard links to blobs

All of it appears by one rename, and is made aside, in a directory that is swept if its process dies.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from modelops.adapters.working_dir import WorkingDir

from .artifact import MAX_INDEX_BYTES, Artifact, Blob, check_index, read_manifest, sha256_of
from .errors import BundleError

logger = logging.getLogger(__name__)
_CHUNK = 1 << 20


class BundleCache:
    """Many threads and processes may use one root at once."""

    def __init__(self, root: str | os.PathLike[str], name_length: int = 64) -> None:
        self.root = Path(root).absolute()
        self._name_length = name_length
        self._blobs, self._bundles = self.root / "blobs", self.root / "bundles"
        with cache_errors(self.root):
            for folder in (self._blobs, self._bundles):
                folder.mkdir(parents=True, exist_ok=True)

    def working_dir(self) -> WorkingDir:
        """A directory of one's own on the same file system."""
        return WorkingDir(self.root)

    def bundle(self, digest: str) -> Path | None:
        """The folder of a bundle that is here and undamaged, verified just now."""
        artifact = self.artifact(digest)
        folder = self._folder(digest)
        if artifact is None or not folder.is_dir():
            return None
        if not _has_exactly(folder, artifact.files):
            logger.warning("the copy %s of the bundle sha256:%s is damaged and is made again", folder, digest)
            return None
        return folder

    def is_kept(self, digest: str) -> bool:
        """Whether a bundle is here, which `bundle` then still verifies."""
        return self._folder(digest).is_dir() and self.artifact(digest) is not None

    def artifact(self, digest: str) -> Artifact | None:
        """The manifest of a bundle, where it and its index are here."""
        manifest = self.read(digest)
        if manifest is None:
            return None
        artifact = read_manifest(manifest)
        index = self.read(artifact.config.digest)
        if index is None or len(index) != artifact.config.size:
            return None
        check_index(index, artifact)
        return artifact

    def read(self, digest: str) -> bytes | None:
        """A manifest or an index that is here and undamaged."""
        try:
            with (self._blobs / digest).open("rb") as file:
                data = file.read(MAX_INDEX_BYTES + 1)
        except OSError:
            return None
        return data if sha256_of(data) == digest else None

    def has(self, blob: Blob) -> bool:
        """Whether a blob is here and undamaged."""
        return _is(self._blobs / blob.digest, blob)

    def adopt(self, file: Path, digest: str) -> None:
        """Move a file whose content has been verified to its place; it takes that of a damaged one."""
        os.chmod(file, 0o444)
        os.rename(file, self._blobs / digest)

    def assemble(self, digest: str, artifact: Artifact, working: WorkingDir) -> Path:
        """Make the folder of a bundle, whose blobs are all here."""
        aside = working.path / "bundle"
        aside.mkdir()
        for path, blob in artifact.files.items():
            place = aside / path
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(self._blobs / blob.digest, place)
        for folder, _, _ in os.walk(aside):
            os.chmod(folder, 0o555)
        return self._publish(aside, digest, working)

    def _folder(self, digest: str) -> Path:
        return self._bundles / digest[: self._name_length]

    def _publish(self, aside: Path, digest: str, working: WorkingDir) -> Path:
        place = self._folder(digest)
        with _locked(self._bundles):  # so that nobody takes away what another has just put there
            if place.exists():
                if self.bundle(digest) is not None:
                    return place
                _move(place, working.path / "damaged")
            _move(aside, place)
            os.chmod(place, 0o555)
        return place


def _move(folder: Path, target: Path) -> None:
    os.chmod(folder, 0o755)  # a directory that moves to another parent must be writable
    os.rename(folder, target)


def _has_exactly(folder: Path, files: Mapping[str, Blob]) -> bool:
    """Whether a folder has these files, their folders and nothing else."""
    wanted = {parent for path in files for parent in _parents(path)}
    found: set[str] = set()
    seen: set[str] = set()
    for path, entry in _walk(folder, ""):
        if entry.is_dir(follow_symlinks=False):
            found.add(path)
        elif path not in files or not _is(Path(entry.path), files[path]):
            return False
        else:
            seen.add(path)
    return found == wanted and seen == files.keys()


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield prefix + entry.name, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _is(path: Path, blob: Blob) -> bool:
    """Whether a path is a file with a blob's content."""
    digest = hashlib.sha256()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            if os.fstat(fd).st_size != blob.size:
                return False
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == blob.digest


def _link(blob: Path, place: Path) -> None:
    try:
        os.link(blob, place)
    except OSError:  # a file system without hard links, or with too many of this file
        shutil.copyfile(blob, place)
        os.chmod(place, 0o444)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among threads and processes, where the file system has locks."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Within the block, what the file system refuses is told as what it means for the cache."""
    try:
        yield
    except OSError as error:
        problem = f"the bundle cache {str(root)!r} can't be written: {error.strerror}"
        raise BundleError("cache_unwritable", problem, retryable=True) from error
