"""Podman without root: a daemonless engine of an ordinary user, whose containers' uids are subordinate ids of theirs.

It runs in namespaces of mounts and processes of its own: there the user and their ids are in /etc, and with the first
process go all the others, podman's own included.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import psutil
from conftest import ROOT

from hosts.containers import CHECKOUT, MOUNTS, UNMASKED, Container, Job, Rootfs, captured, index_settings
from hosts.containers import missing as missing_tools

TOOLS = ("podman", "runc", "newuidmap", "debootstrap")
UID, FIRST, COUNT = 61998, 200000, 65536  # an ordinary uid, nobody's, and its subordinate ids
PLAIN = Container("rootless container", (), "rootless")
# The user need not be able to read this checkout: the profile is beside their ids.
SECCOMP = ("--security-opt", "seccomp=/etc/seccomp.json")
NAMED = Container("rootless container, our seccomp profile and unmask=ALL", (*SECCOMP, *UNMASKED.options), "rootless")
# Run in the namespaces: the files of the folder $1 are in /etc besides, or in place of others.
PREPARE = """
mount --make-rshared / && mount -t overlay overlay -o "lowerdir=$1:/etc" /etc && echo ready
exec sleep infinity
"""


def missing() -> str:
    """Why there can be no podman without root here; empty where there can."""
    return missing_tools(TOOLS)


class Private:
    """Namespaces of mounts and processes, and of a network if asked, in which a script prepared the ground.

    The script ends with `echo ready` and stays. What is started there ends with `end()`.
    """

    def __init__(self, script: str, *arguments: str, network: bool = False) -> None:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += [*(["--net"] if network else []), "bash", "-c", script, "prepare", *arguments]
        self.first = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self.first.stdout and self.first.stdout.readline() == b"ready\n", "the namespaces can't be prepared"
        (inside,) = psutil.Process(self.first.pid).children()
        self.enter = ["nsenter", "--target", str(inside.pid), "--mount", "--pid", *(["--net"] if network else [])]

    def end(self) -> None:
        self.first.kill()
        self.first.communicate()


class Rootless:
    """The user's podman, with all its state in one folder. It begins with its first job."""

    def __init__(self, place: Path) -> None:
        self.place = place / "rootless"
        self.lock = Lock()
        self.images: set[str] = set()
        self.private: Private | None = None

    def run(self, job: Job, rootfs: Rootfs) -> "subprocess.CompletedProcess[str]":
        with self.lock:
            if rootfs.suite not in self.images:
                load = self.podman("import", "-", f"localhost/{rootfs.suite}")
                with subprocess.Popen(["tar", "-C", rootfs.path, "-c", "."], stdout=subprocess.PIPE) as tar:
                    done = subprocess.run(load, stdin=tar.stdout, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-3000:]
                self.images.add(rootfs.suite)
        return captured(self.podman(*run_arguments(job, index_settings())))

    def podman(self, *arguments: str, runtime: str = "runc") -> list[str]:
        """The command line of podman as the user runs it."""
        if not self.private:
            self.start()
        assert self.private
        environment = {"PATH": os.environ["PATH"], "HOME": f"{self.place}/home", "XDG_RUNTIME_DIR": f"{self.place}/run"}
        return [
            *self.private.enter, *(["sh", "-c", MOUNTS, "--"] if runtime == "crun" else []),
            "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups",
            "env", "-i", "-C", "/", *(f"{name}={value}" for name, value in environment.items()),
            "podman", "--cgroup-manager=cgroupfs", "--events-backend=none", "--storage-driver=overlay",
            "--runtime", runtime, *arguments,
        ]  # fmt: skip

    def start(self) -> None:
        for name in ("etc", "home", "run"):
            (self.place / name).mkdir(parents=True, exist_ok=True)
        for name in ("home", "run"):
            os.chown(self.place / name, UID, UID)
        passwd = f"{Path('/etc/passwd').read_text()}rootless:x:{UID}:{UID}::{self.place}/home:/bin/bash\n"
        (self.place / "etc/passwd").write_text(passwd)
        shutil.copy(ROOT / "tools/deploy/seccomp.json", self.place / "etc")
        for name in ("subuid", "subgid"):
            (self.place / "etc" / name).write_text(f"{UID}:{FIRST}:{COUNT}\n")
        self.private = Private(PREPARE, f"{self.place}/etc")

    def end(self) -> None:
        if self.private:
            self.private.end()
            shutil.rmtree(self.place)


def run_arguments(job: Job, environment: Mapping[str, str]) -> Sequence[str]:
    """What podman is told of one shell script in one container. Pure."""
    return [
        "run", "--rm", "--network=host", "--user", job.uid, "--workdir", CHECKOUT, *job.container.options,
        *(f"--env={name}={value}" for name, value in environment.items()),
        f"localhost/{job.suite}", *job.command,
    ]  # fmt: skip
