"""The same run as root and as an ordinary user, and under which host uid a sandbox runs."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import PROFILES, RUNNER, Runner, parse_line, write_bundle

Bundle = Callable[..., Path]
NOBODY = 65534
TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="the tests do not run as root")


class Account(NamedTuple):
    """An ordinary user with a copy of the runner in a folder of its own."""

    uid: int
    folder: Path
    python: str

    def run(self, path: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        command = [
            self.python,
            str(self.folder / "tools" / RUNNER.name),
            "--bundle-path",
            str(path),
            *arguments,
        ]
        env = {"HOME": str(self.folder), "PATH": os.defpath, "PYTHONPATH": str(self.folder / "modules")}
        return subprocess.run(
            command,
            input=TASK,
            capture_output=True,
            env=env,
            cwd="/",
            user=self.uid,
            group=self.uid,
            extra_groups=[],
        )


@pytest.fixture(scope="module")
def nobody() -> Iterator[Account]:
    """The user `nobody`, with an interpreter that it can start."""
    if os.geteuid() != 0:
        pytest.skip("the tests do not run as root")
    folder = Path(tempfile.mkdtemp(prefix="cold-runner-nobody-"))
    folder.chmod(0o755)
    try:
        (folder / "tools").mkdir()
        shutil.copy(RUNNER, folder / "tools")
        shutil.copytree(PROFILES, folder / "sandbox-profiles")
        shutil.copytree(Path(psutil.__file__).parent, folder / "modules" / "psutil")
        os.chown(folder, NOBODY, NOBODY)
        for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
            account = Account(NOBODY, folder, python)
            check = (
                f"import sys; sys.path.insert(0, {str(folder / 'modules')!r}); import "
                f"psutil; assert sys.version_info >= (3, 11)"
            )
            try:
                subprocess.run(
                    [python, "-c", check],
                    user=NOBODY,
                    group=NOBODY,
                    extra_groups=[],
                    check=True,
                    capture_output=True,
                    cwd="/",
                )
            except (OSError, subprocess.CalledProcessError):
                continue
            yield account
            return
        pytest.skip("there is no Python 3.11 or newer that an ordinary user can start")
    finally:
        shutil.rmtree(folder)


WIRE = "import os\ndef wire(*a):\n    return {'out': [os.getuid(), os.getgid(), os.listdir('/bundle')]}\n"


ANOTHER = pytest.mark.full("another profile")
OTHERS = [pytest.param(name, marks=ANOTHER) for name in ("strict", "container", "debug")]


@pytest.mark.parametrize("profile", ["default", *OTHERS])
def test_an_ordinary_user_runs_a_task(nobody: Account, profile: str) -> None:
    path = write_bundle(nobody.folder / f"bundle-{profile}", WIRE)
    done = nobody.run(path, "--profile", profile)
    body = parse_line(done.stdout)
    assert "outputs" in body, body
    assert not list((nobody.folder / ".cache" / "ultra-cold-runner" / "run").glob(".run-*"))


def test_an_ordinary_users_bundle_that_it_may_not_read(nobody: Account) -> None:
    path = write_bundle(nobody.folder / "bundle-private", WIRE)
    (path / "secret").write_text("of root")
    (path / "secret").chmod(0o600)
    error = parse_line(nobody.run(path).stdout)["_fatal_error"]
    assert error["type"] == "unsafe_file" and "'secret'" in error["error"] and "of root" not in str(error)


def test_doctor_of_an_ordinary_user(nobody: Account) -> None:
    done = nobody.run(nobody.folder, "--doctor")
    report = parse_line(done.stdout)["doctor"]
    assert report["root"] is False and report["ok"] is True


def test_inside_everybody_has_the_profiles_uid(run: Runner, bundle: Bundle) -> None:
    out = run(bundle(WIRE)).outputs["out"]
    assert out.startswith(b"[1000, 1000, ")


def host_uids(run: Runner, path: Path) -> set[int]:
    """The host uids of the sandbox of a run, seen from outside."""
    process = run.start(path)
    assert process.stdin
    process.stdin.write(TASK)
    process.stdin.close()
    process.stdin = None
    found: set[int] = set()
    while process.poll() is None and not found:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "sandbox-is-here" in " ".join(child.cmdline()):
                    found.update(child.uids())
            except psutil.Error:
                continue
    process.kill()
    process.communicate()
    return found


@AS_ROOT
def test_as_root_a_sandbox_runs_under_an_unprivileged_host_uid(run: Runner, bundle: Bundle) -> None:
    code = "import os\ndef wire(*a):\n    os.execv('/bin/sh', ['sh', '-c', 'sleep 60 & wait; : sandbox-is-here'])\n"
    code = code.replace("sleep 60 & wait", "while :; do :; done")
    (uid,) = host_uids(run, bundle(code))
    assert uid >= 60000


@AS_ROOT
def test_a_bundle_and_its_folder_may_be_roots_alone(run: Runner, tmp_path: Path) -> None:
    inner = tmp_path / "closed"
    inner.mkdir(mode=0o700)
    path = write_bundle(inner / "bundle", WIRE)
    path.chmod(0o700)
    assert b"probe.py" in run(path).outputs["out"]


@AS_ROOT
def test_an_interpreter_below_a_closed_folder_works(run: Runner, bundle: Bundle) -> None:
    """As root's pyenv below /root: its prefix is the sandbox's, though the sandbox's uid can't reach it."""
    prefix = Path(sys.base_prefix).resolve()
    if all(folder.stat().st_mode & 0o001 for folder in prefix.parents):
        pytest.skip(f"{prefix} is open to everybody on this host")
    code = "import json, ssl, sys, sqlite3\ndef wire(*a):\n    return {'out': sys.base_prefix}\n"
    assert run(bundle(code)).outputs == {"out": str(prefix).encode()}


@AS_ROOT
def test_staging_leaves_no_mount_behind(run: Runner, bundle: Bundle) -> None:
    def mounts() -> list[str]:
        return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())

    before = mounts()
    assert run(bundle(WIRE)).code == 0
    assert (
        [path for path in mounts() if str(run.store) in path]
        == [path for path in before if str(run.store) in path]
        == []
    )
