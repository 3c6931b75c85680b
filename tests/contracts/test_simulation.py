"""Tasks, replicate sets and aggregations."""

import dataclasses
import hashlib
import math
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelops_contracts import (
    ContractViolationError,
    EntrypointFormatError,
    ReplicateSet,
    SimTask,
    UniqueParameterSet,
    aggregation_id,
)

from .builders import (
    BUNDLE,
    aggregation_return,
    aggregation_task,
    artifact,
    sim_return,
    sim_task,
)

MAX_SEED = 2**64 - 1
HUGE = pytest.param(10**5000, id="huge")
BAD_SEEDS = [-1, MAX_SEED + 1, HUGE, True, False, 1.0, "1", None]
BAD_ENTRYPOINTS = ["", "main", "a/b", "a.b/c:d", "a.b/C", "a.b/c\n", None, 5]


class TestSimTask:
    def test_defaults(self) -> None:
        task = sim_task()
        assert (task.outputs, task.config, task.env) == (None, None, None)

    @pytest.mark.parametrize(
        "ref",
        [BUNDLE, BUNDLE.upper().replace("SHA", "sha"), f"models@{BUNDLE}", f"r.io:50/a/b@{BUNDLE}"],
    )
    def test_bundle_refs(self, ref: str) -> None:
        assert sim_task(bundle_ref=ref).bundle_ref == ref

    @pytest.mark.parametrize(
        "ref",
        [
            "",
            None,
            "sha256:",
            "sha256:dummy",
            BUNDLE[:-1],
            BUNDLE + "0",
            BUNDLE + "\n",
            BUNDLE[:-1] + "g",
            BUNDLE[:-1] + "_",
            "sha512:" + BUNDLE[7:],
            BUNDLE[7:],
            "@" + BUNDLE,
            " @" + BUNDLE,
            "models:latest",
            "models:" + BUNDLE,
            BUNDLE + "@models",
            "local://dev",
        ],
    )
    def test_bundle_ref_is_a_digest(self, ref: Any) -> None:
        with pytest.raises(ContractViolationError, match="bundle_ref"):
            sim_task(bundle_ref=ref)

    @pytest.mark.parametrize("entrypoint", ["a.b/c", "a.b.C/low-1", "a.b:c"])
    def test_entrypoints(self, entrypoint: str) -> None:
        assert sim_task(entrypoint=entrypoint).entrypoint == entrypoint

    @pytest.mark.parametrize("entrypoint", BAD_ENTRYPOINTS)
    def test_entrypoint_is_parseable(self, entrypoint: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"^entrypoint"):
            sim_task(entrypoint=entrypoint)

    @pytest.mark.parametrize("params", [{"a": 1}, None, "id"])
    def test_params_are_a_parameter_set(self, params: Any) -> None:
        with pytest.raises(ContractViolationError, match="params must be UniqueParameterSet"):
            sim_task(params=params)

    @given(st.integers(0, MAX_SEED))
    def test_seeds(self, seed: int) -> None:
        assert sim_task(seed=seed).seed == seed

    @pytest.mark.parametrize("seed", [0, MAX_SEED])
    def test_seed_limits(self, seed: int) -> None:
        assert sim_task(seed=seed).seed == seed

    @pytest.mark.parametrize("seed", BAD_SEEDS)
    def test_seed_is_an_unsigned_64_bit_int(self, seed: Any) -> None:
        with pytest.raises(ContractViolationError, match="seed must be"):
            sim_task(seed=seed)

    @given(st.lists(st.text(max_size=5), max_size=6))
    def test_outputs_become_a_sorted_tuple(self, outputs: list[str]) -> None:
        assert sim_task(outputs=outputs).outputs == tuple(sorted(outputs))

    @pytest.mark.parametrize("outputs", ["table", b"table", 5])
    def test_outputs_are_a_sequence(self, outputs: Any) -> None:
        with pytest.raises(ContractViolationError, match="outputs must be a sequence"):
            sim_task(outputs=outputs)

    @pytest.mark.parametrize("bad", [1, None, b"b"])
    def test_output_names_are_text(self, bad: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"outputs\[1\] must be str"):
            sim_task(outputs=["a", bad])

    @pytest.mark.parametrize("field", ["config", "env"])
    def test_config_and_env_are_read_only_copies(self, field: str) -> None:
        value: dict[str, Any] = {"a": {"b": [1, (2,)]}}
        frozen: Any = getattr(sim_task(**{field: value}), field)
        value["a"]["b"].append(3)
        value["c"] = 4
        assert isinstance(frozen, MappingProxyType)
        assert frozen == {"a": {"b": [1, (2,)]}}
        with pytest.raises(TypeError):
            frozen["a"] = 5  # type: ignore[index]

    @pytest.mark.parametrize("field", ["config", "env"])
    @pytest.mark.parametrize("value", ["a", ["a"], 5])
    def test_config_and_env_are_mappings(self, field: str, value: Any) -> None:
        with pytest.raises(ContractViolationError, match=f"{field} must be a mapping"):
            sim_task(**{field: value})

    def test_the_record_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            sim_task().seed = 1  # type: ignore[misc]

    def test_a_copy_is_checked(self) -> None:
        with pytest.raises(ContractViolationError, match="seed"):
            dataclasses.replace(sim_task(), seed=-1)


