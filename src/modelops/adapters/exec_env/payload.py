"""What the runner is asked: contract objects as the JSON of its standard input."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelops_contracts import AggregationTask, SimReturn, SimTask, TableArtifact, digest_bytes

from modelops.adapters.artifact_store import ArtifactDamaged, ArtifactStore

from .errors import RunnerError


def simulation_payload(task: SimTask) -> dict[str, Any]:
    """A simulation. Fields for which the runner has no place are refused, rather than left out in silence."""
    for field, value in (("config", task.config), ("env", task.env)):
        if value:
            names = ", ".join(sorted(map(str, value)))
            problem = f"task.{field} ({names}) can't be passed to a sandboxed task; put what it needs into params"
            raise RunnerError.of("input", "unsupported_field", problem)
    if task.outputs is not None and not task.outputs:
        problem = "task.outputs is empty, and a result has at least one output; name some, or give None for all"
        raise RunnerError.of("input", "unsupported_field", problem)
    return plain_simulation(task)


def plain_simulation(task: SimTask) -> dict[str, Any]:
    """A simulation as the runner takes it, without a look at what else the task asks for."""
    return {"entrypoint": str(task.entrypoint), "params": dict(task.params.params), "seed": task.seed}


def aggregation_payload(task: AggregationTask, store: ArtifactStore) -> dict[str, Any]:
    """An aggregation, with the content of every input; the store has those that hold a reference."""
    refuse_failed(task.sim_returns)
    payload: dict[str, Any] = {
        "target_entrypoint": target_location(task.target_entrypoint),
        "sim_returns": [_sim_return(sim, store) for sim in task.sim_returns],
    }
    if task.target_data is not None:
        payload["target_data"] = task.target_data
    return payload


def refuse_failed(sim_returns: Sequence[SimReturn]) -> None:
    """RunnerError where one of the simulations that are to be aggregated has failed."""
    failed = [sim for sim in sim_returns if sim.error is not None]
    if failed:
        first = failed[0].error
        problem = (
            f"{len(failed)} of {len(sim_returns)} simulations have no result to aggregate; "
            f"the first failed with {first and first.error_type}: {first and first.message}"
        )
        raise RunnerError.of("input", "failed_inputs", problem, task_ids=[sim.task_id for sim in failed])


def target_location(entrypoint: str) -> str:
    """A target's entry point as `module:object`, which the runner takes; the old form is `module.object/name`.

    Of two parts the first is the module and the second an object in it; of one or more than two the whole is the
    module, and the name is looked up in it. A first part `dummy`, which old callers send, is dropped.
    """
    path, slash, name = entrypoint.partition("/")
    if not slash:
        return entrypoint
    parts = path.split(".")
    if parts[0] == "dummy" and len(parts) > 1:
        del parts[0]
    return ":".join(parts) if len(parts) == 2 else f"{'.'.join(parts)}:{name}"


def encode(payload: Mapping[str, Any]) -> bytes:
    """One line of JSON."""
    try:
        return json.dumps(payload, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RunnerError.of("input", "input_invalid", f"the task can't be written as JSON: {error}") from None


def _sim_return(sim: SimReturn, store: ArtifactStore) -> dict[str, Any]:
    outputs = {}
    for name, artifact in sim.outputs.items():
        content = _content(name, artifact, sim, store)
        inline = base64.b64encode(content).decode()
        outputs[name] = {"size": len(content), "checksum": artifact.checksum, "inline": inline}
    return {"task_id": sim.task_id, "outputs": outputs}


def _content(name: str, artifact: TableArtifact, sim: SimReturn, store: ArtifactStore) -> bytes:
    where = f"the output {name!r} of the simulation {sim.task_id}"
    if artifact.inline is not None:
        content = artifact.inline
    else:
        try:
            content = store.get(str(artifact.ref))
        except KeyError:
            problem = f"{where} is {artifact.ref}, which the store {str(store.root)!r} does not have"
            raise RunnerError.of("input", "artifact_missing", problem) from None
        except ArtifactDamaged as error:
            raise RunnerError.of("input", "checksum_mismatch", f"{where} is damaged: {error}") from None
    if digest_bytes(content) != artifact.checksum:
        raise RunnerError.of("input", "checksum_mismatch", f"{where} does not have the content of its checksum")
    return content
