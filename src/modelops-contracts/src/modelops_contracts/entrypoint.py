"""The grammar of entry points.

Model form `import.path/scenario`, object form `module.path:object`. The separator decides.
"""

import re
from typing import NewType

from .errors import ContractViolationError

__all__ = [
    "ENTRYPOINT_GRAMMAR_VERSION",
    "EntryPointId",
    "EntrypointFormatError",
    "format_entrypoint",
    "parse_entrypoint",
]

EntryPointId = NewType("EntryPointId", str)

ENTRYPOINT_GRAMMAR_VERSION = 2

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*\.[A-Za-z_]\w*")
_SCENARIO = re.compile(r"[a-z0-9](?:[a-z0-9\-_.]{0,62}[a-z0-9])?")
_OBJECT = re.compile(r"\w+")


class EntrypointFormatError(ContractViolationError, ValueError):
    """A text is not an entry point."""


def format_entrypoint(import_path: str, scenario: str) -> EntryPointId:
    """The model form of an import path with at least one dot and a lower-case scenario."""
    _require_match(_IMPORT_PATH, "import_path", import_path)
    _require_match(_SCENARIO, "scenario", scenario)
    return EntryPointId(f"{import_path}/{scenario}")


def parse_entrypoint(eid: str) -> tuple[str, str]:
    """The two parts of an entry point: import path and scenario, or module path and object."""
    if ("/" in eid) == (":" in eid):
        raise EntrypointFormatError(
            f"entrypoint must be 'import.path/scenario' or 'module.path:object', got {eid!r}"
        )
    if "/" in eid:
        return _parsed(eid, "/", ("import_path", _IMPORT_PATH), ("scenario", _SCENARIO))
    return _parsed(eid, ":", ("module_path", _IMPORT_PATH), ("object", _OBJECT))


def _parsed(
    eid: str,
    separator: str,
    first: tuple[str, re.Pattern[str]],
    second: tuple[str, re.Pattern[str]],
) -> tuple[str, str]:
    left, _, right = eid.partition(separator)
    for (name, pattern), part in ((first, left), (second, right)):
        _require_match(pattern, f"entrypoint {name}", part)
    return left, right


def _require_match(pattern: re.Pattern[str], name: str, text: str) -> None:
    # fullmatch, because `$` would let a final newline through.
    if not pattern.fullmatch(text):
        raise EntrypointFormatError(f"{name} must match {pattern.pattern}, got {text!r}")