class TestFromComponents:
    COMPONENTS: dict[str, Any] = {  # noqa: RUF012
        "import_path": "models.sir.SIR",
        "scenario": "baseline",
        "bundle_ref": BUNDLE,
        "params": {"beta": 0.5, "n": 10},
        "seed": 7,
    }

    def make(self, **changes: Any) -> SimTask:
        return SimTask.from_components(**{**self.COMPONENTS, **changes})

    def test_it_equals_the_constructor(self) -> None:
        assert self.make() == sim_task()

    def test_optional_fields_are_passed_on(self) -> None:
        optional: dict[str, Any] = {"outputs": ["b", "a"], "config": {"x": 1}, "env": {"y": "2"}}
        assert self.make(**optional) == sim_task(**optional)
        assert self.make(**optional).outputs == ("a", "b")

    def test_no_outputs_means_all(self) -> None:
        assert self.make(outputs=[]).outputs is None

    def test_arguments_are_by_keyword(self) -> None:
        with pytest.raises(TypeError):
            SimTask.from_components(*self.COMPONENTS.values())  # type: ignore[call-arg]

    @pytest.mark.parametrize("name", ["import_path", "scenario"])
    def test_a_bad_name_is_refused(self, name: str) -> None:
        with pytest.raises(EntrypointFormatError, match=name):
            self.make(**{name: "No Name"})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("bundle_ref", "sha256:dummy"), ("params", {"a": math.nan}), ("seed", True)],
    )
    def test_other_rules_hold(self, name: str, value: Any) -> None:
        with pytest.raises(ContractViolationError, match=name):
            self.make(**{name: value})


class TestReplicateSet:
    def test_seeds_are_consecutive(self) -> None:
        base = sim_task(seed=100, outputs=["b", "a"], config={"x": 1}, env={"y": 2})
        tasks = ReplicateSet(base, 3, seed_offset=10).tasks()
        assert tasks == [dataclasses.replace(base, seed=seed) for seed in (110, 111, 112)]
        assert all(task.config == {"x": 1} and task.env == {"y": 2} for task in tasks)

    @given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(0, 20))
    def test_seed_rule(self, seed: int, offset: int, count: int) -> None:
        tasks = ReplicateSet(sim_task(seed=seed), count, offset).tasks()
        assert [task.seed for task in tasks] == [seed + offset + i for i in range(count)]

    def test_the_offset_is_zero_by_default(self) -> None:
        assert ReplicateSet(sim_task(seed=5), 1).tasks() == [sim_task(seed=5)]

    @pytest.mark.parametrize(("seed", "offset"), [(MAX_SEED, 0), (0, -1)])
    def test_seeds_outside_the_range_are_refused(self, seed: int, offset: int) -> None:
        with pytest.raises(ContractViolationError, match="seed"):
            ReplicateSet(sim_task(seed=seed), 2, offset).tasks()

    @pytest.mark.parametrize("count", [-1, True, 2.0, None])
    def test_n_replicates_is_a_count(self, count: Any) -> None:
        with pytest.raises(ContractViolationError, match="n_replicates"):
            ReplicateSet(sim_task(), count)

    @pytest.mark.parametrize("offset", [True, 2.0, None])
    def test_seed_offset_is_an_int(self, offset: Any) -> None:
        with pytest.raises(ContractViolationError, match="seed_offset"):
            ReplicateSet(sim_task(), 1, offset)

    def test_base_task_is_a_task(self) -> None:
        with pytest.raises(ContractViolationError, match="base_task must be SimTask"):
            ReplicateSet(UniqueParameterSet({}, "id"), 1)  # type: ignore[arg-type]


