"""The runner is killed at random moments of every phase, two at a time on one store; the next run cleans up.

FAULT_SEED=N repeats a run of these tests: it is in the output of a failure. The default suite kills so often that each
phase is hit, THOROUGH=1 seven times as often as the full one. Half of the kills wait for a phase to begin, so that each
phase is hit; the others come at any moment of the time that an undisturbed run takes.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import psutil
import pytest
from accounts import everyone
from conftest import Result

from faults.aftermath import (
    PATIENCE,
    SEED,
    THOROUGH,
    WIRE,
    FaultRunner,
    answer,
    check_aftermath,
    check_answer,
    check_success,
    counted,
    groups,
    own_mounts,
    unread,
    wait_for,
)

FEW, MANY = 3, 52 if THOROUGH else 7  # rounds of two kills, for each of the four ways to run
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
# In the order in which they come, each to what it makes first in the scratch of its run.
PHASES = {"inspect": "bundle"} | {phase: f"etc-{phase}" for phase in ("fetch", "build", "compile", "execute")}
TASK = b'{"entrypoint": "main", "params": {"seconds": 0.15}, "seed": 1}'


class Kill(NamedTuple):
    """Send `signal` this long after a phase began, or after the start where `phase` is empty."""

    phase: str
    delay: float
    signal: signal.Signals


class Victim:
    """A run that will be killed. Its streams are files: nothing that it writes makes it wait."""

    def __init__(self, runner: FaultRunner, bundle: Path, env: dict[str, str]) -> None:
        self.runner, self.begun = runner, time.monotonic()
        self.files = [open(runner.place / f"{name}-{os.urandom(4).hex()}", "w+b") for name in ("out", "log")]  # noqa: SIM115
        with tempfile.TemporaryFile() as task:
            task.write(TASK)
            task.seek(0)
            self.process = subprocess.Popen(
                runner.command("--bundle-path", str(bundle)),
                stdin=task,
                stdout=self.files[0],
                stderr=self.files[1],
                env=runner.environment(env),
                **runner.privileges(),
            )

    def phase(self) -> str:
        """How far it has come, by what lies in its scratch."""
        if self.process.poll() is not None:
            return "ended"
        places = [path for path in (self.runner.store / "run").glob(f".run-{self.process.pid}-*") if path.is_dir()]
        reached = [phase for phase, name in PHASES.items() if places and (places[0] / name).exists()]
        return reached[-1] if reached else "start"

    def reach(self, phase: str) -> None:
        order = ["start", *PHASES, "ended"]
        while order.index(self.phase()) < order.index(phase):
            assert time.monotonic() < self.begun + PATIENCE, f"{phase} is never reached"
            time.sleep(0.003)

    def end(self) -> tuple[bytes, bytes]:
        """Wait for it; what it wrote. A victim that a test forgot is ended for good."""
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
        texts = []
        for file in self.files:
            with file:
                file.seek(0)
                texts.append(file.read())
            Path(file.name).unlink()
        return texts[0], texts[1]


class Struck(NamedTuple):
    """What became of one kill."""

    pid: int
    phase: str
    outcome: str


def strike(victim: Victim, kill: Kill) -> Struck:
    """Kill it as planned. TERM and INT are answered with one right line, and leave nothing themselves."""
    if kill.phase:
        victim.reach(kill.phase)
    time.sleep(kill.delay)
    phase, pid = victim.phase(), victim.process.pid
    begun = any((victim.runner.store / "run").glob(f".run-{pid}-*"))
    victim.process.send_signal(kill.signal)
    out, err = victim.end()
    code = victim.process.returncode
    if kill.signal == signal.SIGKILL and code == -signal.SIGKILL:
        assert out == b"", "a killed runner had written, and was not done"
        return Struck(pid, phase, "killed")
    places = (victim.runner.store / "run", victim.runner.store / "venvs", victim.runner.venvs)
    left = [str(path) for place in places for path in place.glob(f".run-{pid}-*")]
    assert left + groups([pid]) == [], f"{kill} left something"
    if not out and not begun:
        starting = code == 1 and err.startswith(
            b"Fatal Python error: init_import_site"
        )  # SIGINT, in Python's own start
        assert code in (-kill.signal, 128 + kill.signal) or starting, (code, err)
        return Struck(pid, phase, "before the first line")
    return Struck(pid, phase, judge(answer(out, code, err), kill))


def judge(result: Result, kill: Kill) -> str:
    kind = check_answer(result)
    if kind == "success":
        return "done"
    error = result.error
    assert (kind, error["phase"], error["signal"]) == ("killed", "host", kill.signal.name), (kill, error, result.stderr)
    assert result.code == 128 + kill.signal and error["retryable"]
    return "answered"


def timeline(runner: FaultRunner, bundle: Path, env: dict[str, str]) -> dict[str, float]:
    """Run once undisturbed: when each phase began, and `ended`; one that nobody saw began with the next."""
    victim, times = Victim(runner, bundle, env), {}
    while "ended" not in times:
        times.setdefault(victim.phase(), time.monotonic() - victim.begun)
        time.sleep(0.003)
    out, err = victim.end()
    check_success(answer(out, victim.process.returncode, err))
    order = [*PHASES, "ended"]
    for phase, following in reversed([*pairwise(order)]):
        times.setdefault(phase, times[following])
    return times


def plan(dice: random.Random, times: dict[str, float], rounds: int) -> list[tuple[bool, Kill, Kill]]:
    """For each round whether its two runs share a bundle, and when they are killed. The first kill of each phase
    comes when it begins."""
    signals = [SIGNALS[number % 3] for number in range(2 * rounds)]
    dice.shuffle(signals)
    order, kills = [*PHASES, "ended"], []
    events = (rounds + 1) // 2 * 2  # these many wait for a phase; theirs are the rounds of two bundles
    for number in range(events):
        phase = order[number % len(PHASES)]
        length = times[order[order.index(phase) + 1]] - times[phase]
        kills.append(Kill(phase, dice.uniform(0, length) if number >= len(PHASES) else 0.0, signals[number]))
    kills += [Kill("", dice.uniform(0, times["ended"]), number) for number in signals[events:]]
    pairs = [(number >= events, kills[number], kills[number + 1]) for number in range(0, 2 * rounds, 2)]
    dice.shuffle(pairs)
    return pairs


def run_round(runner: FaultRunner, bundles: list[Path], kills: list[Kill], env: dict[str, str]) -> list[Struck]:
    """Two runs at once, killed; then as many at once that are left alone."""
    struck: list[Struck | BaseException] = []

    def one(bundle: Path, kill: Kill) -> None:
        try:
            struck.append(strike(Victim(runner, bundle, env), kill))
        except BaseException as error:
            struck.append(error)

    threads = [threading.Thread(target=one, args=pair) for pair in zip(bundles, kills, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = [Victim(runner, bundle, env) for bundle in sorted(set(bundles))]
    for victim in after:
        out, err = victim.end()
        check_success(answer(out, victim.process.returncode, err))
    for item in struck:
        if isinstance(item, BaseException):
            raise item
    return [item for item in struck if isinstance(item, Struck)]


@pytest.mark.parametrize(
    "reuse",
    [pytest.param(False, id="fresh"), pytest.param(True, id="reuse", marks=pytest.mark.full("with REUSE=1 too"))],
)
@everyone()
def test_kills_at_any_moment(
    who: str,
    reuse: bool,
    full: bool,
    runner_of: Callable[..., FaultRunner],
    runner_module: ModuleType,
    verdict: Callable[[str, str], None],
) -> None:
    dice = random.Random(f"{SEED} {who} {reuse}")
    runner = runner_of(who, "kills")
    env = {"REUSE": "1", "VENVS_DIR": str(runner.venvs)} if reuse else {}
    mounts, struck = own_mounts(), []

    def forget() -> None:
        """As a prune may: the next run fetches and unpacks again, and compiles what those before it imported."""
        for kind in ("resolved", "wheels", "trees"):
            shutil.rmtree(runner.store / kind)

    def play(shared: bool, *kills: Kill) -> None:
        forget()
        first = runner.bundle(f"{WIRE}# {runner.count}\n")
        second = first if shared else runner.bundle(f"{WIRE}# {runner.count}\n")
        found = run_round(runner, [first, second], list(kills), env)
        check_aftermath(runner, runner_module, [one.pid for one in found], mounts)
        struck.extend(found)

    check_success(runner(runner.bundle(), env=env))
    forget()
    times = timeline(runner, runner.bundle(), env)
    for row in plan(dice, times, MANY if full else FEW):
        play(*row)
    for phase in PHASES:  # a short one may be over when the signal comes: until it is hit
        for _ in range(50):
            if phase not in {one.phase for one in struck}:
                play(True, Kill(phase, 0.0, signal.SIGKILL), Kill(phase, 0.0, signal.SIGTERM))
    phases = Counter(one.phase for one in struck)
    assert set(phases) >= set(PHASES), phases
    fault = f"TERM, INT, KILL at random, two at once{', REUSE=1' if reuse else ''} as {who}"
    verdict(fault, f"{len(struck)} kills: {counted(phases)}")


ALONE = """
def wire(entrypoint, params, seed):
    return {"out": "one two 1", "large": b"x" * 100_000}
