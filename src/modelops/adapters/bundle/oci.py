"""A repository of bundles in an OCI registry: the form and the names that the published tool has."""

import hashlib
import io
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from modelops.adapters.working_dir import WorkingDir

from .artifact import (
    MAX_BUNDLE_BYTES,
    MAX_MANIFEST_BYTES,
    REGISTRY_FILE,
    Artifact,
    Blob,
    check_index,
    check_paths,
    read_manifest,
    sha256_of,
    write_index,
    write_manifest,
)
from .cache import BundleCache, cache_errors
from .content import copy_bundle
from .credentials import find_credentials
from .distribution import RegistryClient
from .errors import BundleError
from .references import BundleReference, Place, parse_place, parse_reference
from .transport import Patience

logger = logging.getLogger(__name__)

IGNORE_FILE = ".modelopsignore"
PARALLEL = 4  # layers that come at once
MAX_REGISTRY_FILE = 1 << 20
STRUCTURES = {"digest": 64, "digest_full": 64, "digest_short": 12}  # how much of its digest names a copy


class Description(NamedTuple):
    """What a registry says of a bundle, without its files. `registry_file` is the bundle's own registry.yaml."""

    digest: str
    artifact: Artifact
    listing: Mapping[str, Any]  # the index
    registry_file: bytes | None


class OciBundleRepository:
    """The `BundleRepository` port on the registry at `registry_ref`, such as `ghcr.io/org/models`.

    It is made as the published class is. Copies lie in `cache_dir`, which many processes may share, under their digest
    or, with `digest_short`, its first 12 characters. `default_tag` is what `resolve` looks up; a task's reference has
    no tag. `insecure` allows plain HTTP. Credentials are those of `environ`, see `credentials`.
    BundleError for whatever keeps a bundle from being had.
    """

    def __init__(
        self,
        registry_ref: str,
        cache_dir: str | os.PathLike[str],
        cache_structure: str = "digest_short",
        default_tag: str = "latest",
        insecure: bool = False,
        *,
        environ: Mapping[str, str] = os.environ,
        patience: Patience | None = None,
    ) -> None:
        self.place = parse_place(registry_ref)
        if cache_structure not in STRUCTURES:
            problem = f"cache_structure is {cache_structure!r}, and none of {', '.join(STRUCTURES)}"
            raise BundleError("bundle_source_invalid", problem)
        self.cache = BundleCache(Path(cache_dir) / "oci", STRUCTURES[cache_structure])
        self.default_tag = default_tag
        self._insecure, self._environ, self._patience = insecure, environ, patience
        self._busy: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def ensure_local(self, bundle_ref: str) -> tuple[str, Path]:
        """The digest of the manifest (`sha256:<hex>`) and the folder of a read-only copy, verified just now."""
        place, digest = self._find(bundle_ref)
        with self._lock:
            busy = self._busy.setdefault(digest, threading.Lock())
        with busy, cache_errors(self.cache.root):
            folder = self.cache.bundle(digest) or self._fetch(place, digest)
        return f"sha256:{digest}", folder

    def exists(self, bundle_ref: str) -> bool:
        """Whether the bundle is here or in the registry; BundleError where the registry can't be asked."""
        try:
            place, digest = self._find(bundle_ref)
        except BundleError:
            return False
        if self.cache.is_kept(digest):
            return True
        with closing(self._client(place)) as registry:
            return registry.has_manifest(f"sha256:{digest}")

    def resolve(self, tag: str | None = None) -> str:
        """The digest that a tag of the registry's own repository has now, `sha256:<hex>`."""
        with closing(self._client(self.place)) as registry:
            return f"sha256:{sha256_of(registry.manifest(tag or self.default_tag))}"

    def describe(self, digest: str) -> Description:
        """What the registry says of the bundle `sha256:<hex>`."""
        with closing(self._client(self.place)) as registry:
            artifact = read_manifest(registry.manifest(digest))
            index = check_index(registry.blob(artifact.config), artifact)
            file = artifact.files.get(REGISTRY_FILE)
            content = None if file is None or file.size > MAX_REGISTRY_FILE else registry.blob(file)
        return Description(digest, artifact, index, content)

    def push(self, folder: str | os.PathLike[str], tag: str) -> str:
        """Send a directory and name it `tag`; its digest. What has this tag and the same files is left as it is."""
        with cache_errors(self.cache.root), self.cache.working_dir() as working:
            copy = working.path / "bundle"
            copy_bundle(Path(folder), copy)
            files = _files_of(copy)
            blobs = {path: _blob_of(copy / path) for path in files}
            with closing(self._client(self.place)) as registry:
                same = _same(registry, tag, blobs)
                return same or _send(registry, tag, copy, blobs)

    def _find(self, bundle_ref: str) -> tuple[Place, str]:
        reference: BundleReference = parse_reference(bundle_ref, str)
        place = self.place if reference.name is None else self.place.below(reference.name)
        if not place.repository:
            problem = f"{bundle_ref} names no repository of the registry {place}; write repository@sha256:<64 hex>"
            raise BundleError("bundle_ref_invalid", problem)
        return place, reference.digest

    def _client(self, place: Place) -> RegistryClient:
        configured = self._environ.get("MODELOPS_BUNDLE_REGISTRY")
        own = parse_place(configured).host if configured else None
        return RegistryClient(
            place,
            partial(find_credentials, place.host, own, self._environ),
            insecure=self._insecure,
            token_host=self._environ.get("MODELOPS_BUNDLE_TOKEN_HOST") or None,
            patience=self._patience,
        )

    def _fetch(self, place: Place, digest: str) -> Path:
        with closing(self._client(place)) as registry, self.cache.working_dir() as working:
            manifest = self.cache.read(digest) or registry.manifest(f"sha256:{digest}")
            artifact = read_manifest(manifest)
            index = self.cache.read(artifact.config.digest) or registry.blob(artifact.config)
            check_index(index, artifact)
            logger.info("fetching the bundle %s@sha256:%s: %d bytes", place, digest, artifact.size)
            for data in (manifest, index):
                aside = working.path / sha256_of(data)
                aside.write_bytes(data)
                self.cache.adopt(aside, aside.name)
            missing = [blob for blob in set(artifact.files.values()) if not self.cache.has(blob)]
            self._fetch_blobs(registry, missing, working)
            return self.cache.assemble(digest, artifact, working)

    def _fetch_blobs(self, registry: RegistryClient, blobs: list[Blob], working: WorkingDir) -> None:
        def fetch(blob: Blob) -> None:
            aside = working.path / blob.digest
            with aside.open("wb") as file:
                registry.fetch(blob, lambda: _beginning(file))
            self.cache.adopt(aside, blob.digest)

        in_parallel(registry, fetch, sorted(blobs, key=lambda blob: -blob.size))


