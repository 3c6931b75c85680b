"""Records travel between processes: copies are equal, and as closed as the original."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from modelops_contracts import (
    ErrorInfo,
    ReplicateSet,
    SeedInfo,
    TrialResult,
    TrialStatus,
    UniqueParameterSet,
)

from .builders import (
    aggregation_return,
    aggregation_task,
    artifact,
    sim_return,
    sim_task,
    stored_artifact,
)


def full_task() -> Any:
    nested = MappingProxyType({"deep": MappingProxyType({"list": [1, 2]})})
    return sim_task(outputs=["b", "a"], config={"nested": nested}, env={"KEY": "value"})


RECORDS = {
    "params": UniqueParameterSet.from_dict({"a": 1, "b": 0.5, "c": True, "d": "x"}),
    "seeds": SeedInfo(1, 2, (3, 2**64 - 1)),
    "trial": TrialResult("id", 1.0, {"a": [1]}, TrialStatus.FAILED),
    "inline": artifact(),
    "stored": stored_artifact(),
    "error": ErrorInfo("OSError", "later", True),
    "plain task": sim_task(),
    "full task": full_task(),
    "replicates": ReplicateSet(full_task(), 3, 5),
    "return": sim_return(metrics={"wall": 1.0}, logs_ref="log", cached=True),
    "failed return": sim_return(error=ErrorInfo("E", "m"), error_details=artifact(b"t")),
    "aggregation": aggregation_task(target_data={"deaths": MappingProxyType({"x": 1})}),
    "aggregated": aggregation_return(),
}


def pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda record: pickle.loads(pickle.dumps(record, protocol))


def cloudpickled(record: Any) -> Any:
    cloudpickle = pytest.importorskip("cloudpickle")
    return pickle.loads(cloudpickle.dumps(record))


WAYS: dict[str, Callable[[Any], Any]] = {
    **{f"pickle {p}": pickled(p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    "cloudpickle": cloudpickled,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": dataclasses.replace,
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_round_trip(way: Callable[[Any], Any], record: Any) -> None:
    result = way(record)
    assert type(result) is type(record)
    assert result is not record
    assert result == record


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_copy_stays_read_only(way: Callable[[Any], Any]) -> None:
    task = way(full_task())
    for mapping in (task.params.params, task.config, task.env):
        assert type(mapping) is MappingProxyType
    assert task.outputs == ("a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.seed = 1


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_every_record_is_a_frozen_dataclass(record: Any) -> None:
    first = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, first, None)
