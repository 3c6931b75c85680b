"""References to bundles: `sha256:<64 hex>`, alone or after `name@`, and where one lies in a registry."""

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from .errors import BundleError

_REFERENCE = re.compile(r"(?:(?P<name>[^@]+)@)?sha256:(?P<digest>[0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# As the distribution specification has them; a host is one where it can't be the first part of a path.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_REPOSITORY = 255


class BundleReference(NamedTuple):
    """`digest` is 64 lower-case hex characters; `name` is None where the reference has none."""

    name: str | None
    digest: str

    def __str__(self) -> str:
        prefix = "" if self.name is None else f"{self.name}@"
        return f"{prefix}sha256:{self.digest}"


def is_name(text: str) -> bool:
    """Whether a bundle may have this name."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """`name`, where a bundle may have it."""
    if not is_name(name):
        rule = "letters, digits, '.', '_' and '-', beginning with a letter or digit"
        raise BundleError("bundle_ref_invalid", f"{name[:200]!r} can't be a bundle's name, which has {rule}")
    return name


def parse_reference(text: str, check: Callable[[str], str] = check_name) -> BundleReference:
    """The parts of a reference. A name that could be a path is refused here, before it becomes one."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise BundleError(
            "bundle_ref_invalid",
            f"{text[:200]!r} is not a bundle reference: sha256:<64 hex> or name@sha256:<64 hex>",
        )
    name = found["name"]
    return BundleReference(None if name is None else check(name), found["digest"].lower())


class Place(NamedTuple):
    """A repository in a registry: `host`, with its port where it has one, and the path `repository`."""

    host: str
    repository: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}" if self.repository else self.host

    def holds(self, name: str) -> bool:
        """Whether `name`, with its host, is this place or one below it."""
        return f"{name}/".startswith(f"{self}/")

    def below(self, name: str) -> "Place":
        """The repository that `name` is of in this registry; a name that begins with this one's own stays."""
        if self.holds(name):
            return parse_place(name)
        if names_registry(name):
            problem = f"{name[:200]!r} is in another registry than {self}, the one of MODELOPS_BUNDLE_REGISTRY"
            raise BundleError("bundle_ref_invalid", problem)
        return Place(self.host, _check_repository(f"{self.repository}/{name}".lstrip("/")))


def parse_place(text: str) -> Place:
    """`host[:port]/repository`, or the host alone, as MODELOPS_BUNDLE_REGISTRY has it."""
    plain = text.removeprefix("oci://").removeprefix("https://")
    host, _, repository = plain.rstrip("/").partition("/")
    if plain.startswith("http://"):
        problem = f"{text[:200]!r}: write the registry without http://; MODELOPS_BUNDLE_INSECURE=true allows plain HTTP"
        raise BundleError("bundle_ref_invalid", problem)
    if not _HOST.fullmatch(host) or not _is_address(host):
        raise BundleError("bundle_ref_invalid", f"{text[:200]!r} is not a registry such as ghcr.io/org/models")
    return Place(host.lower(), _check_repository(repository) if repository else "")


def _is_address(host: str) -> bool:
    """Whether what looks like a host has a port that can be one, and labels or numbers that can be looked up."""
    try:
        split = urlsplit(f"//{host}")
        return split.port != 0 and bool((split.hostname or "").encode("idna"))
    except ValueError:  # UnicodeError is one
        return False


class Target(NamedTuple):
    """What a person names on the command line: a tag or a digest in a repository."""

    place: Place
    tag: str | None
    digest: str | None  # hex

    @property
    def reference(self) -> str:
        """As a registry's API has it."""
        return f"sha256:{self.digest}" if self.digest else str(self.tag)

    def __str__(self) -> str:
        return f"{self.place}@{self.reference}" if self.digest else f"{self.place}:{self.tag}"


def parse_target(text: str, registry: str | None, default_tag: str = "latest") -> Target:
    """`[registry/]repository[:tag|@sha256:<hex>]`, or `sha256:<hex>` of the registry's own repository.

    A repository without a host is one of `registry`, which is what MODELOPS_BUNDLE_REGISTRY says.
    """
    plain = text.removeprefix("oci://")
    if re.fullmatch(r"sha256:[0-9a-fA-F]{64}", plain):
        return Target(_registry(text, registry), None, plain[7:].lower())
    name, at, digest = plain.partition("@")
    found = re.fullmatch(r"sha256:([0-9a-fA-F]{64})", digest)
    if at and not found:
        raise BundleError("bundle_ref_invalid", f"{text[:200]!r}: what is behind the '@' is not sha256:<64 hex>")
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a port
        path, tag = name, ""
    if (tag or path != name) and not _TAG.fullmatch(tag):
        raise BundleError("bundle_ref_invalid", f"{tag[:200]!r} can't be a tag")
    place = parse_place(path) if names_registry(path) else _registry(text, registry).below(path)
    if not place.repository:
        raise BundleError("bundle_ref_invalid", f"{text[:200]!r} names a registry and no repository in it")
    return Target(place, None if found else tag or default_tag, found[1].lower() if found else None)


def _registry(text: str, registry: str | None) -> Place:
    if not registry:
        problem = f"{text[:200]!r} names no registry: write host/repository, or set MODELOPS_BUNDLE_REGISTRY"
        raise BundleError("bundle_ref_invalid", problem)
    return parse_place(registry)


def names_registry(text: str) -> bool:
    """Whether a reference begins with a registry's host, as docker tells one from the first part of a path."""
    host, slash, _ = text.removeprefix("oci://").partition("/")
    return bool(slash) and ("." in host or ":" in host or host == "localhost")


def _check_repository(path: str) -> str:
    if not _REPOSITORY.fullmatch(path) or len(path) > _MAX_REPOSITORY:
        rule = "lower-case letters and digits with '.', '_' or '-' between them, and '/' between its parts"
        raise BundleError("bundle_ref_invalid", f"{path[:200]!r} can't be a repository, which has {rule}")
    return path
