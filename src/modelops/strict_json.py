"""JSON of others, of which nothing is dropped in silence."""

import json
from typing import Any


def parse_json(text: str | bytes, **options: Any) -> Any:
    """As `json.loads`; ValueError also where an object has a key twice, of which Python's would keep the last."""
    return json.loads(text, object_pairs_hook=_without_doubles, **options)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for key, value in pairs:
        if key in body:
            raise ValueError(f"an object has the key {key[:100]!a} twice")
        body[key] = value
    return body
