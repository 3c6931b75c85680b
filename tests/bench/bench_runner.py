"""Measure the runner against floors made on the spot, in one run: python tests/bench/bench_runner.py [--json]

Floors, all of them measured with the interpreter that runs this file and without the runner:
  start   `python -I -S -c pass` (starting the runner) plus bare bwrap, with the same binds and namespaces as
          the runner's execute phase, running the venv's `python -I -c pass`
  bare    `uv venv`, `uv pip install`, `python` doing the same task; nothing cached
  warm    the venv's `python` doing the same task, unsandboxed, with bytecode
The runner is started as the adapters start it, as a fork, where a row does not say "script".
Rounds are interleaved, so that a slow moment of the machine meets all rows alike; figures are medians.
"""

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from modelops_contracts import SimTask, UniqueParameterSet

from modelops.adapters.bundle import LocalBundleRepository
from modelops.adapters.exec_env import forks
from modelops.adapters.exec_env.warm import IsolatedWarmExecEnv

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "tools" / "ultra_cold_runner.py"
BUNDLES = ROOT / "tests" / "bundles"
GROUP = "modelops.wire"

# What an unsandboxed caller would do: find the wire function, call it, print its outputs.
BARE_TASK = """
import base64, json, sys
from importlib.metadata import entry_points
task = json.load(sys.stdin)
(wire,) = entry_points(group=sys.argv[1])
outputs = wire.load()(task["entrypoint"], task["params"], task["seed"])
print(json.dumps({name: base64.b64encode(data).decode() for name, data in outputs.items()}))
"""

# A wire function that times the bundle's own: the first call has the imports in it.
TIMED_WIRE = """
import json
from time import perf_counter

def wire(entrypoint, params, seed):
    times = [perf_counter()]
    from sir.wire import wire
    for _ in range(2):
        wire(entrypoint, params, seed)
        times.append(perf_counter())
    return {"seconds": json.dumps([times[1] - times[0], times[2] - times[1]]).encode()}
"""

# The same outside a sandbox, with no module imported that the sandbox's child has not.
BARE_TIMED = """
import json, sys
from timed import wire
task = json.load(sys.stdin)
print(wire(task["entrypoint"], task["params"], task["seed"])["seconds"].decode())
"""


class Row(NamedTuple):
    """One line of the table: what was measured, its floor, and the aim: at most this ratio or this gap."""

    name: str
    measured: str
    floor: str
    ratio: float | None = None
    gap: float | None = None


WARM = 2 / 27  # 2 ms where the floor is 27
WARM_TASKS = 9  # of each way in a round
PAUSE = 0.01  # seconds, in which what the servers do after an answer is over; "bench.sh service" has none

ROWS = [
    Row("hello: nothing cached", "hello cold", "hello bare"),
    Row("hello: fresh venv, cached wheels", "hello fresh", "start", ratio=2.5),
    Row("hello: REUSE=1", "hello reuse", "start", ratio=2.0),
    Row("hello: REUSE=1, the runner as a script", "hello script", "start", ratio=4.0),
    Row("hello: REUSE=1, with python -m", "hello module", "start", ratio=4.0),
    Row("hello: a task of a waiting --serve", "hello served", "start", ratio=WARM),
    Row("hello: the same, by IsolatedWarmExecEnv", "hello warm env", "start", ratio=WARM),
    Row("sir: nothing cached", "sir cold", "sir bare"),
    Row("sir: fresh venv, cached wheels", "sir fresh", "sir warm", gap=0.3),
    Row("sir: REUSE=1", "sir reuse", "sir warm", gap=0.1),
    Row("sir's task in the sandbox, imports included", "task first in", "task first out", gap=0.01),
    Row("sir's task in the sandbox, second call", "task second in", "task second out", gap=0.01),
]


def clean_environment() -> dict[str, str]:
    """This process's, without the runner's switches."""
    return {name: value for name, value in os.environ.items() if name not in ("REUSE", "PRESERVE_TMP", "VENVS_DIR")}


