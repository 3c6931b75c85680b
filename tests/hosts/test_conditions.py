"""Hosts that lack a piece: the runner works without it, or refuses and says what to do. Each in a container.

A row is one condition: what is done to a fresh Debian 12 before the runner starts, and what must come of it.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

from hosts.containers import (
    OLD,
    OLD_BWRAP,
    ORDINARY,
    PRIVILEGED,
    UBUNTU_BWRAP,
    UBUNTUS,
    Container,
    Job,
    Rootfs,
    add_bwrap,
    debian_mirror,
    docker_seccomp,
    passed_in,
    run,
)

RootfsOf = Callable[[str], Rootfs]
Verdict = Callable[[str, str], None]
pytestmark = [pytest.mark.full("real containers, made of Debian's packages"), pytest.mark.xdist_group("hosts")]
TASK = "tests/bundles/hello/task.json"
WORKS = ""


class Condition(NamedTuple):
    """`prepare` is shell; `kind` is the type of the error, or WORKS; `remedy` must be in what the error says.

    `gap` is what --doctor calls it, where that is not the error's type.
    """

    name: str
    kind: str
    remedy: str = ""
    prepare: str = ""
    arguments: str = ""
    container: Container = PRIVILEGED
    who: str = "root"
    bundle: str = "tests/bundles/hello"
    gap: str | None = None


def with_options(*options: str) -> Container:
    return Container("privileged", (*PRIVILEGED.options, *options))


# A user namespace of its own has limits of its own; the runner starts in it as an ordinary user.
NO_NAMESPACES = (
    "exec unshare -U --map-user=1000 --map-group=1000 --keep-caps bash -c "
    "'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all --ambient-caps=-all \"$@\"' --"
)
EXTENSION = """
mkdir -p /tmp/c && cat > /tmp/c/pyproject.toml <<'END'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "counter"
version = "1"
[project.entry-points."modelops.wire"]
execute = "counter:wire"
[tool.setuptools]
py-modules = ["counter"]
ext-modules = [{ name = "_counter", sources = ["counter.c"] }]
END
echo 'int x;' > /tmp/c/counter.c; echo 'def wire(*a): return {"out": 1}' > /tmp/c/counter.py
"""
# A task that puts 9 MiB where 8 may be.
FILLING = """
mkdir -p /tmp/f && cp -r tests/bundles/hello/* /tmp/f/
cat > /tmp/f/src/hello/__init__.py <<'END'
import time
def wire(entrypoint, params, seed):
    open("FILE", "wb").write(bytes(9 << 20))
    time.sleep(600)
END
"""
BWRAP_0_6 = "export PATH=/srv/0.6/usr/bin:$PATH; bwrap --version | grep -q 0.6.1 || exit 9"
SMALL = with_options("--tmpfs", "/small:size=1m,mode=755")
READ_ONLY = with_options("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/store:mode=755")
AMBIENT = Container("", ("--cap-add", "NET_ADMIN"))
CHROOT = "mkdir /old && mount --rbind / /old && exec chroot /old bash -c 'cd /srv/repo && exec \"$@\"' --"
NOEXEC = with_options("--tmpfs", "/tmp:noexec,mode=1777")
NO_CGROUP = with_options("--volume", "/sys/fs/cgroup:/sys/fs/cgroup:ro")

CONDITIONS = [
    Condition("bwrap missing", "bwrap_unavailable", "apt-get install bubblewrap", "rm /usr/bin/bwrap"),
    Condition("bwrap 0.4.1, too old", "bwrap_too_old", "0.8.0", "cp /srv/old/usr/bin/bwrap /usr/bin/"),
    Condition("bwrap 0.6.1, of Ubuntu 22.04", "bwrap_too_old", "--profile bwrap-0.6", BWRAP_0_6),
    Condition("bwrap 0.6.1, profile bwrap-0.6", WORKS, "", BWRAP_0_6, "--profile bwrap-0.6"),
    Condition(
        "bwrap 0.6.1, in an ordinary container",
        "bwrap_too_old",
        "--profile container-bwrap-0.6",
        BWRAP_0_6,
        "--profile container",
        ORDINARY,
    ),
    *(
        Condition(
            f"bwrap 0.6.1, in an ordinary container as {who}, profile container-bwrap-0.6",
            WORKS,
            "",
            BWRAP_0_6,
            "--profile container-bwrap-0.6",
            ORDINARY,
            who,
        )
        for who in ("root", "user")
    ),
    *(
        Condition(
            f"bwrap 0.6.1, in an ordinary container as root, a task that fills {folder}",
            "tmpfs_limit",
            "",
            BWRAP_0_6 + FILLING.replace("FILE", f"{folder}/x"),
            "--profile /srv/filled.toml",
            ORDINARY,
            bundle="/tmp/f",
            gap=WORKS,
        )
        for folder in ("/tmp", "/dev/shm")
    ),
    Condition("bwrap setuid", "bwrap_setuid", "chmod u-s", "chmod u+s /usr/bin/bwrap"),
    Condition(
        "libseccomp missing", "seccomp_unavailable", "apt-get install libseccomp2", "rm /usr/lib/*/libseccomp.so*"
    ),
    Condition(
        "psutil missing", "psutil_missing", "pip install psutil", "rm -r .venv/lib/python3*/site-packages/psutil"
    ),
    Condition("uv missing", "no_resolver", "pip install uv", "rm .venv/bin/uv", gap="no_uv"),
    Condition("no compiler, a bundle with C", "build_failed", "gcc", EXTENSION, bundle="/tmp/c", gap=WORKS),
    Condition(
        "max_user_namespaces=0", "userns_denied", "sysctl -w user.max_user_namespaces=15000", NO_NAMESPACES, who="user"
    ),
    Condition(
        "a sysctl that can't be written",
        "userns_sysctl_denied",
        "--profile container",
        "",
        "--profile /srv/unmounted.toml",
        ORDINARY,
    ),
    Condition("ambient capabilities", "capabilities", "drop them", "", "", AMBIENT, "user"),
    Condition("a chroot", "userns_denied", "chroot", CHROOT, who="root"),
    Condition("masked /proc", "proc_masked", "unmask=ALL", "", "--profile /srv/unnamed.toml", ORDINARY),
    Condition(
        "unmasked /proc, no name",
        WORKS,
        "",
        "",
        "--profile /srv/unnamed.toml",
        Container("", ("--security-opt", "unmask=ALL")),
    ),
    Condition("no control group can be written", WORKS, "", "", "", NO_CGROUP),
    Condition("/tmp and the root file system read-only", WORKS, "", "", "--store-dir /store/s", READ_ONLY),
    Condition("the store read-only", "store_unavailable", "--store-dir", "", "", READ_ONLY),
    Condition("TMPDIR tiny", WORKS, "", "export TMPDIR=/small; head -c 1M /dev/zero > /small/full", "", SMALL),
    Condition("the store tiny", "host_exhausted", "--store-dir", "", "--store-dir /small/s", SMALL),
    Condition("/tmp noexec", WORKS, "", "", "", NOEXEC),
    Condition("the store noexec, no C in the bundle", WORKS, "", "", "--store-dir /tmp/s", NOEXEC),
    Condition(
        "the store noexec, compiled dependencies",
        "store_unavailable",
        "noexec",
        "",
        "--store-dir /tmp/s",
        NOEXEC,
        bundle="tests/bundles/sir",
        gap=WORKS,
    ),
]
# What --doctor says of a host on which sandboxes start all the same.
MINOR = {"no_cgroup"}
UNMOUNTED = 'description = "no /proc"\nextends = "default"\n[sandbox]\nhostname = ""\nproc = false\nmasked = []\n'
FILLED = (ROOT / "sandbox-profiles/container-bwrap-0.6.toml").read_text() + 'tmp_bytes = "8MiB"\nshm_bytes = "8MiB"\n'
UNNAMED = 'description = "no name for the sandbox"\nextends = "default"\n[sandbox]\nhostname = ""\n'


