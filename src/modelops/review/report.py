"""A review as one JSON object. The same bundle gives the same object, but for its `run` part, which has times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelops.review.facts import Fact, Facts
from modelops.review.findings import SEVERITIES, Finding

SCHEMA = 1


@dataclass
class Phase:
    """What is known of one watched sandbox besides its facts. `outcome` is `done` or the type of its failure."""

    name: str
    outcome: str
    processes: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    unread: int = 0  # lines of the trace that were none
    cut_bytes: int = 0  # of the trace, over the profile's trace.max_bytes

    def run_part(self) -> dict[str, Any]:
        return {
            "phase": self.name,
            "processes": self.processes,
            "samples": self.samples,
            "trace_lines": self.lines,
            "trace_unread": self.unread,
            "trace_cut_bytes": self.cut_bytes,
        }


def make_report(
    bundle: Mapping[str, Any],
    phases: Sequence[Phase],
    facts: Facts,
    findings: Sequence[Finding],
    policy: Mapping[str, Any],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """The report (fields: README of this package). Facts come sorted, their sightings in the same order below `run`."""
    ordered = sorted(facts.seen, key=lambda fact: (fact.phase, fact.kind, fact.known, fact.values))
    dropped = [{"kind": kind, "phase": phase, "facts": count} for (kind, phase), count in sorted(facts.dropped.items())]
    return {
        "schema": SCHEMA,
        "bundle": dict(bundle),
        "phases": [{"name": phase.name, "outcome": phase.outcome, "whole": not phase.cut_bytes} for phase in phases],
        "findings": [finding.as_json() for finding in findings],
        "count": {name: sum(finding.severity == name for finding in findings) for name in reversed(SEVERITIES)},
        "facts": [fact.as_json() for fact in ordered],
        "left_out": dropped,
        "policy": dict(policy),
        "run": {
            **run,
            "phases": [phase.run_part() for phase in phases],
            "sightings": [facts.seen[fact].as_json() for fact in ordered],
        },
    }


def against(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """What a report has that an older one has not, and the other way round: facts, and findings by rule and phase."""
    if old.get("schema") != SCHEMA:
        raise ValueError(f"the old report has the schema {old.get('schema')!r}, and this is {SCHEMA}")
    here, there = ({frozen(fact) for fact in report["facts"]} for report in (new, old))
    rules, before = ({(f["rule"], f["phase"]) for f in report["findings"]} for report in (new, old))
    return {
        "new": [fact for fact in new["facts"] if frozen(fact) not in there],
        "gone": [fact for fact in old["facts"] if frozen(fact) not in here],
        "new_findings": [f for f in new["findings"] if (f["rule"], f["phase"]) not in before],
        "gone_findings": [f for f in old["findings"] if (f["rule"], f["phase"]) not in rules],
    }


def frozen(fact: Mapping[str, Any]) -> Fact:
    rest = tuple(
        sorted((str(name), str(value)) for name, value in fact.items() if name not in ("kind", "phase", "known"))
    )
    return Fact(str(fact["kind"]), str(fact["phase"]), str(fact["known"]), rest)
