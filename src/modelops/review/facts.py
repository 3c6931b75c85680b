"""A fact: one thing that is so, and how it is known. Everything that a review says is made of these."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT_CHARS = 1000  # of one value; what is longer is cut, and says so
MOST = 2000  # distinct facts of one kind in one phase; the rest are counted

# How a fact is known. The code under review can lie in the last alone.
KERNEL, FILES, RUNNER, TOLD = "kernel", "files", "runner", "told"


@dataclass(frozen=True, slots=True)
class Fact:
    """`kind` names the sort (`connect`, `file_read`, `package`, ..), `phase` when it was so (`bundle`, `supply`,
    `build NAME`, `import`, `task`), `known` by whom. `values` are its particulars, printable and bounded: two facts
    with equal values are one.
    """

    kind: str
    phase: str
    known: str
    values: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> str:
        return dict(self.values).get(name, "")

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "phase": self.phase, "known": self.known, **dict(self.values)}


@dataclass(slots=True)
class Sighting:
    """How often a fact was seen and where first: seconds since the phase began, and the process, by its number."""

    count: int = 0
    first: float | None = None
    process: int | None = None
    place: str = ""  # file and line, where an audit event gives it

    def as_json(self) -> dict[str, Any]:
        found = {"count": self.count, "first_seconds": self.first, "process": self.process, "place": self.place}
        return {name: value for name, value in found.items() if value not in (None, "")}


@dataclass
class Facts:
    """Facts in the order in which they were first seen, each with its sightings. Bounded, whatever is told."""

    seen: dict[Fact, Sighting] = field(default_factory=dict)
    kinds: dict[tuple[str, str], int] = field(default_factory=dict)
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        phase: str,
        known: str,
        values: Mapping[str, object],
        first: float | None = None,
        process: int | None = None,
        place: str = "",
    ) -> None:
        """Note that it was so (once more)."""
        fact = Fact(kind, phase, known, tuple((name, shown(value)) for name, value in values.items()))
        sighting = self.seen.get(fact)
        if sighting is None:
            here = (kind, phase)
            if self.kinds.get(here, 0) >= MOST:
                self.dropped[here] = self.dropped.get(here, 0) + 1
                return
            self.kinds[here] = self.kinds.get(here, 0) + 1
            sighting = self.seen[fact] = Sighting(0, first, process, shown(place))
        sighting.count += 1

    def of(self, *kinds: str) -> Iterator[Fact]:
        return (fact for fact in self.seen if fact.kind in kinds)


def shown(value: object) -> str:
    """A value as text for people: printable, and not longer than TEXT_CHARS."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    more = f"... ({len(text)} characters)" if len(text) > TEXT_CHARS else ""
    return "".join(c if c.isprintable() else escaped(c) for c in text[:TEXT_CHARS]) + more


def escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii", "replace")