def job(condition: Condition) -> Job:
    return started(condition, f"--bundle-path {condition.bundle} < {TASK}")


def started(condition: Condition, arguments: str) -> Job:
    """The runner with these arguments, there."""
    runner = f".venv/bin/python tools/ultra_cold_runner.py {condition.arguments} {arguments}"
    joined = " " if condition.prepare.endswith("--") else "\n"
    return Job(OLD, condition.container, condition.who, f"{condition.prepare}{joined}{runner}")


@pytest.fixture(scope="module")
def debian(rootfs_of: RootfsOf) -> Rootfs:
    rootfs = rootfs_of(OLD)
    (rootfs.path / "srv/unnamed.toml").write_text(UNNAMED)
    (rootfs.path / "srv/unmounted.toml").write_text(UNMOUNTED)
    (rootfs.path / "srv/filled.toml").write_text(FILLED)
    return rootfs


@pytest.mark.parametrize("condition", CONDITIONS, ids=[condition.name for condition in CONDITIONS])
def test_a_host_that_lacks(condition: Condition, debian: Rootfs, verdict: Verdict) -> None:
    add_what_it_takes(condition, debian)
    ended = run(job(condition), debian)
    assert ended.stdout.count("\n") == 1, (ended.stdout, ended.stderr)
    error = json.loads(ended.stdout).get("_fatal_error", {})
    assert error.get("type", WORKS) == condition.kind, (error, ended.stderr)
    assert condition.remedy in error.get("error", "") + error.get("stderr", ""), error
    verdict(condition.name, f"refused: `{condition.kind}`" if condition.kind else "works")


