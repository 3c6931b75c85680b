"""tools/deploy/seccomp.json: Docker's published profile and six rules, each of which a sandbox needs to start."""

import json
import lzma
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from hosts import docker
from hosts.conftest import Builder, missing_engine
from hosts.containers import OLD, UNMASKED, Container, Job
from hosts.test_conditions import download

DEPLOY = ROOT / "tools/deploy"
PACKAGE = "golang-github-docker-docker-dev"
DEFAULT = "./usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json"
THOROUGH = pytest.mark.skipif("not os.environ.get('THOROUGH')", reason="THOROUGH=1 starts Docker's engine")
ENGINES = [
    pytest.param("podman", UNMASKED.options, id="podman"),
    pytest.param("docker", docker.UNMASKED.options[2:], id="docker", marks=THOROUGH),
]
in_containers = pytest.mark.full("real containers, made of Debian's packages")


script = SimpleNamespace(**runpy.run_path(str(DEPLOY / "seccomp.py")))
RULES = [rule["names"][0] for rule in script.ADDED]
# What the remedy of a start without the rule says; `sethostname` is needed by `default` alone.
KINDS = {"clone": "userns_denied", "unshare": "userns_denied", "sethostname": "hostname_denied"}


def test_every_rule_names_one_call_and_says_why() -> None:
    """And a namespace is made only together with a user namespace: no rule lets `clone` or `unshare` do more."""
    assert len(RULES) == len(set(RULES)) and all(len(rule["names"]) == 1 and rule["comment"] for rule in script.ADDED)
    for rule in script.ADDED[:2]:
        assert rule["args"] == [script.WITH_NEW_USER]
    kept = json.loads((DEPLOY / "seccomp.json").read_text())["syscalls"]
    assert kept[-len(RULES) :] == [{**rule, "action": "SCMP_ACT_ALLOW"} for rule in script.ADDED]


@pytest.mark.full("downloads a package of Debian 13")
def test_the_script_makes_the_profile_of_dockers_published_default(tmp_path: Path) -> None:
    listed = lzma.decompress(download("dists/trixie/main/binary-amd64/Packages.xz")).decode()
    (entry,) = [entry for entry in listed.split("\n\n") if entry.startswith(f"Package: {PACKAGE}\n")]
    (path,) = [line.removeprefix("Filename: ") for line in entry.splitlines() if line.startswith("Filename: ")]
    (tmp_path / "deb").write_bytes(download(path))
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", tmp_path / "deb"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", tmp_path, DEFAULT], input=tar, check=True)
    made = subprocess.run([DEPLOY / "seccomp.py", tmp_path / DEFAULT], capture_output=True, text=True, check=True)
    assert made.stdout == (DEPLOY / "seccomp.json").read_text()


def hello(engine: str, options: tuple[str, ...], profile: Path) -> Job:
    container = Container("", ("--security-opt", f"seccomp={profile}", *options), engine)
    bundle = "tests/bundles/hello"
    runner = f".venv/bin/python tools/ultra_cold_runner.py --bundle-path {bundle} < {bundle}/task.json"
    return Job(OLD, container, "user", runner)


@in_containers
@pytest.mark.xdist_group("hosts")
@pytest.mark.parametrize("engine, options", ENGINES)
def test_a_start_fails_without_any_one_of_the_rules(
    engine: str, options: tuple[str, ...], builder: Builder, tmp_path: Path
) -> None:
    """Under `default`, with /proc unmasked. With all of the rules it starts; the remedy names the profile."""
    why = missing_engine(Container("", (), engine))
    if why:
        pytest.skip(why)
    whole = json.loads((DEPLOY / "seccomp.json").read_text())
    kinds = {}
    for index, name in enumerate(["none", *RULES]):
        rules = [
            rule
            for rule in whole["syscalls"]
            if index == 0 or rule.get("comment") != script.ADDED[index - 1]["comment"]
        ]
        assert len(rules) == len(whole["syscalls"]) - bool(index)
        (tmp_path / "seccomp.json").write_text(json.dumps({**whole, "syscalls": rules}))
        answer = json.loads(builder.run(hello(engine, options, tmp_path / "seccomp.json")).stdout)
        error = answer.get("_fatal_error", {"type": "", "error": "seccomp=seccomp.json"})
        kinds[name] = error["type"]
        assert "seccomp=seccomp.json" in error["error"], error
    assert kinds == {"none": "", **{name: KINDS.get(name, "mount_denied") for name in RULES}}
