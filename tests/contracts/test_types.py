"""Parameter sets, seeds and trial results."""

import dataclasses
import math
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelops_contracts import (
    MAX_DIAG_BYTES,
    ContractViolationError,
    Scalar,
    SeedInfo,
    TrialResult,
    TrialStatus,
    UniqueParameterSet,
    make_param_id,
)

MAX_SEED = 2**64 - 1
HUGE = pytest.param(10**5000, id="huge")
SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


class Level(IntEnum):
    HIGH = 2


class TestUniqueParameterSet:
    @given(st.dictionaries(st.text(), SCALARS))
    def test_scalars_are_accepted(self, params: dict[str, Any]) -> None:
        assert UniqueParameterSet(params, "id").params == params

    def test_subclasses_of_scalars_are_accepted(self) -> None:
        assert UniqueParameterSet({"level": Level.HIGH}, "id").params["level"] == 2

    def test_from_dict_identifies_the_parameters(self) -> None:
        params: dict[str, Scalar] = {"beta": 0.5, "on": True, "n": 10, "name": "x"}
        assert UniqueParameterSet.from_dict(params).param_id == make_param_id(params)

    def test_params_are_read_only(self) -> None:
        params = UniqueParameterSet({"a": 1}, "id").params
        assert type(params) is MappingProxyType
        with pytest.raises(TypeError):
            params["a"] = 2  # type: ignore[index]

    def test_later_changes_of_the_argument_do_not_show(self) -> None:
        given_params = {"a": 1}
        parameter_set = UniqueParameterSet.from_dict(given_params)
        given_params["a"] = 2
        given_params["b"] = 3
        assert parameter_set.params == {"a": 1}

    def test_the_record_is_frozen(self) -> None:
        parameter_set = UniqueParameterSet({"a": 1}, "id")
        with pytest.raises(dataclasses.FrozenInstanceError):
            parameter_set.param_id = "other"  # type: ignore[misc]

    @pytest.mark.parametrize("param_id", ["", None, 5])
    def test_param_id_is_non_empty_text(self, param_id: Any) -> None:
        with pytest.raises(ContractViolationError, match="param_id"):
            UniqueParameterSet({}, param_id)

    @pytest.mark.parametrize("value", [None, [1], (1,), {"b": 1}, b"x", 1j, object()])
    def test_other_values_are_refused(self, value: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"params\['a'\] must be bool, int"):
            UniqueParameterSet({"a": value}, "id")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_floats_are_finite(self, value: float) -> None:
        with pytest.raises(ContractViolationError, match=r"params\['a'\] must be a finite"):
            UniqueParameterSet({"a": value}, "id")

    @pytest.mark.parametrize("params", [None, [("a", 1)], "a"])
    def test_params_are_a_mapping(self, params: Any) -> None:
        with pytest.raises(ContractViolationError, match="params must be a mapping"):
            UniqueParameterSet(params, "id")

    def test_names_are_text(self) -> None:
        with pytest.raises(ContractViolationError, match="params: name 1 must be str"):
            UniqueParameterSet({1: 1}, "id")  # type: ignore[dict-item]

    @pytest.mark.parametrize("value", [None, [1], math.nan])
    def test_from_dict_refuses_what_the_constructor_refuses(self, value: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"params\['a'\]"):
            UniqueParameterSet.from_dict({"a": value})


class TestSeedInfo:
    def test_the_whole_range_is_accepted(self) -> None:
        seeds = SeedInfo(0, MAX_SEED, (0, MAX_SEED))
        assert seeds.replicate_seeds == (0, MAX_SEED)

    def test_replicate_seeds_become_a_tuple(self) -> None:
        given_seeds = [1, 2]
        seeds = SeedInfo(0, 0, given_seeds)  # type: ignore[arg-type]
        given_seeds.append(3)
        assert seeds.replicate_seeds == (1, 2)

    @pytest.mark.parametrize("bad", [-1, MAX_SEED + 1, HUGE, True, 1.0, "1", None])
    def test_every_seed_is_checked(self, bad: Any) -> None:
        with pytest.raises(ContractViolationError, match="base_seed"):
            SeedInfo(bad, 0, ())
        with pytest.raises(ContractViolationError, match="trial_seed"):
            SeedInfo(0, bad, ())
        with pytest.raises(ContractViolationError, match=r"replicate_seeds\[1\]"):
            SeedInfo(0, 0, (0, bad))

    @pytest.mark.parametrize("seeds", [5, None, "12"])
    def test_replicate_seeds_are_a_sequence(self, seeds: Any) -> None:
        with pytest.raises(ContractViolationError, match="replicate_seeds must be a sequence"):
            SeedInfo(0, 0, seeds)


class TestTrialResult:
    def test_defaults(self) -> None:
        result = TrialResult("id", 0.5)
        assert result.status is TrialStatus.COMPLETED
        assert result.diagnostics == {}

    def test_status_values(self) -> None:
        assert [str(status) for status in TrialStatus] == ["completed", "failed", "timeout"]

    @pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None, "1", 10**400, HUGE])
    def test_loss_is_finite_when_completed(self, loss: Any) -> None:
        with pytest.raises(ContractViolationError, match="loss"):
            TrialResult("id", loss)

    @pytest.mark.parametrize("status", [TrialStatus.FAILED, TrialStatus.TIMEOUT])
    def test_loss_is_free_otherwise(self, status: TrialStatus) -> None:
        assert TrialResult("id", math.inf, status=status).loss == math.inf

    @pytest.mark.parametrize("param_id", ["", None])
    def test_param_id_is_non_empty_text(self, param_id: Any) -> None:
        with pytest.raises(ContractViolationError, match="param_id"):
            TrialResult(param_id, 1.0)

    @pytest.mark.parametrize("status", ["completed", None])
    def test_status_is_a_trial_status(self, status: Any) -> None:
        with pytest.raises(ContractViolationError, match="status"):
            TrialResult("id", 1.0, status=status)

    @pytest.mark.parametrize("character", ["x", "é", "😀"])
    def test_diagnostics_are_limited_in_bytes(self, character: str) -> None:
        room = MAX_DIAG_BYTES - len('{"a":""}')
        width = len(character.encode())
        text = character * (room // width) + "x" * (room % width)
        assert TrialResult("id", 1.0, {"a": text}).diagnostics == {"a": text}
        with pytest.raises(ContractViolationError, match="diagnostics must be at most 65536"):
            TrialResult("id", 1.0, {"a": text + "x"})

    @pytest.mark.parametrize("value", [object(), b"x", {1}, "\ud800"])
    def test_diagnostics_are_json(self, value: object) -> None:
        with pytest.raises(ContractViolationError, match="diagnostics must be JSON"):
            TrialResult("id", 1.0, {"a": value})

    @pytest.mark.parametrize("diagnostics", [None, [1], "x"])
    def test_diagnostics_are_a_mapping(self, diagnostics: Any) -> None:
        with pytest.raises(ContractViolationError, match="diagnostics must be a mapping"):
            TrialResult("id", 1.0, diagnostics)

    def test_diagnostics_are_copied_at_every_level(self) -> None:
        given_diagnostics: dict[str, Any] = {"a": {"b": [1]}, "c": MappingProxyType({"d": 2})}
        result = TrialResult("id", 1.0, given_diagnostics)
        given_diagnostics["a"]["b"].append(2)
        given_diagnostics["e"] = 3
        assert result.diagnostics == {"a": {"b": [1]}, "c": {"d": 2}}
