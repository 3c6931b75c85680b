"""The one error of the execution environments."""

from collections.abc import Mapping
from typing import Any, Self

# Exit codes of the runner by phase, for errors that are found on this side of it.
_CODES = {"input": 2, "host": 3, "bundle": 4, "execute": 8, "result": 9}


class RunnerError(Exception):
    """A task that has no result. `fatal_error` is the runner's `_fatal_error` object, or one of its form."""

    def __init__(self, fatal_error: Mapping[str, Any]) -> None:
        self.fatal_error = dict(fatal_error)
        super().__init__(f"{self.type}: {self.message}")

    @classmethod
    def of(cls, phase: str, type: str, error: str, retryable: bool = False, **details: Any) -> Self:
        """An error that is found on this side of the runner, in the runner's form."""
        body = {"code": _CODES[phase], "phase": phase, "type": type, "error": error, "retryable": retryable}
        return cls({**body, **details})

    @property
    def type(self) -> str:
        """The stable name of what went wrong."""
        return str(self.fatal_error.get("type", "unknown"))

    @property
    def message(self) -> str:
        """One sentence that says what to do."""
        return str(self.fatal_error.get("error", ""))

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed."""
        return bool(self.fatal_error.get("retryable", False))

    @property
    def metrics(self) -> dict[str, float]:
        """What the runner measured until then."""
        return numbers(self.fatal_error.get("metrics"))

    def about(self, failed_task: Mapping[str, Any]) -> Self:
        """The same error with what somebody needs to run the task again; see `failed_task`."""
        return type(self)({**self.fatal_error, "debug": dict(failed_task)})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fatal_error,)


def numbers(metrics: object) -> dict[str, float]:
    """The metrics of an answer, as the contract has them."""
    if not isinstance(metrics, Mapping):
        return {}
    return {str(name): float(value) for name, value in metrics.items() if type(value) in (int, float)}
