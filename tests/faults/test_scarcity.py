"""The disk is full, or descriptors, memory, processes or file sizes run out at any point; streams are closed or full.

Each run ends with one line that is a whole success or says what is short. The sweep is a list of sizes from nothing
to more than enough, so that the shortage strikes in each phase; FAULT_SEED=N repeats the sizes. The default suite takes
few of them, THOROUGH=1 more than the full one.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accounts import everyone
from conftest import Result

from faults.aftermath import (
    PATIENCE,
    SEED,
    TASK,
    THOROUGH,
    FaultRunner,
    answer,
    check_aftermath,
    check_answer,
    check_success,
    counted,
    groups,
    own_mounts,
    scratch,
    wrong_entries,
)

Verdict = Callable[[str, str], None]
RunnerOf = Callable[..., FaultRunner]
Share = Callable[[list[int]], list[int]]


def run_limited(
    runner: FaultRunner, bundle: Path, *arguments: str, limits: Mapping[int, int] | None = None, **streams: Any
) -> tuple[int, "subprocess.CompletedProcess[bytes]"]:
    """Run the runner under resource limits of its own; its pid, and how it ended."""

    def limit() -> None:
        for kind, value in (limits or {}).items():
            resource.setrlimit(kind, (value, value))

    process = subprocess.Popen(
        runner.command("--bundle-path", str(bundle), *arguments),
        stdin=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        env=runner.environment(),
        preexec_fn=limit,
        **runner.privileges(),
    )
    try:
        out, err = process.communicate(TASK, timeout=PATIENCE)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.pid, subprocess.CompletedProcess([], process.returncode, out, err)


def python_starts(runner: FaultRunner, limits: Mapping[int, int]) -> bool:
    """Whether the interpreter can start, and come to the end of the runner's file, under these limits: before that no
    code of ours runs that could say something."""
    command = runner.command("--help")

    def limit() -> None:
        for kind, value in limits.items():
            resource.setrlimit(kind, (value, value))

    done = subprocess.run(
        command, preexec_fn=limit, capture_output=True, env=runner.environment(), **runner.privileges()
    )
    return done.returncode == 0


def judge(result: Result) -> str:
    kind = check_answer(result)
    assert kind != "timeout" or "(ulimit -v)" in result.error["error"], result.error  # nothing else here may stall
    assert kind not in ("internal_error", "wheel_invalid"), result.error  # what the host lacks is no bundle's fault
    return kind


def sweep_limit(runner: FaultRunner, module: ModuleType, kind: int, values: list[int], *arguments: str) -> Counter[str]:
    """Run under each limit, look at the answer, and run again without it."""
    mounts, outcomes, bundle = own_mounts(), Counter[str](), runner.bundle()
    check_success(runner(bundle))
    for value in values:
        pid, done = run_limited(runner, bundle, *arguments, limits={kind: value})
        if not done.stdout and not python_starts(runner, {kind: value}):
            outcomes["no interpreter"] += 1
        elif not done.stdout and kind == resource.RLIMIT_AS and done.returncode == -signal.SIGSEGV:
            outcomes["crash of the interpreter"] += 1  # seen between 36.6 and 36.7 MB: its stack can't grow
        else:
            try:
                outcomes[judge(answer(done.stdout, done.returncode, done.stderr))] += 1
            except BaseException as error:
                error.add_note(f"limit {value}: {done.stderr[-3000:].decode()}")
                raise
        assert groups([pid]) == [], value
        try:
            check_success(runner(bundle))
            check_aftermath(runner, module, [pid], mounts)
        except BaseException as error:
            error.add_note(f"after limit {value}: {done.stdout[-3000:]!r} {done.stderr[-3000:].decode()}")
            raise
    return outcomes


@pytest.fixture
def share(who: str, full: bool) -> Share:
    """`share(values)`: those that are tried, from the largest down. In the full suite root tries every second, the
    user every fourth, and in the default suite every eighth: one that is enough, and one or two that are not. With
    THOROUGH=1 both try all."""
    step = 8 if not full else 1 if THOROUGH else 2 if who == "root" else 4
    return lambda values: values[::-step]


@everyone()
def test_descriptors_run_out(
    who: str, share: Share, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    values = list(range(3, 65)) if THOROUGH else [*range(3, 20), *range(20, 65, 4)]
    outcomes = sweep_limit(runner_of(who, "files"), runner_module, resource.RLIMIT_NOFILE, share(values))
    dice = random.Random(SEED)
    fresh = sorted(dice.sample(range(6, 40), 34 if THOROUGH else 5))
    outcomes += sweep_limit(runner_of(who, "files"), runner_module, resource.RLIMIT_NOFILE, share(fresh), "--no-cache")
    assert outcomes["success"]
    verdict(f"EMFILE at 3 to 64 descriptors as {who}", counted(outcomes))


SHORT = 20 << 20  # enough for the interpreter, and too little for the runner


@everyone()
def test_memory_runs_out(
    who: str, full: bool, share: Share, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    """uv waits for ever where it had no room for a thread (half the runs with 267 MiB): its time limit ends it."""
    dice, runner = random.Random(SEED), runner_of(who, "memory")
    runner.profile = "minute"
    sizes = [dice.uniform(4, 400) for _ in range(100 if THOROUGH else 10)] + [2000]
    values = [int(size) << 20 for size in sorted(sizes)]
    outcomes = sweep_limit(runner, runner_module, resource.RLIMIT_AS, [*share(values), SHORT])
    if full:  # without what is kept; test_descriptors_run_out does so in each suite
        outcomes += sweep_limit(runner, runner_module, resource.RLIMIT_AS, share(values[-6:]), "--no-cache")
    assert outcomes["success"]
    verdict(f"ENOMEM at 4 to 400 MiB as {who}", counted(outcomes))


@everyone()
def test_processes_run_out(
    who: str, full: bool, share: Share, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    values = list(range(1, 33)) if THOROUGH else [1, 2, 3, 4, 5, 6, 8, 12, 30]
    outcomes = sweep_limit(runner_of(who, "processes"), runner_module, resource.RLIMIT_NPROC, share(values))
    if full:  # without what is kept; test_descriptors_run_out does so in each suite
        outcomes += sweep_limit(
            runner_of(who, "processes"), runner_module, resource.RLIMIT_NPROC, share(values[:4]), "--no-cache"
        )
    verdict(f"EAGAIN at 1 to 32 processes as {who}", counted(outcomes))


@everyone()
def test_files_may_not_grow(
    who: str, full: bool, share: Share, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    values = [0, 1, 100, 1000, 4096, 20_000, 100_000, 200_000, 1 << 20, 1 << 26]
    outcomes = sweep_limit(runner_of(who, "sizes"), runner_module, resource.RLIMIT_FSIZE, share(values))
    if full:  # without what is kept; test_descriptors_run_out does so in each suite
        outcomes += sweep_limit(
            runner_of(who, "sizes"), runner_module, resource.RLIMIT_FSIZE, share(values[2:8]), "--no-cache"
        )
    assert outcomes["success"]
    verdict(f"EFBIG at 0 to 64 MiB as {who}", counted(outcomes))


# --- a full disk


class SmallDisk(FaultRunner):
    """A runner whose store, TMPDIR, environments and outputs are on a tmpfs in a mount namespace of the test."""

    holder: "subprocess.Popen[bytes]"

    def enter(self) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-m", "--wd=/"]

    def mount(self, options: str) -> None:
        subprocess.run([*self.enter(), "mount", "-o", options, "-t", "tmpfs", "tmpfs", str(self.disk)], check=True)

    @property
    def disk(self) -> Path:
        return self.place / "disk"

    def command(self, *arguments: str) -> list[str]:
        uid = self.account.uid
        drop = [] if uid is None else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return [*self.enter(), *drop, *super().command(*arguments)]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return super().environment({"TMPDIR": str(self.disk), "VENVS_DIR": str(self.venvs), **(extra or {})})

    def privileges(self) -> dict[str, Any]:
        return {}

    @contextlib.contextmanager
    def seen(self) -> Iterator[None]:
        """Look at the disk from outside of its namespace."""
        places = self.place, self.store, self.venvs
        top = Path(f"/proc/{self.holder.pid}/root")
        self.place, self.store, self.venvs = (top / str(place).lstrip("/") for place in places)
        try:
            yield
        finally:
            self.place, self.store, self.venvs = places

    def used(self) -> tuple[int, int]:
        """Bytes and inodes."""
        with self.seen():
            status = os.statvfs(self.disk)
        return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree

    def empty(self) -> None:
        with self.seen():
            for path in self.disk.iterdir():
                shutil.rmtree(path)


@pytest.fixture
def small_disk(runner_of: RunnerOf) -> Iterator[Callable[[str], SmallDisk]]:
    holders = []

    def make(who: str) -> SmallDisk:
        if os.geteuid() != 0 or not shutil.which("nsenter"):
            pytest.skip("only root can mount a small disk")
        plain = runner_of(who, "disk")
        runner = SmallDisk(plain.account, "disk", plain.server)
        runner.disk.mkdir()
        runner.store, runner.venvs = runner.disk / "store", runner.disk / "venvs"
        before = os.readlink("/proc/self/ns/mnt")
        runner.holder = subprocess.Popen(["unshare", "-m", "sleep", "1000"])
        holders.append(runner.holder)
        while os.readlink(f"/proc/{runner.holder.pid}/ns/mnt") == before:
            time.sleep(0.002)
        uid = runner.account.uid or 0
        runner.mount(f"size=64m,mode=0711,uid={uid},gid={uid}")
        return runner

    yield make
    for holder in holders:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(
    "what", ["size", pytest.param("nr_inodes", marks=pytest.mark.full("the same errno, of another want"))]
)
@everyone()
def test_the_disk_is_full(
    who: str,
    what: str,
    full: bool,
    small_disk: Callable[[str], SmallDisk],
    runner_module: ModuleType,
    verdict: Verdict,
) -> None:
    runner = small_disk(who)
    bundle, dice = runner.bundle(), random.Random(f"{SEED} {who} {what}")
    mounts, outcomes = own_mounts(), Counter[str]()
    check_success(runner(bundle, env={"REUSE": "1"}))
    need = runner.used()[what == "nr_inodes"]
    count = (6 if full and who == "root" else 3 if full else 2) * (10 if THOROUGH else 1)
    for number in range(count):
        runner.empty()
        room = int(need * 1.2 * (number + dice.random()) / count)
        runner.mount(f"remount,{what}={max(1, room >> 12) << 12 if what == 'size' else max(2, room)}")
        result = runner(bundle, env={"REUSE": dice.choice("01")})
        try:
            outcomes[judge(result)] += 1
        except BaseException as error:
            error.add_note(f"{what} {room} of {need}: {result.stderr[-3000:]}")
            raise
        with runner.seen():
            assert scratch(runner) == [] and wrong_entries(runner, runner_module) == []
        runner.mount("remount,size=64m,nr_inodes=100000")
        check_success(runner(bundle, env={"REUSE": "1"}))
        with runner.seen():
            assert scratch(runner) == [] and wrong_entries(runner, runner_module) == []
    runner.holder.kill()
    runner.holder.wait()
    check_aftermath(runner, runner_module, [], mounts)
    verdict(f"ENOSPC ({what}) as {who}", counted(outcomes))


@pytest.mark.full("a sweep in small steps")
def test_the_disk_is_full_where_wheels_are_unpacked(small_disk: Callable[[str], SmallDisk], verdict: Verdict) -> None:
    """A process of its own unpacks each, and can't even write why it failed."""
    runner = small_disk("root")
    bundle, outcomes = runner.bundle(), Counter[str]()
    check_success(runner(bundle))
    for room in range(500 << 10, 600 << 10, 4 << 10):
        runner.empty()
        runner.mount(f"remount,size={room}")
        outcomes[judge(runner(bundle))] += 1
    verdict("ENOSPC while wheels are unpacked", counted(outcomes))