def in_parallel(registry: RegistryClient, action: Callable[[Blob], None], blobs: list[Blob]) -> None:
    """Call `action` on each. The first that raises ends the others, also where they wait for the registry, as a signal
    that comes meanwhile does."""
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="bundle-layers") as pool:
        futures: list[Future[None]] = []
        try:
            futures += (pool.submit(action, blob) for blob in blobs)
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            registry.give_up()
            raise


def _beginning(file: io.BufferedWriter) -> Callable[[bytes], object]:
    """A sink that writes a file from its beginning."""
    file.seek(0)
    file.truncate()
    return file.write


# --- what is sent


def _files_of(copy: Path) -> list[str]:
    """The paths of a bundle's copy, as a registry takes them: of `.modelops-bundle`, only what is the bundle's."""
    files = []
    for parent, _, names in os.walk(copy):
        files += [(Path(parent) / name).relative_to(copy).as_posix() for name in names]
    tool, _, _ = REGISTRY_FILE.partition("/")
    files = sorted(path for path in files if path == REGISTRY_FILE or path.partition("/")[0] != tool)
    if not files:
        raise BundleError("not_a_bundle", "the directory has no files")
    for path in files:
        if (copy / path).is_symlink():
            raise BundleError("unsafe_file", f"{path!r} is a link, which a registry can't have; put the file there")
    links = [path for path in _folders(copy) if path.is_symlink()]
    if links:
        problem = (
            f"{links[0].relative_to(copy).as_posix()!r} is a link, which a registry can't have; put the folder there"
        )
        raise BundleError("unsafe_file", problem)
    check_paths(files)
    executable = [path for path in files if os.stat(copy / path).st_mode & 0o100]
    if executable:
        logger.warning("a registry keeps no modes: %s will not be executable", ", ".join(executable[:5]))
    if IGNORE_FILE in files:
        logger.warning("%s is the published tool's and is not read: all %d files are sent", IGNORE_FILE, len(files))
    return files


def _folders(copy: Path) -> list[Path]:
    return [Path(parent) / name for parent, names, _ in os.walk(copy) for name in names]


def _blob_of(path: Path) -> Blob:
    with path.open("rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _same(registry: RegistryClient, tag: str, blobs: Mapping[str, Blob]) -> str | None:
    """The digest of what has the tag, where it has these very files."""
    try:
        manifest = registry.manifest(tag)
        artifact = read_manifest(manifest)
    except BundleError as error:
        if error.type in ("bundle_not_found", "not_a_bundle", "artifact_invalid", "unsafe_file", "bundle_too_large"):
            return None
        raise
    return f"sha256:{sha256_of(manifest)}" if artifact.files == blobs else None


def _send(registry: RegistryClient, tag: str, copy: Path, blobs: Mapping[str, Blob]) -> str:
    created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    index = write_index(blobs, created, {"name": "modelops", "version": version("modelops")})
    manifest = write_manifest(Blob(sha256_of(index), len(index)), blobs)
    total = sum(blob.size for blob in blobs.values())
    if total > MAX_BUNDLE_BYTES or len(manifest) > MAX_MANIFEST_BYTES:
        problem = f"the bundle has {len(blobs)} files of {total} bytes in all, which is too large for a registry"
        raise BundleError("bundle_too_large", problem)
    places = {blob: copy / path for path, blob in blobs.items()}

    def upload(blob: Blob) -> None:
        registry.upload(blob, lambda: places[blob].open("rb"))

    in_parallel(registry, upload, list(places))
    registry.upload(Blob(sha256_of(index), len(index)), lambda: io.BytesIO(index))
    registry.put_manifest(tag, manifest)
    return f"sha256:{sha256_of(manifest)}"
