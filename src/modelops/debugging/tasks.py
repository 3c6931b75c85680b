"""Tasks as people write them: the runner's own input, from options, a file, or a file with one a line."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from modelops.services.study_inputs import parameter_sets, parse_grid, parse_params, parse_seeds, read_table

Task = dict[str, Any]  # a simulation {"entrypoint", "params", "seed"}, or an aggregation with "target_entrypoint"
_SIMULATION = {"entrypoint", "params", "seed"}
_AGGREGATION = {"target_entrypoint", "sim_returns", "target_data"}


def simulation(entrypoint: str, params: str, single: Iterable[str], seed: int) -> Task:
    """The task of the options: `params` as JSON or @file, and over it each `name=value`, JSON where it parses."""
    found = dict(parse_params(params))
    for item in single:
        name, equals, text = item.partition("=")
        if not (name and equals):
            raise ValueError(f"{item!r} is not name=value")
        found[name] = _value(text)
    return check_task({"entrypoint": entrypoint, "params": found, "seed": seed}, "the task")


def read_text(path: Path) -> str:
    """What a person wrote into a file; ValueError where it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None


def read_task(path: Path) -> Task:
    """The task in a file."""
    return check_task(_parse(read_text(path), str(path)), str(path))


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a file with one a line; empty lines are left out."""
    lines = read_text(path).splitlines()
    found = [check_task(_parse(line, f"{path}:{n}"), f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} has no tasks")
    return found


def tasks_of_grid(entrypoint: str, params: str, grid: Sequence[str], table: Path | None, seeds: str) -> list[Task]:
    """The simulations of a study, in its order: every parameter set with every seed."""
    sets = parameter_sets(parse_params(params), parse_grid(grid), None if table is None else read_table(table))
    return [
        {"entrypoint": entrypoint, "params": dict(parameters.params), "seed": seed}
        for parameters in sets
        for seed in parse_seeds(seeds)
    ]


def check_task(task: Any, where: str) -> Task:
    """`task`, where it has the form of a task; the runner checks what is in it."""
    if not isinstance(task, dict):
        raise ValueError(f"{where}: a task is a JSON object")
    fields = _AGGREGATION if "target_entrypoint" in task else _SIMULATION
    missing = fields - task.keys() - {"target_data"}
    unknown = task.keys() - fields
    if missing or unknown:
        problem = f"missing {', '.join(sorted(missing))}" if missing else f"unknown {', '.join(sorted(unknown))}"
        raise ValueError(f"{where}: the task is not one of the runner's: {problem}")
    return task


def is_aggregation(task: Task) -> bool:
    """Whether the task is one, and not a simulation."""
    return "target_entrypoint" in task


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
