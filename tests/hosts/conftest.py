"""Fixtures of the tests in containers. HOSTS_ROOTFS=DIR keeps the root file systems there for the next session."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hosts import docker, machine, rootless
from hosts.containers import OLD, TOOLS, Container, Job, Rootfs, make_rootfs, missing, run

Done = Callable[[Job], "subprocess.CompletedProcess[str]"]
Verdict = Callable[[str, str], None]


class Builder:
    """Makes the root file systems and runs the jobs of the session's tests, several at a time."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        kept = os.environ.get("HOSTS_ROOTFS")
        self.place = Path(kept or tempfile.mkdtemp(prefix="cold-runner-hosts-"))
        self.place.mkdir(exist_ok=True)
        self.place.chmod(0o755)  # every uid passes through
        self.remove = self.place / "podman" if kept else self.place
        self.pool = ThreadPoolExecutor(os.cpu_count())
        wanted = [job for job in dict.fromkeys(jobs) if not missing_engine(job.container)]
        suites = {OLD, *(job.suite for job in wanted)}
        self.made = {suite: self.pool.submit(make_rootfs, suite, self.place) for suite in sorted(suites)}
        self.docker, self.machine = docker.Docker(self.place), machine.Machine(self.place)
        self.rootless = rootless.Rootless(self.place)
        self.engines = {"podman": run, "crun": run, "docker": self.docker.run, "machine": self.machine.run}
        self.engines["rootless"] = self.rootless.run
        self.done = {job: self.pool.submit(self.run, job) for job in wanted}

    def run(self, job: Job) -> "subprocess.CompletedProcess[str]":
        return self.engines[job.container.engine](job, self.made[job.suite].result())

    def end(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.docker.end()
        self.rootless.end()
        self.machine.end()
        shutil.rmtree(self.remove, ignore_errors=True)


def missing_engine(container: Container) -> str:
    """Why this container can't be started here; empty where it can."""
    if container.engine == "crun":
        return missing((*TOOLS, "crun"))
    engines = {"podman": missing, "docker": docker.missing, "machine": machine.missing, "rootless": rootless.missing}
    return engines[container.engine]()


@pytest.fixture(scope="session")
def builder(request: pytest.FixtureRequest) -> Iterator[Builder]:
    """Begun by the first test that wants something of it, for all the tests that will."""
    why = missing()
    if why:
        pytest.skip(why)
    made = Builder(item.callspec.params["job"] for item in request.session.items if "job" in params_of(item))
    yield made
    made.end()


@pytest.fixture(scope="session")
def rootfs_of(builder: Builder) -> Callable[[str], Rootfs]:
    """`rootfs_of("bookworm")`, as soon as it is made."""
    return lambda suite: builder.made[suite].result()


@pytest.fixture(scope="session")
def done(builder: Builder) -> Done:
    """`done(job)`: how it ended."""

    def ended(job: Job) -> "subprocess.CompletedProcess[str]":
        why = missing_engine(job.container)
        if why:
            pytest.skip(why)
        return builder.done[job].result()

    return ended


def params_of(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture
def verdict(record_property: Callable[[str, object], None]) -> Verdict:
    """`verdict(host, what came of it)`: a row of the table that evidence.py prints."""

    def record(host: str, text: str) -> None:
        record_property("host", host)
        record_property("verdict", text)

    return record
