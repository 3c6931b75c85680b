"""The names that code written against the package imports."""

import importlib
import importlib.resources
import tomllib
from pathlib import Path

import modelops_contracts
import pytest

TOP_LEVEL = [
    "CONTRACTS_VERSION",
    "Scalar",
    "UniqueParameterSet",
    "SimTask",
    "ReplicateSet",
    "AggregationTask",
    "AggregationReturn",
    "SimReturn",
    "TableArtifact",
    "ErrorInfo",
    "INLINE_CAP",
    "EntryPointId",
    "EntrypointFormatError",
    "ENTRYPOINT_GRAMMAR_VERSION",
    "format_entrypoint",
    "parse_entrypoint",
    "make_param_id",
    "digest_bytes",
    "ContractViolationError",
    "Future",
    "SimulationService",
    "ExecutionEnvironment",
    "BundleRepository",
    "WireFunction",
    "TrialStatus",
    "TrialResult",
    "SeedInfo",
    "MAX_DIAG_BYTES",
    "TableIPC",
    "canonical_task_id",
    "bundle12",
    "aggregation_id",
]

BY_MODULE = {
    "simulation": ["SimTask", "ReplicateSet", "AggregationTask", "AggregationReturn"],
    "artifacts": ["TableArtifact", "SimReturn", "ErrorInfo", "INLINE_CAP"],
    "ports": [
        "Future",
        "SimulationService",
        "ExecutionEnvironment",
        "BundleRepository",
        "WireFunction",
        "CAS",
    ],
    "entrypoint": ["EntryPointId", "EntrypointFormatError", "parse_entrypoint"],
    "types": ["Scalar", "UniqueParameterSet", "TrialStatus", "TrialResult", "SeedInfo"],
    "errors": ["ContractViolationError"],
    "param_hashing": ["make_param_id", "digest_bytes"],
    "utils": ["canonical_task_id", "bundle12", "aggregation_id"],
}


def test_exactly_the_contract_is_exported() -> None:
    assert sorted(modelops_contracts.__all__) == sorted(TOP_LEVEL)


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_every_exported_name_exists(name: str) -> None:
    assert hasattr(modelops_contracts, name)


@pytest.mark.parametrize("module", BY_MODULE)
def test_names_are_found_in_their_module(module: str) -> None:
    imported = importlib.import_module(f"modelops_contracts.{module}")
    for name in BY_MODULE[module]:
        found = getattr(imported, name)
        assert getattr(modelops_contracts, name, found) is found


def test_constants() -> None:
    assert modelops_contracts.CONTRACTS_VERSION == "0.3.0"
    assert modelops_contracts.INLINE_CAP == 524288
    assert modelops_contracts.MAX_DIAG_BYTES == 65536
    assert modelops_contracts.ENTRYPOINT_GRAMMAR_VERSION == 2
    assert modelops_contracts.Scalar == bool | int | float | str
    assert modelops_contracts.TableIPC is bytes


def test_the_package_is_typed() -> None:
    assert importlib.resources.files("modelops_contracts").joinpath("py.typed").is_file()


def test_the_distribution_has_the_version_of_the_contract() -> None:
    path = Path(__file__).parents[2] / "src" / "modelops-contracts" / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    assert project["name"] == "modelops-contracts"
    assert project["version"] == modelops_contracts.CONTRACTS_VERSION
    assert project["dependencies"] == []
