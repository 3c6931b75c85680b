"""Findings of the preflight, as lines for people."""

from collections.abc import Sequence

from modelops.printable import one_line
from modelops.services.preflight import Finding


def lines_of(findings: Sequence[Finding]) -> list[str]:
    """Two lines a finding: what it is, and what to do."""
    return [
        line
        for finding in findings
        for line in (
            f"{finding.level}: {finding.check}: {one_line(finding.message)}",
            f"    {one_line(finding.remedy)}",
        )
    ]
