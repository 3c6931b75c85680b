"""Shared by the tests of faults: the bundle that goes through every phase, and what must be true after a fault."""

import base64
import csv
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from accounts import Account
from conftest import TINY_BACKEND, Result, new_store, parse_line, write_bundle
from security.hostile import HostileRunner, readable
from servers import LocalServer, wheel

THOROUGH = os.environ.get("THOROUGH") == "1"
SEED = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1 << 32))  # printed, to repeat a run
PATIENCE = 300  # seconds: no claim, only an end
TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'
NEEDS = ("dep", "other")
WIRE = """
import dep, other, time
def wire(entrypoint, params, seed):
    time.sleep(params.get("seconds", 0))
    return {"out": f"{dep.VALUE} {other.VALUE} {seed}", "large": b"x" * 100_000}
"""
OUT = b"one two 1"


class FaultRunner(HostileRunner):
    """The real runner of an account, with a store, a TMPDIR and a VENVS_DIR of one test alone, below `place`."""

    def __init__(self, account: Account, name: str, server: LocalServer | None = None) -> None:
        super().__init__(account, "default")
        self.place = account.folder / f"{name}-{os.urandom(4).hex()}"
        for folder in (self.place, self.place / "tmp"):
            folder.mkdir()
            folder.chmod(0o711)
            if account.uid is not None:
                os.chown(folder, account.uid, account.uid)
        self.store = new_store(self.place / "store", HostileRunner(account, "default"), **self.privileges())
        self.venvs = self.place / "venvs"
        self.server = server

    finish = HostileRunner.finish_apart  # its traces are found by what it began with

    @property
    def marker(self) -> str:
        """A word that is in the environment of every runner of this test, and in the mounts of its sandboxes."""
        return self.place.name

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        index = self.server.environment() if self.server else {}
        return super().environment({**index, "TMPDIR": str(self.place / "tmp"), **(extra or {})})

    def bundle(self, wire: str = WIRE, **options: Any) -> Path:
        self.count += 1
        if "pyproject" not in options:
            options |= {"backend": TINY_BACKEND, "needs": NEEDS if self.server else ()}
        return write_bundle(self.place / f"bundle-{self.count}", wire, **options)


def add_dependencies(server: LocalServer) -> None:
    """NEEDS: one package with a few modules, so that compiling takes a moment, and a small one."""
    modules = {f"dep/m{n}.py": f"def f{n}(x):\n    return [x, {n}]\n" * 20 for n in range(30)}
    server.add(*wheel("dep", "1.0", {"dep/__init__.py": "VALUE = 'one'\n", **modules}))
    server.add(*wheel("other", "2.0", {"other.py": "VALUE = 'two'\n"}))


