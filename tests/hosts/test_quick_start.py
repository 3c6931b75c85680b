"""The commands of the README's quick start, word for word, on machines that have Python and nothing else."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from conftest import ROOT

from hosts.conftest import Builder
from hosts.containers import (
    CHECKOUT,
    NEW,
    OLD,
    PRIVILEGED,
    UBUNTU,
    Job,
    Rootfs,
    authorities,
    bootstrap,
    copy_checkout,
    run,
)

Verdict = Callable[[str, str], None]
pytestmark = [
    pytest.mark.full("a new machine, made of Debian's or Ubuntu's packages"),
    pytest.mark.skipif("not os.environ.get('THOROUGH')", reason="THOROUGH=1 makes three new machines"),
    pytest.mark.xdist_group("hosts"),
]


@pytest.fixture(params=[OLD, NEW, UBUNTU["24.04"]])
def empty(request: pytest.FixtureRequest, builder: Builder) -> Iterator[Rootfs]:
    """A new machine with Python, what apt asks of it, and this checkout, which nobody has set up."""
    rootfs = Rootfs(request.param, builder.place / f"empty-{request.param}")
    shutil.rmtree(rootfs.path, ignore_errors=True)
    bootstrap(rootfs.suite, rootfs.path, ["python3"])
    # With the host's authorities, which may be those of a proxy, as somebody gives a new machine theirs.
    (rootfs.path / "usr/local/share/ca-certificates").mkdir(parents=True, exist_ok=True)
    shutil.copy(authorities(), rootfs.path / "usr/local/share/ca-certificates/host.crt")
    copy_checkout(rootfs.path / CHECKOUT.lstrip("/"))
    yield rootfs
    shutil.rmtree(rootfs.path)


def commands() -> list[str]:
    """The lines of the README's first two blocks, without the one that runs these tests."""
    quick = (ROOT / "README.md").read_text().partition("## Quick start")[2]
    blocks = [block.partition("```")[0] for block in quick.split("```sh\n")[1:3]]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line != "tools/test.sh"]


def test_it_runs_on_an_empty_machine(empty: Rootfs, verdict: Verdict) -> None:
    assert not (empty.path / "usr/bin/bwrap").exists() and not (empty.path / CHECKOUT.lstrip("/") / ".venv").exists()
    first, *studies = commands()
    done = run(Job(empty.suite, PRIVILEGED, "root", first), empty, overlay=False)
    assert done.returncode == 0 and json.loads(done.stdout)["outputs"]["summary"], done
    assert [line.rpartition("/")[2] for line in studies] == ["study.sh", "study.sh"]
    digests = {digest_of(run(Job(empty.suite, PRIVILEGED, "root", line), empty)) for line in studies}
    assert len(digests) == 1
    verdict(f"empty machine, {empty.name}", "the quick start's commands: one task, a study warm and cold")


def digest_of(study: "subprocess.CompletedProcess[str]") -> str:
    assert study.returncode == 0, (study.stdout + study.stderr)[-3000:]
    digest = json.loads(study.stdout)["results_digest"]
    assert isinstance(digest, str)
    return digest
