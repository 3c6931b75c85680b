"""The examples for GitHub and GitLab: the very lines that their YAML has, in the containers that it asks for.

The containers have what the image has, `modelops` on the PATH, by the set-up of this checkout. On GitHub and GitLab
themselves they never ran: that their files are well formed is checked by the published schemas.
"""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from hosts.conftest import Builder
from hosts.containers import CHECKOUT, OLD, ORDINARY, PRIVILEGED, SECCOMP, Container, Job

in_containers = pytest.mark.full("real containers, made of Debian's packages")
pytestmark = pytest.mark.xdist_group("hosts")
BUNDLE = "tests/bundles/hello"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "tools/deploy" / name).read_text())


def github_jobs() -> dict[str, Job]:
    """Each row of the matrix: its options to the container, its environment, the lines of its steps."""
    job = read("github-actions.yml")["jobs"]["accept"]
    lines = [step["run"] for step in job["steps"] if "run" in step]
    jobs = {}
    for row in job["strategy"]["matrix"]["include"]:
        options = filled(job["container"]["options"], row)
        environment = {name: filled(value, row) for name, value in job["env"].items()}
        jobs[f"github {row['profile']}"] = job_of(Container("", tuple(shlex.split(options))), environment, lines)
    return jobs


def gitlab_jobs() -> dict[str, Job]:
    """Each job with what it extends; its tag says which runner it asks for."""
    document = read("gitlab-ci.yml")
    jobs = {}
    for name, job in document.items():
        if "extends" in job:
            base = document[job["extends"]]
            container = PRIVILEGED if job.get("tags") == ["privileged"] else ORDINARY._replace(options=SECCOMP)
            jobs[f"gitlab {name}"] = job_of(container, {**base["variables"], **job["variables"]}, base["script"])
    return jobs


def filled(text: str, row: Mapping[str, str]) -> str:
    for name, value in row.items():
        text = text.replace(f"${{{{ matrix.{name} }}}}", value)
    assert "${{" not in text, text
    return text


def job_of(container: Container, environment: Mapping[str, str], lines: list[str]) -> Job:
    """Stopped by the first line that fails, as both services do; they print each line before it runs."""
    given = {**environment, "BUNDLE": BUNDLE, "PATH": f"{CHECKOUT}/.venv/bin:/usr/bin:/bin"}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in given.items()]
    return Job(OLD, container, "root", "\n".join(["set -e", *exports, "set -v", *lines]))


JOBS = {**github_jobs(), **gitlab_jobs()}


def checked(schema: str, document: Any, place: Path) -> "subprocess.CompletedProcess[str]":
    place.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(place)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_github_example_is_what_the_service_reads(tmp_path: Path) -> None:
    """And a key that the service does not know is seen."""
    document = yaml.load((ROOT / "tools/deploy/github-actions.yml").read_text(), yaml.BaseLoader)  # `on` is no boolean
    done = checked("github-workflows", document, tmp_path / "a.yml")
    assert done.returncode == 0, done.stdout
    document["jobs"]["accept"]["run-on"] = document["jobs"]["accept"].pop("runs-on")
    assert checked("github-workflows", document, tmp_path / "a.yml").returncode == 1


def test_the_gitlab_example_is_what_the_service_reads(tmp_path: Path) -> None:
    """With what a job extends written into it, as the service does; the schema does not follow it."""
    document = read("gitlab-ci.yml")
    whole = {
        name: {**document[job["extends"]], **{key: value for key, value in job.items() if key != "extends"}}
        for name, job in document.items()
        if "extends" in job
    }
    for place in document, whole:
        done = checked("gitlab-ci", place, tmp_path / "a.yml")
        assert done.returncode == 0, done.stdout
    whole["privileged"]["tag"] = whole["privileged"].pop("tags")
    assert checked("gitlab-ci", whole, tmp_path / "a.yml").returncode == 1


@in_containers
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_steps_pass(job: Job, builder: Builder) -> None:
    done = builder.done[job].result()
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert '"healthy": true' in done.stdout and "nothing found" in done.stdout, done.stdout


@in_containers
def test_the_steps_fail_where_a_task_gives_other_bytes(builder: Builder) -> None:
    """Seen to fail: the bundle's outputs are random."""
    (job,) = [job for name, job in JOBS.items() if name == "github default"]
    spoil = f"sed -i 's/json.dumps(./&__import__(\"os\").urandom(8).hex(), /' {BUNDLE}/src/hello/__init__.py"
    done = builder.run(job._replace(script=f"{spoil}\n{job.script}"))
    assert done.returncode == 1 and "\n---\n> [" in done.stdout, done
