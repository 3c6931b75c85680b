"""The Docker engine of Debian's package: a daemon of this session alone, with all its state in one folder.

It makes no bridge and no firewall rules: a container has the host's network, as under podman.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from hosts.containers import CHECKOUT, SECCOMP, Container, Job, Rootfs, call, captured, index_settings, path_with_sbin

TOOLS = ("dockerd", "docker")
OPEN = ("--security-opt", "seccomp=unconfined")
PLAIN = Container("ordinary Docker container", (), "docker")
ADMITTED = Container("Docker container, our seccomp profile", SECCOMP, "docker")
ADMITTED_UNMASKED = Container(
    "Docker container, our seccomp profile and systempaths=unconfined",
    (*SECCOMP, "--security-opt", "systempaths=unconfined"),
    "docker",
)
ADMITTED_DROPPED = Container(
    "Docker container, our seccomp profile, cap-drop=ALL",
    (*SECCOMP, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    "docker",
)
UNFILTERED = Container("Docker container, seccomp=unconfined", OPEN, "docker")
UNMASKED = Container(
    "Docker container, seccomp and systempaths=unconfined",
    (*OPEN, "--security-opt", "systempaths=unconfined"),
    "docker",
)
DROPPED = Container(
    "Docker container, seccomp=unconfined, cap-drop=ALL",
    (*OPEN, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    "docker",
)


def missing() -> str:
    """Why there can be no Docker here; empty where there can."""
    absent = [name for name in TOOLS if not shutil.which(name, path=path_with_sbin())]
    return f"needs {' and '.join(absent)}: THOROUGH=1 tools/setup.sh hosts" if absent else ""


class Docker:
    """A daemon that begins with its first job. What it mounts is in a namespace of its own, and goes with it."""

    def __init__(self, place: Path) -> None:
        self.place = place / "docker"
        self.socket = f"unix://{self.place}/socket"
        self.lock = Lock()
        self.images: set[str] = set()
        self.daemon: subprocess.Popen[bytes] | None = None

    def run(self, job: Job, rootfs: Rootfs) -> "subprocess.CompletedProcess[str]":
        self.begin()
        with self.lock:
            self.load(rootfs)
        return captured(run_arguments(self.socket, job, index_settings()))

    def begin(self) -> None:
        """Start the daemon, unless it runs."""
        with self.lock:
            self.daemon = self.daemon or self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        self.place.mkdir()
        command = ["unshare", "--mount", "dockerd", "--host", self.socket, "--pidfile", f"{self.place}/pid"]
        command += ["--data-root", f"{self.place}/data", "--exec-root", f"{self.place}/run"]
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        environment = {"PATH": path_with_sbin(), "HOME": str(self.place)}
        with open(self.place / "log", "wb") as log:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + 60
        while subprocess.run(["docker", "--host", self.socket, "version"], capture_output=True).returncode != 0:
            assert daemon.poll() is None and time.monotonic() < end, (self.place / "log").read_text()[-3000:]
            time.sleep(0.2)
        return daemon

    def load(self, rootfs: Rootfs) -> None:
        if rootfs.suite not in self.images:
            call("sh", "-c", f"tar -C {rootfs.path} -c . | docker --host {self.socket} import - {rootfs.suite}")
            self.images.add(rootfs.suite)

    def end(self) -> None:
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait()
            shutil.rmtree(self.place)


def run_arguments(socket: str, job: Job, environment: Mapping[str, str]) -> list[str]:
    """Docker's command line for one shell script in one container. Pure."""
    return [
        "docker", "--host", socket, "run", "--rm", "--network=host", "--user", job.uid, "--workdir", CHECKOUT,
        *job.container.options, *(f"--env={name}={value}" for name, value in environment.items()),
        job.suite, *job.command,
    ]  # fmt: skip
