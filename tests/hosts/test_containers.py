"""The smoke tests and the escape probes inside real containers, by root and by a user.

Where a container forbids a piece of the sandbox, a profile that needs it is refused with the remedy, and the
`container` profile holds every promise by other means. THOROUGH=1 runs all the security tests in each.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from hosts import docker, rootless
from hosts.containers import (
    CRUN,
    CRUN_NAMED,
    DROPPED,
    NAMED,
    NEW,
    OLD,
    ORDINARY,
    PRIVILEGED,
    UBUNTU,
    UNMASKED,
    Container,
    Job,
    Rootfs,
    passed_in,
    run_arguments,
)
from hosts.machine import MACHINE, SLOWER

Done = Callable[[Job], "subprocess.CompletedProcess[str]"]
RootfsOf = Callable[[str], Rootfs]
Verdict = Callable[[str, str], None]
pytestmark = [pytest.mark.full("real containers, made of Debian's packages"), pytest.mark.xdist_group("hosts")]

PROFILES = ("default", "strict", "container", "debug")
# All of them run on the host in every suite.
ANY = PROFILES if os.environ.get("THOROUGH") else ("default",)
# Who can run what where.
HOLDS = [
    (PRIVILEGED, "root", ANY),
    (PRIVILEGED, "user", ANY),
    (ORDINARY, "root", ("container",)),
    (ORDINARY, "user", ("container",)),
    (UNMASKED, "root", ("container",)),
    (UNMASKED, "user", ("container",)),
    (DROPPED, "user", ("container",)),
]
PLACES = [(OLD, *row) for row in HOLDS]
PLACES += [(NEW, PRIVILEGED, "root", ("default",)), (NEW, ORDINARY, "root", ("container",))]
for who in ("root", "user"):
    PLACES += [(OLD, docker.UNFILTERED, who, ("container",)), (OLD, docker.UNMASKED, who, ("default",))]
    PLACES += [(OLD, docker.ADMITTED, who, ("container",)), (OLD, docker.ADMITTED_UNMASKED, who, ("default",))]
    PLACES += [(OLD, CRUN, who, ("container",)), (OLD, rootless.PLAIN, who, ("container",))]
    PLACES += [(OLD, named, who, ("default",)) for named in (NAMED, CRUN_NAMED, rootless.NAMED)]
    PLACES += [(OLD, MACHINE, who, ("default",))]
PLACES += [(OLD, dropped, "user", ("container",)) for dropped in (docker.DROPPED, docker.ADMITTED_DROPPED)]
PLACES += [(NEW, docker.ADMITTED_UNMASKED, "root", ("default",))]
# Each suite tries these; THOROUGH=1 all of them.
SHORT = [(OLD, PRIVILEGED, "root"), (OLD, ORDINARY, "root"), (OLD, DROPPED, "user")]
if not os.environ.get("THOROUGH"):
    PLACES = [place for place in PLACES if place[:3] in SHORT]
UNNAMED = ("hostname_denied", "--profile container")  # the container may not name the sandbox
ROOTLESS = ("setuid_denied", "ordinary user")
MASKED = ("proc_masked", "systempaths=unconfined")
FILTERED = ("userns_denied", "--security-opt seccomp=seccomp.json")
NEEDY = ("default", "strict", "debug")  # the profiles that need more of a host than `container`
# Who can't run what where: the error's type, and what its remedy names.
REFUSED = [
    (ORDINARY, "root", NEEDY, UNNAMED),
    (ORDINARY, "user", NEEDY, UNNAMED),
    (UNMASKED, "root", NEEDY, UNNAMED),
    (UNMASKED, "user", NEEDY, UNNAMED),
    (DROPPED, "root", PROFILES, ROOTLESS),
    (DROPPED, "user", NEEDY, UNNAMED),
]
if os.environ.get("THOROUGH"):
    REFUSED += [
        (docker.PLAIN, "root", PROFILES, FILTERED),
        (docker.PLAIN, "user", PROFILES, FILTERED),
        (docker.ADMITTED, "root", NEEDY, MASKED),
        (docker.ADMITTED, "user", NEEDY, MASKED),
        (rootless.PLAIN, "user", NEEDY, UNNAMED),
        (docker.UNFILTERED, "root", NEEDY, MASKED),
        (docker.UNFILTERED, "user", NEEDY, MASKED),
        (docker.DROPPED, "root", PROFILES, ROOTLESS),
        (docker.DROPPED, "user", NEEDY, MASKED),
    ]
SHORT_TESTS = "tests/security/test_probes.py tests/security/test_lifecycle.py"
TESTS = "tests/security" if os.environ.get("THOROUGH") else SHORT_TESTS
HELLO = "tests/bundles/hello"


def smoke(suite: str, container: Container, who: str, profile: str) -> Job:
    return Job(suite, container, who, f"PROFILE={profile} tools/test_ultra_cold.sh")


def probes(suite: str, container: Container, who: str, profiles: tuple[str, ...]) -> Job:
    """The controls are left out: they show on the host that a probe can succeed."""
    pytest_ = ".venv/bin/python -m pytest --full -q --color=no -p no:cacheprovider -k 'not control'"
    slow = f"SLOW_MACHINE={SLOWER} " if container == MACHINE else ""
    tests = TESTS if container.engine == "podman" else SHORT_TESTS
    return Job(suite, container, who, f"PROBE_PROFILES={','.join(profiles)} {slow}{pytest_} {tests}")


def hello(suite: str, container: Container, who: str, profiles: tuple[str, ...]) -> Job:
    runner = f".venv/bin/python tools/ultra_cold_runner.py --profile $profile --bundle-path {HELLO}"
    loop = f"for profile in {' '.join(profiles)}; do {runner} < {HELLO}/task.json; done"
    return Job(suite, container, who, loop)


def limits(who: str) -> Job:
    """The tests of limits; of the bombs those that are no matter of time, which passes slower there."""
    timed = " and not ".join(("CPU", "sleep", "waits", "gone", "threads"))
    chosen = f"test_limits or test_accounts or test_container_memory or ({who}-small and test_bomb and not {timed})"
    files = "tests/integration/test_limits.py tests/integration/test_accounts.py tests/security/test_resources.py"
    files += " tests/integration/test_container_memory.py"
    doctor = ".venv/bin/python tools/ultra_cold_runner.py --doctor"
    pytest_ = ".venv/bin/python -m pytest --full -q --color=no -p no:cacheprovider"
    return Job(OLD, MACHINE, who, f"{doctor}\nSLOW_MACHINE={SLOWER} {pytest_} -k '{chosen}' {files}")


def profile_of(job: Job) -> str:
    return job.script.split()[0].partition("=")[2].replace(",", ", ")


def place_of(job: Job, rootfs_of: RootfsOf) -> str:
    return f"{job.container.name}, {rootfs_of(job.suite).name} as {job.who}"


def places(jobs: Iterable[Job]) -> pytest.MarkDecorator:
    rows = list(jobs)
    return pytest.mark.parametrize("job", rows, ids=[f"{job.suite}-{job.container.name}-{job.who}" for job in rows])


@places(smoke(suite, container, who, profiles[0]) for suite, container, who, profiles in PLACES if suite == OLD)
def test_the_smoke_tests_pass(job: Job, done: Done, rootfs_of: RootfsOf, verdict: Verdict) -> None:
    ended = done(job)
    found = re.search(r"^# (\d+) passed, 0 failed$", ended.stdout, re.M)
    assert ended.returncode == 0 and found and int(found[1]) > 30, (ended.stdout + ended.stderr)[-3000:]
    verdict(place_of(job, rootfs_of), f"{profile_of(job)}: {found[1]} smoke tests pass")


@places(probes(*place) for place in PLACES)
def test_the_probes_hold(job: Job, done: Done, rootfs_of: RootfsOf, verdict: Verdict) -> None:
    count = passed_in(done(job))
    assert count > 200
    verdict(place_of(job, rootfs_of), f"{profile_of(job)}: {count:,} probe tests hold")


@pytest.mark.parametrize(
    "job, expected",
    [(hello(OLD, *row), expected) for *row, expected in REFUSED],
    ids=[f"{container.name}-{who}" for container, who, _, _ in REFUSED],
)
def test_what_can_not_hold_is_refused_with_the_remedy(
    job: Job, expected: tuple[str, str], done: Done, rootfs_of: RootfsOf, verdict: Verdict
) -> None:
    (profiles,) = [row[2] for row in REFUSED if row[:2] == (job.container, job.who)]
    kind, remedy = expected
    errors = [json.loads(line)["_fatal_error"] for line in done(job).stdout.splitlines()]
    assert [(error["phase"], error["type"]) for error in errors] == [("host", kind)] * len(profiles), errors
    assert all(remedy in error["error"] for error in errors), errors
    verdict(place_of(job, rootfs_of), f"{', '.join(profiles)}: refused, `{kind}`")


@pytest.mark.skipif("not os.environ.get('THOROUGH')", reason="THOROUGH=1 boots a virtual machine")
@pytest.mark.parametrize("job", [limits("root"), limits("user")], ids=["root", "user"])
def test_control_groups_of_version_2(job: Job, done: Done, verdict: Verdict) -> None:
    """By root, and by a user whose systemd gave them a group: the limits hold, and the figures are the kernel's."""
    ended = done(job)
    (report,) = re.findall(r'^{"doctor".*', ended.stdout, re.M)
    assert json.loads(report)["doctor"]["cgroup"] == 2
    count = passed_in(ended)
    assert count > 40
    verdict(f"control groups of version 2 as {job.who}", f"{count} tests of limits pass")


