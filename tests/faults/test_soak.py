"""Many tasks one after another: nothing grows. The full suite runs more, with THOROUGH=1 ten thousand of each."""

import contextlib
import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from accounts import everyone
from conftest import parse_line

from faults.aftermath import OUT, PATIENCE, TASK, THOROUGH, FaultRunner, answer, groups, own_mounts, traces

Sample = dict[str, float]
COLD = 10_000 if THOROUGH else 30
SERVED = 10_000 if THOROUGH else 800
WHO = pytest.mark.parametrize("who", ["root"]) if THOROUGH else everyone()
# A server forks ahead of its tasks, cleans up behind the answer, and opens the sandbox that takes over beside the old
# one: a moment may find a few more. What leaked with each task would be hundreds.
MOMENT = 0.5
SLACK = {  # what may differ between the first tenth and the last without being growth
    "memory": 0.25,  # shares: pages that the allocator keeps, and where the machine shares pages between processes
    "seconds": float("inf"),  # recorded only
    "descriptors": MOMENT,
    "threads": MOMENT,
    "processes": MOMENT,
    "cgroups": MOMENT,
}


def count_entries(folder: Path) -> int:
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def host_sample(runner: FaultRunner, pids: list[int]) -> Sample:
    """What is counted on the host between two tasks."""
    return {
        "entries in the store": count_entries(runner.store),
        "entries in TMPDIR": count_entries(runner.place / "tmp"),
        "environments": count_entries(runner.venvs) if runner.venvs.is_dir() else 0,
        "cgroups": len(groups(pids)),
        "mounts": len(own_mounts()),
    }


def own_memory(process: psutil.Process) -> int:
    """The bytes that are of no file: pages of files are shared with whoever else runs Python on this machine."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) * 1024
    return int(process.memory_full_info().pss)  # a kernel before 5.4


def process_sample(pid: int) -> Sample:
    """Of a process and all below it: proportional memory, so that what forks share counts once; and counts."""
    process = psutil.Process(pid)
    members = [process, *process.children(recursive=True)]
    return {
        "memory": float(sum(own_memory(member) for member in members)),
        "descriptors": float(sum(member.num_fds() for member in members)),
        "threads": float(sum(member.num_threads() for member in members)),
        "processes": float(len(members)),
    }


def quiet_sample(pid: int) -> Sample:
    """The least of each figure in a while: the task that was answered last may still be ending."""
    found: list[Sample] = []
    while len(found) < 5:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            found.append(process_sample(pid))
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE, "the server has ended"
        time.sleep(0.02)
    return {name: min(sample[name] for sample in found) for name in found[0]}


def check_no_growth(samples: list[Sample]) -> str:
    """Compare the first tenth with the last; gives the figures as text."""
    tenth = max(3, len(samples) // 10)
    first, last = samples[:tenth], samples[-tenth:]
    text = []
    for name in samples[0]:
        slack = SLACK.get(name)
        pick = min if slack is None else statistics.median  # a task may still be ending at a moment of one sample
        before, after = (float(pick(sample[name] for sample in part)) for part in (first, last))
        assert after <= before * (1 + (slack or 0)), f"{name} grew from {before} to {after}"
        text.append(f"{name} {before:.4g} -> {after:.4g}")
    return ", ".join(text)


def run_cold(runner: FaultRunner, bundle: Path, env: dict[str, str]) -> tuple[int, Sample]:
    """One cold run; its pid, and what its process holds when all is taken down and the answer is being written.

    The answer is larger than a pipe: the runner waits in its write until we have looked.
    """
    begun = time.monotonic()
    with open(runner.place / "log", "wb") as log:
        process = subprocess.Popen(
            runner.command("--bundle-path", str(bundle)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=runner.environment(env),
            **runner.privileges(),
        )
        assert process.stdin and process.stdout
        with process.stdin, process.stdout:
            process.stdin.write(TASK)
            process.stdin.close()
            line = process.stdout.read(1)
            status = Path(f"/proc/{process.pid}/status").read_text()
            descriptors = len(os.listdir(f"/proc/{process.pid}/fd"))
            line += process.stdout.read()
        code = process.wait(PATIENCE)
    assert answer(line, code, (runner.place / "log").read_bytes()).outputs["out"] == OUT
    (peak,) = [int(row.split()[1]) * 1024.0 for row in status.splitlines() if row.startswith("VmHWM:")]
    return process.pid, {"memory": peak, "descriptors": descriptors, "seconds": time.monotonic() - begun}


@WHO
def test_cold_tasks(
    who: str, full: bool, runner_of: Callable[..., FaultRunner], verdict: Callable[[str, str], None]
) -> None:
    runner = runner_of(who, "soak-cold")
    bundle, count = runner.bundle(), COLD // (1 if full and who == "root" else 3 if full else 5)
    env = {"REUSE": "1", "VENVS_DIR": str(runner.venvs)}
    run_cold(runner, bundle, env)  # makes what is kept
    samples: list[Sample] = []
    pids: list[int] = []
    for number in range(count):
        pid, sample = run_cold(runner, bundle, env)
        pids = [*pids[-99:], pid]
        if number % max(1, count // 500) == 0:
            samples.append({**sample, **host_sample(runner, pids)})
    figures = check_no_growth(samples)
    assert traces(runner.marker) == [] and samples[-1]["cgroups"] == 0 and samples[-1]["entries in TMPDIR"] == 0
    verdict(f"{count} cold tasks with REUSE=1 as {who}", f"no growth: {figures}")


class Serving:
    """A `--serve` whose log is read by a thread, as a caller has to."""

    def __init__(self, runner: FaultRunner, bundle: Path, *arguments: str) -> None:
        self.process = runner.start(bundle, "--serve", *arguments)
        self.log = bytearray()
        self.reader = threading.Thread(target=self.drain, daemon=True)
        self.reader.start()
        assert "serving" in self.receive()

    def drain(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stream:
            for line in stream:
                self.log += line[: 1 << 16]

    def receive(self) -> dict[str, object]:
        assert self.process.stdout
        return parse_line(self.process.stdout.readline())

    def ask(self, seed: int) -> dict[str, object]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"entrypoint": "main", "params": {}, "seed": seed}).encode() + b"\n")
        self.process.stdin.flush()
        return self.receive()

    def close(self) -> int:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.reader.join(PATIENCE)


# Imports and caches at the first task, as what wraps a model does: later tasks are forks of a template that learned.
LEARNING = """
import os

