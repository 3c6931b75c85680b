"""What of an outcome is compared: the checksum of each output, or the kind and words of the failure."""

import hashlib
from collections.abc import Collection, Mapping
from json import dumps, loads  # bound before a bundle can patch them
from typing import Any


def of_outputs(outputs: Mapping[str, bytes]) -> dict[str, str]:
    """Of outputs: as the runner's own checksums."""
    return {name: hashlib.blake2b(content, digest_size=32).hexdigest() for name, content in outputs.items()}


def of_failure(failure: Mapping[str, Any]) -> list[str]:
    """Of a failure."""
    exception = failure.get("exception") or {}
    return [str(failure.get("type")), str(exception.get("type")), str(exception.get("message"))]


def unlike(one: Any, other: Any, unstable: Collection[str] = ()) -> list[str]:
    """The names of the outputs that differ, less `unstable`; "failure" where either has none."""
    if isinstance(one, dict) and isinstance(other, dict):
        return sorted(n for n in one.keys() | other.keys() if n not in unstable and one.get(n) != other.get(n))
    return [] if one == other else ["failure"]


def plain_result(content: bytes) -> bytes:
    """An aggregation's result in one spelling, so that it can be compared; anything else as it is."""
    try:
        return dumps(loads(content), sort_keys=True).encode()
    except (ValueError, RecursionError):
        return content
