"""TOML of others. Python's parser takes the square of a key's parts: some 100 kB of dots would be hours."""

import tomllib
from typing import Any

MAX_BYTES = 1 << 20
FEW, MOST = 200, 1_000_000  # dots of a line that are not counted, and the squares of all that are


def parse_toml(data: bytes) -> dict[str, Any]:
    """As `tomllib.loads`; ValueError, RecursionError where it is none, or would take long to read."""
    dots = [line.count(b".") for line in data.splitlines()]
    if len(data) > MAX_BYTES or sum(count**2 for count in dots if count > FEW) > MOST:
        raise ValueError("it is too large, or its keys have too many parts")
    return tomllib.loads(data.decode())
