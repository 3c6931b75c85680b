"""What a control group tells, read from files as each version has them."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

V2 = {"memory.current": "{usage}\n", "memory.stat": "anon 1\nactive_file {active}\ninactive_file {inactive}\n"}
V2 |= {"memory.events": "low 0\nhigh 0\nmax {short}\noom 1\noom_kill 0\n", "cpu.stat": "user_usec 5000000\n"}
V1 = {"memory.usage_in_bytes": "{usage}\n", "memory.failcnt": "{short}\n", "memory.memsw.failcnt": "0\n"}
V1 |= {"memory.stat": V2["memory.stat"], "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"}


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(
    "usage, active, inactive, full",
    [(100, 0, 0, True), (95, 2, 2, True), (100, 60, 0, False), (100, 0, 60, False), (50, 0, 0, False)],
)
def test_what_can_be_given_back_does_not_fill_a_group(
    runner_module: Any, tmp_path: Path, files: dict[str, str], usage: int, active: int, inactive: int, full: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text.format(usage=usage, active=active, inactive=inactive, short=7))
    group = runner_module.Cgroup({"": str(tmp_path)} if files is V2 else {"memory": str(tmp_path)})
    if files is V1:
        group.paths.update(dict.fromkeys(("pids", "cpuacct"), str(tmp_path)))
    assert group.is_full(100) is full
    assert group.since()["short"] == 7 and group.since()["memory"] == 0


def test_a_task_that_was_short_of_memory_long_ago_is_not_waiting_for_it(runner_module: Any, tmp_path: Path) -> None:
    for name, text in V2.items():
        (tmp_path / name).write_text(text.format(usage=100, active=0, inactive=0, short=7))
    group, monitor = runner_module.Cgroup({"": str(tmp_path)}), runner_module.Monitor()
    assert not monitor.stalled(group, 100)
    monitor.read_cgroup(group)
    assert monitor.stalled(group, 100) and not monitor.stalled(None, 100)
    monitor.short_at -= monitor.STALL
    assert not monitor.stalled(group, 100)


@pytest.mark.parametrize(
    "limit, text, place",
    [
        ("memory.max", "max", "slice"),
        ("memory.max", "419430400", ""),
        ("memory.high", "419430400", ""),
        ("cpu.max", "max 100000", "slice"),
        ("cpu.max", "200000 100000", ""),
        ("pids.max", "4915", "slice"),  # systemd's default for every service; a sandbox has its own
    ],
)
def test_no_group_with_a_limit_is_left_for_a_sandbox(
    runner_module: Any, tmp_path: Path, limit: str, text: str, place: str
) -> None:
    """A worker in a service of its own, below a slice whose children get the controllers."""
    for group, given in (("slice", "cpu memory pids"), ("slice/service", "")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "cgroup.procs").touch()
        (tmp_path / group / "cgroup.subtree_control").write_text(f"{given}\n")
        (tmp_path / group / "memory.max").write_text("max\n")
    (tmp_path / "slice/service" / limit).write_text(f"{text}\n")
    (tmp_path / "slice/memory.max").write_text("1048576\n")  # holds for all below
    found = runner_module.Cgroup.delegated(str(tmp_path), "/slice/service")
    assert found == (place and str(tmp_path / place))


def test_processes_of_another_pid_namespace_are_not_taken_for_our_own(runner_module: Any, tmp_path: Path) -> None:
    """They have the number 0 (cgroups of version 2), and kill(2) takes that for the caller's process group."""
    (tmp_path / "cgroup.procs").write_text("0\n0\n")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        runner_module.Cgroup({"pids": str(tmp_path)}).kill()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_who_has_left_a_group_is_no_longer_told(runner_module: Any) -> None:
    """Version 1 tells it for a second to who keeps the file open; a run would wait for what it has ended."""
    limits = SimpleNamespace(memory_bytes=1 << 28, processes=8)
    group = runner_module.Cgroup.create(f".run-{os.getpid()}-{os.urandom(6).hex()}-left", limits)
    if group is None:
        pytest.skip("this account gets no control group here")
    try:
        for _ in range(3):
            with subprocess.Popen(["sleep", "60"], preexec_fn=group.enter) as process:
                assert group.pids() == [process.pid]
                process.kill()
            assert group.pids() == []
    finally:
        group.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user looks at a sandbox as itself")
def test_a_peak_starts_again_though_the_sandbox_s_uid_looked_first(runner_module: Any) -> None:
    """Which may read the file, and can't write it."""
    group = runner_module.Cgroup.create(
        f".run-{os.getpid()}-{os.urandom(6).hex()}-peak", SimpleNamespace(memory_bytes=1 << 28, processes=8)
    )
    if group is None:
        pytest.skip("no control group can be made here")
    try:
        os.seteuid(65534)
        try:
            group.number("memory.peak")
        finally:
            os.seteuid(0)
        subprocess.run([sys.executable, "-c", "bytearray(b'x') * (50 << 20)"], preexec_fn=group.enter, check=True)
        assert group.number("memory.peak") > 50 << 20
        group.mark()
        if os.stat(group.place("memory.peak")).st_mode & 0o200:  # version 2 has it so from Linux 6.12 on
            assert group.number("memory.peak") < 50 << 20
    finally:
        group.remove()
