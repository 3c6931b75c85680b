"""Every supported Python, as the host's and as the bundle's: those of uv and pyenv on this host, and those that Debian
and Ubuntu bring, which are all four. A version that is not on this host is skipped by name.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from hosts.containers import NEW, NEWEST, OLD, ORDINARY, PRIVILEGED, UBUNTU, Job, Rootfs, copy_checkout

Done = Callable[[Job], "subprocess.CompletedProcess[str]"]
RootfsOf = Callable[[str], Rootfs]
Verdict = Callable[[str, str], None]
SetUp = Callable[[str], Path]
pytestmark = [pytest.mark.full("other Pythons, each set up afresh"), pytest.mark.xdist_group("pythons")]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
PAIRS = [(hosts, bundles) for hosts in SUPPORTED for bundles in SUPPORTED]
if not os.environ.get("THOROUGH"):
    PAIRS = list(zip(SUPPORTED, SUPPORTED[1:] + SUPPORTED[:1], strict=True))  # each once as the one and as the other
SMOKE = re.compile(r"^# (\d+) passed, 0 failed$", re.M)


def installed_here() -> dict[str, Path]:
    """The interpreter of each supported minor version that this host has outside of virtual environments."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    uv = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "uv" / "python"
    folders = [*sorted(pyenv.glob("3.*/bin")), *sorted(uv.glob("cpython-3.*/bin")), Path("/usr/bin")]
    named = [(minor, folder / f"python{minor}") for folder in reversed(folders) for minor in SUPPORTED]
    return {minor: path for minor, path in named if path.exists()}


HERE = installed_here()


def python_here(minor: str) -> Path:
    if minor not in HERE:
        pytest.skip(f"no Python {minor} here: uv python install {minor}")
    return HERE[minor]


@pytest.fixture(scope="module")
def set_up() -> Iterator[SetUp]:
    """`set_up("3.12")`: a copy of the checkout that was set up with that Python of this host."""
    place = Path(tempfile.mkdtemp(prefix="cold-runner-pythons-"))
    place.chmod(0o755)

    def copy(minor: str) -> Path:
        target = place / minor
        if not target.exists():
            copy_checkout(target)
            (place / f"bin-{minor}").mkdir()
            (place / f"bin-{minor}" / "python3").symlink_to(python_here(minor))
            done = shell(target, "tools/setup.sh runtime", PATH=f"{place / f'bin-{minor}'}:{os.environ['PATH']}")
            assert done.returncode == 0, done.stderr
        return target

    yield copy
    shutil.rmtree(place)


def shell(folder: Path, script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", "-c", script]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize("minor", SUPPORTED)
def test_the_smoke_tests_pass_on_a_host_with(minor: str, set_up: SetUp, verdict: Verdict) -> None:
    python_here(minor)
    path = f"{set_up(minor).parent / f'bin-{minor}'}:{os.environ['PATH']}"
    ended = shell(set_up(minor), "tools/test_ultra_cold.sh", PATH=path)
    found = SMOKE.search(ended.stdout)
    assert ended.returncode == 0 and found and int(found[1]) > 30, (ended.stdout + ended.stderr)[-3000:]
    verdict(f"this host with Python {minor}", f"default: {found[1]} smoke tests pass")


@pytest.mark.parametrize("hosts, bundles", PAIRS)
def test_a_bundle_of_one_python_on_a_host_with_another(
    hosts: str, bundles: str, set_up: SetUp, tmp_path: Path, verdict: Verdict
) -> None:
    """Wheels of numpy and polars for the bundle's Python, chosen by its requires-python alone."""
    python_here(hosts), python_here(bundles)
    bundle = tmp_path / "sir"
    shutil.copytree(ROOT / "tests/bundles/sir", bundle)
    project = bundle / "pyproject.toml"
    project.write_text(project.read_text().replace('">=3.11"', f'"=={bundles}.*"'))
    wire = bundle / "src/sir/wire.py"
    wire.write_text(f"{wire.read_text()}\nimport sys\nassert sys.version_info[:2] == ({bundles.replace('.', ', ')})\n")
    task = ROOT / "tests/bundles/sir/task.json"
    store = set_up(hosts).parent / "store"
    ended = shell(
        set_up(hosts),
        f".venv/bin/python tools/ultra_cold_runner.py --store-dir {store} --bundle-path {bundle} < {task}",
        PATH=f"{HERE[bundles].parent}:{os.environ['PATH']}",
    )
    assert ended.returncode == 0 and "outputs" in json.loads(ended.stdout), ended.stdout + ended.stderr
    verdict(f"a bundle of Python {bundles} on a host with {hosts}", "default: numpy and polars run")


OWN = [(suite, profile) for suite in (OLD, NEW, NEWEST, *UBUNTU.values()) for profile in ("default", "container")]
# Its bwrap has profiles of its own.
OLDER = {"default": "bwrap-0.6", "container": "container-bwrap-0.6"}
OWN = [(suite, OLDER[profile] if suite == UBUNTU["22.04"] else profile) for suite, profile in OWN]


def its_own(suite: str, profile: str) -> Job:
    container = ORDINARY if profile.startswith("container") else PRIVILEGED
    return Job(suite, container, "root", f".venv/bin/python --version; PROFILE={profile} tools/test_ultra_cold.sh")


@pytest.mark.skipif("not os.environ.get('THOROUGH')", reason="THOROUGH=1 makes two more Debians and three Ubuntus")
@pytest.mark.parametrize("job", [its_own(*row) for row in OWN], ids=["-".join(row) for row in OWN])
def test_the_smoke_tests_pass_with_the_distributions_own(
    job: Job, done: Done, rootfs_of: RootfsOf, verdict: Verdict
) -> None:
    ended = done(job)
    found, python = SMOKE.search(ended.stdout), ended.stdout.splitlines()[0]
    assert ended.returncode == 0 and found and int(found[1]) > 30, (ended.stdout + ended.stderr)[-3000:]
    verdict(f"{job.container.name}, {rootfs_of(job.suite).name}, {python}", f"{found[1]} smoke tests pass")
