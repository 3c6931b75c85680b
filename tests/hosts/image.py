"""The image of tools/deploy/Containerfile, built on a base that debootstrap made: no registry need be reached.

All containers of it are podman's, in namespaces that a test ends, or the session's Docker's and the user's podman's.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conftest import ROOT

from hosts.containers import MOUNTS, authorities, call, captured, debian_mirror, index_settings
from hosts.rootless import Private

NAME = "localhost/modelops"
SUITE = "trixie"  # of the Containerfile's base
# What a slim image of Debian leaves out, and what apt leaves.
LEFT_OUT = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)
# A network of the test's own, with what the plugins keep of it: nothing of the host's is touched.
ALONE = """
ip link set lo up
for folder in /var/lib/cni /etc/cni/net.d /run/netns; do mkdir -p $folder && mount -t tmpfs none $folder; done
echo ready
exec sleep infinity
"""

# What podman would raise else, which a root without CAP_SYS_RESOURCE may not.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")


class Image:
    """The image in a storage of its own below `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place / "image"
        self.program = self.place / "bin/podman"
        self.archive = self.place / "image.tar"

    def build(self) -> None:
        """Make the base if it is not there, and the image."""
        self.program.parent.mkdir(parents=True, exist_ok=True)
        state = f"--root {self.place}/storage --runroot {self.place}/run --tmpdir {self.place}/tmp"
        arguments = f"{state} --cgroup-manager=cgroupfs --events-backend=none --runtime runc"
        self.program.write_text(f'#!/bin/sh\nexec {shutil.which("podman")} {arguments} "$@"\n')
        self.program.chmod(0o755)
        if not (self.place / "base").exists():
            make_base(self.place / "base")
        shutil.copytree(ROOT / "tests/bundles", self.place / "bundles", dirs_exist_ok=True)
        enter = ["unshare", "--mount"]
        call(*enter, "sh", "-c", f"tar -C {self.place}/base -c . | {self.program} import - localhost/base")
        call(*enter, str(self.program), *build_arguments(NAME, "localhost/base", "--isolation=chroot"))
        call(*enter, str(self.program), "save", "-o", str(self.archive), NAME)
        self.archive.chmod(0o644)

    def run(
        self, *arguments: str, options: Sequence[str] = (), runtime: str = "runc"
    ) -> "subprocess.CompletedProcess[str]":
        """`podman run` of the image to its end, with the host's network, as the packages' index is reached."""
        enter = ["unshare", "--mount", *(["sh", "-c", MOUNTS, "--"] if runtime == "crun" else [])]
        return captured(
            [*enter, str(self.program), "--runtime", runtime, *run_arguments(self.place, options), NAME, *arguments]
        )

    def end(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


def build_arguments(name: str, base: str, *options: str) -> list[str]:
    """What an engine is told to build the image. Pure."""
    settings = [f"--build-arg={key}={value}" for key, value in {"BASE": base, **index_settings()}.items()]
    file = f"{ROOT}/tools/deploy/Containerfile"
    return ["build", *options, "--network=host", *settings, "-f", file, "-t", name, str(ROOT)]


def run_arguments(place: Path, options: Sequence[str]) -> list[str]:
    """What an engine is told of a container of the image that sees the bundles of the tests. Pure."""
    environment = [f"--env={name}={value}" for name, value in index_settings().items()]
    bundles = f"--volume={place}/bundles:/bundles:ro"
    return ["run", "--rm", "--network=host", *LIMITS, bundles, *environment, *options]


def make_base(path: Path) -> None:
    """What Debian's slim images have, with the host's authorities, which may be those of a proxy."""
    arguments = ["--variant=minbase", "--include=ca-certificates", SUITE, str(path), *filter(None, [debian_mirror()])]
    call("unshare", "--mount", "debootstrap", *arguments)
    shutil.copy(authorities(), path / "etc/ssl/certs/ca-certificates.crt")
    for name in LEFT_OUT:
        shutil.rmtree(path / name)
        (path / name).mkdir()


class Network:
    """Where containers of the image have a network of their own, alone; all of it ends with `end()`."""

    def __init__(self, image: Image) -> None:
        self.private = Private(ALONE, network=True)
        path = f"{image.program.parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "ENGINE": "podman", "IMAGE": NAME}

    def start(self, *command: str) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*self.private.enter, *command], env=self.environment, text=True, **pipes)

    def call(self, *command: str) -> str:
        """What a command that must succeed prints."""
        done = self.start(*command)
        out, err = done.communicate(timeout=600)
        assert done.returncode == 0, (out + err)[-3000:]
        return out

    def end(self) -> None:
        self.private.end()
