"""The main path: a task goes in, one line with its outputs comes out."""

from collections.abc import Callable
from pathlib import Path

from conftest import Runner


def test_a_task_gives_its_outputs(run: Runner, bundle: Callable[..., Path]) -> None:
    path = bundle("def wire(entrypoint, params, seed):\n    return {'out': repr((entrypoint, params, seed))}\n")
    result = run(path, {"entrypoint": "main", "params": {"a": 1.5}, "seed": 2**64 - 1})
    assert result.outputs == {"out": repr(("main", {"a": 1.5}, 2**64 - 1)).encode()}
