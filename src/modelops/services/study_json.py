"""A study as the published tools write it (`SimulationStudy` of the published contracts), as data.

    {"model": "models.sir", "scenario": "baseline", "n_replicates": 2, "parameter_sets": [..],
     "outputs": [..] or null, "targets": [..] or null, "sampling_method": "sobol", "metadata": {..}}

A parameter set is `{"params": {..}, "seed": int or null}`, or the parameters themselves. One with a seed is one
simulation; one without has `n_replicates`, with seeds derived from it (`replicate_seed`).
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelops_contracts import ContractViolationError, UniqueParameterSet, parse_entrypoint

from modelops.adapters.bundle.registry import BundleRegistry
from modelops.strict_json import parse_json

from .study import Point, Study, Target, check_size

logger = logging.getLogger(__name__)

# Those that decide what is run, and those that only tell of it.
_USED = {"model", "scenario", "parameter_sets", "n_replicates", "outputs", "targets"}
_TOLD = {"sampling_method", "metadata"}


def read_study_json(path: Path) -> dict[str, Any]:
    """The object in a study's file. ValueError where it is not one."""
    try:
        body = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(body, dict) or not {"model", "scenario", "parameter_sets"} <= body.keys():
        raise ValueError(f"{str(path)!r} is not a study: an object with model, scenario and parameter_sets")
    return body


def study_of(
    body: Mapping[str, Any],
    bundle_ref: str,
    registry: BundleRegistry,
    targets: list[str] | None = None,
    target_data: dict[str, Any] | None = None,
) -> Study:
    """The study in `body` on a bundle, whose registry names targets. `targets` replace the study's own."""
    unknown = body.keys() - _USED - _TOLD
    if unknown:
        logger.warning("the study has fields that are not used: %s", ", ".join(sorted(map(str, unknown))))
    chosen = targets or _names(body, "targets") or []
    outputs = _names(body, "outputs")
    if outputs == []:
        raise ValueError("outputs: an empty list leaves no result; name some, or give null for all")
    return Study(
        bundle_ref,
        f"{_text(body, 'model')}/{_text(body, 'scenario')}",
        list(points(body)),
        targets=find_targets(chosen, registry),
        target_data=target_data,
        outputs=None if outputs is None else tuple(outputs),
    )


def find_targets(names: Iterable[str], registry: BundleRegistry) -> list[Target]:
    """Targets by entry point, or by the name that the bundle's registry gives to one or to a set of them."""
    found: dict[str, Target] = {}
    waiting, opened = list(names)[::-1], set[str]()
    while waiting:
        name = waiting.pop()
        if name in registry.target_sets:
            if name not in opened:  # sets may have sets, and each other
                waiting += registry.target_sets[name][::-1]
                opened.add(name)
        elif name in registry.targets:
            found[name] = Target(name, registry.targets[name].entrypoint)
        elif ":" in name or "/" in name:
            found[name] = Target(name, name)
        else:
            known = ", ".join(sorted([*registry.targets, *registry.target_sets])) or "none"
            raise ValueError(f"{name!r} is no target: neither module:object nor one of the bundle's registry ({known})")
    for target in found.values():
        parse_entrypoint(target.entrypoint)
    return list(found.values())


def points(body: Mapping[str, Any]) -> Iterator[Point]:
    """The simulations of a study, in its order. Equal ones are one."""
    sets, replicates = body["parameter_sets"], body.get("n_replicates", 1)
    if not isinstance(sets, list) or not sets:
        raise ValueError("parameter_sets: must be a list with at least one set")
    if type(replicates) is not int or replicates < 1:
        raise ValueError(f"n_replicates: must be a positive integer, not {replicates!r}")
    check_size(len(sets), replicates)
    seen: set[tuple[str, int]] = set()
    for number, entry in enumerate(sets, start=1):
        try:
            parameters, seed = _parameter_set(entry)
        except (ValueError, ContractViolationError) as error:
            raise ValueError(f"parameter set {number} of {len(sets)}: {error}") from None
        seeds = [seed] if seed is not None else [replicate_seed(parameters, n) for n in range(replicates)]
        for one in seeds:
            if (parameters.param_id, one) in seen:
                logger.warning("parameter set %d repeats another with the seed %d; it is run once", number, one)
                continue
            seen.add((parameters.param_id, one))
            yield Point(parameters, one)


def replicate_seed(parameters: UniqueParameterSet, replicate: int) -> int:
    """The seed of a replicate (from 0) as `SimulationStudy.to_simjob` of the published contracts derives it.

    The first 8 bytes of BLAKE2b (digest_size=8) over `<param_id>:<replicate>`, big-endian, modulo 2^32.
    """
    digest = hashlib.blake2b(f"{parameters.param_id}:{replicate}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**32


def _parameter_set(entry: Any) -> tuple[UniqueParameterSet, int | None]:
    if not isinstance(entry, dict):
        raise ValueError(f"must be an object, not {entry!r}")
    if not isinstance(entry.get("params"), dict):
        return UniqueParameterSet.from_dict(entry), None
    if extra := entry.keys() - {"params", "seed"}:
        raise ValueError(f"has {', '.join(sorted(extra))} beside params and seed")
    seed = entry.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        raise ValueError(f"the seed must be an integer from 0 to 2^64 - 1, not {seed!r}")
    return UniqueParameterSet.from_dict(entry["params"]), seed


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body[key]
    if not isinstance(value, str):
        raise ValueError(f"{key}: must be a string, not {value!r}")
    return value


def _names(body: Mapping[str, Any], key: str) -> list[str] | None:
    value = body.get(key)
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"{key}: must be a list of names or null, not {value!r}")
    return value
