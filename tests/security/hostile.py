"""Shared by the security tests: who starts the runner, under which profile, with what hostile bundle."""

import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import starts
from accounts import HERE, SLOW, Account
from conftest import RUNNER, Result, Runner, new_store, parse_line, start_of, write_bundle
from evidence import TRIED

CALLS_THE_TASK = """
def main(request, pipe, child):
    child.simulate(request["task"], request["wire"], pipe)
"""


PATIENCE = 300 * SLOW  # seconds: no claim, only an end


class HostileRunner(Runner):
    """The real runner, started by an account, under a profile; each call is an entry of the report."""

    def __init__(self, account: Account, profile: str) -> None:
        super().__init__(account.folder / "store")
        self.account, self.profile = account, profile
        self.count = 0
        self.peak = 0

    def command(self, *arguments: str) -> list[str]:
        start = start_of(self.account.python, self.account.folder.parent / "tools" / RUNNER.name)
        return [*start, *self.places(), *arguments]

    def places(self) -> tuple[str, ...]:
        """The arguments that are the same for all its runs."""
        profiles = str(self.account.folder.parent / "profiles")
        return "--store-dir", str(self.store), "--profile", self.profile, "--profiles-dir", profiles

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        tools = f"{os.path.dirname(self.account.python)}:{os.environ['PATH']}"
        own = {"PATH": tools, "HOME": str(self.account.folder)} if self.account.uid is not None else {}
        nowhere = {"UV_DEFAULT_INDEX": "https://127.0.0.1:9/simple/"}  # no test asks a real index
        return super().environment({**own, **nowhere, **(extra or {})})

    def start(self, bundle: Path, *arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a run that the test itself will end."""
        return subprocess.Popen(
            self.command("--bundle-path", str(bundle), *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(env),
            **self.privileges(),
        )

    def privileges(self) -> dict[str, Any]:
        uid = self.account.uid
        return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}

    def __call__(
        self,
        bundle: Path | str | None = None,
        task: Any = None,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout: float = PATIENCE,
        name: str = "",
    ) -> Result:
        task = {"entrypoint": "main", "params": {}, "seed": 1} if task is None else task
        data = json.dumps(task).encode() if stdin is None else stdin
        words = ("--bundle-path", str(bundle), *arguments)
        try:
            done = self.finish(words, data, self.environment(env), timeout)
        except subprocess.TimeoutExpired:
            TRIED.append({"name": name, "as": self.account.name, "profile": self.profile, "line": "HANGS"})
            raise AssertionError(f"the runner hangs: no line after {timeout} s") from None
        line = done.stdout.decode("utf-8", "replace")[:400].rstrip("\n")
        TRIED.append({"name": name, "as": self.account.name, "profile": self.profile, "line": line})
        assert done.stdout, f"no line at all; exit status {done.returncode}, stderr: {done.stderr[-2000:]!r}"
        return Result(done.returncode, parse_line(done.stdout), done.stderr.decode("utf-8", "replace"))

    def finish(
        self, words: Sequence[str], data: bytes, environment: Mapping[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[bytes]":
        """A whole run: of our own account it begins with a fork (see starts.py)."""
        if self.account.uid is None:
            return starts.run((*self.places(), *words), data, environment, timeout, self.watch)
        return self.finish_apart(words, data, environment, timeout)

    def finish_apart(
        self, words: Sequence[str], data: bytes, environment: Mapping[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[bytes]":
        """The same as a process that has its own command line and environment from the start."""
        command = self.command(*words)
        process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, env=environment, **self.privileges())
        watch = threading.Thread(target=self.watch, args=(process.pid,), daemon=True)
        watch.start()
        try:
            out, err = process.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def served(
        self, bundle: Path, task: Any, *arguments: str, env: Mapping[str, str] | None = None, name: str = ""
    ) -> Result:
        """The answer to one task of a server."""
        return self.answers(bundle, {name: task}, *arguments, env=env)[name]

    def answers(
        self, bundle: Path, tasks: Mapping[str, Any], *arguments: str, env: Mapping[str, str] | None = None
    ) -> dict[str, Result]:
        """The answers of one server to all tasks, each an entry of the report; with the status of the server."""
        words = ("--bundle-path", str(bundle), "--serve", *arguments)
        lines = b"".join(json.dumps(task).encode() + b"\n" for task in tasks.values())
        done = self.finish(words, lines, self.environment(env), PATIENCE)
        greeting, *answers = done.stdout.splitlines(keepends=True)
        assert "serving" in parse_line(greeting), greeting
        found = {}
        for name, answer in zip(tasks, answers, strict=True):
            said = answer.decode("utf-8", "replace")[:400]
            TRIED.append({"name": name, "as": self.account.name, "profile": self.profile, "line": said})
            found[name] = Result(done.returncode, parse_line(answer), done.stderr.decode("utf-8", "replace"))
        return found

    def instrumented(
        self, bundle: Path, task: Any, *arguments: str, env: Mapping[str, str] | None = None, name: str = ""
    ) -> Result:
        """The task, run by a program of the caller's in its place."""
        program = self.account.folder / "instrument.py"
        program.write_text(CALLS_THE_TASK)
        return self(bundle, task, "--instrument", str(program), *arguments, env=env, name=name)

    def traced(
        self, bundle: Path, task: Any, *arguments: str, env: Mapping[str, str] | None = None, name: str = ""
    ) -> Result:
        """The task, watched by strace; the traces go into a folder of the account's."""
        self.count += 1
        folder = self.account.folder / f"trace-{self.profile}-{self.count}-{os.getpid()}"
        return self(bundle, task, "--trace", str(folder), *arguments, env=env, name=name)

    def watch(self, pid: int) -> None:
        """Keep the largest resident set of the runner's own process, while it lives, as `peak`."""
        self.peak = 0
        while True:
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                return
            found = [line for line in text.splitlines() if line.startswith("VmHWM:")]
            if not found:
                return
            self.peak = max(self.peak, int(found[0].split()[1]) * 1024)
            time.sleep(0.02)

    def afresh(self, *arguments: Any, **options: Any) -> Result:
        """A run with a store in which nothing is kept but what is of the host: `--no-cache` makes that anew, and it
        takes longer than all else."""
        patient = HostileRunner(self.account, self.profile.replace("brief", "small"))
        other = HostileRunner(self.account, self.profile)
        other.store = new_store(self.account.folder / f"store-{uuid.uuid4().hex}", patient, **self.privileges())
        try:
            return other(*arguments, **options)
        finally:
            self.peak = other.peak
            subprocess.run(["rm", "-rf", str(other.store)], check=True)

    def brief(self) -> "HostileRunner":
        """The same, small limits and all, with limits of time that are soon over."""
        profile = self.profile.replace("small", "brief")
        return _RUNNERS.setdefault((self.account.name, profile), HostileRunner(self.account, profile))

    def bundle(self, wire: str = "", **options: Any) -> Path:
        """Write a bundle where the account can read it; see write_bundle."""
        self.count += 1
        folder = self.account.folder / "bundles" / f"{self.profile.replace('/', '_')[-40:]}-{self.count}-{os.getpid()}"
        return write_bundle(folder, wire, **options)


def cases(*profiles: str) -> pytest.MarkDecorator:
    """Parametrise `hostile` over both accounts and the profiles; see runs."""
    return runs(*((who, profile) for who in ("root", "user") for profile in profiles))


def in_pairs(*profiles: str) -> pytest.MarkDecorator:
    """Parametrise `hostile` over the profiles, each under one of the accounts in turn."""
    order = ("root", "user") if HERE == "root" else ("user",)
    return runs(*((order[number % len(order)], profile) for number, profile in enumerate(profiles)))


def runs(*pairs: tuple[str, str]) -> pytest.MarkDecorator:
    """Parametrise `hostile` over pairs of account and profile: the first that can be tried here, and in the full suite
    the others too."""
    first = next((pair for pair in pairs if pair[0] == HERE), pairs[0])
    other = pytest.mark.full("another account or profile")
    rows = [pytest.param(pair, id="-".join(pair), marks=[] if pair == first else other) for pair in pairs]
    return pytest.mark.parametrize("hostile", rows, indirect=True)


_RUNNERS: dict[tuple[str, str], HostileRunner] = {}


def turns(
    argument: str, values: Iterable[Any], *pairs: tuple[str, str], first: Collection[str] | None = None, why: str = ""
) -> pytest.MarkDecorator:
    """Parametrise over the values, each tried by one of the pairs in turn: the suites stay short. With THOROUGH=1
    in the environment each is tried by all of them. The default suite tries those named `first`, or all."""
    pairs = tuple(pair for pair in pairs if pair[0] in ("user", HERE)) or pairs
    rows, names = [], set()
    for number, value in enumerate(values):
        parts = value if "," in argument else (value,)
        names.add(label_of(tuple(parts)))
        marks = () if first is None or label_of(tuple(parts)) in first else pytest.mark.full(why)
        for who, profile in pairs if os.environ.get("THOROUGH") else [pairs[number % len(pairs)]]:
            name = f"{label_of(tuple(parts))}-{who}-{profile}"
            rows.append(pytest.param((who, profile), *parts, id=name, marks=marks))
    assert names >= set(first or ()), set(first or ()) - names
    return pytest.mark.parametrize(f"hostile, {argument}", rows, indirect=["hostile"])


def label_of(value: Any) -> str:
    if isinstance(value, tuple) and not hasattr(value, "name"):
        return "-".join(label_of(part) for part in value)
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or value)


def runner_for(accounts: dict[str, Account], who: str, profile: str) -> HostileRunner:
    if who not in accounts:
        pytest.skip("the tests do not run as root")
    return _RUNNERS.setdefault((who, profile), HostileRunner(accounts[who], profile))


def readable(path: str) -> bytes:
    """A file's content; empty where it is gone, or not ours to read: without CAP_SYS_PTRACE root may see the command
    line of another uid, and not its environment."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def leftovers(marker: str) -> list[int]:
    """Host processes whose command line or environment has the marker."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        words = b"".join(readable(f"/proc/{entry}/{name}") for name in ("cmdline", "environ"))
        if marker.encode() in words:
            found.append(int(entry))
    return found
