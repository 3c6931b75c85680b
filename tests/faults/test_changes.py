"""What a run depends on changes under it: the bundle, the profile, the store, the clock."""

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from accounts import everyone
from suites import rows

from faults.aftermath import (
    PATIENCE,
    SEED,
    THOROUGH,
    FaultRunner,
    answer,
    check_aftermath,
    check_answer,
    check_success,
    counted,
    own_mounts,
    wait_for,
)

RunnerOf = Callable[..., FaultRunner]
Verdict = Callable[[str, str], None]
SLOW = b'{"entrypoint": "main", "params": {"seconds": 0.5}, "seed": 1}'
READS_TWICE = """
import pathlib, time
def wire(entrypoint, params, seed):
    first = pathlib.Path("data.txt").read_text()
    time.sleep(params["seconds"])
    import late
    return {"first": first, "second": pathlib.Path("data.txt").read_text(), "late": late.VALUE}
"""


@contextlib.contextmanager
def begun(runner: FaultRunner, bundle: Path, task: bytes = SLOW, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A run that has come to its execute phase; it is ended if the test fails."""
    process = runner.start(bundle, env=env)
    assert process.stdin
    process.stdin.write(task)
    process.stdin.close()
    process.stdin = None
    try:
        wait_for(
            lambda: process.poll() is not None or any((runner.store / "run").glob(f".run-{process.pid}-*/etc-execute")),
            "the task is running",
        )
        yield process
    finally:
        process.kill()
        process.communicate()


@everyone()
def test_the_bundle_changes_while_the_task_runs(
    who: str, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    """The task sees the bundle as it was when the run began, to its end."""
    runner, mounts = runner_of(who, "changes", server=False), own_mounts()
    bundle = runner.bundle(READS_TWICE, files={"data.txt": "before", "late.py": "VALUE = 'before'\n"})
    with begun(runner, bundle) as process:
        (bundle / "data.txt").write_text("after")
        (bundle / "late.py").unlink()
        out, err = process.communicate(timeout=PATIENCE)
    result = answer(out, process.returncode, err)
    assert result.outputs == {"first": b"before", "second": b"before", "late": b"before"}
    shutil.rmtree(bundle)
    error = runner(bundle).error
    assert (error["phase"], error["type"]) == ("input", "bundle_not_found"), error
    check_aftermath(runner, runner_module, [process.pid], mounts)
    verdict(f"the bundle is changed and removed during a task as {who}", "the task sees it as it was")


def churn(bundle: Path, secret: Path, stop: threading.Event, dice: random.Random) -> None:
    """Change the bundle without rest: files grow, shrink, vanish, become links out of it, folders, FIFOs."""
    data, module = bundle / "data.txt", bundle / "late.py"
    while not stop.is_set():
        with contextlib.suppress(OSError):
            for path in (data, module):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            choice = dice.randrange(6)
            if choice == 0:
                data.symlink_to(secret)
            elif choice == 1:
                data.mkdir()
                (data / "inner").write_text("x")
            elif choice == 2:
                os.mkfifo(data)
            else:
                data.write_text("x" * dice.choice([0, 10, 1 << 20]))
            module.write_text(f"VALUE = '{choice}'\n")
            if dice.random() < 0.3:
                os.truncate(data, dice.choice([0, 5, 1 << 22]))


@everyone()
def test_the_bundle_changes_while_it_is_read(
    who: str, full: bool, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    """Whatever the runner met, it answers with a task's result or error, or an error of the bundle; no secret in it."""
    runner, mounts, outcomes = runner_of(who, "churn", server=False), own_mounts(), Counter[str]()
    secret = runner.place / "secret"
    secret.write_text("the-secret-of-the-host")
    files = {"data.txt": "before", "late.py": "VALUE = 1\n", **{f"f{n}.txt": "x" * 1000 for n in range(200)}}
    bundle, stop = runner.bundle(READS_TWICE, files=files), threading.Event()
    hand = threading.Thread(target=churn, args=(bundle, secret, stop, random.Random(SEED)))
    hand.start()
    try:
        for _ in range(100 if THOROUGH else 12 if full else 4):
            result = runner(bundle, {"entrypoint": "main", "params": {"seconds": 0}, "seed": 1})
            kind = "success" if result.code == 0 else result.error["phase"]
            assert kind in ("success", "bundle", "execute"), result.body
            assert kind != "success" or len(result.outputs["first"]) == len(result.outputs["second"])
            assert "the-secret-of-the-host" not in str(result) and b"the-secret" not in str(result.body).encode()
            if kind == "success":
                assert b"the-secret" not in result.outputs["first"]
            outcomes[kind] += 1
    finally:
        stop.set()
        hand.join()
    check_aftermath(runner, runner_module, [], mounts)
    verdict(f"the bundle changes while it is read as {who}", counted(outcomes))


def test_the_profile_changes_while_the_task_runs(
    runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    """A profile is read once; the next run reads the new one."""
    runner, mounts = runner_of("user", "profile"), own_mounts()
    profile = runner.place / "own.toml"
    profile.write_text('description = "of this test"\nextends = "default"\n')
    runner.profile, bundle = str(profile), runner.bundle()
    with begun(runner, bundle) as process:
        profile.write_text("[sandbox]\nproc = 'what?'\n")
        out, err = process.communicate(timeout=PATIENCE)
    check_success(answer(out, process.returncode, err))
    error = runner(bundle).error
    assert (error["phase"], error["type"]) == ("host", "profile_invalid"), error
    check_aftermath(runner, runner_module, [process.pid], mounts)
    verdict("the profile is changed during a task", "it is read once; the next run refuses the wrong one")


@everyone()
def test_the_store_is_removed_while_the_task_runs(
    who: str, full: bool, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    """The run answers, with its result or with what it lost; the next one starts from nothing."""
    runner, mounts, outcomes = runner_of(who, "lost", server=True), own_mounts(), Counter[str]()
    bundle = runner.bundle()
    check_success(runner(bundle))
    for folder in ("run", "trees", "wheels", "locks", "") if full else ("trees", ""):
        with begun(runner, bundle) as process:
            (runner.store / folder).rename(runner.place / "away")
            shutil.rmtree(runner.place / "away")
            out, err = process.communicate(timeout=PATIENCE)
        kind = check_answer(answer(out, process.returncode, err))
        assert kind != "internal_error", out
        outcomes[kind] += 1
        check_success(runner(bundle))
        check_aftermath(runner, runner_module, [process.pid], mounts)
    verdict(f"the store or a part of it is removed during a task as {who}", counted(outcomes))


# --- the clock


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset(void) {
    char text[32] = "0";
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) { text[read(fd, text, 31) & 31] = 0; close(fd); }
    return atol(text);
}
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) now->tv_sec += offset();
    return code;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return out ? (*out = now.tv_sec) : now.tv_sec;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec; out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@pytest.fixture(scope="module")
def shim(base: Path) -> Path:
    """A library that moves the wall clock of a process by CLOCK_OFFSET's seconds, and nothing else.

    libfaketime moves sleeps on the monotonic clock as well, which a jump does not.
    """
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    source, library = base / "clock.c", base / "clock.so"
    source.write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


JUMPS = {"two days on": 2, "two days back": -2, "ten years on": 3650, "ten years back": -3650}


@pytest.mark.parametrize("jump", rows({name: name for name in JUMPS}, ("ten years back",), "another jump"))
@everyone()
def test_the_clock_jumps(
    who: str, jump: str, shim: Path, runner_of: RunnerOf, runner_module: ModuleType, verdict: Verdict
) -> None:
    """Limits are of time that passed, so a jump ends nothing and lengthens nothing, and no measure is negative."""
    runner, mounts = runner_of(who, "clock"), own_mounts()
    bundle, offset = runner.bundle(), runner.place / "offset"
    offset.write_text("0")
    env = {"LD_PRELOAD": str(shim), "CLOCK_OFFSET": str(offset), "REUSE": "1"}
    assert clock_of(runner, env) == pytest.approx(time.time(), abs=3600)
    check_success(runner(bundle, env=env))
    with begun(runner, bundle, **env) as process:
        offset.write_text(str(JUMPS[jump] * 86400))
        out, err = process.communicate(timeout=PATIENCE)
    assert abs(clock_of(runner, env) - time.time()) > 86400, "the clock did not jump: this tested nothing"
    result = answer(out, process.returncode, err)
    check_success(result)
    assert 0.5 <= result.body["metrics"]["wall_seconds"] < PATIENCE
    check_success(runner(bundle, env=env))  # with what was kept before the jump
    check_success(runner(bundle))
    check_aftermath(runner, runner_module, [process.pid], mounts)
    verdict(f"the clock jumps {jump} as {who}", "no limit moved; what was kept is used")


def clock_of(runner: FaultRunner, env: dict[str, str]) -> float:
    command = [runner.account.python, "-c", "import time; print(time.time())"]
    return float(subprocess.check_output(command, env=runner.environment(env), **runner.privileges()))
