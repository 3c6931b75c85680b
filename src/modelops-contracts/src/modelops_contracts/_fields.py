"""Checks and conversions of record fields. Every refusal names the field."""

import math
import reprlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .errors import ContractViolationError

MAX_SEED = 2**64 - 1


def require(holds: bool, field: str, rule: str) -> None:
    """Refuse `field` with a message that states `rule`, unless it holds."""
    if not holds:
        raise ContractViolationError(f"{field} {rule}")


def shown(value: object) -> str:
    """`value` as text of bounded length, for a message."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an int past the digit limit
        return f"a huge {type(value).__name__}"


def require_type(field: str, value: object, kind: type) -> None:
    """`value` is an instance of `kind`."""
    require(isinstance(value, kind), field, f"must be {kind.__name__}, got {type(value).__name__}")


def require_text(field: str, value: object) -> None:
    """`value` is a non-empty str."""
    require_type(field, value, str)
    require(value != "", field, "must be non-empty")


def require_int(field: str, value: object) -> None:
    """`value` is an int and not a bool, although bool is a subclass of int."""
    require(type(value) is not bool, field, "must be int, got bool")
    require_type(field, value, int)


def require_at_least(field: str, value: int, least: int) -> None:
    """`value` is an int of at least `least`."""
    require_int(field, value)
    require(value >= least, field, f"must be at least {least}, got {shown(value)}")


def require_seed(field: str, value: int) -> None:
    """`value` is an int that fits 64 unsigned bits."""
    require_int(field, value)
    in_range = 0 <= value <= MAX_SEED
    require(in_range, field, f"must be in [0, 2**64-1], got {shown(value)}")


def require_finite(field: str, value: Any) -> None:
    """`value` is a number, and neither NaN nor infinite."""
    try:
        finite = math.isfinite(value)
    except (TypeError, OverflowError):
        finite = False
    require(finite, field, f"must be a finite number, got {shown(value)}")


def copied(value: Any) -> Any:
    """A copy of JSON-like data that shares no mapping and no list with the original.

    Nested mappings become dicts, so that the copy can be pickled.
    """
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return value


def copied_mapping(field: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the mapping `value`, as a dict."""
    require(isinstance(value, Mapping), field, f"must be a mapping, got {type(value).__name__}")
    return {key: copied(item) for key, item in value.items()}


def frozen_mapping(field: str, value: Mapping[str, Any]) -> MappingProxyType[str, Any]:
    """A read-only copy of the mapping `value`."""
    return MappingProxyType(copied_mapping(field, value))


def as_tuple(field: str, value: Iterable[Any]) -> tuple[Any, ...]:
    """The items of `value`; a str is refused, for its items would be its characters."""
    iterable = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    require(iterable, field, f"must be a sequence, got {type(value).__name__}")
    return tuple(value)


def replace_field(record: object, field: str, value: object) -> None:
    """Set a field of a frozen record while it is being made."""
    object.__setattr__(record, field, value)
