"""The smallest bundle: it says what it was asked."""

import json
from collections.abc import Mapping


def wire(entrypoint: str, params: Mapping[str, float], seed: int) -> dict[str, bytes]:
    return {"hello": json.dumps([entrypoint, dict(params), seed], sort_keys=True).encode()}
