"""The wire function imports the model at the first task, as those that wrap a framework do."""

from collections.abc import Mapping


def wire(entrypoint: str, params: Mapping[str, int], seed: int) -> dict[str, bytes]:
    from tables.model import summarise

    return summarise(params["rows"], params["groups"], seed)