class TestAggregationTask:
    @pytest.mark.parametrize("ref", [BUNDLE, f"models@{BUNDLE}", "any-reference"])
    def test_bundle_refs(self, ref: str) -> None:
        assert aggregation_task(bundle_ref=ref).bundle_ref == ref

    @pytest.mark.parametrize("ref", ["", None])
    def test_bundle_ref_is_non_empty(self, ref: Any) -> None:
        with pytest.raises(ContractViolationError, match="bundle_ref"):
            aggregation_task(bundle_ref=ref)

    @pytest.mark.parametrize("target", ["targets.covid:deaths", "targets.covid/deaths"])
    def test_targets(self, target: str) -> None:
        assert aggregation_task(target_entrypoint=target).target_entrypoint == target

    @pytest.mark.parametrize("target", BAD_ENTRYPOINTS)
    def test_target_is_parseable(self, target: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"^target_entrypoint"):
            aggregation_task(target_entrypoint=target)

    def test_sim_returns_are_non_empty(self) -> None:
        with pytest.raises(ContractViolationError, match="sim_returns must be non-empty"):
            aggregation_task(sim_returns=[])

    @pytest.mark.parametrize("sim_returns", [None, 5, "ab"])
    def test_sim_returns_are_a_sequence(self, sim_returns: Any) -> None:
        with pytest.raises(ContractViolationError, match="sim_returns must be a sequence"):
            aggregation_task(sim_returns=sim_returns)

    def test_sim_returns_are_sim_returns(self) -> None:
        with pytest.raises(ContractViolationError, match=r"sim_returns\[1\] must be SimReturn"):
            aggregation_task(sim_returns=[sim_return(), {"task_id": "x"}])

    def test_target_data_is_a_mapping(self) -> None:
        with pytest.raises(ContractViolationError, match="target_data must be a mapping"):
            aggregation_task(target_data=[1])

    def test_later_changes_of_the_arguments_do_not_show(self) -> None:
        sim_returns, data = [sim_return()], {"deaths": [1, 2]}
        task = aggregation_task(sim_returns=sim_returns, target_data=data)
        sim_returns.clear()
        data["deaths"].append(3)
        assert task == aggregation_task(target_data={"deaths": [1, 2]})
        assert type(task.sim_returns) is list
        assert type(task.target_data) is dict

    def test_aggregation_id(self) -> None:
        returns = [sim_return(task_id=task_id) for task_id in ("b", "c", "a")]
        expected = hashlib.blake2b(b"targets.covid:deaths:a,b,c", digest_size=32).hexdigest()
        assert aggregation_task(sim_returns=returns).aggregation_id() == expected[:16]
        assert aggregation_task(sim_returns=returns[::-1]).aggregation_id() == expected[:16]

    def test_aggregation_id_is_not_that_of_utils(self) -> None:
        task = aggregation_task()
        assert task.aggregation_id() != aggregation_id("targets.covid:deaths", ["task"])


class TestAggregationReturn:
    def test_accepted(self) -> None:
        assert aggregation_return(loss=0, diagnostics={}, outputs={}, n_replicates=1).loss == 0

    @pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None, "1", 10**400, HUGE])
    def test_loss_is_finite(self, loss: Any) -> None:
        with pytest.raises(ContractViolationError, match="loss"):
            aggregation_return(loss=loss)

    @pytest.mark.parametrize("count", [0, -1, True, 1.0, None])
    def test_n_replicates_is_positive(self, count: Any) -> None:
        with pytest.raises(ContractViolationError, match="n_replicates"):
            aggregation_return(n_replicates=count)

    def test_outputs_are_artifacts(self) -> None:
        with pytest.raises(ContractViolationError, match=r"outputs\['x'\] must be TableArtifact"):
            aggregation_return(outputs={"x": b"x"})

    @pytest.mark.parametrize("field", ["diagnostics", "outputs"])
    def test_mappings(self, field: str) -> None:
        with pytest.raises(ContractViolationError, match=f"{field} must be a mapping"):
            aggregation_return(**{field: None})

    def test_later_changes_of_the_arguments_do_not_show(self) -> None:
        diagnostics, outputs = {"per": [1]}, {"table": artifact()}
        result = aggregation_return(diagnostics=diagnostics, outputs=outputs)
        diagnostics["per"].append(2)
        outputs.clear()
        assert result == aggregation_return(diagnostics={"per": [1]})
        assert type(result.diagnostics) is dict
        assert type(result.outputs) is dict
