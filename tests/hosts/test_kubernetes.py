"""The manifests of tools/deploy/kubernetes: valid for the API, and with what the sandbox needs of a pod.

No cluster runs here. What the pods are given is tried with podman: the same system call filter, no capability, an
ordinary user.
"""

import json
import runpy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

from hosts.containers import OLD, Container, Job, Rootfs, run

FOLDER = ROOT / "tools" / "deploy" / "kubernetes"
DOCKER = json.loads((ROOT / "tools" / "deploy" / "seccomp.json").read_text())
VERSION = "1.33"  # the first in which pods may have user namespaces without a feature gate
DOCUMENTS = [
    (path.name, document) for path in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())
]
PODS = [(name, d["spec"]["template"]["spec"]) for name, d in DOCUMENTS if "template" in d["spec"]]


@pytest.fixture(scope="module")
def script() -> Any:
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "seccomp.py")))


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[f"{n}-{d['kind']}" for n, d in DOCUMENTS])
def test_a_manifest_is_valid(name: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_a_manifest_with_an_unknown_field_is_not() -> None:
    document = yaml.safe_load((FOLDER / "job.yaml").read_text())
    document["spec"]["template"]["spec"]["hostUser"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_a_pod_has_no_privilege(name: str, pod: dict[str, Any]) -> None:
    """As the `restricted` standard wants it, but for the volume of a claim and an unmasked /proc."""
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context and container["resources"]["limits"]["memory"]
        if "procMount" in context:
            assert (context["procMount"], pod["hostUsers"]) == ("Unmasked", False)  # else the API refuses it


@pytest.mark.parametrize(("name", "pod"), [p for p in PODS if "scheduler" not in str(p[1]["containers"][0]["name"])])
def test_a_pod_that_runs_tasks_has_what_its_profile_needs(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["seccompProfile"] == {"type": "Localhost", "localhostProfile": "modelops.json"}
    (container,) = pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    unmasked = container["securityContext"].get("procMount") == "Unmasked"
    assert environment["MODELOPS_SANDBOX_PROFILE"] == ("default" if unmasked else "container")
    assert any(volume["name"] == "store" and "emptyDir" in volume for volume in pod["volumes"])


def test_the_filter_is_what_its_script_makes_of_dockers(script: Any) -> None:
    assert json.loads((FOLDER / "seccomp.json").read_text()) == script.plain(DOCKER)


def test_the_filter_allows_nothing_that_docker_asks_a_capability_for(script: Any) -> None:
    plain = script.plain(DOCKER)
    assert all(rule.keys() <= {"names", "action", "args", "errnoRet"} for rule in plain["syscalls"])
    allowed = {name for rule in plain["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert not allowed & {"bpf", "setns", "fsopen", "open_by_handle_at", "init_module", "perf_event_open", "reboot"}
    free = [rule for rule in plain["syscalls"] if {"clone", "unshare"} & set(rule["names"]) and "args" not in rule]
    assert free == []


@pytest.mark.full("real containers, made of Debian's packages")
@pytest.mark.xdist_group("hosts")
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_the_settings_of_a_pod_let_the_sandbox_start(
    masked: bool, rootfs_of: Callable[[str], Rootfs], verdict: Callable[[str, str], None]
) -> None:
    options = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    options += ["--security-opt", f"seccomp={FOLDER / 'seccomp.json'}", "--memory", "1g"]
    options += [] if masked else ["--security-opt", "unmask=ALL"]
    profile = "container" if masked else "default"
    smoke = f"PROFILE={profile} tools/test_ultra_cold.sh"
    ended = run(Job(OLD, Container("pod", tuple(options)), "user", smoke), rootfs_of(OLD))
    assert ended.returncode == 0 and " 0 failed" in ended.stdout, (ended.stdout + ended.stderr)[-3000:]
    verdict(f"settings of a pod, {'ordinary' if masked else 'procMount: Unmasked'}, in podman", f"{profile}: works")
