"""`modelops review`: what a bundle is, brings along, does and tries to do, for the one who has to say yes or no.

The summary goes to standard output. The exit status is 1 where a finding is at or above `--fail-on`, 2 where the review
could not be made, else 0.
"""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich.console import Console

from modelops.debugging.policy import Policy
from modelops.debugging.tasks import Task
from modelops.debugging.workbench import Outcome, Workbench, result_of
from modelops.review.facts import RUNNER, Facts
from modelops.review.findings import SEVERITIES, find
from modelops.review.identity import read_identity
from modelops.review.page import render, told
from modelops.review.policy import enough, taken_away
from modelops.review.report import Phase, against, make_report
from modelops.review.supply import read_supply
from modelops.review.told import read_told
from modelops.review.traces import beyond, read_traces

from .sandbox_options import (
    REFUSALS,
    Bundle,
    Entrypoint,
    Param,
    Params,
    Profile,
    Repository,
    Seed,
    TaskFile,
    Timeout,
    refuse,
    require_writable,
    task_of,
    workbench,
)
from .terminal import consoles, plain

STYLES = {"alarm": "bold red", "warning": "yellow", "notice": "cyan", "info": "dim"}


def review(
    bundle: Bundle,
    entrypoint: Entrypoint = None,
    param: Param = None,
    params: Params = "{}",
    seed: Seed = 1,
    task: TaskFile = None,
    profile: Profile = None,
    timeout: Timeout = 3600,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page to this file.")] = None,
    old: Annotated[str | None, typer.Option("--against", help="An older bundle, or its report as JSON.")] = None,
    fail_on: Annotated[str | None, typer.Option(help="Status 1 at or above: info, notice, warning, alarm.")] = None,
    repository: Repository = None,
) -> None:
    """Say what a bundle does: what is in it, what it brings along, and what it did and tried while it was watched."""
    results, progress = consoles()
    try:
        if fail_on is not None and fail_on not in SEVERITIES:
            raise ValueError(f"--fail-on {fail_on!r} is none of {', '.join(SEVERITIES)}")
        require_writable(as_json, html)
        named = entrypoint is not None or task is not None
        wanted = task_of(entrypoint, params, param, seed, task) if named else None
        settings = (repository, profile or "default", timeout, progress)
        report = review_of(bundle, wanted, *settings)
        if old is not None:
            report["against"] = against(report, old_report(old, wanted, *settings))
        if as_json is not None:
            as_json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if html is not None:
            html.write_text(render(report), encoding="utf-8")
    except REFUSALS as error:
        raise refuse(error) from None
    show(results, report)
    if fail_on and any(SEVERITIES.index(one["severity"]) >= SEVERITIES.index(fail_on) for one in report["findings"]):
        raise typer.Exit(1)


def old_report(
    old: str, task: Task | None, repository: Path | None, profile: str, timeout: float, progress: Console
) -> Mapping[str, Any]:
    if Path(old).is_file():
        report = json.loads(Path(old).read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise ValueError(f"{old} is not a report")
        return report
    return review_of(old, task, repository, profile, timeout, progress)


def review_of(
    bundle: str, task: Task | None, repository: Path | None, profile: str, timeout: float, progress: Console
) -> dict[str, Any]:
    """Watch the bundle being built and imported, and its task, and say what was seen."""
    began = time.monotonic()
    with workbench(bundle, repository, profile, timeout, None) as opened:
        progress.print(f"reviewing {opened.reference}: build and import" + (", task" if task else ""), style="dim")
        runs = watch(opened.bench, opened.policy, task)
        facts, phases = Facts(), []
        read_identity(facts, opened.bench.bundle)
        for name, (outcome, folder) in runs.items():
            phases += phases_of(facts, name, outcome, folder)
        about = read_supply(facts, opened.bench.bundle, opened.bench.folder / "trace-import")
        facts = beyond(facts, "task", ["import"])
        last = runs["task" if task else "import"][0]
        stricter = enough(facts.seen, last.metrics, opened.policy)
        findings = find(facts.seen)
        text = tomli_w.dumps({"extends": profile, **stricter})
        run = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 3),
            "profile": profile,
            "python": about.pop("python"),
            "task": task,
            "metrics": {name: outcome.metrics for name, (outcome, _) in runs.items()},
        }
        identity = {"digest": opened.reference, **about}
        policy = {"toml": text, "takes_away": taken_away(stricter, opened.policy)}
        return make_report(identity, phases, facts, findings, policy, run)


def watch(bench: Workbench, policy: Policy, task: Task | None) -> dict[str, tuple[Outcome, Path]]:
    """Run the bundle under strace: build and import, and beside it the task. Each outcome, and where its traces are."""
    settings = bench.under({**policy, "trace": {**policy["trace"], "allowed": True}}, "review")
    wanted = {"import": None, **({"task": task} if task else {})}

    def run(name: str) -> tuple[Outcome, Path]:
        folder = bench.folder / f"trace-{name}"
        options = ["--trace", str(folder), *(["--refresh"] if name == "import" else [])]
        return bench.instrument(program, {"task": wanted[name]}, settings, lambda _: None, options=options), folder

    with as_file(files("modelops.review") / "inside_audit.py") as program, ThreadPoolExecutor(2) as pool:
        try:
            runs = {name: pool.submit(run, name) for name in wanted}
            return {name: result_of(one) for name, one in runs.items()}
        except BaseException:
            bench.stop()  # or the pool would wait for what runs, after Ctrl-C too
            raise


def phases_of(facts: Facts, name: str, outcome: Outcome, folder: Path) -> list[Phase]:
    """What one run showed; builds are told by the run that imports alone."""
    found = list(read_traces(facts, folder, name, builds=name == "import"))
    parts = [output.read() for key, output in sorted(outcome.outputs.items()) if key.startswith("audit.")]
    read_told(facts, parts, frozenset({name}))
    if outcome.failure is not None:
        ended = found[-1] if found else Phase(str(outcome.failure.get("phase")), "")
        ended.outcome = str(outcome.failure.get("type"))
        kind = "limit" if outcome.failure.get("limit") else "failed"
        facts.add(kind, ended.name, RUNNER, {"type": ended.outcome, "error": outcome.failure.get("error")})
        found = found or [ended]
    return found


def show(console: Console, report: Mapping[str, Any]) -> None:
    """The findings and where the rest is, for a terminal."""
    bundle = report["bundle"]
    console.print(
        plain(f"{bundle['project'] or 'a bundle without a name'} {bundle['version']}, {bundle['digest']}", "bold")
    )
    for phase in report["phases"]:
        console.print(plain(f"{phase['name']}: {phase['outcome']}", "dim"))
    for finding in report["findings"]:
        if finding["severity"] == "info":
            continue
        head = f"{finding['severity']}: {finding['phase']}: {finding['sentence']}"
        console.print(plain(head, STYLES[finding["severity"]]))
        for fact in finding["evidence"][:3]:
            console.print(plain(f"    {told(fact)}"))
        more = len(finding["evidence"]) - 3 + finding["more"]
        if more > 0:
            console.print(plain(f"    and {more} more", "dim"))
    counts = ", ".join(f"{count} {name}" for name, count in report["count"].items())
    console.print(plain(f"findings: {counts}; {len(report['facts'])} facts"))
    for title, key in (("new", "new"), ("gone", "gone")):
        for fact in report.get("against", {}).get(key, []):
            console.print(plain(f"{title}: {fact['phase']}: {fact['kind'].replace('_', ' ')}: {told(fact)}"))
