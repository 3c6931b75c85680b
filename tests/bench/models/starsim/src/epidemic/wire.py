"""The wire function imports the model at the first task, as those that wrap a framework do."""

import json
from collections.abc import Mapping


def wire(entrypoint: str, params: Mapping[str, float], seed: int) -> dict[str, bytes]:
    from epidemic.model import simulate

    return {"series": json.dumps(simulate(params, seed)).encode()}
