"""Who starts the runner in the tests: root and an ordinary user. A pytest plugin."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import PROFILES, RUNNER, keep_bytecode

USER = 61999  # an ordinary uid: nobody's, and none of those that the profiles give to sandboxes

SLOW = int(os.environ.get("SLOW_MACHINE", "1"))  # an emulated processor: limits of time are that many times longer


def limits(times: int) -> str:
    """Small limits of space, and of time."""
    times *= SLOW
    return f"""
[bundle]
inspect_seconds = {2 * times}
[dependencies]
private_addresses = true
max_wheel_bytes = "64MiB"
max_environment_bytes = "96MiB"
unpack_seconds = {4 * times}
[fetch]
tmp_bytes = "64MiB"
[fetch.limits]
wall_seconds = {8 * times}
memory_bytes = "1GiB"
output_bytes = "32MiB"
[build]
tmp_bytes = "64MiB"
[build.limits]
wall_seconds = {3 * times}
memory_bytes = "256MiB"
processes = 40
output_bytes = "16MiB"
[compile.limits]
wall_seconds = {6 * times}
memory_bytes = "256MiB"
[execute]
tmp_bytes = "64MiB"
shm_bytes = "32MiB"
[execute.limits]
wall_seconds = {2 * times}
cpu_seconds = {1 * times}
memory_bytes = "256MiB"
processes = 40
file_bytes = "32MiB"
open_files = 64
output_bytes = "4MiB"
stderr_bytes = "1MiB"
"""


# No /proc, and nobody but the filter refuses user namespaces.
NO_PROC = '[sandbox]\nproc = false\nhostname = ""\nnested_userns = "seccomp"\nmasked = []\n'
# Profiles of the tests, by name: small limits, servers of this machine may be named, or a protection is off.
TEST_PROFILES = {
    "local": "[dependencies]\nprivate_addresses = true\n",
    "watched": "[trace]\nallowed = true\n",
    "init-in-reach": "[sandbox]\nmasked = []\n",
    "init-may-stay": "[seccomp]\ndeny_if = []\n",
    "init-open": "[sandbox]\nmasked = []\n[seccomp]\ndeny_if = []\n",
    "small": limits(30),  # time that the slowest machine has
    "small-no-proc": NO_PROC + limits(30),
    "brief": limits(1),  # for what is a matter of time
    "brief-no-proc": NO_PROC + limits(1),
    "twelve-seconds": "[dependencies]\nprivate_addresses = true\n[fetch.limits]\nwall_seconds = " + str(12 * SLOW),
    # where uv may wait for ever
    "minute": "[dependencies]\nprivate_addresses = true\n[fetch.limits]\nwall_seconds = " + str(60 * SLOW),
}


HERE = "root" if os.geteuid() == 0 else "user"  # who the tests run as: the one account of the default suite


def everyone() -> pytest.MarkDecorator:
    """Parametrise `who` over the accounts; another than the one that runs the tests is left to the full suite."""
    other = pytest.mark.full("another account")
    names = [pytest.param(name, marks=[] if name == HERE else other) for name in ("root", "user")]
    return pytest.mark.parametrize("who", names)


class Account(NamedTuple):
    """Someone who starts the runner: the uid (None: as we are), the interpreter and a folder of their own."""

    name: str
    uid: int | None
    python: str
    folder: Path


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """A folder that every uid can pass through; with bundles so deep that rmtree can't remove them."""
    path = Path(tempfile.mkdtemp(prefix="cold-runner-security-"))
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


@pytest.fixture(scope="session")
def accounts(base: Path) -> dict[str, Account]:
    """`root` where the tests run as root; `user` is an ordinary user, with an interpreter in its reach."""

    def folder(name: str) -> Path:
        path = base / name
        (path / "bundles").mkdir(parents=True)
        return path

    # A copy of the runner and its profiles: the checkout may lie where only its owner can go.
    (base / "tools").mkdir()
    shutil.copy(RUNNER, base / "tools")
    shutil.copytree(PROFILES, base / "sandbox-profiles")
    (base / "profiles").mkdir()
    for name, text in TEST_PROFILES.items():
        head = 'description = "for tests"\nextends = "default"\n'
        (base / "profiles" / f"{name}.toml").write_text(head + text)
    for name in ("strict", "container"):  # one profile may extend one other: as they are, and with leave to watch
        text = (PROFILES / f"{name}.toml").read_text() + TEST_PROFILES["watched"]
        (base / "profiles" / f"watched-{name}.toml").write_text(text)
    keep_bytecode(sys.executable, base / "tools" / RUNNER.name)
    if os.geteuid() != 0:
        return {"user": Account("user", None, sys.executable, folder("user"))}
    root = Account("root", None, sys.executable, folder("root"))
    own, python = folder("user"), user_python(base)
    os.chown(own, USER, USER)
    keep_bytecode(python, base / "tools" / RUNNER.name)
    return {"root": root, "user": Account("user", USER, python, own)}


def user_python(base: Path) -> str:
    """A venv in the open with psutil and uv, of an interpreter that an ordinary user can start."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(command, user=USER, group=USER, extra_groups=[]).returncode == 0:
                break
        except OSError:
            continue
    else:
        pytest.skip("no interpreter that an ordinary user can reach")
    venv = base / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next((venv / "lib").glob("python3*/site-packages"))
    shutil.copytree(os.path.dirname(psutil.__file__), site / "psutil")
    uv = real_uv()
    if uv:
        shutil.copy2(uv, venv / "bin" / "uv")
    return str(venv / "bin" / "python")


def real_uv() -> str | None:
    """The uv binary itself: a shim of pyenv works only for who can read pyenv."""
    folders = [os.path.dirname(path) for path in (sys.executable, os.path.realpath(sys.executable))]
    beside = [os.path.join(folder, "uv") for folder in folders]
    return next((path for path in beside if os.path.exists(path)), shutil.which("uv"))
