"""The image of tools/deploy/Containerfile in the containers that a user starts, and a Dask cluster of them."""

import gzip
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars
import pytest
from conftest import ROOT, write_bundle

from hosts import docker, rootless
from hosts.conftest import Builder, missing_engine
from hosts.containers import CRUN, NAMED, ORDINARY, Container, call, captured
from hosts.image import NAME, Image, Network, build_arguments, run_arguments

pytestmark = [
    pytest.mark.full("an image, built and run in real containers"),
    pytest.mark.skipif("not os.environ.get('THOROUGH')", reason="THOROUGH=1 builds the image"),
    pytest.mark.xdist_group("hosts"),
]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Verdict = Callable[[str, str], None]
MIB = 1 << 20
STUDY = ["--entrypoint", "sir.model/baseline", "--params", '{"population": 10000, "gamma": 0.1, "days": 120}']
STUDY += ["--grid", "beta=0.2,0.3", "--seeds", "1-2", "--target", "sir.targets:prevalence"]
# Who can run the image, and under which profile.
PLACES = [
    (ORDINARY, "container"),
    (NAMED, "default"),
    (CRUN, "container"),
    (rootless.PLAIN, "container"),
    (rootless.NAMED, "default"),
    (docker.ADMITTED, "container"),
    (docker.ADMITTED_UNMASKED, "default"),
]
SLOW = """
import time

def wire(entrypoint, params, seed):
    time.sleep(0.5)
    return {"seed": str(seed)}
"""

KEPT = """
import sqlite3
try:
    with sqlite3.connect("file:/shared/out/out/results.sqlite?mode=ro", uri=True) as db:
        print(db.execute("SELECT count(*) FROM simulations").fetchone()[0])
except sqlite3.OperationalError:  # not there yet
    print(0)
"""


@pytest.fixture(scope="module")
def image(builder: Builder) -> Iterator[Image]:
    made = Image(builder.place)
    made.build()
    yield made
    made.end()


@pytest.fixture(scope="module")
def run(image: Image, builder: Builder) -> Run:
    """`run(container, *arguments)`: `docker run IMAGE ARGUMENTS` by that container's engine."""
    loaded: set[str] = set()

    def in_docker(arguments: Sequence[str]) -> list[str]:
        if "docker" not in loaded:
            builder.docker.begin()
            call("docker", "--host", builder.docker.socket, "load", "--input", str(image.archive))
            loaded.add("docker")
        return ["docker", "--host", builder.docker.socket, *arguments]

    def in_rootless(arguments: Sequence[str]) -> list[str]:
        if "rootless" not in loaded:
            call(*builder.rootless.podman("load", "--input", str(image.archive)))
            loaded.add("rootless")
        return builder.rootless.podman(*arguments)

    def run_in(container: Container, *arguments: str) -> "subprocess.CompletedProcess[str]":
        why = missing_engine(container)
        if why:
            pytest.skip(why)
        if container.engine in ("podman", "crun"):
            runtime = "crun" if container.engine == "crun" else "runc"
            return image.run(*arguments, options=container.options, runtime=runtime)
        command = [*run_arguments(image.place, container.options), NAME, *arguments]
        return captured(in_docker(command) if container.engine == "docker" else in_rootless(command))

    return run_in


def test_it_is_small(image: Image, verdict: Verdict) -> None:
    """As a registry holds it, compressed, and unpacked, with the store empty."""
    with image.archive.open("rb") as file:
        squeezed = sum(len(gzip.compress(part, 6)) for part in iter(lambda: file.read(64 * MIB), b""))
    unpacked = image.archive.stat().st_size
    assert squeezed < 100 * MIB and unpacked < 250 * MIB, f"{squeezed / MIB:.0f} MiB, {unpacked / MIB:.0f} unpacked"
    verdict("the image", f"{squeezed / MIB:.0f} MiB compressed, {unpacked / MIB:.0f} MiB unpacked")


@pytest.mark.parametrize("container, profile", PLACES, ids=[place.name for place, _ in PLACES])
def test_it_runs_a_task(container: Container, profile: str, run: Run, verdict: Verdict) -> None:
    """The profile is the image's own, `container`, or `default` where /proc is whole; the doctor agrees."""
    chosen = [] if profile == "container" else ["--profile", profile]
    told = run(container, "doctor", *chosen)
    report = json.loads(told.stdout)
    assert told.returncode == 0 and report["healthy"] and report["doctor"]["profile"] == profile, told
    begun = time.monotonic()
    done = run(container, "run", "/bundles/sir", "--task", "/bundles/sir/task.json", "--json", *chosen)
    seconds = time.monotonic() - begun
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["outputs"]["summary"]["size"], done
    verdict(f"image, {container.name}", f"{profile}: first result of sir after {seconds:.0f} s")


