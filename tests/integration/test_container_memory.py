"""A runner in a control group with less memory than its profile's limit, as a container or pod gives it."""

import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from accounts import Account, everyone
from conftest import RUNNER, parse_line, write_bundle

MIB = 1 << 20
ALLOWED = 400 * MIB
ROOM = ALLOWED // 2  # the default's reserve is over half of it
RunInside = Callable[..., dict[str, Any]]
# Shared memory, which no limit of a process counts; a MiB at a time, as a model's arrays grow.
GROWS = """
import mmap
def wire(e, params, s):
    held = [mmap.mmap(-1, 1 << 20) for _ in range(params["mib"])]
    for each in held:
        each.write(bytes(1 << 20))
    total = open("/proc/meminfo").readline().split()[1]
    return {"total": total}
"""


class Container(NamedTuple):
    """A control group of version 1 or 2 that allows ALLOWED; `enter` moves the calling process in."""

    folder: Path
    door: int

    def enter(self) -> None:
        os.write(self.door, b"0")


@pytest.fixture
def container() -> Iterator[Container]:
    if os.geteuid() != 0:
        pytest.skip("only root can make a control group everywhere")
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    parents = [Path(f"/sys/fs/cgroup/memory{own.get('memory', '/')}"), Path(f"/sys/fs/cgroup{own.get('', '/')}")]
    parents += [Path("/sys/fs/cgroup")]  # of version 2, where a group with processes has none inside
    name, limit = f"container-{os.getpid()}", {"memory.limit_in_bytes": ALLOWED, "memory.max": ALLOWED}
    more = {"memory.memsw.limit_in_bytes": ALLOWED, "memory.swap.max": 0}
    for parent in parents:
        with suppress(OSError):
            (parent / name).mkdir()
            files = {file: value for file, value in limit.items() if (parent / name / file).exists()}
            if files:
                break
            (parent / name).rmdir()
    else:
        pytest.skip("no control group with a limit on memory can be made here")
    folder = parent / name
    for file, value in {**files, **more}.items():
        with suppress(OSError):  # not every kernel counts swap
            (folder / file).write_text(str(value))
    assert all(int((folder / file).read_text()) == ALLOWED for file in files)
    door = os.open(folder / "cgroup.procs", os.O_WRONLY)
    yield Container(folder, door)
    os.close(door)
    folder.rmdir()


@pytest.fixture
def run_inside(container: Container, accounts: dict[str, Account]) -> RunInside:
    """`run_inside(who, mib, *flags)`: the answer of a runner in the group, whose task uses so many MiB."""

    def run(who: str, mib: int, *flags: str) -> dict[str, Any]:
        account = accounts[who]
        bundle = write_bundle(account.folder / f"grows-{mib}-{len(flags)}", GROWS)
        command = [account.python, str(account.folder.parent / "tools" / RUNNER.name), "--bundle-path", str(bundle)]
        done = subprocess.run(
            [*command, "--store-dir", str(account.folder / "store"), *flags],
            input=b'{"entrypoint": "main", "params": {"mib": %d}, "seed": 1}' % mib,
            capture_output=True,
            env={"HOME": str(account.folder), "PATH": os.defpath},
            cwd="/",
            preexec_fn=container.enter,
            **({} if account.uid is None else {"user": account.uid, "group": account.uid, "extra_groups": []}),
        )
        return parse_line(done.stdout)

    return run


@everyone()
def test_a_sandbox_gets_what_the_container_has_less_a_reserve(who: str, run_inside: RunInside) -> None:
    answer = run_inside(who, 20)
    assert int(b64decode(answer["outputs"]["total"]["inline"])) * 1024 == ROOM
    error = run_inside(who, 300)["_fatal_error"]
    assert error["type"] == "memory_limit" and error["limit"]["value"] == ROOM, error
    assert "give its container more memory" in error["error"]


@everyone()
def test_when_the_container_runs_out_the_task_is_ended_and_not_the_worker(
    who: str, container: Container, run_inside: RunInside, accounts: dict[str, Account]
) -> None:
    """The worker beside it is larger, and the kernel would choose it; the task is far from its own limit."""
    profile = accounts[who].folder / "no-reserve.toml"
    profile.write_text('description = "no reserve"\nextends = "default"\n[host]\nreserve_bytes = 0\n')
    code = "import sys; held = b'x' * (250 << 20); print('ready', flush=True); sys.stdin.read()"
    worker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=container.enter,
    )
    try:
        assert worker.stdout and worker.stdout.readline() == b"ready\n"
        error = run_inside(who, 300, "--profile", str(profile))["_fatal_error"]
        assert error["type"] == "memory_limit", error
        # Of version 1 root's sandbox has a group of its own inside, which counts its kills.
        nested = who == "root" and (container.folder / "memory.limit_in_bytes").exists()
        assert error["limit"]["name"] == ("memory_bytes" if nested else "group_memory_bytes")
        assert worker.poll() is None, "the kernel chose the worker"
        assert "give its container more memory" in error["error"]
    finally:
        worker.communicate(b"")
    assert worker.returncode == 0


@pytest.mark.parametrize(
    "quota, reserve, room", [(1 << 62, 256 * MIB, (1 << 62) - 256 * MIB), (ALLOWED, 0, ALLOWED), (100, 90, 50)]
)
def test_what_a_sandbox_gets(runner_module: Any, default_profile: Any, quota: int, reserve: int, room: int) -> None:
    host = default_profile.host._replace(reserve_bytes=reserve)
    profile = runner_module.within(default_profile._replace(host=host), quota)
    for phase in ("fetch", "build", "compile", "execute"):
        limit = getattr(default_profile, phase).limits.memory_bytes
        assert getattr(profile, phase).limits.memory_bytes == min(limit, room)


def test_the_runner_itself_is_not_the_first_to_be_killed(runner_module: Any) -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    with runner_module.killed_first():
        child = subprocess.run(["cat", str(own)], capture_output=True, text=True).stdout
    assert (child, own.read_text()) == ("1000\n", before)
