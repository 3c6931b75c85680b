"""Identifiers of tasks, bundles and aggregations."""

import hashlib
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelops_contracts import (
    ContractViolationError,
    UniqueParameterSet,
    aggregation_id,
    bundle12,
    canonical_task_id,
)

from .builders import BUNDLE, sim_task


def test_canonical_task_id() -> None:
    task = sim_task(params=UniqueParameterSet({"a": 1}, "pid"), seed=2**64 - 1)
    text = f"sim:v1|{BUNDLE}|models.sir.SIR/baseline|pid|18446744073709551615"
    expected = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    assert canonical_task_id(task) == expected
    assert len(expected) == 32


def test_canonical_task_id_ignores_outputs_config_and_env() -> None:
    task = sim_task(outputs=["a"], config={"x": 1}, env={"y": 2})
    assert canonical_task_id(task) == canonical_task_id(sim_task())


def test_canonical_task_id_tells_tasks_apart() -> None:
    tasks = [
        sim_task(),
        sim_task(seed=8),
        sim_task(entrypoint="models.sir.SIR/other"),
        sim_task(bundle_ref="sha256:" + "f" * 64),
        sim_task(params=UniqueParameterSet.from_dict({"beta": 0.6})),
    ]
    assert len({canonical_task_id(task) for task in tasks}) == len(tasks)


@pytest.mark.parametrize("ref", [BUNDLE, f"models@{BUNDLE}", f"oci://r.io:5000/a@{BUNDLE}", BUNDLE[7:]])
def test_bundle12(ref: str) -> None:
    assert bundle12(ref) == "0123456789ab"


@pytest.mark.parametrize("ref", ["", "sha256:", "sha256:dummy", "models:latest", "../../../../x"])
def test_bundle12_refuses_what_has_no_digest(ref: str) -> None:
    with pytest.raises(ContractViolationError, match="bundle_ref"):
        bundle12(ref)


@given(st.lists(st.from_regex(r"[0-9a-f]{4}", fullmatch=True), max_size=4))
def test_aggregation_id(task_ids: list[str]) -> None:
    text = "targets.covid:deaths:" + ",".join(sorted(task_ids))
    expected = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:16]
    for order in permutations(task_ids):
        assert aggregation_id("targets.covid:deaths", list(order)) == expected
