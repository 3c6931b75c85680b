"""Findings of the preflight, as lines for people."""

from collections.abc import Sequence

from modelops.services.preflight import Finding


def lines_of(findings: Sequence[Finding]) -> list[str]:
    """Two lines a finding: what it is, and what to do."""
    return [
        line
        for finding in findings
        for line in (
            f"{finding.level}: {finding.check}: {printable(finding.message)}",
            f"    {printable(finding.remedy)}",
        )
    ]


def printable(text: str) -> str:
    """What others wrote, as a terminal can show it without doing what it says."""
    return "".join(character if character.isprintable() else "?" for character in text)[:4000]