def wire(*task):
    import decimal, fractions, statistics
    folder = os.path.expanduser("~/.cache/model")
    os.makedirs(folder, exist_ok=True)
    for number in range(20):
        if not os.path.exists(f"{folder}/{number}"):
            with open(f"{folder}/{number}", "wb") as file:
                file.write(bytes(10_000))
    return {"out": str(statistics.mean([fractions.Fraction(1, 3), decimal.Decimal(1).as_integer_ratio()[0]]))}
"""


@pytest.mark.full("hundreds of tasks")
@WHO
@pytest.mark.parametrize("kind", ["", "that learned"])
def test_served_tasks(
    who: str, kind: str, full: bool, runner_of: Callable[..., FaultRunner], verdict: Callable[[str, str], None]
) -> None:
    """All answers come from one server; the sandbox is made anew as often as the profile says."""
    runner = runner_of(who, "soak-serve")
    count, parts = SERVED if full and who == "root" else SERVED // 4, 40 if full else 20
    serving = Serving(runner, runner.bundle(LEARNING, pyproject=None) if kind else runner.bundle())
    samples: list[Sample] = []
    try:
        for seed in range(150):  # what is loaded at first use, or learned from the first tasks, is no growth
            serving.ask(seed)
        for part in range(parts):
            begun = time.monotonic()
            for seed in range(count // parts):
                assert "outputs" in serving.ask(part * count + seed)
            seconds = (time.monotonic() - begun) / (count // parts)
            pid = serving.process.pid
            samples.append({**quiet_sample(pid), **host_sample(runner, [pid]), "seconds": seconds})
    finally:
        code = serving.close()
    assert code == 0
    figures = check_no_growth(samples)
    assert traces(runner.marker) == [] and groups([serving.process.pid]) == []
    verdict(f"{count} tasks of one --serve {kind}".rstrip() + f" as {who}", f"no growth: {figures}")


@everyone()
def test_renewed_sandboxes(
    who: str, runner_of: Callable[..., FaultRunner], verdict: Callable[[str, str], None]
) -> None:
    """A server whose tasks kill their sandbox each time makes another, and keeps nothing of the old one."""
    runner = runner_of(who, "soak-renew", server=False)
    wire = "import os, signal\ndef wire(*a):\n    os.kill(os.getppid(), signal.SIGKILL)\n"
    serving = Serving(runner, runner.bundle(wire))
    samples: list[Sample] = []
    try:
        for seed in range(100 if THOROUGH else 12):
            assert "_fatal_error" in serving.ask(seed)
            pid = serving.process.pid
            descriptors = float(len(os.listdir(f"/proc/{pid}/fd")))
            samples.append({"descriptors": descriptors, **host_sample(runner, [pid])})
    finally:
        code = serving.close()
    assert code == 0
    verdict(f"{len(samples)} sandboxes of one --serve as {who}", f"no growth: {check_no_growth(samples)}")