def test_the_doctor_of_a_full_disk_answers_with_its_table(small_disk: Callable[[str], SmallDisk], full: bool) -> None:
    """Wherever it meets the end of the disk, and with what to do."""
    runner, found = small_disk("root"), Counter[str]()
    for room in (*range(8 << 10, 520 << 10, 64 << 10 if full else 96 << 10), 64 << 20):
        runner.empty()
        runner.mount(f"remount,size={room}")
        result = runner(None, None, "--doctor")
        report = result.body["doctor"]
        gaps = {gap["type"]: gap["remedy"] for gap in report["gaps"] if gap["type"] != "no_cgroup"}
        assert (report["ok"], result.code, report["store"]) == (not gaps, 1 if gaps else 0, str(runner.store)), result
        assert all("space" in remedy and "--store-dir" in remedy for remedy in gaps.values()), gaps
        found.update(list(gaps) or ["none"])
    assert found["none"] and found["host_exhausted"] > 3, found
    assert found.keys() <= {"none", "host_exhausted", "store_unavailable"}, found


def test_the_disk_of_the_outputs_is_full(small_disk: Callable[[str], SmallDisk], verdict: Verdict) -> None:
    runner = small_disk("root")
    runner.store, outputs = runner.place / "store", runner.disk
    runner.mount("remount,size=64k")
    error = runner(runner.bundle(), None, "--out-dir", str(outputs), "--inline-max", "10").error
    assert (error["phase"], error["type"]) == ("result", "output_unwritable")
    with runner.seen():
        assert list(runner.disk.iterdir()) == []
    runner.mount("remount,size=1m")
    result = runner(runner.bundle(), None, "--out-dir", str(outputs), "--inline-max", "10")
    assert result.code == 0 and "path" in result.body["outputs"]["large"]
    verdict("ENOSPC of --out-dir", "output_unwritable, nothing left there")


