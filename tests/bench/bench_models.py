"""Real models against plain Python, in interleaved rounds: python tests/bench/bench_models.py [--json] [MODEL..]

The bundles are below tests/bench/models, and need packages of the index alone. Against what:
  first    an empty store to the first answer; `uv venv`, `uv pip install` with an empty cache, and `python`
  cold     the third cold run on; `python` in a ready environment with bytecode, a new home, no caches
  REUSE=1  the same, with the environment kept
  warm     the third task of a server on; one plain Python process that stays, third task on
  forked   the same; a plain process that has imported all that tasks import, and forks for each: what a task that
           begins clean costs without a sandbox
Figures are medians. The outputs of all ways are compared. The runner is started as the adapters start it.
"""

import argparse
import base64
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from bench_runner import BARE_TASK, BUNDLES, GROUP, RUNNER, clean_environment, run_forked

from modelops.adapters.exec_env import forks

MODELS = {"hello": BUNDLES / "hello", "sir": BUNDLES / "sir"}
MODELS |= {path.name: path for path in sorted((Path(__file__).parent / "models").iterdir())}

# What production does today: one process that stays, and one call after the other.
PLAIN_SERVER = """
import base64, json, sys
from importlib.metadata import entry_points
(wire,) = entry_points(group=sys.argv[1])
wire, answers = wire.load(), sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    task = json.loads(line)
    outputs = wire(task["entrypoint"], task["params"], task["seed"])
    encoded = {name: base64.b64encode(data).decode() for name, data in outputs.items()}
    print(json.dumps(encoded), file=answers, flush=True)
"""

# The least that gives each task a process as clean as a server's: what the first of them imported is there before.
PLAIN_FORKS = """
import base64, gc, importlib, json, os, sys
from importlib.metadata import entry_points
(wire,) = entry_points(group=sys.argv[1])
wire, answers = wire.load(), sys.stdout
sys.stdout = sys.stderr

def answer(line, tell_imports, out):
    task = json.loads(line)
    outputs = wire(task["entrypoint"], task["params"], task["seed"])
    encoded = {name: base64.b64encode(data).decode() for name, data in outputs.items()}
    imported = [name for name, module in sys.modules.items() if getattr(module, "__spec__", None)]
    out.write(json.dumps([encoded, imported if tell_imports else []]))

learned = False
for line in sys.stdin:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with open(writing, "w") as out:
            answer(line, not learned, out)
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        encoded, names = json.load(told)
    os.waitpid(pid, 0)
    print(json.dumps(encoded), file=answers, flush=True)
    if not learned:
        for name in names:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()
        learned = True
"""


class Aim(NamedTuple):
    """At most `ratio` times the other's seconds, and `plus` more."""

    ratio: float
    plus: float = 0.0

    def __str__(self) -> str:
        return f"<= {self.ratio:g} x" + (f" + {self.plus * 1000:g} ms" if self.plus else "")


AIMS = {"first": Aim(1.0), "cold": Aim(1.15), "REUSE=1": Aim(1.15), "warm": Aim(1.3, 0.002), "forked": Aim(1.3)}
AIMS |= {"memory idle": Aim(1.2), "memory in a task": Aim(1.2)}