def wait_for(condition: Any, what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not so: {what}"
        time.sleep(0.005)


# --- what must not be left


def traces(marker: str) -> list[str]:
    """Processes, ours excepted, whose command line, environment or mounts (in any namespace) have the marker.

    A sandbox has a cleared environment, and the store's folders below its mounts.
    """
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        state = readable(f"/proc/{entry}/stat").rpartition(b")")[2].split()[:1]
        for name in ("cmdline", "environ", "mountinfo"):
            if marker.encode() in readable(f"/proc/{entry}/{name}") and state != [b"Z"]:
                found.append(f"{name} of process {entry}")
    return found


def unread(run: str) -> list[int]:
    """The bwraps of this run (its random part) whose command has not read its request yet."""
    found = []
    for stdin in Path("/proc").glob("[0-9]*/fd/0"):
        with suppress(OSError):
            name = (stdin.parent.parent / "comm").read_text().strip()
            if name == "bwrap" and os.readlink(stdin) == f"/memfd:request {run} (deleted)":
                found.append(int(stdin.parent.parent.name))
    return found


def own_mounts() -> list[str]:
    """Mounts in our own namespace that a test or a runner of one made; others of the machine come and go."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line for line in lines if "cold-runner" in line or "newroot" in line)


def groups(pids: Iterable[int]) -> list[str]:
    """Control groups that the runners with these pids made."""
    names = tuple(f".run-{pid}-" for pid in pids)
    found = []
    for folder, subfolders, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(folder, name) for name in subfolders if name.startswith(names)]
    return found if names else []


def scratch(runner: FaultRunner) -> list[str]:
    """What is left in the folders that are empty while no run lives, lock files included."""
    found = []
    for folder in (runner.store / "run", runner.store / "stage", runner.store / "locks", runner.place / "tmp"):
        found += [str(path) for path in folder.iterdir()] if folder.is_dir() else []
    for folder in (runner.store / "venvs", runner.venvs):
        found += [str(path) for path in folder.glob(".run-*")]
    return found


# --- what is kept must be right


def wrong_entries(runner: FaultRunner, module: ModuleType) -> list[str]:
    """Everything in the store that is not what its name, its manifest or its RECORD says."""
    wrong = []
    for path in runner.store.glob("wheels/*/*"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.parent.name:
            wrong.append(f"{path} has another sha256")
    for path in runner.store.glob("trees/*"):
        wrong += [f"{path}: {problem}" for problem in wrong_in_tree(path)]
    for path in [*runner.store.glob("built/*"), *runner.store.glob("resolved/*")]:
        is_derived = path.name.startswith(("child-", "dated-toml-", "lock-", "seccomp-"))
        if not (module.read_digested(str(path)) if is_derived else is_note(path)):
            wrong.append(f"{path} can't be read")
    for place in [*runner.store.glob("venvs/*"), *runner.venvs.glob("*")]:
        if not place.name.startswith(".run-"):
            record = json.loads((place / "record.json").read_text())
            if record.pop("digest") != module.digest_of(record, module.list_files(str(place / "venv"))):
                wrong.append(f"{place} is not what it was when it was kept")
    return wrong


def is_note(path: Path) -> bool:
    try:
        wheels = json.loads(path.read_text())["wheels"]
        return all(len(sha256) == 64 and name.endswith(".whl") for name, sha256 in wheels)
    except (ValueError, TypeError, KeyError):
        return False


def wrong_in_tree(tree: Path) -> list[str]:
    try:
        manifest = json.loads((tree / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return [f"its manifest can't be read: {error}"]
    wrong = []
    for name, size, mtime, mode in manifest["files"]:
        status = (tree / "files" / name).lstat()
        if (status.st_size, status.st_mtime_ns, status.st_mode) != (size, mtime, mode):
            wrong.append(f"{name} is not as the manifest says")
    (record,) = tree.glob("files/lib/*/site-packages/*.dist-info/RECORD")
    for name, digest, _ in csv.reader(record.read_text().splitlines()):
        data = (record.parent.parent / name).read_bytes()
        found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if digest and digest != f"sha256={found}":
            wrong.append(f"{name} is not as RECORD says")
        compiled = list((record.parent.parent / name).parent.glob(f"__pycache__/{Path(name).stem}.*.pyc"))
        if name.endswith(".py") and len(compiled) > 1:
            wrong.append(f"{name} has bytecode twice")
    return wrong


def check_aftermath(runner: FaultRunner, module: ModuleType, pids: Iterable[int], mounts: list[str]) -> None:
    """After a fault and the next run: nothing is left of it, and nothing that is kept is wrong."""
    wait_for(lambda: not traces(runner.marker), f"no trace is left: {traces(runner.marker)}")
    assert own_mounts() == mounts
    assert groups(pids) == []
    assert scratch(runner) == []
    assert wrong_entries(runner, module) == []


# --- what a run may say


def counted(outcomes: Mapping[str, int]) -> str:
    """For the table: `12 success, 3 timeout`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items(), key=lambda item: -item[1]))


def answer(stdout: bytes, code: int, stderr: bytes) -> Result:
    return Result(code, parse_line(stdout), stderr.decode("utf-8", "replace"))


def check_answer(result: Result) -> str:
    """The line is a whole success, or an error that says what happened; gives the error's type, or "success"."""
    if result.code == 0:
        assert result.outputs == {"out": OUT, "large": b"x" * 100_000}
        return "success"
    error = result.error
    assert error["code"] == result.code and error["error"].strip() and error["phase"] and error["type"], error
    assert type(error["retryable"]) is bool
    assert all(type(value) is float and value >= 0 for value in error["metrics"].values()), error["metrics"]
    return str(error["type"])


def check_success(result: Result) -> None:
    """What a run says that nothing disturbs."""
    assert check_answer(result) == "success", (result.body, result.stderr)
