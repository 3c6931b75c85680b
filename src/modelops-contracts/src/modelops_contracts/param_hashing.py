"""Stable identifiers of parameters and content."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ._fields import require, require_finite, require_type, shown
from .errors import ContractViolationError

__all__ = ["digest_bytes", "make_param_id"]

_NAMESPACE = "contracts:param:v1|"


def digest_bytes(data: bytes) -> str:
    """BLAKE2b-256 of `data`, as 64 lower-case hex characters."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def make_param_id(params: Mapping[str, Any]) -> str:
    """The identifier of `params`: the digest of their canonical JSON in a namespace.

    Keys are sorted at every level and tuples count as lists. Values are None, bool, int, finite
    float, str, and lists and mappings of these. 1, 1.0 and True differ, and so do 0.0 and -0.0.
    """
    return digest_bytes((_NAMESPACE + _canonical_json(params)).encode("utf-8"))


def _canonical_json(params: Mapping[str, Any]) -> str:
    normalised = _normalised("params", params)
    try:
        text = json.dumps(normalised, separators=(",", ":"), ensure_ascii=False)
        text.encode("utf-8")
    except ValueError as error:  # a lone surrogate, or an int past the digit limit
        raise ContractViolationError(f"params have no canonical JSON: {error}") from error
    return text


def _normalised(path: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _normalised_mapping(path, value)
    if isinstance(value, list | tuple):
        return [_normalised(f"{path}[{index}]", item) for index, item in enumerate(value)]
    _require_leaf(path, value)
    return value


def _normalised_mapping(path: str, mapping: Mapping[Any, Any]) -> dict[str, Any]:
    for key in mapping:
        # JSON would turn the key 1 into "1", and two parameter sets would share an identifier.
        require_type(f"key {shown(key)} of {path}", key, str)
    return {key: _normalised(f"{path}[{key!r}]", mapping[key]) for key in sorted(mapping)}


def _require_leaf(path: str, value: Any) -> None:
    known = value is None or isinstance(value, bool | int | float | str)
    require(known, path, f"has unsupported type {type(value).__name__}")
    if isinstance(value, float):
        require_finite(path, value)