# By root, in Ubuntu's own machine: what a user's runner says as the machine comes, and without the restriction.
APPARMOR = """
doctor() { runuser -u probe -- env HOME=/home/probe .venv/bin/python tools/ultra_cold_runner.py --doctor; }
doctor
sysctl -q -w kernel.apparmor_restrict_unprivileged_userns=0; doctor
"""


@pytest.mark.skipif("not os.environ.get('THOROUGH')", reason="THOROUGH=1 boots a virtual machine")
@pytest.mark.parametrize("job", [Job(UBUNTU["24.04"], MACHINE, "root", APPARMOR)], ids=["noble"])
def test_ubuntus_apparmor(job: Job, done: Done, verdict: Verdict) -> None:
    """It restricts user namespaces, until the sysctl is set that --doctor names; the other remedy is not tried."""
    ended = done(job)
    reports = [json.loads(line)["doctor"] for line in re.findall(r'^{"doctor".*', ended.stdout, re.M)]
    restricted, free = reports
    (gap,) = [gap for gap in restricted["gaps"] if gap["type"] != "no_cgroup"]
    assert gap["type"] == "userns_denied" and "bwrap-userns-restrict" in gap["remedy"], gap
    assert "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0" in gap["remedy"], gap
    assert (restricted["ok"], free["ok"]) == (False, True), reports
    assert ended.returncode == 0, ended.stdout[-3000:]
    verdict("Ubuntu 24.04's own machine, AppArmor", "refused: `userns_denied`; with the sysctl a sandbox starts")


def test_the_command_line_of_a_container() -> None:
    arguments = run_arguments("/root-fs:O", Path("/state"), Job(OLD, DROPPED, "user", "true"), {"PIP_INDEX_URL": "x"})
    assert arguments[-5:] == ["--rootfs", "/root-fs:O", "bash", "-c", "(true)\nexit $?"]
    assert "--cap-drop" in arguments and "1000:1000" in arguments and "--env=PIP_INDEX_URL=x" in arguments
    assert all(f"/state/{name}" in arguments for name in ("storage", "run", "tmp"))