class Lines:
    """A process that answers a line with a line."""

    def __init__(self, process: "subprocess.Popen[bytes] | forks.Process") -> None:
        self.process = process

    @classmethod
    def of(cls, command: list[str | Path], env: Mapping[str, str]) -> Self:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return cls(subprocess.Popen(command, env=env, **streams))  # type: ignore[call-overload]

    def receive(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else sys.exit("a server ended")

    def send(self, task: Mapping[str, Any]) -> None:
        self.process.stdin.write(json.dumps(task).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        self.send(task)
        return self.receive()

    def memory(self) -> int:
        """Proportional set size of the process and of all that it started, in bytes."""
        process = psutil.Process(self.process.pid)
        total = 0
        for member in [process, *process.children(recursive=True)]:
            try:
                total += member.memory_full_info().pss
            except psutil.Error:
                continue
        return total

    def memory_in_task(self, task: Mapping[str, Any]) -> int:
        """The highest figure seen while it works on a task."""
        self.send(task)
        highest = self.memory()
        while not select.select([self.process.stdout], [], [], 0)[0]:
            highest = max(highest, self.memory())
        answer = self.receive()
        assert "_fatal_error" not in answer, answer
        return highest

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Model:
    """One bundle, and where each way keeps what it needs. All goes with the folder `work`."""

    def __init__(self, name: str, work: Path, profile: str) -> None:
        self.name, self.bundle, self.work, self.profile = name, MODELS[name], work / name, profile
        self.task = json.loads((self.bundle / "task.json").read_text())
        self.work.mkdir(mode=0o711)
        self.store = self.work / "store"
        self.times: dict[tuple[str, str], list[float]] = {}

    def time(self, row: str, side: str, action: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = action()
        self.times.setdefault((row, side), []).append(time.perf_counter() - begun)
        return result

    def run(self, command: list[str | Path], env: Mapping[str, str]) -> bytes:
        stdin = json.dumps(self.task).encode()
        done = subprocess.run(command, input=stdin, capture_output=True, env=env)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr).decode()[-3000:]}")
        return done.stdout

    # --- our side

    def arguments(self, store: Path) -> list[str]:
        return ["--store-dir", str(store), "--profile", self.profile, "--bundle-path", str(self.bundle)]

    def ours(self, store: Path, **switches: str) -> dict[str, bytes]:
        task = json.dumps(self.task).encode()
        return decode_outputs(json.loads(run_forked(self.arguments(store), task, {**clean_environment(), **switches})))

    # --- plain Python

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that finds no caches: numba would keep its own beside the sources otherwise."""
        index = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_", "SSL_"))}
        place = {"PATH": os.environ["PATH"], "HOME": str(home), "NUMBA_CACHE_DIR": str(home / "numba")}
        return {**index, **place, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "TZ": "UTC"}

    def install(self, venv: Path, cache: Path) -> None:
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if uv is None:
            sys.exit("plain Python's side needs uv: pip install uv")
        source = venv.parent / "source"
        shutil.copytree(self.bundle, source, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        common: list[str | Path] = ["--quiet", "--cache-dir", cache, "--python"]
        self.run([uv, "venv", *common, sys.executable, venv], os.environ)
        self.run([uv, "pip", "install", *common, venv / "bin" / "python", source], os.environ)

    def plain(self, venv: Path, home: Path) -> dict[str, bytes]:
        command: list[str | Path] = [venv / "bin" / "python", "-c", BARE_TASK, GROUP]
        line = self.run(command, self.environment(home)).splitlines()[-1]
        return {name: base64.b64decode(data) for name, data in json.loads(line).items()}

    # --- rounds

    def first_round(self) -> None:
        for side, action in (("ours", self.first_of_ours), ("plain", self.first_of_plain)):
            with self.folder() as folder:
                self.time("first", side, lambda action=action, folder=folder: action(folder))

    def first_of_ours(self, folder: Path) -> None:
        self.ours(folder / "store")

    def first_of_plain(self, folder: Path) -> None:
        self.install(folder / "venv", folder / "cache")
        self.plain(folder / "venv", folder)

    def prepare(self) -> None:
        """Two cold runs of each kind, from which the third learns; and a ready environment for plain Python."""
        self.venv = self.work / "venv"
        self.install(self.venv, self.work / "cache")
        self.run([self.venv / "bin" / "python", "-m", "compileall", "-q", "-j0", self.venv / "lib"], os.environ)
        with self.folder() as home:
            expected = self.plain(self.venv, home)
        for switches in ({}, {}, {"REUSE": "1"}, {"REUSE": "1"}):
            if self.ours(self.store, **switches) != expected:
                sys.exit(f"{self.name}: the sandbox's outputs are not those of plain Python")

    def cold_round(self) -> None:
        self.time("cold", "ours", lambda: self.ours(self.store))
        self.time("REUSE=1", "ours", lambda: self.ours(self.store, REUSE="1"))
        with self.folder() as home:
            self.time("cold", "plain", lambda: self.plain(self.venv, home))
        self.times["REUSE=1", "plain"] = self.times["cold", "plain"]

    def warm_rounds(self, count: int) -> None:
        """Two servers, ours and a plain process, which take turns. Their memory, in bytes, in the end."""
        with self.folder() as home:
            plain, forking = (
                Lines.of([self.venv / "bin" / "python", "-c", program, GROUP], self.environment(home))
                for program in (PLAIN_SERVER, PLAIN_FORKS)
            )
            ours = Lines(self.server())
            assert "serving" in ours.receive()
            for seed in range(-2, count):
                task = {**self.task, "seed": seed + 2}
                row = "warm" if seed >= 0 else "warm, first two"
                mine = decode_outputs(self.time(row, "ours", lambda task=task: ours.ask(task)))
                other = self.time(row, "plain", lambda task=task: plain.ask(task))
                forked = self.time(row.replace("warm", "forked"), "plain", lambda task=task: forking.ask(task))
                if other != forked or mine != {name: base64.b64decode(data) for name, data in other.items()}:
                    sys.exit(f"{self.name}: the server's outputs for seed {task['seed']} are not those of plain Python")
            forking.close()
            self.times["forked", "ours"] = self.times["warm", "ours"]
            time.sleep(0.2)  # what is done after an answer is over
            for side, lines in (("ours", ours), ("plain", plain)):
                self.times["memory idle", side] = [lines.memory()]
                self.times["memory in a task", side] = [lines.memory_in_task(self.task) for _ in range(5)]
                lines.close()

    def server(self) -> forks.Process:
        with open(os.devnull, "wb") as log:
            environment = {**clean_environment(), "REUSE": "1"}
            return forks.start(RUNNER, [*self.arguments(self.store), "--serve"], environment, stderr=log.fileno())

    @contextmanager
    def folder(self) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(dir=self.work))
        path.chmod(0o711)
        try:
            yield path
        finally:
            shutil.rmtree(path)


def decode_outputs(body: Mapping[str, Any]) -> dict[str, bytes]:
    if "outputs" not in body:
        sys.exit(f"a task failed: {str(body)[:3000]}")
    return {name: base64.b64decode(item["inline"]) for name, item in body["outputs"].items()}


def judge(model: Model) -> list[dict[str, Any]]:
    rows = []
    for row, aim in AIMS.items():
        if (row, "ours") not in model.times:
            continue
        ours, plain = (statistics.median(model.times[row, side]) for side in ("ours", "plain"))
        met = ours <= aim.ratio * plain + aim.plus
        rows.append({"model": model.name, "row": row, "ours": ours, "plain": plain, "aim": str(aim), "met": met})
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| model | | ours | plain Python | ratio | aim | met |")
    print("|---|---|--:|--:|--:|---|---|")
    for r in rows:
        memory = r["row"].startswith("memory")
        ours, plain = (f"{r[side] / 2**20:.0f} MiB" if memory else f"{r[side]:.4f} s" for side in ("ours", "plain"))
        ratio, met = r["ours"] / r["plain"], "yes" if r["met"] else "no"
        print(f"| {r['model']} | {r['row']} | {ours} | {plain} | {ratio:.2f} | {r['aim']} | {met} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--first-rounds", type=int, default=3, help="rounds of first runs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of cold runs (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=20, help="tasks of the servers (default: %(default)s)")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    unknown = set(options.models) - MODELS.keys()
    if unknown:
        parser.error(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        os.chmod(work, 0o711)  # as root, the sandbox's uid passes through here
        for name in options.models or MODELS:
            model = Model(name, Path(work), options.profile)
            for _ in range(options.first_rounds):
                model.first_round()
            if options.rounds or options.tasks:
                model.prepare()
            for _ in range(options.rounds):
                model.cold_round()
            if options.tasks:
                model.warm_rounds(options.tasks)
            rows += judge(model)
    print(json.dumps({"rows": rows})) if options.json else print_table(rows)


if __name__ == "__main__":
    main()