# --- streams


@contextlib.contextmanager
def broken_stream(kind: str) -> Iterator[int]:
    """A descriptor that can't be written: a full device, or a pipe whose reader is gone."""
    if kind == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, fd = os.pipe()
        os.close(reader)
    try:
        yield fd
    finally:
        os.close(fd)


AGAIN = pytest.mark.full("another errno of the same write")
STREAMS = [
    *(("stdout", "closed"), ("stdout", "gone"), ("stderr", "full")),
    *(pytest.param(*row, marks=AGAIN) for row in (("stdout", "full"), ("stderr", "closed"), ("stderr", "gone"))),
]


@pytest.mark.parametrize("stream, kind", STREAMS)
@everyone()
def test_a_stream_that_can_not_be_written(
    who: str, stream: str, kind: str, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    runner, mounts = runner_of(who, "streams", server=False), own_mounts()
    bundle = runner.bundle(
        "def wire(*a):\n    print('text')\n    return {'out': 'one two 1', 'large': 'x' * 100_000}\n"
    )
    if kind == "closed":
        number = {"stdout": 1, "stderr": 2}[stream]
        shell = ["sh", "-c", f'exec "$@" {number}>&-', "sh", *runner.command("--bundle-path", str(bundle))]
        done = subprocess.run(
            shell, input=TASK, capture_output=True, timeout=PATIENCE, env=runner.environment(), **runner.privileges()
        )
    else:
        with broken_stream(kind) as fd:
            _, done = run_limited(runner, bundle, **{stream: fd})
    if stream == "stderr":
        check_success(answer(done.stdout, done.returncode, done.stderr or b""))
    else:
        assert done.returncode not in (0, 70) and not done.stdout and b"Traceback" not in done.stderr
    check_success(runner(bundle))
    check_aftermath(runner, runner_module, [], mounts)
    verdict(f"{stream} {kind} as {who}", f"exit status {done.returncode}")


def test_what_these_tests_need() -> None:
    """Where the interpreter can't be limited, nothing above would be a test."""
    assert sys.platform == "linux" and resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 64