def run_forked(arguments: Sequence[str], stdin: bytes, env: Mapping[str, str]) -> bytes:
    """What the runner prints, started as the adapters start it."""
    with tempfile.TemporaryFile() as log:
        process = forks.start(RUNNER, arguments, env, stdin, log.fileno())
        stdout = process.output()
        process.close()
        if process.returncode != 0:
            log.seek(0)
            sys.exit(f"{' '.join(arguments)}\n{(stdout + log.read()).decode()[-3000:]}")
        return stdout


class Bench:
    """The places and commands that are measured. All of it goes with the folder `work`."""

    def __init__(self, work: Path, profile: str) -> None:
        self.work, self.profile = work, profile
        self.tasks = {name: (BUNDLES / name / "task.json").read_bytes() for name in ("hello", "sir")}
        self.bundles = {name: BUNDLES / name for name in self.tasks}
        self.bundles["timed"] = self.timed_bundle()
        self.tasks["timed"] = self.tasks["sir"]
        self.times: dict[str, list[float]] = {}

    def timed_bundle(self) -> Path:
        bundle = self.work / "timed"
        shutil.copytree(BUNDLES / "sir", bundle, ignore=shutil.ignore_patterns("__pycache__"))
        (bundle / "src" / "timed.py").write_text(TIMED_WIRE)
        text = (bundle / "pyproject.toml").read_text().replace('"sir.wire:wire"', '"timed:wire"')
        (bundle / "pyproject.toml").write_text(text.replace('["src/sir"]', '["src/sir", "src/timed.py"]'))
        return bundle

    def run(self, command: Sequence[str | Path], stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        done = subprocess.run(command, input=stdin, capture_output=True, env={**clean_environment(), **(env or {})})
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr).decode()[-3000:]}")
        return done.stdout

    def time(self, name: str, action: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = action()
        self.times.setdefault(name, []).append(time.perf_counter() - begun)
        return result

    def runner(self, bundle: str, *flags: str, reuse: bool = False, words: Sequence[str | Path] = ()) -> dict[str, Any]:
        """Started as the adapter starts it, or by these `words`, as from a shell: a script is compiled each time."""
        arguments = ["--store-dir", str(self.work / "store"), "--profile", self.profile]
        arguments += ["--bundle-path", str(self.bundles[bundle]), *flags]
        switches = {"REUSE": "1"} if reuse else {}
        if words:
            switches["PYTHONPATH"] = str(RUNNER.parent)
            return dict(json.loads(self.run([sys.executable, *words, *arguments], self.tasks[bundle], switches)))
        return dict(json.loads(run_forked(arguments, self.tasks[bundle], {**clean_environment(), **switches})))

    # --- floors

    def make_venv(self, bundle: str, cache: Path) -> Path:
        """`uv venv` and `uv pip install`, from a copy: nothing is written to the original."""
        venv = Path(tempfile.mkdtemp(dir=self.work)) / "venv"
        source = venv.parent / "source"
        shutil.copytree(self.bundles[bundle], source)
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if uv is None:
            sys.exit("the floors need uv: pip install uv")
        common = ["--quiet", "--cache-dir", cache, "--python"]
        self.run([uv, "venv", *common, sys.executable, venv])
        self.run([uv, "pip", "install", *common, venv / "bin" / "python", source])
        return venv

    def bare_task(self, venv: Path, bundle: str) -> dict[str, str]:
        command = [venv / "bin" / "python", "-I", "-c", BARE_TASK, GROUP]
        return dict(json.loads(self.run(command, self.tasks[bundle])))

    def bare(self, bundle: str) -> None:
        cache = Path(tempfile.mkdtemp(dir=self.work))
        venv = self.time(f"{bundle} bare", lambda: self.bare_steps(bundle, cache))
        shutil.rmtree(cache)
        shutil.rmtree(venv.parent)

    def bare_steps(self, bundle: str, cache: Path) -> Path:
        venv = self.make_venv(bundle, cache)
        self.bare_task(venv, bundle)
        return venv

    def bare_bwrap(self, venv: Path) -> list[str]:
        """The runner's own command line for the execute phase, without what only the runner can serve.

        Descriptors (seccomp, status, block) go; the bundle, the venv and /etc are those of this bench.
        """
        command = [
            sys.executable,
            RUNNER,
            "--store-dir",
            self.work / "store",
            "--profile",
            self.profile,
            "--print-bwrap",
        ]
        shown: list[str] = json.loads(self.run(command))["phases"]["execute"]["bwrap"]
        options = shown[: shown.index("--")]
        etc = self.work / "etc"
        etc.mkdir(exist_ok=True)
        own = {"/bundle": self.bundles["hello"], "/venv": venv, "/etc": etc}
        kept = ["bwrap"]
        position = 0
        while position < len(options):
            end = position + 1
            while end < len(options) and not options[end].startswith("--"):
                end += 1
            name, *values = options[position:end]
            position = end
            if name.endswith("-fd"):
                continue
            if name == "--ro-bind" and values[0] != "/dev/null":
                # The source may be staged for the sandbox's uid; the target is where it really is.
                source = own.get(values[1], Path(values[1]))
                if not source.exists():
                    continue
                values[0] = os.path.realpath(source)
            kept += [name, *values]
        return [*kept, "/venv/bin/python", "-I", "-c", "pass"]

    # --- rounds

    def open_warm(self, cleanup: ExitStack) -> None:
        """Start a server, and one in an environment; both have had tasks, so that each has its last template."""
        (self.work / "repository").mkdir()
        repository = LocalBundleRepository(self.work / "repository")
        reference, params = repository.add(self.bundles["hello"]), UniqueParameterSet.from_dict({"name": "world"})
        storage = self.work / "storage"
        env = cleanup.enter_context(IsolatedWarmExecEnv(repository, storage_dir=storage, profile=self.profile))
        words = ["--store-dir", str(self.work / "store"), "--profile", self.profile, "--serve", "--bundle-path"]
        words.append(str(self.bundles["hello"]))
        with open(os.devnull, "wb") as log:
            server = forks.start(RUNNER, words, clean_environment(), stderr=log.fileno())
        cleanup.callback(server.close)
        cleanup.callback(server.stdin.close)  # called first
        self.ask(server)

        def in_env(seed: int) -> None:
            assert env.run(SimTask(reference, "hello.wire/main", params, seed)).error is None

        self.ways = {"served": lambda seed: self.ask(server, seed), "warm env": in_env}
        for seed in range(WARM_TASKS):
            for way in self.ways.values():
                way(seed)

    def ask(self, server: forks.Process, seed: int | None = None) -> None:
        if seed is not None:
            task = {**json.loads(self.tasks["hello"]), "seed": seed}
            server.stdin.write(json.dumps(task).encode() + b"\n")
            server.stdin.flush()
        assert "_fatal_error" not in json.loads(server.stdout.readline())

    def prepare(self) -> None:
        """Fill every cache that a warm row may use, and check that both ways give the same outputs."""
        cache = self.work / "uv-cache"
        self.venvs = {name: self.make_venv(name, cache) for name in self.bundles}
        self.bwrap = self.bare_bwrap(self.venvs["hello"])
        for name in ("hello", "sir"):
            expected = self.bare_task(self.venvs[name], name)
            self.run([self.venvs[name] / "bin" / "python", "-m", "compileall", "-q", self.venvs[name] / "lib"])
            for reuse in (False, True):
                found = self.runner(name, reuse=reuse)["outputs"]
                if {key: item["inline"] for key, item in found.items()} != expected:
                    sys.exit(f"{name}: the sandbox's outputs are not those of the bare run")
        self.run([self.venvs["timed"] / "bin" / "python", "-m", "compileall", "-q", self.venvs["timed"] / "lib"])

    def start(self) -> None:
        """The two starts are timed together: their sum is the floor."""
        self.run([sys.executable, "-I", "-S", "-c", "pass"])
        self.run(self.bwrap)

    def warm_round(self) -> None:
        self.time("start", self.start)
        for name in ("hello", "sir"):
            self.time(f"{name} fresh", lambda name=name: self.runner(name))
            self.time(f"{name} reuse", lambda name=name: self.runner(name, reuse=True))
            self.time(f"{name} script", lambda name=name: self.runner(name, reuse=True, words=[RUNNER]))
            self.time(f"{name} module", lambda name=name: self.runner(name, reuse=True, words=["-m", RUNNER.stem]))
            self.time(f"{name} warm", lambda name=name: self.bare_task(self.venvs[name], name))
        for seed in range(WARM_TASKS):
            for name, way in self.ways.items():
                time.sleep(PAUSE)
                self.time(f"hello {name}", lambda way=way, seed=seed: way(seed))
        python = self.venvs["timed"] / "bin" / "python"
        outside = self.run([python, "-I", "-B", "-c", BARE_TIMED], self.tasks["timed"])
        inside = base64.b64decode(self.runner("timed", reuse=True)["outputs"]["seconds"]["inline"])
        for where, answer in (("out", outside), ("in", inside)):
            first, second = json.loads(answer)
            self.times.setdefault(f"task first {where}", []).append(first)
            self.times.setdefault(f"task second {where}", []).append(second)

    def cold_round(self) -> None:
        for name in ("hello", "sir"):
            self.bare(name)
            self.time(f"{name} cold", lambda name=name: self.runner(name, "--no-cache"))


def judge(row: Row, medians: Mapping[str, float]) -> dict[str, Any]:
    measured, floor = medians[row.measured], medians[row.floor]
    aim = f"<= {row.ratio:.3g} x" if row.ratio else f"<= +{row.gap:g} s" if row.gap else ""
    met = measured <= floor * row.ratio if row.ratio else measured <= floor + row.gap if row.gap else None
    return {
        "row": row.name,
        "seconds": measured,
        "floor": row.floor,
        "floor_seconds": floor,
        "ratio": measured / floor,
        "difference_seconds": measured - floor,
        "aim": aim,
        "met": met,
    }


def print_table(results: list[dict[str, Any]]) -> None:
    print(f"| {'':44} | seconds | floor           | seconds | ratio | difference | aim        | met |")
    print(f"|{'-' * 46}|---------|-----------------|---------|-------|------------|------------|-----|")
    for r in results:
        met = {True: "yes", False: "no", None: ""}[r["met"]]
        cells = [f"{r['row']:44}", f"{r['seconds']:7.4f}", f"{r['floor']:15}", f"{r['floor_seconds']:7.3f}"]
        cells += [f"{r['ratio']:5.2f}", f"{r['difference_seconds']:+10.3f}", f"{r['aim']:10}", f"{met:3}"]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the runner against floors made on the spot.")
    parser.add_argument("--rounds", type=int, default=9, help="rounds with warm caches (default: %(default)s)")
    parser.add_argument(
        "--cold-rounds", type=int, default=3, help="rounds that download everything (default: %(default)s)"
    )
    parser.add_argument("--profile", default="default")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o711)  # as root, the sandbox's uid passes through here
        bench = Bench(Path(folder), options.profile)
        bench.prepare()
        with ExitStack() as cleanup:
            bench.open_warm(cleanup)
            for number in range(max(options.rounds, options.cold_rounds)):
                if number < options.rounds:
                    bench.warm_round()
                if number < options.cold_rounds:
                    bench.cold_round()
    medians = {name: statistics.median(values) for name, values in bench.times.items()}
    measured = [row for row in ROWS if row.measured in medians and row.floor in medians]
    results = [judge(row, medians) for row in measured]
    if options.json:
        print(
            json.dumps(
                {
                    "rounds": options.rounds,
                    "cold_rounds": options.cold_rounds,
                    "rows": results,
                    "times": bench.times,
                }
            )
        )
    else:
        print_table(results)


if __name__ == "__main__":
    main()
