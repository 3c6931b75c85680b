"""Real containers of Debian and Ubuntu: a root file system made by debootstrap, run by podman with runc or crun. Other
engines are in docker.py, rootless.py and machine.py.

A container has an overlay over the root file system, so that none changes it and many run at once. Podman keeps its
state beside it: nothing of a test is anywhere else on the host.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conftest import ROOT

TOOLS = ("podman", "runc", "debootstrap")
PACKAGES = ("bubblewrap", "libseccomp2", "ca-certificates", "git")  # the last for tests of dependencies from it
CHECKOUT = "/srv/repo"
OLD, NEW = "bookworm", "trixie"  # the Debians: bwrap 0.8, the oldest that will do, and a current one
NEWEST = "testing"  # what will be the next, with the newest Python
UBUNTU = {"22.04": "jammy", "24.04": "noble", "26.04": "resolute"}
UBUNTUS = "http://archive.ubuntu.com/ubuntu/"
PYTHONS = {"jammy": "python3.11"}  # where python3 is older than the runner needs
UIDS = {"root": 0, "user": 1000}
# Below a mirror: the newest bubblewrap of a Debian that is too old for the sandbox, and that of Ubuntu 22.04.
OLD_BWRAP = "pool/main/b/bubblewrap/bubblewrap_0.4.1-3_amd64.deb"
UBUNTU_BWRAP = "pool/main/b/bubblewrap/bubblewrap_0.6.1-1ubuntu0.3_amd64.deb"


class Container(NamedTuple):
    """How a container is started: its name in the table, the options, and what starts it."""

    name: str
    options: tuple[str, ...] = ()
    engine: str = "podman"


PRIVILEGED = Container("privileged container", ("--privileged",))
ORDINARY = Container("ordinary container")
UNMASKED = Container("unmask=ALL container", ("--security-opt", "unmask=ALL"))
DROPPED = Container("cap-drop=ALL container", ("--cap-drop", "ALL", "--security-opt", "no-new-privileges"))
# The profile of system calls that we publish: Docker's own, and what a sandbox needs.
SECCOMP = ("--security-opt", f"seccomp={ROOT}/tools/deploy/seccomp.json")
NAMED = Container("container, our seccomp profile and unmask=ALL", (*SECCOMP, *UNMASKED.options))
CRUN = Container("ordinary container (crun)", (), "crun")
CRUN_NAMED = Container("container, our seccomp profile and unmask=ALL (crun)", NAMED.options, "crun")
# Crun refuses control groups of both versions at once; what podman mounts goes with the namespace.
MOUNTS = '! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "$@"'


class Rootfs(NamedTuple):
    """A Debian or Ubuntu below `path`, with this checkout at CHECKOUT, set up. `suite` is its code name."""

    suite: str
    path: Path

    @property
    def name(self) -> str:
        """What is in it, for the table."""
        release = dict(line.split("=", 1) for line in (self.path / "etc/os-release").read_text().splitlines())
        bwrap = subprocess.check_output(["chroot", str(self.path), "bwrap", "--version"], text=True).split()[1]
        version = release.get("VERSION_ID", self.suite).strip('"')
        return f"{release['ID'].capitalize()} {version}, bwrap {bwrap}"


class Job(NamedTuple):
    """One script in one container, by `root` or `user`."""

    suite: str
    container: Container
    who: str
    script: str

    @property
    def uid(self) -> str:
        return f"{UIDS[self.who]}:{UIDS[self.who]}"

    @property
    def command(self) -> list[str]:
        return ["bash", "-c", f"({self.script})\nexit $?"]  # bash stays, as the init that reaps


def run_arguments(rootfs: str, state: Path, job: Job, environment: Mapping[str, str]) -> list[str]:
    """Podman's command line for one shell script in one container. Pure. `rootfs` ends in :O for an overlay.

    With cgroupfs and without events it needs no systemd; without the two limits it fails where CAP_SYS_RESOURCE is
    missing. The network is the host's: dependencies come from an index.
    """
    runtime = "crun" if job.container.engine == "crun" else "runc"
    return [
        "unshare", "--mount", *(["sh", "-c", MOUNTS, "--"] if runtime == "crun" else []),
        "podman", "--root", f"{state}/storage", "--runroot", f"{state}/run", "--tmpdir", f"{state}/tmp",
        "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime", runtime,
        "run", "--rm", "--network=host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
        "--user", job.uid, "--workdir", CHECKOUT, *job.container.options,
        *(f"--env={name}={value}" for name, value in environment.items()),
        "--rootfs", rootfs, *job.command,
    ]  # fmt: skip


def run(job: Job, rootfs: Rootfs, overlay: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a job to its end; without `overlay` what it writes stays in the root file system."""
    top, state = f"{rootfs.path}{':O' if overlay else ''}", rootfs.path.parent / "podman"
    return captured(run_arguments(top, state, job, index_settings()))


def captured(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a container's command line to its end."""
    limit = 3000 if os.environ.get("THOROUGH") else 400
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit
    )