@pytest.mark.parametrize("condition", CONDITIONS, ids=[condition.name for condition in CONDITIONS])
def test_the_doctor_tells_of_a_host_that_lacks(condition: Condition, debian: Rootfs) -> None:
    """With the same remedy, found by starting a sandbox there; what concerns one bundle alone it does not know."""
    add_what_it_takes(condition, debian)
    ended = run(started(condition, "--doctor"), debian)
    report = json.loads(ended.stdout)
    gaps = report["doctor"]["gaps"]
    expected = condition.kind if condition.gap is None else condition.gap
    found = {gap["type"]: gap["remedy"] for gap in gaps if gap["type"] not in MINOR}
    assert list(found) == ([expected] if expected else []), report
    assert all(condition.remedy in text for text in found.values()), found
    sound = condition.gap is not None or condition.kind == WORKS
    assert (ended.returncode == 0) is sound, report


def add_what_it_takes(condition: Condition, debian: Rootfs) -> None:
    if "/srv/old" in condition.prepare:
        add_bwrap(debian, download(OLD_BWRAP), "old")
    if BWRAP_0_6 in condition.prepare:
        add_bwrap(debian, download(UBUNTU_BWRAP, UBUNTUS), "0.6")


def download(path: str, mirror: str = "") -> bytes:
    url = (mirror or debian_mirror()) + path
    if url == path:
        pytest.skip("this machine's apt uses no mirror of Debian")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, TimeoutError) as error:
        pytest.skip(f"{url} can't be had: {error}")


def test_a_container_whose_filter_refuses_namespaces(debian: Rootfs, tmp_path: Path, verdict: Verdict) -> None:
    """As Docker's default profile does: no clone with a namespace flag, no unshare, no mount."""
    policy = tmp_path / "seccomp.json"
    policy.write_text(json.dumps(docker_seccomp(json.loads(Path("/usr/share/containers/seccomp.json").read_text()))))
    container = Container("docker", ("--security-opt", f"seccomp={policy}"))
    for profile in ("default", "container"):
        ended = run(job(Condition("", "", "", "", f"--profile {profile}", container, "user")), debian)
        error = json.loads(ended.stdout)["_fatal_error"]
        assert (error["type"], "seccomp=" in error["error"]) == ("userns_denied", True), error
    verdict("user namespaces refused by seccomp (Docker's rules)", "refused: `userns_denied`")


@pytest.mark.parametrize(
    ("profile", "container", "who"),
    [
        ("bwrap-0.6", PRIVILEGED, "root"),
        ("container-bwrap-0.6", ORDINARY, "root"),
        ("container-bwrap-0.6", ORDINARY, "user"),
    ],
    ids=["privileged-root", "ordinary-root", "ordinary-user"],
)
def test_the_probes_hold_with_bwrap_0_6(
    profile: str, container: Container, who: str, debian: Rootfs, verdict: Verdict
) -> None:
    """Ubuntu 22.04's, which lacks --disable-userns and --size. In what is privileged root starts a user's too."""
    add_bwrap(debian, download(UBUNTU_BWRAP, UBUNTUS), "0.6")
    pytest_ = ".venv/bin/python -m pytest --full -q --color=no -p no:cacheprovider -k 'not control'"
    tests = f"{pytest_} tests/security/test_probes.py tests/security/test_lifecycle.py"
    ended = run(Job(OLD, container, who, f"{BWRAP_0_6}; PROBE_PROFILES={profile} {tests}"), debian)
    count = passed_in(ended)
    assert count > 200, ended.stdout
    verdict(f"bwrap 0.6.1, of Ubuntu 22.04, {container.name} as {who}", f"{profile}: {count:,} probe tests hold")
