"""Where two outcomes of one task differ, by what their outputs are: tables by cell, JSON by path, text by line."""

import json
from collections.abc import Collection, Iterator
from typing import Any

from .inside.fingerprints import of_failure, unlike
from .kinds import JSON, TABLES, TEXT, Kind, kind_of
from .reading import Unreadable, read_apart
from .workbench import Outcome, Output

MAX_READ = 16 << 20  # bytes of a text or JSON; above, only the first differing byte is sought
SHOWN = 120
MAX_DEPTH = 200

Difference = dict[str, Any]


def fingerprint(outcome: Outcome) -> list[str] | dict[str, str]:
    """What is compared: the checksum of each output, or the kind and words of the failure."""
    if outcome.failure is None:
        return {name: output.checksum for name, output in outcome.outputs.items()}
    return of_failure(outcome.failure)


def differing(first: Outcome, second: Outcome, unstable: Collection[str] = ()) -> list[str]:
    """The names of the outputs that differ, less `unstable`; "failure" where either has none."""
    return unlike(fingerprint(first), fingerprint(second), unstable)


def differences(cold: Outcome, other: Outcome, unstable: Collection[str] = ()) -> list[Difference]:
    """How the outputs differ: a record each, with `kind` and what there is to say of it."""
    if cold.failure is not None or other.failure is not None:
        if not differing(cold, other):
            return []
        return [{"output": None, "kind": "failure", "values": [_words(cold), _words(other)]}]
    return [_difference(name, cold, other) for name in differing(cold, other, unstable)]


def _words(outcome: Outcome) -> str:
    if outcome.failure is None:
        return f"{len(outcome.outputs)} outputs"
    exception = outcome.failure.get("exception") or {}
    text = f"{exception['type']}: {exception['message']}" if exception else outcome.failure.get("error", "")
    return f"{outcome.failure.get('type')}: {text}"[: 4 * SHOWN]


def _difference(name: str, cold: Outcome, other: Outcome) -> Difference:
    if name not in cold.outputs or name not in other.outputs:
        sizes = [f"{o.outputs[name].size} bytes" if name in o.outputs else "no such output" for o in (cold, other)]
        return {"output": name, "kind": "presence", "values": sizes}
    one, two = cold.outputs[name], other.outputs[name]
    kinds = {kind_of(one), kind_of(two)}
    found: Difference | None = None
    if len(kinds) == 1 and kinds <= {*TABLES}:
        found = _tables(one, two, *kinds)
    elif kinds <= {JSON, TEXT} and max(one.size, two.size) <= MAX_READ:  # a text such as "1" is JSON as well
        found = (_json(one.read(), two.read()) if kinds == {JSON} else None) or _text(one.read(), two.read())
    return {"output": name, **(found or _bytes(one, two))}


def _tables(one: Output, two: Output, kind: Kind) -> Difference | None:
    try:
        with one.as_file() as first, two.as_file() as second:
            found = read_apart("compare", {"first": str(first), "second": str(second), "suffix": kind.suffix})
    except Unreadable:
        return None
    return {"kind": "table", **found}


def _json(one: bytes, two: bytes) -> Difference | None:
    try:
        first, second = json.loads(one), json.loads(two)
        gaps = list(_gaps(first, second, "$", 0))
    except (ValueError, RecursionError):
        return None
    if not gaps:
        return None
    numbers = [abs(a - b) for _, a, b in gaps if _is_number(a) and _is_number(b)]
    path, a, b = gaps[0]
    values = [_shown(a), _shown(b)]
    return {"kind": "json", "path": path, "values": values, "count": len(gaps), "largest": max(numbers, default=None)}


_NOTHING = object()


def _gaps(one: Any, two: Any, path: str, depth: int) -> Iterator[tuple[str, Any, Any]]:
    if depth > MAX_DEPTH:
        return
    if isinstance(one, dict) and isinstance(two, dict):
        for key in [*one, *(key for key in two if key not in one)]:
            yield from _gaps(one.get(key, _NOTHING), two.get(key, _NOTHING), f"{path}.{key[:SHOWN]}", depth + 1)
    elif isinstance(one, list) and isinstance(two, list):
        for index in range(max(len(one), len(two))):
            a, b = (part[index] if index < len(part) else _NOTHING for part in (one, two))
            yield from _gaps(a, b, f"{path}[{index}]", depth + 1)
    elif type(one) is not type(two) or one != two:
        yield path, one, two


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(one: bytes, two: bytes) -> Difference | None:
    first, second = (data.decode("utf-8", "replace").splitlines() for data in (one, two))
    for number in range(max(len(first), len(second))):
        pair = [part[number] if number < len(part) else _NOTHING for part in (first, second)]
        if pair[0] != pair[1]:
            return {"kind": "text", "line": number + 1, "values": [_shown(value) for value in pair]}
    return None


def _bytes(one: Output, two: Output) -> Difference:
    first, second = one.read(), two.read()
    at, step = 0, 1 << 16
    while at < len(first) and first[at : at + step] == second[at : at + step]:
        at += step
    pairs = zip(first[at : at + step], second[at : at + step], strict=False)
    at = next((at + n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    values = [data[at : at + 16].hex(" ") or "the end" for data in (first, second)]
    return {"kind": "bytes", "byte": at, "values": values, "sizes": [one.size, two.size]}


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + ".."
