"""From facts to findings, by the rules in `rules.toml`: what a reviewer would stop at, and the evidence for it."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from modelops.review.facts import Fact

SEVERITIES = ("info", "notice", "warning", "alarm")
EVIDENCE = 20  # facts that a finding shows; the rest are counted


@dataclass(frozen=True)
class Rule:
    """`match` and `unless` have a pattern for each value's name, or `*` for any of them."""

    name: str
    severity: str
    kinds: tuple[str, ...]
    sentence: str
    phase: re.Pattern[str] = re.compile("")
    match: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    unless: Mapping[str, re.Pattern[str]] = field(default_factory=dict)

    def fits(self, fact: Fact) -> bool:
        return (
            fact.kind in self.kinds
            and self.phase.search(fact.phase) is not None
            and all(found(fact, name, pattern) for name, pattern in self.match.items())
            and not any(found(fact, name, pattern) for name, pattern in self.unless.items())
        )


@dataclass
class Finding:
    """What the facts in `evidence`, all of one phase, come to."""

    rule: str
    severity: str
    phase: str
    sentence: str
    known: str
    evidence: list[Fact]
    more: int = 0

    def as_json(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("rule", "severity", "phase", "sentence", "known", "more")}
        return {**told, "evidence": [fact.as_json() for fact in self.evidence]}


def found(fact: Fact, name: str, pattern: re.Pattern[str]) -> bool:
    values = (value for _, value in fact.values) if name == "*" else (fact[name],)
    return any(pattern.search(value) for value in values)


def find(facts: Iterable[Fact]) -> list[Finding]:
    """The findings, severest first, then in the order of the rules and phases."""
    findings: dict[tuple[str, str, str], Finding] = {}
    for fact in facts:
        fitting = [rule for rule in rules() if rule.fits(fact)]
        if not fitting:
            continue
        rule = max(fitting, key=lambda rule: SEVERITIES.index(rule.severity))
        key = (rule.name, fact.phase, fact.known)
        finding = findings.setdefault(key, Finding(rule.name, rule.severity, fact.phase, rule.sentence, fact.known, []))
        if len(finding.evidence) < EVIDENCE:
            finding.evidence.append(fact)
        else:
            finding.more += 1
    order = {rule.name: number for number, rule in enumerate(rules())}
    return sorted(findings.values(), key=lambda one: (-SEVERITIES.index(one.severity), order[one.rule], one.phase))


def worst(findings: Iterable[Finding]) -> str | None:
    """The severest severity among the findings."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default=None)


@cache
def rules() -> tuple[Rule, ...]:
    """The rules, in the order of their file."""
    text = files("modelops.review").joinpath("rules.toml").read_text(encoding="utf-8")
    return tuple(read_rule(table) for table in tomllib.loads(text)["rule"])


def read_rule(table: Mapping[str, Any]) -> Rule:
    patterns = {
        key: {name: re.compile(text) for name, text in table.get(key, {}).items()} for key in ("match", "unless")
    }
    phase = re.compile(table.get("phase", ""))
    return Rule(table["name"], table["severity"], tuple(table["kinds"]), table["sentence"], phase, **patterns)
