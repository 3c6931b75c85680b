"""A bundle as an OCI artifact: what its manifest and its index say, and what a registry may not make us believe.

The manifest's config is the *index*, a JSON object with an entry a file; each layer is a file as it is, and has
its path as `org.opencontainers.image.title`. The form is the published tool's: see `write_index`.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from modelops.strict_json import parse_json

from .errors import BundleError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.modelops.bundle.index.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"
REGISTRY_FILE = ".modelops-bundle/registry.yaml"

# What registries themselves take as a manifest; an index is a little larger, for the same files.
MAX_MANIFEST_BYTES = 4 << 20
MAX_INDEX_BYTES = 8 << 20
MAX_BUNDLE_BYTES = 4 << 30  # as the default sandbox profile has it: what is larger could not be run

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\..*)?", re.IGNORECASE)
_MAX_NAME, _MAX_PATH = 255, 1024  # bytes


class Blob(NamedTuple):
    """Content by its address: 64 hex characters, and its size in bytes."""

    digest: str
    size: int


class Artifact(NamedTuple):
    """A manifest: where the index lies, and each file by its path."""

    config: Blob
    files: Mapping[str, Blob]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def sha256_of(data: bytes) -> str:
    """The digest of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def read_manifest(data: bytes) -> Artifact:
    """The manifest of a bundle; BundleError where it is another thing's, or names what a bundle can't have."""
    body = _object(data, "manifest")
    media_type = body.get("mediaType", MANIFEST_TYPE)
    if "manifests" in body or media_type != MANIFEST_TYPE:
        raise _invalid("manifest", f"it is of type {_shown(media_type)}, and a bundle's is {MANIFEST_TYPE}")
    if body.get("schemaVersion") != 2:
        raise _invalid("manifest", f"its schemaVersion is {_shown(body.get('schemaVersion'))}, and not 2")
    config, layers = body.get("config"), body.get("layers")
    if not isinstance(config, dict) or config.get("mediaType") != INDEX_TYPE:
        found = config.get("mediaType") if isinstance(config, dict) else None
        raise BundleError("not_a_bundle", f"the artifact is of type {_shown(found)}, and a bundle's is {INDEX_TYPE}")
    if not isinstance(layers, list) or not layers:
        raise _invalid("manifest", "it has no layers")
    index = _blob(config, "the index")
    if index.size > MAX_INDEX_BYTES:
        raise _too_large(f"its index has {index.size} bytes, the limit is {MAX_INDEX_BYTES}")
    files: dict[str, Blob] = {}
    for layer in layers:
        annotations = layer.get("annotations") if isinstance(layer, dict) else None
        path = annotations.get(TITLE) if isinstance(annotations, dict) else None
        if not isinstance(path, str):
            raise _invalid("manifest", f"a layer has no name: the annotation {TITLE}")
        if path in files:
            raise _unsafe(path, "is there twice")
        files[path] = _blob(layer, path)
    check_paths(files)
    artifact = Artifact(index, files)
    if artifact.size > MAX_BUNDLE_BYTES:
        raise _too_large(f"its files have {artifact.size} bytes, the limit is {MAX_BUNDLE_BYTES}")
    return artifact


def check_index(data: bytes, artifact: Artifact) -> Mapping[str, Any]:
    """The index, where it tells the same of the files as the manifest's layers do; BundleError where not."""
    body = _object(data, "index")
    version, entries = body.get("version"), body.get("files")
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise _invalid("index", f"its version is {_shown(version)}, and this reads version 1")
    if not isinstance(entries, dict):
        raise _invalid("index", "it has no files")
    for path, entry in entries.items():
        _check_entry(path, entry, artifact)
    if missing := artifact.files.keys() - entries.keys():
        raise _invalid("index", f"it does not have {_shown(min(missing))}, which the manifest has as a layer")
    return body


def _check_entry(path: str, entry: Any, artifact: Artifact) -> None:
    if not isinstance(entry, dict) or entry.get("path") != path:
        raise _invalid("index", f"its entry of {_shown(path)} is not one of that path")
    storage = entry.get("storage")
    if storage == "blob":
        raise BundleError(
            "blob_storage",
            f"{_shown(path)} lies in blob storage and not in the registry, which this repository does not read; "
            "install the published distribution modelops-bundle, whose class ModelOpsBundleRepository does, and set "
            "MODELOPS_BUNDLE_SOURCE=modelops_bundle; or push the bundle again with all files in the registry",
        )
    if storage != "oci":
        raise _invalid("index", f"the storage of {_shown(path)} is {_shown(storage)}, and neither oci nor blob")
    if artifact.files.get(path) != _blob(entry, path):
        raise _invalid("index", f"what it says of {_shown(path)} is not what the manifest's layer says")


