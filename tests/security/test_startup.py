"""Code of a package that runs before the runner's own: a .pth file, when the environment's interpreter starts."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accounts import SLOW
from conftest import TINY_BACKEND
from evidence import CONTROLS_DONE
from servers import LocalServer, wheel

from security.hostile import HostileRunner, runs

FAMILY = "start-up"
BOTH = (("root", "small"), ("user", "small"))
BRIEF = (("root", "brief"), ("user", "brief"))
ENDED_BY_TIME = ("sleeps", "burns the processor")
WIRE = "import json, sys\ndef wire(*a):\n    return {'out': json.dumps(getattr(sys, 'seen', None))}\n"
LOOK = """
import os, resource, sys
def limits():
    return {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
def raised(name, value):
    try:
        resource.setrlimit(getattr(resource, name), (value, value))
    except (ValueError, OSError):
        return False
    return True
sys.seen = {
    "limits": limits(),
    "raised": [name for name, (_, hard) in limits().items() if hard >= 0 and raised(name, hard + 1)],
    "descriptors": [os.path.realpath("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")],
    "path": sys.path,
}
"""
EVERYWHERE = """
import os
def everywhere(data):
    for fd in range(1024):
        try:
            os.write(fd, data)
        except OSError:
            pass
def frame(kind, name=b"", body=b""):
    return kind + len(name).to_bytes(4, "big") + len(body).to_bytes(8, "big") + name + body
"""
CASES = {
    "sleeps": ("import time\ntime.sleep(1000)\n", ("execute/timeout",)),
    "burns the processor": ("while True: pass\n", ("execute/timeout", "execute/cpu_limit")),
    "takes memory": (
        "held = []\nwhile True: held.append(bytearray(1 << 20))\n",
        ("execute/memory_limit", "execute/no_result", "execute/crashed"),
    ),
    "starts processes": (
        "import os, time\nwhile True:\n try:\n  os.fork() or time.sleep(1000)\n except OSError: time.sleep(0.01)\n",
        ("execute/pids_limit", "execute/timeout"),
    ),
    "fills /tmp": (
        "import time\nfile = open('/tmp/full', 'wb', 0)\ntry:\n"
        " while True: file.write(bytes(1 << 20))\nexcept OSError: pass\n"
        "for n in range(9):\n try: open('/tmp/full%d' % n, 'wb', 0).write(bytes(30 << 20))\n except OSError: pass\n"
        "time.sleep(1000)\n",
        ("execute/tmpfs_limit", "execute/timeout"),
    ),
    "leaves": ("import os\nos._exit(0)\n", ("execute/no_result",)),
    "takes the request": ("import os\nos.read(0, 1 << 20)\n", ("execute/no_result",)),
    "closes everything": ("import os\nos.closerange(0, 1024)\n", ("execute/no_result", "execute/crashed")),
    "sends what is no frame": (EVERYWHERE + "everywhere(b'?' * 100)\n", ("result/bad_result",)),
    "sends a result of its own": (EVERYWHERE + "everywhere(frame(b'O', b'out', b'forged') + frame(b'D'))\n", ("ran",)),
    "sends an error of a phase with network": (
        EVERYWHERE + "body = b'{\"type\": \"dependency_unavailable\", \"traceback\": \"\", \"exception\": '"
        "\nbody += b'{\"type\": \"x\", \"message\": \"timed out\"}}'\neverywhere(frame(b'E', b'', body))\n",
        ("execute/bad_result", "result/bad_result"),
    ),
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as local:
        yield local


def bundle_that_starts_with(hostile: HostileRunner, server: LocalServer, code: str) -> Path:
    """A bundle with a dependency whose .pth file runs `code` at each start of the interpreter."""
    server.add(*wheel("dep", "1.0", {"dep_start.py": code, "dep.pth": "import dep_start\n"}))
    return hostile.bundle(WIRE, needs=["dep"])


def go(hostile: HostileRunner, server: LocalServer, code: str, name: str) -> Any:
    bundle = bundle_that_starts_with(hostile, server, code)
    return hostile.afresh(bundle, None, env=server.environment(), name=name)


@runs(*BOTH)
def test_the_limits_are_set_before_it(hostile: HostileRunner, server: LocalServer) -> None:
    """It is held to every limit, can raise none, and has no descriptor of bwrap's."""
    seen = json.loads(go(hostile, server, LOOK, "a .pth file that looks around").outputs["out"])
    expected = {"CORE": 0, "FSIZE": 32 << 20, "NOFILE": 64, "NPROC": 40 + 16}
    assert {name: seen["limits"][f"RLIMIT_{name}"] for name in expected} == {n: [v, v] for n, v in expected.items()}
    assert seen["limits"]["RLIMIT_CPU"] == [30 * SLOW + 1, 30 * SLOW + 2]
    assert seen["raised"] == []
    own = [name for name in seen["descriptors"] if name.startswith("/venv/") or name.endswith("/fd")]
    given = [name for name in seen["descriptors"] if name not in own and not re.search(r"/fd/\d+$", name)]
    assert len(given) == 5, "the request, the log twice, the result, the stacks, and nothing of bwrap's"
    assert all(entry.startswith(("/venv/", "/usr/lib", "/bundle")) or "/lib/python" in entry for entry in seen["path"])
    CONTROLS_DONE.add("a .pth file that looks around")


@runs(*BRIEF)
@pytest.mark.parametrize("case", ENDED_BY_TIME)
def test_it_has_no_more_time(case: str, hostile: HostileRunner, server: LocalServer) -> None:
    test_what_it_does(case, hostile, server)


@runs(*BOTH)
@pytest.mark.parametrize("case", [case for case in CASES if case not in ENDED_BY_TIME])
def test_what_it_does(case: str, hostile: HostileRunner, server: LocalServer) -> None:
    code, ends = CASES[case]
    result = go(hostile, server, code, f"a .pth file that {case}")
    came_to = "ran" if result.code == 0 else f"{result.error['phase']}/{result.error['type']}"
    assert came_to in ends, result.body


@runs(*BOTH)
def test_it_names_nobody_to_be_killed(hostile: HostileRunner, server: LocalServer) -> None:
    """bwrap tells the runner whom to kill; what a sandbox writes is not taken for bwrap's."""
    with subprocess.Popen(["sleep", "1000"], **hostile.privileges()) as bystander:
        code = f'{EVERYWHERE}everywhere(b\'{{"child-pid": {bystander.pid}}}\\n{{"exit-code": 0}}\\n\')\n'
        go(hostile, server, code, "a .pth file that names a process to be killed")
        assert bystander.poll() is None
        bystander.kill()


@runs(*BRIEF)
def test_in_a_build(hostile: HostileRunner, server: LocalServer) -> None:
    """A requirement of the build backend, with the build's own limits."""
    server.add(*wheel("dep", "1.0", {"dep.pth": "import time; time.sleep(1000)\n"}))
    bundle = hostile.bundle(WIRE, backend=TINY_BACKEND)
    text = (bundle / "pyproject.toml").read_text()
    (bundle / "pyproject.toml").write_text(text.replace("requires = []", 'requires = ["dep"]'))
    error = hostile.afresh(bundle, None, env=server.environment(), name="a .pth file that delays a build").error
    assert (error["phase"], error["type"]) == ("build", "timeout"), error
