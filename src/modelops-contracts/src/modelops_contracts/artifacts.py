"""What a simulation returns."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ._fields import (
    copied_mapping,
    replace_field,
    require,
    require_at_least,
    require_text,
    require_type,
)

__all__ = ["INLINE_CAP", "ErrorInfo", "SimReturn", "TableArtifact"]

INLINE_CAP = 524288

_CHECKSUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TableArtifact:
    """A table, carried inline or stored elsewhere.

    Exactly one of `inline` and `ref` is given. Inline content has `size` bytes, at most
    INLINE_CAP. `checksum` is the BLAKE2b-256 of the content in lower-case hex; its form is
    checked here, the content by whoever reads it.
    """

    content_type: str = "application/vnd.apache.arrow.stream"
    size: int = 0
    inline: bytes | None = None
    ref: str | None = None
    checksum: str = ""

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 0)
        one_given = (self.inline is None) != (self.ref is None)
        require(one_given, "inline and ref", "exclude each other, and one must be given")
        if self.inline is not None:
            self._check_inline(self.inline)
        if self.ref is not None:
            require_text("ref", self.ref)
        require_text("checksum", self.checksum)
        valid = _CHECKSUM.fullmatch(self.checksum) is not None
        require(valid, "checksum", "must be 64 lower-case hex characters (BLAKE2b-256)")

    def _check_inline(self, inline: bytes) -> None:
        require_type("inline", inline, bytes)
        length = len(inline)
        require(length == self.size, "inline", f"has {length} bytes, but size is {self.size}")
        require(length <= INLINE_CAP, "inline", f"must be at most {INLINE_CAP} bytes, got {length}")


@dataclass(frozen=True)
class ErrorInfo:
    """The kind of a failure, a short message, and whether another attempt may succeed."""

    error_type: str
    message: str
    retryable: bool = False


@dataclass(frozen=True)
class SimReturn:
    """The result of one task.

    `task_id` is non-empty. `outputs` has at least one artifact unless `error` is set, and an
    `error` comes with `error_details`. The mappings are copied.
    """

    task_id: str
    outputs: Mapping[str, TableArtifact]
    error: ErrorInfo | None = None
    error_details: TableArtifact | None = None
    logs_ref: str | None = None
    metrics: Mapping[str, float] | None = None
    cached: bool = False

    def __post_init__(self) -> None:
        require_text("task_id", self.task_id)
        # Dicts, not proxies: callers write outputs and metrics as JSON.
        replace_field(self, "outputs", copied_artifacts("outputs", self.outputs))
        if self.metrics is not None:
            replace_field(self, "metrics", copied_mapping("metrics", self.metrics))
        self._check_error()

    def _check_error(self) -> None:
        if self.error is None:
            require(len(self.outputs) > 0, "outputs", "must be non-empty unless error is set")
        else:
            require_type("error", self.error, ErrorInfo)
            given = self.error_details is not None
            require(given, "error_details", "must be given when error is set")
        if self.error_details is not None:
            require_type("error_details", self.error_details, TableArtifact)


def copied_artifacts(
    field: str, artifacts: Mapping[str, TableArtifact]
) -> dict[str, TableArtifact]:
    """A copy of `artifacts`, in which every value is a TableArtifact."""
    copy = copied_mapping(field, artifacts)
    for name, artifact in copy.items():
        require_type(f"{field}[{name!r}]", artifact, TableArtifact)
    return copy
