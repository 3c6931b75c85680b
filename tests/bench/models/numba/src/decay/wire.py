"""The wire function imports the model at the first task, as those that wrap a framework do."""

import json
from collections.abc import Mapping


def wire(entrypoint: str, params: Mapping[str, float], seed: int) -> dict[str, bytes]:
    from decay.model import simulate

    series = simulate(int(params["population"]), params["birth"], params["death"], params["end"], seed % 2**31)
    return {"series": json.dumps(series.tolist()).encode()}
