"""Fixtures of the tests in containers. HOSTS_ROOTFS=DIR keeps the root file systems there for the next session."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from hosts.containers import Job, Rootfs, make_rootfs, missing, run

Done = Callable[[Job], "subprocess.CompletedProcess[str]"]
Verdict = Callable[[str, str], None]


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """Where root file systems are made; every uid can pass through."""
    why = missing()
    if why:
        pytest.skip(why)
    kept = os.environ.get("HOSTS_ROOTFS")
    path = Path(kept or tempfile.mkdtemp(prefix="cold-runner-hosts-"))
    path.mkdir(exist_ok=True)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path / "podman" if kept else path, ignore_errors=True)


@pytest.fixture(scope="session")
def rootfs_of(place: Path) -> Callable[[str], Rootfs]:
    """`rootfs_of("bookworm")`: made when it is first asked for."""
    return cache(lambda suite: make_rootfs(suite, place))


@pytest.fixture(scope="session")
def done(request: pytest.FixtureRequest, rootfs_of: Callable[[str], Rootfs]) -> Iterator[Done]:
    """`done(job)`: how it ended. All jobs of the session begin with the first, one for each processor at a time."""
    wanted = [item.callspec.params["job"] for item in request.session.items if "job" in params_of(item)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(suites := sorted({job.suite for job in wanted}), pool.map(rootfs_of, suites), strict=True))
        futures = {job: pool.submit(run, job, made[job.suite]) for job in dict.fromkeys(wanted)}
        yield lambda job: futures[job].result()
        pool.shutdown(cancel_futures=True)


def params_of(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture
def verdict(record_property: Callable[[str, object], None]) -> Verdict:
    """`verdict(host, what came of it)`: a row of the table that evidence.py prints."""

    def record(host: str, text: str) -> None:
        record_property("host", host)
        record_property("verdict", text)

    return record
