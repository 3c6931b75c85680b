"""References to bundles: `sha256:<64 hex>`, alone or after `name@`."""

import re
from typing import NamedTuple

from .errors import BundleError

_REFERENCE = re.compile(r"(?:(?P<name>[^@]+)@)?sha256:(?P<digest>[0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class BundleReference(NamedTuple):
    """`digest` is 64 lower-case hex characters; `name` is None where the reference has none."""

    name: str | None
    digest: str

    def __str__(self) -> str:
        prefix = "" if self.name is None else f"{self.name}@"
        return f"{prefix}sha256:{self.digest}"


def parse_reference(text: str) -> BundleReference:
    """The parts of a reference. A name that could be a path is refused here, before it becomes one."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise BundleError(
            "bundle_ref_invalid",
            f"{text!r} is not a bundle reference: sha256:<64 hex> or name@sha256:<64 hex>",
        )
    name = found["name"]
    return BundleReference(None if name is None else check_name(name), found["digest"].lower())


def is_name(text: str) -> bool:
    """Whether a bundle may have this name."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """`name`, where a bundle may have it."""
    if not is_name(name):
        rule = "letters, digits, '.', '_' and '-', beginning with a letter or digit"
        raise BundleError("bundle_ref_invalid", f"{name[:200]!r} can't be a bundle's name, which has {rule}")
    return name