def write_index(files: Mapping[str, Blob], created: str, tool: Mapping[str, str]) -> bytes:
    """The index of some files, as the published tool writes it. `created` is an ISO 8601 time in UTC."""
    entries = {
        path: {
            "path": path,
            "digest": f"sha256:{file.digest}",
            "size": file.size,
            "storage": "oci",
            "mediaType": None,
            "blobRef": None,
        }
        for path, file in files.items()
    }
    body = {"version": "1.0", "created": created, "tool": dict(tool), "files": entries, "metadata": {}}
    return json.dumps(body, sort_keys=True, indent=2).encode()


def write_manifest(index: Blob, files: Mapping[str, Blob]) -> bytes:
    """The manifest of some files in their order, as the published tool writes it."""
    layers = [{**_descriptor(LAYER_TYPE, file), "annotations": {TITLE: path}} for path, file in files.items()]
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(INDEX_TYPE, index),
        "layers": layers,
        "annotations": {},
    }
    return json.dumps(body).encode()


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths that could leave a folder, or of which a file system could have only one of two."""
    spellings: dict[tuple[str, ...], str] = {}
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    for path in sorted(paths):
        parts = _parts(path)
        key = tuple(map(_folded, parts))
        for end in range(1, len(parts) + 1):
            spelling = "/".join(parts[:end])
            if spellings.setdefault(key[:end], spelling) != spelling:
                other = spellings[key[:end]]
                raise _unsafe(path, f"and {_shown(other)} differ by case or Unicode form alone")
        files.add(key)
        folders.update(key[:end] for end in range(1, len(key)))
    if both := files & folders:
        raise _unsafe(spellings[min(both)], "is a file and a folder")


def _parts(path: str) -> list[str]:
    """The names in a path, each of which any file system takes for a name."""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise _unsafe(path, "is not valid Unicode") from None
    if not path or length > _MAX_PATH:
        raise _unsafe(path, f"has {length} bytes, and a path has 1 to {_MAX_PATH}")
    if path.startswith("/") or re.match("[A-Za-z]:", path):
        raise _unsafe(path, "is absolute")
    if "\\" in path or any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in path):
        raise _unsafe(path, "has a backslash or a control character")
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", ".."):
            raise _unsafe(path, f"has the part {part!r}")
        if len(part.encode()) > _MAX_NAME:
            raise _unsafe(path, f"has a name of more than {_MAX_NAME} bytes")
        if _WINDOWS_DEVICE.fullmatch(part.rstrip(" .")):
            raise _unsafe(path, f"has the name of a device, {part!r}")
        if _folded(part) == ".git":
            raise _unsafe(path, "is git's own, and would run what it says where the bundle is pulled to")
    return parts


def _folded(name: str) -> str:
    """What is left of a name where case, Unicode form, and points and spaces at the end do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold()).rstrip(" .")


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        body = parse_json(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise _invalid(what, f"it is not JSON: {reason[:200]}") from None
    if not isinstance(body, dict):
        raise _invalid(what, "it is not a JSON object")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _blob(entry: Mapping[str, Any], what: str) -> Blob:
    digest, size = entry.get("digest"), entry.get("size")
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise _invalid("manifest", f"the digest of {_shown(what)} is {_shown(digest)}, and not sha256:<64 hex>")
    if type(size) is not int or size < 0:
        raise _invalid("manifest", f"the size of {_shown(what)} is {_shown(size)}")
    return Blob(found[1], size)


def _descriptor(media_type: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": media_type, "size": blob.size, "digest": f"sha256:{blob.digest}"}


def _shown(value: object) -> str:
    """What a registry said, as it may stand in a message: printable and short."""
    return ascii(value)[:200]


def _invalid(what: str, problem: str) -> BundleError:
    return BundleError("artifact_invalid", f"the bundle's {what} is not valid: {problem}")


def _too_large(problem: str) -> BundleError:
    return BundleError("bundle_too_large", f"the bundle is too large: {problem}")


def _unsafe(path: str, problem: str) -> BundleError:
    return BundleError("unsafe_file", f"{_shown(path)} {problem}; a bundle can't have such a file")