def test_docker_builds_it_too(image: Image, builder: Builder, verdict: Verdict) -> None:
    """By the command that the Containerfile gives, on a base of its own."""
    why = missing_engine(docker.ADMITTED)
    if why:
        pytest.skip(why)
    builder.docker.begin()
    engine = ["docker", "--host", builder.docker.socket]
    call("sh", "-c", f"tar -C {image.place}/base -c . | {' '.join(engine)} import - base")
    call(*engine, *build_arguments("built", "base"))
    task = ["run", "/bundles/sir", "--task", "/bundles/sir/task.json", "--json"]
    done = captured([*engine, *run_arguments(image.place, docker.ADMITTED.options), "built", *task])
    assert done.returncode == 0 and json.loads(done.stdout)["outputs"]["summary"]["size"], done
    verdict("the image, by docker build", "runs a task")


def test_without_the_profile_docker_refuses_and_the_doctor_gives_the_line(run: Run) -> None:
    """And with that line, and the file that the image brings, it runs."""
    told = run(docker.PLAIN, "doctor")
    (gap,) = json.loads(told.stdout)["doctor"]["gaps"]
    assert told.returncode == 1 and gap["type"] == "userns_denied", told
    assert "--security-opt seccomp=seccomp.json" in gap["remedy"], gap
    brought = run(docker.PLAIN._replace(options=("--entrypoint", "cat")), "/usr/share/modelops/seccomp.json")
    assert brought.stdout == (ROOT / "tools/deploy/seccomp.json").read_text()
    masked = json.loads(run(docker.ADMITTED, "doctor", "--profile", "default").stdout)["doctor"]["gaps"]
    assert [gap["type"] for gap in masked] == ["proc_masked"]
    assert "--security-opt systempaths=unconfined" in masked[0]["remedy"]


def test_it_runs_a_study(run: Run, tmp_path: Path) -> None:
    """Into a folder of the host's, as tools/deploy/README.md shows."""
    results = tmp_path / "results"
    results.mkdir()
    results.chmod(0o777)
    mounted = ORDINARY._replace(options=("--volume", f"{results}:/results"))
    done = run(mounted, "study", "--bundle", "/bundles/sir", "--out", "/results/first", *STUDY)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert (summary["simulations"]["succeeded"], summary["aggregations"]["succeeded"]) == (4, 2), summary
    assert polars.read_parquet(results / "first/losses.parquet")["param.beta"].to_list() == [0.2, 0.3]


def test_nobody_in_it_is_root_and_nothing_of_a_build_is_left(run: Run) -> None:
    shell = ORDINARY._replace(options=("--entrypoint", "sh"))
    done = run(
        shell, "-c", "id -u; ls /src /wheels; command -v pip gcc; find / -xdev -perm /6000 -user root -name bwrap"
    )
    assert done.stdout == "1000\n", done


@pytest.fixture
def network(image: Image) -> Iterator[Network]:
    made = Network(image)
    yield made
    made.end()


def test_a_study_outlives_a_worker_container(network: Network, tmp_path: Path, verdict: Verdict) -> None:
    """A scheduler and two workers on one network; one of them is killed while it has tasks."""
    write_bundle(tmp_path / "slow", SLOW)
    tmp_path.chmod(0o755)
    script = str(ROOT / "tools/deploy/cluster.sh")
    network.call(script, "up", "2")
    asked = ["--entrypoint", "slow.model/base", "--seeds", "1-40", "--no-check"]
    study = network.start(script, "study", str(tmp_path / "slow"), str(tmp_path / "out"), *asked)
    wait_for_results(network, study)
    network.call("podman", "kill", "modelops-worker-1")
    out, err = study.communicate(timeout=600)
    assert study.returncode == 0, (out + err)[-3000:]
    log = network.call("sh", "-c", "podman logs modelops-scheduler 2>&1")
    assert "modelops-worker-1" in log.partition("Remove worker")[2], log
    rows = polars.read_parquet(tmp_path / "out/results.parquet")
    assert sorted(rows["seed"]) == list(range(1, 41)) and json.loads(out)["simulations"]["succeeded"] == 40
    network.call(script, "down")
    assert network.call("podman", "ps", "--all", "--quiet") + network.call("podman", "volume", "ls", "--quiet") == ""
    verdict("a Dask cluster of three containers, a worker killed", "40 of 40 tasks")


def wait_for_results(network: Network, study: "subprocess.Popen[str]") -> None:
    """Until the study has kept its first results; most tasks are then ahead."""
    while int(network.call("podman", "exec", "modelops-scheduler", "python3", "-c", KEPT)) == 0:
        assert study.poll() is None, study.communicate()
        time.sleep(0.2)
