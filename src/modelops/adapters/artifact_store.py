"""A content-addressed store of artifacts: a directory with one file for each content.

A reference is `cas://` and the BLAKE2b-256 of the content in hex. It names no place, so the same reference
works on every machine that sees the directory. Files appear by one rename, and every read is verified.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

from .working_dir import WorkingDir

SCHEME = "cas://"
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


class ArtifactDamaged(Exception):
    """Content that does not have the checksum it should have."""


class ArtifactStore:
    """Keeps contents below `root`. Many threads and processes may use one root at once."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()

    def put(self, data: bytes, checksum_hex: str) -> str:
        """Store `data` and return its reference; ArtifactDamaged where the checksum is another's."""
        found = hashlib.blake2b(data, digest_size=32).hexdigest()
        self._require(found, checksum_hex, "the data")
        with WorkingDir(self.root) as working:
            aside = working.path / found
            aside.write_bytes(data)
            self._publish(aside, found)
        return reference_of(found)

    def adopt(self, path: Path, checksum_hex: str) -> str:
        """Move the file `path` into the store and return its reference, once its content is verified."""
        self._require(checksum_of(path), checksum_hex, str(path))
        with WorkingDir(self.root) as working:
            aside = working.path / checksum_hex
            shutil.move(path, aside)  # a rename where both are on one file system
            self._publish(aside, checksum_hex)
        return reference_of(checksum_hex)

    def get(self, ref: str) -> bytes:
        """The content of `ref`. KeyError where there is none; ArtifactDamaged where it has changed."""
        try:
            data = self._path(ref).read_bytes()
        except FileNotFoundError:
            raise KeyError(ref) from None
        self._require(hashlib.blake2b(data, digest_size=32).hexdigest(), ref.removeprefix(SCHEME), ref)
        return data

    def exists(self, ref: str) -> bool:
        """Whether the store has content under `ref`."""
        try:
            return self._path(ref).is_file()
        except KeyError:
            return False

    def _path(self, ref: str) -> Path:
        checksum = ref.removeprefix(SCHEME)
        if not ref.startswith(SCHEME) or _CHECKSUM.fullmatch(checksum) is None:
            raise KeyError(ref)
        return self.root / checksum[:2] / checksum

    def _publish(self, aside: Path, checksum: str) -> None:
        place = self._path(reference_of(checksum))
        place.parent.mkdir(exist_ok=True)
        os.chmod(aside, 0o444)
        os.rename(aside, place)

    @staticmethod
    def _require(found: str, wanted: str, what: str) -> None:
        if found != wanted:
            raise ArtifactDamaged(f"{what} should have the checksum {wanted}, and has {found}")


def reference_of(checksum_hex: str) -> str:
    """The reference of the content with this checksum."""
    return SCHEME + checksum_hex


def checksum_of(path: Path) -> str:
    """The BLAKE2b-256 of a file, in hex."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