def passed_in(ended: "subprocess.CompletedProcess[str]") -> int:
    """How many tests of the one pytest in a container passed, where all that ran did."""
    found = re.search(r"^(\d+) passed\b.* in [\d.]+s", ended.stdout, re.M)
    assert ended.returncode == 0 and found, (ended.stdout + ended.stderr)[-5000:]
    return int(found[1])


def missing(tools: tuple[str, ...] = TOOLS) -> str:
    """Why there can be no containers here; empty where there can."""
    absent = [name for name in tools if not shutil.which(name, path=path_with_sbin())]
    if absent:
        return f"needs {' and '.join(absent)}: tools/setup.sh hosts"
    if os.geteuid() != 0:
        return "only root can make a root file system"
    return ""


def make_rootfs(suite: str, place: Path) -> Rootfs:
    """Bootstrap a Debian or Ubuntu with this checkout in it, set up there as a user would."""
    rootfs = Rootfs(suite, place / suite)
    if not (rootfs.path / "ready").exists():
        python = PYTHONS.get(suite, "python3")
        bootstrap(suite, rootfs.path, (python, f"{python}-venv", *PACKAGES))
        shutil.copy(authorities(), rootfs.path / "etc/ssl/certs/ca-certificates.crt")
        call("chroot", str(rootfs.path), "useradd", "--create-home", "--uid", str(UIDS["user"]), "probe")
    copy_checkout(rootfs.path / CHECKOUT.lstrip("/"))
    set_up = "tools/setup.sh probes && tools/setup.sh runtime && tools/setup.sh service"
    done = run(Job(suite, PRIVILEGED, "root", set_up), rootfs, overlay=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (rootfs.path / "ready").touch()
    return rootfs


def authorities() -> str:
    """The file of this host's: it may reach the index through a proxy of its own."""
    return os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"


def bootstrap(suite: str, path: Path, packages: Sequence[str]) -> None:
    """A new Debian or Ubuntu with these packages. An Ubuntu gets them with its updates, as only those have some."""
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase"]
    if suite not in UBUNTU.values():
        call(*command, f"--include={','.join(packages)}", suite, str(path), *filter(None, [debian_mirror()]))
        return
    call(*command, suite, str(path), UBUNTUS, "gutsy")  # the script of all, for those that are newer than debootstrap
    lines = [f"deb {UBUNTUS} {name} main universe\n" for name in (suite, f"{suite}-updates")]
    (path / "etc/apt/sources.list").write_text("".join(lines))
    (path / CHECKOUT.lstrip("/")).mkdir(parents=True, exist_ok=True)
    install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {' '.join(packages)}"
    done = run(Job(suite, PRIVILEGED, "root", install), Rootfs(suite, path), overlay=False)
    assert done.returncode == 0, done.stderr[-3000:]


def debian_mirror() -> str:
    """The URL of the Debian mirror that this machine's apt uses; empty where it uses none, as on an Ubuntu."""
    fields = "$(LABEL) $(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    urls = [line.removeprefix("Debian ") for line in listed if line.startswith("Debian http")]
    return f"{urls[0].rstrip('/')}/" if urls else ""


def index_settings() -> dict[str, str]:
    """Where packages come from, as the host has it."""
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTPS_PROXY", "HTTP_PROXY")
    return {name: os.environ[name] for name in names if name in os.environ}


def copy_checkout(target: Path) -> None:
    """What is in the repository, without what a set-up or a run made; where there is no git, all but the venv."""
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    skip = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache")
    for folder in ("tools", "tests", "src", "sandbox-profiles"):
        shutil.rmtree(target / folder, ignore_errors=True)
    if listed.returncode != 0:
        shutil.copytree(ROOT, target, ignore=skip, dirs_exist_ok=True, symlinks=True)
        return
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def add_bwrap(rootfs: Rootfs, package: bytes, name: str) -> None:
    """Unpack a package of bubblewrap below /srv/NAME."""
    file = rootfs.path / f"srv/{name}.deb"
    file.write_bytes(package)
    call("dpkg-deb", "--extract", str(file), str(rootfs.path / "srv" / name))


def path_with_sbin() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def call(*command: str) -> None:
    environment = {**os.environ, "PATH": path_with_sbin()}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}"


def docker_seccomp(policy: dict[str, Any]) -> dict[str, Any]:
    """Podman's policy with Docker's rules on namespaces: `clone` without a namespace flag, `clone3` unknown, and of
    `unshare`, `mount` and their like nothing (moby/profiles/seccomp, default.json). Pure."""
    refused = {"clone", "clone3", "unshare", "setns", "mount", "umount2", "pivot_root"}
    rules = []
    for rule in policy["syscalls"]:
        names = [name for name in rule["names"] if name not in refused]
        rules.append({**rule, "names": names})
    masked = {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [masked]})
    rules.append({"names": sorted(refused - {"clone", "clone3"}), "action": "SCMP_ACT_ERRNO", "errnoRet": 1})
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
    return {**policy, "syscalls": rules, "defaultErrnoRet": 1}
