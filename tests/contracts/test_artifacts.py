"""Table artifacts, errors and simulation returns."""

import dataclasses
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelops_contracts import (
    INLINE_CAP,
    ContractViolationError,
    ErrorInfo,
    SimReturn,
    TableArtifact,
    digest_bytes,
)

from .builders import artifact, checksum, sim_return, stored_artifact

ERROR = ErrorInfo("ValueError", "wrong")


class TestTableArtifact:
    @given(st.binary())
    def test_inline(self, content: bytes) -> None:
        table = TableArtifact(size=len(content), inline=content, checksum=digest_bytes(content))
        assert table.content_type == "application/vnd.apache.arrow.stream"
        assert (table.inline, table.ref) == (content, None)

    def test_stored(self) -> None:
        table = TableArtifact(size=INLINE_CAP + 1, ref="cas://key", checksum=checksum(b""))
        assert (table.inline, table.ref) == (None, "cas://key")

    def test_the_cap_itself_is_accepted(self) -> None:
        assert artifact(bytes(INLINE_CAP)).size == INLINE_CAP

    def test_more_than_the_cap_is_refused(self) -> None:
        with pytest.raises(ContractViolationError, match=f"inline must be at most {INLINE_CAP}"):
            artifact(bytes(INLINE_CAP + 1))

    @pytest.mark.parametrize("size", [-1, True, 5.0, None, "5"])
    def test_size_is_a_non_negative_int(self, size: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"^size"):
            stored_artifact(size=size)

    @pytest.mark.parametrize("size", [0, 4, 6])
    def test_size_is_the_length_of_inline(self, size: int) -> None:
        with pytest.raises(ContractViolationError, match="inline has 5 bytes, but size"):
            artifact(b"12345", size=size)

    @pytest.mark.parametrize("ref", ["cas://key", ""])
    def test_both_inline_and_ref_are_refused(self, ref: str) -> None:
        with pytest.raises(ContractViolationError, match="inline and ref"):
            artifact(ref=ref)

    def test_neither_inline_nor_ref_is_refused(self) -> None:
        with pytest.raises(ContractViolationError, match="inline and ref"):
            TableArtifact(checksum=checksum(b""))

    @pytest.mark.parametrize("inline", ["12345", bytearray(b"12345"), memoryview(b"12345")])
    def test_inline_is_bytes(self, inline: Any) -> None:
        with pytest.raises(ContractViolationError, match="inline must be bytes"):
            artifact(b"12345", inline=inline)

    @pytest.mark.parametrize("ref", ["", 5])
    def test_ref_is_non_empty_text(self, ref: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"^ref"):
            stored_artifact(ref=ref)

    @pytest.mark.parametrize(
        "bad",
        ["", "ab", "g" * 64, "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "sha256:" + "a" * 64],
    )
    def test_checksum_is_64_lower_case_hex(self, bad: str) -> None:
        with pytest.raises(ContractViolationError, match="checksum"):
            artifact(checksum=bad)

    def test_checksum_is_required(self) -> None:
        with pytest.raises(ContractViolationError, match="checksum must be non-empty"):
            TableArtifact(size=1, inline=b"x")

    def test_the_record_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            artifact().size = 0  # type: ignore[misc]


def test_error_info() -> None:
    assert ErrorInfo(error_type="ValueError", message="wrong", retryable=False) == ERROR
    assert ErrorInfo("OSError", "later", retryable=True).retryable


class TestSimReturn:
    def test_defaults(self) -> None:
        result = SimReturn("task", {"table": artifact()})
        assert (result.error, result.error_details, result.logs_ref) == (None, None, None)
        assert result.metrics is None
        assert result.cached is False

    @pytest.mark.parametrize("task_id", ["", None, 5])
    def test_task_id_is_non_empty_text(self, task_id: Any) -> None:
        with pytest.raises(ContractViolationError, match="task_id"):
            sim_return(task_id=task_id)

    def test_outputs_are_needed_without_an_error(self) -> None:
        with pytest.raises(ContractViolationError, match="outputs must be non-empty"):
            sim_return(outputs={})

    def test_an_error_needs_no_outputs(self) -> None:
        result = sim_return(outputs={}, error=ERROR, error_details=artifact(b"traceback"))
        assert result.error == ERROR

    def test_an_error_may_have_outputs(self) -> None:
        assert sim_return(error=ERROR, error_details=artifact()).outputs

    def test_an_error_needs_details(self) -> None:
        with pytest.raises(ContractViolationError, match="error_details must be given"):
            sim_return(error=ERROR)

    @pytest.mark.parametrize("details", ["traceback", b"", {}])
    @pytest.mark.parametrize("error", [ERROR, None])
    def test_error_details_are_an_artifact(self, details: Any, error: Any) -> None:
        with pytest.raises(ContractViolationError, match="error_details must be TableArtifact"):
            sim_return(error=error, error_details=details)

    def test_error_is_an_error_info(self) -> None:
        with pytest.raises(ContractViolationError, match="error must be ErrorInfo"):
            sim_return(error="wrong", error_details=artifact())

    @pytest.mark.parametrize("bad", [b"bytes", None, {"size": 1}])
    def test_every_output_is_an_artifact(self, bad: Any) -> None:
        with pytest.raises(ContractViolationError, match=r"outputs\['b'\] must be TableArtifact"):
            sim_return(outputs={"a": artifact(), "b": bad})

    @pytest.mark.parametrize("outputs", [None, [artifact()]])
    def test_outputs_are_a_mapping(self, outputs: Any) -> None:
        with pytest.raises(ContractViolationError, match="outputs must be a mapping"):
            sim_return(outputs=outputs)

    def test_metrics_are_a_mapping(self) -> None:
        with pytest.raises(ContractViolationError, match="metrics must be a mapping"):
            sim_return(metrics=[1.0])

    def test_any_mapping_is_accepted(self) -> None:
        outputs = MappingProxyType({"table": artifact()})
        assert sim_return(outputs=outputs, metrics=MappingProxyType({"wall": 1.0})) == sim_return(metrics={"wall": 1.0})

    def test_later_changes_of_the_arguments_do_not_show(self) -> None:
        outputs, metrics = {"table": artifact()}, {"wall": 1.0}
        result = sim_return(outputs=outputs, metrics=metrics)
        outputs.clear()
        metrics["wall"] = 2.0
        assert result == sim_return(metrics={"wall": 1.0})