"""
# bwrap, which stands still for so long where it has made the namespaces and not yet written their uid map.
SLOW_BWRAP = """#!/bin/sh
exec {strace} -qq -o /dev/null -e trace=clone -e inject=clone:delay_exit=60000000 {bwrap} "$@"
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@everyone()
def test_a_kill_before_the_uid_map_leaves_no_process_for_good(
    who: str,
    runner_of: Callable[..., FaultRunner],
    runner_module: ModuleType,
    verdict: Callable[[str, str], None],
) -> None:
    """Nothing tells the new namespace's first process that bwrap is dead: the next run ends it."""
    runner = runner_of(who, "uid-map", server=False)
    bundle, tools = runner.bundle(ALONE), runner.place / "bin"
    tools.mkdir()
    slow = tools / "bwrap"
    slow.write_text(SLOW_BWRAP.format(strace=shutil.which("strace"), bwrap=shutil.which("bwrap")))
    slow.chmod(0o755)
    mounts = own_mounts()
    victim = Victim(runner, bundle, {"PATH": f"{tools}:{os.environ['PATH']}"})
    pid = victim.process.pid
    victim.reach("build")
    run = next((runner.store / "run").glob(f".run-{pid}-*/")).name.rpartition("-")[2]
    wait_for(lambda: len(unread(run)) == 2, "bwrap and the first process of its namespaces")
    tracers = psutil.Process(pid).children()
    victim.process.kill()
    victim.end()
    for tracer in tracers:
        tracer.kill()
    wait_for(lambda: len(unread(run)) == 1, "that process alone")
    check_success(runner(bundle))
    wait_for(lambda: not unread(run), "no process is left")
    check_aftermath(runner, runner_module, [pid], mounts)
    verdict(f"KILL between clone and uid map as {who}", "ended by the next run")
