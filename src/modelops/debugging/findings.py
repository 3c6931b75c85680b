"""What a search for leaks finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .compare import Difference
from .shared import Change
from .workbench import Outcome

STABLE, HASH_SEED, NONDETERMINISTIC, UNKNOWN = "stable", "hash seed", "nondeterministic", "unknown"


@dataclass
class Cold:
    """A task's cold runs: the outputs that differ by themselves, or by the hash seed alone, and how.

    What shares a process has the hash seed of the first run, so that the latter can be compared all the same.
    """

    outcome: Outcome
    verdict: str = STABLE
    unstable: list[str] = field(default_factory=list)
    by_hash_seed: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    seconds: float = 0.0
    unseeded: list[str] = field(default_factory=list)  # generators that, seeded, make it deterministic


@dataclass
class Cause:
    """A change without which the difference is gone, and the line that makes it, where that could be told."""

    change: Change
    line: Mapping[str, Any] | None = None


@dataclass
class Leak:
    """Earlier tasks, as numbers from 0, that are together enough to change the result of others.

    `examined` says how far it came: "proven", "suspects", or why nothing was looked at.
    """

    polluters: list[int]
    victim: int
    differences: list[Difference]
    causes: list[Cause] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)  # modules whose import alone is enough
    suspects: list[Change] = field(default_factory=list)
    others: dict[int, bool | None] = field(default_factory=dict)  # victims: whether the same causes explain them
    note: str = ""


@dataclass
class Findings:
    """All that was found. Tasks are numbers from 0."""

    cold: list[Cold] = field(default_factory=list)
    orders: dict[str, list[int]] = field(default_factory=dict)
    differs: dict[str, list[int]] = field(default_factory=dict)  # by order, or "fork": the tasks that differ from cold
    fork: dict[int, list[Difference]] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    not_reproduced: list[int] = field(default_factory=list)
    not_searched: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0

    @property
    def status(self) -> int:
        """The exit status: 1 a leak, 2 could not tell, 3 nondeterministic tasks, 0 none of these."""
        if any(self.differs.values()):
            return 1
        verdicts = {cold.verdict for cold in self.cold}
        if self.problems or UNKNOWN in verdicts:
            return 2
        return 3 if NONDETERMINISTIC in verdicts or HASH_SEED in verdicts else 0
