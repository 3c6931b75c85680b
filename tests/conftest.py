"""Fixtures that run the real runner, on bundles written by the test, in the real sandbox.

A new test runs in the default suite, which has four minutes: leave to the full one what repeats something under another
account, profile or host, or takes long, with a marker that says so: `@pytest.mark.full("another Debian")`, or the same
on a parameter (`pytest.param(.., marks=pytest.mark.full(".."))`). `suites.rows` does that for the rows of a table, of
which the default suite runs one of each kind, `accounts.everyone()` and `security.hostile.runs` for accounts and
profiles. `run` runs a bundle in a fork (see starts.py); `bundle(code, needs=["numpy"])` writes one with dependencies.

Tests run on several workers at once, in any order, beside each other: what they wait for is an event, never a moment,
and what several share at a price is made by tests of one `@pytest.mark.xdist_group("name")`, which run on one worker.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import psutil
import pytest
import starts
from hypothesis import settings

pytest_plugins = ["suites", "accounts", "evidence"]

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "tools" / "ultra_cold_runner.py"
PROFILES = ROOT / "sandbox-profiles"
GROUP = "modelops.wire"
# As `python -m` starts a module, wherever the caller is: Python keeps its bytecode, and need not compile it each time.
START = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module({!r}, None, '__main__', True)"


def pytest_configure(config: pytest.Config) -> None:
    """Examples enough for a kind of value; the full suite has as many again, and the fuzzers."""
    examples = 100 if config.getoption("--full") else 50
    settings.register_profile("sandbox", database=None, deadline=None, max_examples=examples)
    settings.load_profile("sandbox")
    # A shell's background job ignores it, and so would each child.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def start_of(python: str, runner: Path) -> list[str]:
    """The command that starts the runner, but for its arguments."""
    return [python, "-P", "-c", START.format(runner.stem), str(runner.parent)]


def keep_bytecode(python: str, runner: Path) -> None:
    """Where its folder can't be written, each start compiles it."""
    subprocess.run([python, "-m", "py_compile", str(runner)], stderr=subprocess.DEVNULL)


class Result(NamedTuple):
    """One run: exit status, the parsed line, stderr. Parsing fails the test where stdout is not one line."""

    code: int
    body: dict[str, Any]
    stderr: str

    @property
    def error(self) -> dict[str, Any]:
        assert self.code != 0, f"the run succeeded: {str(self.body)[:500]}"
        return dict(self.body["_fatal_error"])

    @property
    def outputs(self) -> dict[str, bytes]:
        import base64

        assert self.code == 0, f"the run failed: {json.dumps(self.body)[:3000]}"
        return {name: base64.b64decode(item["inline"]) for name, item in self.body["outputs"].items()}


def parse_line(stdout: bytes) -> dict[str, Any]:
    """The contract: one line of JSON, no NaN, nothing else."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert stdout.endswith(b"\n") and stdout.count(b"\n") == 1, stdout[:2000]
    return dict(json.loads(stdout, parse_constant=refuse))


class Runner:
    """Calls the runner, with a store of its own that goes with the session."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def command(self, *arguments: str) -> list[str]:
        return [*start_of(sys.executable, RUNNER), "--store-dir", str(self.store), *arguments]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        switches = ("REUSE", "PRESERVE_TMP", "VENVS_DIR", "SANDBOX_PROFILES_DIR")
        clean = {name: value for name, value in os.environ.items() if name not in switches}
        return {**clean, **(extra or {})}

    def start(self, bundle: Path, *arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a run that the test itself will feed and end."""
        command = self.command("--bundle-path", str(bundle), *arguments)
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.environment(env), **streams)  # type: ignore[call-overload, no-any-return]

    def __call__(
        self,
        bundle: Path | str | None = None,
        task: Any = None,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout: float = 300,
    ) -> Result:
        task = {"entrypoint": "main", "params": {}, "seed": 1} if task is None else task
        data = json.dumps(task).encode() if stdin is None else stdin
        place = ["--bundle-path", str(bundle)] if bundle is not None else []
        words = ["--store-dir", str(self.store), *place, *arguments]
        done = starts.run(words, data, self.environment(env), timeout)
        return Result(done.returncode, parse_line(done.stdout), done.stderr.decode())

    def served(self, bundle: Path, tasks: list[Any], *arguments: str) -> list[Result]:
        """The answers of one server to all tasks."""
        lines = b"".join(json.dumps(task).encode() + b"\n" for task in tasks)
        words = ["--store-dir", str(self.store), "--bundle-path", str(bundle), "--serve", *arguments]
        done = starts.run(words, lines, self.environment(), 300)
        ready, *answers = [parse_line(line) for line in done.stdout.splitlines(keepends=True)]
        assert "serving" in ready and len(answers) == len(tasks), done.stderr
        return [Result(int("_fatal_error" in answer), answer, done.stderr.decode()) for answer in answers]


def sleeper(server: "subprocess.Popen[bytes]", seconds: str) -> psutil.Process:
    """The process below it that runs sleep(1) for so long, as soon as there is one."""
    while server.poll() is None:
        for process in psutil.Process(server.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline() == ["sleep", seconds]:
                    return process
    raise AssertionError("the server has ended")


def new_store(place: Path, like: Runner, **privileges: Any) -> Path:
    """A store with nothing in it but what every store comes to have, as links to that of another runner: copies of the
    host's programs, the child compiled. To make them takes longer than the rest of a run."""
    if not (like.store / "system").is_dir():
        like(write_bundle(place.parent / f"first-{place.name}", "def wire(*task):\n    return {'out': 'ran'}\n"))
    script = (
        'mkdir -m 711 "$2" && mkdir -m 700 "$2/built" && cp -al "$1/system" "$2" && cp -al "$1"/built/*-* "$2/built"'
    )
    subprocess.run(["sh", "-c", script, "sh", str(like.store), str(place)], check=True, **privileges)
    return place


@pytest.fixture(scope="session")
def store() -> Iterator[Path]:
    """A store that the sandbox's uid can pass through, as root's default one is."""
    path = Path(tempfile.mkdtemp(prefix="cold-runner-tests-"))
    path.chmod(0o711)
    yield path / "store"
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def run(store: Path) -> Runner:
    return Runner(store)


@pytest.fixture(scope="session")
def runner_module() -> ModuleType:
    """The runner imported as a module, for tests of its pure parts."""
    spec = importlib.util.spec_from_file_location("ultra_cold_runner", RUNNER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ultra_cold_runner"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def default_profile(runner_module: ModuleType) -> Any:
    return runner_module.load_profile("default", [str(PROFILES)])


@pytest.fixture(scope="session")
def index() -> None:
    """The package index that the caller's environment names: some bundles need setuptools from it."""
    url = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    try:
        urllib.request.urlopen(url.rstrip("/") + "/setuptools/", timeout=10).close()
    except (OSError, ValueError) as error:
        if not isinstance(error, urllib.error.HTTPError) or error.code >= 500:
            pytest.skip(f"no package index can be reached: {error}")


@pytest.fixture
def profile_with(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """`profile_with(toml)` gives the options that run a task under the default profile with those changes."""
    count = iter(range(1000))

    def make(toml: str) -> tuple[str, ...]:
        path = tmp_path / f"profile{next(count)}.toml"
        path.write_text(f'extends = "default"\n{toml}')
        return "--profile", str(path), "--profiles-dir", str(PROFILES)

    return make


BUILD_SYSTEM = """
[build-system]
requires = []
build-backend = "tiny_backend"
backend-path = ["backend"]
"""


def project(*needs: str, built: bool = False) -> str:
    """The pyproject.toml of the bundle `probe`, which depends on `needs`; to be built by TINY_BACKEND, or virtual."""
    dependencies = f"dependencies = {json.dumps(needs)}\n" if needs else ""
    named = f'[project]\nname = "probe"\nversion = "1.0"\n{dependencies}'
    return f'{BUILD_SYSTEM * built}{named}[project.entry-points."{GROUP}"]\nexecute = "probe:wire"\n'


def write_bundle(
    folder: Path,
    wire: str = "",
    *,
    needs: Sequence[str] = (),
    pyproject: str | None = None,
    backend: str = "",
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """A bundle `probe` with one module, whose code is `wire`. Without `needs`, its dependencies, it needs no index.

    It is virtual, used where it lies: a build costs as much time as the rest of the run. With `backend`, the code of
    an in-tree backend, it is built; TINY_BACKEND makes a wheel by the standard library alone. `pyproject` replaces the
    whole pyproject.toml, and may name that one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(project(*needs, built=bool(backend)) if pyproject is None else pyproject)
    if backend or pyproject is not None:
        (folder / "backend").mkdir(exist_ok=True)
        (folder / "backend" / "tiny_backend.py").write_text(backend or TINY_BACKEND)
    if wire:
        (folder / "probe.py").write_text(wire)
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


TINY_BACKEND = '''
"""A PEP 517 backend for tests: the modules of the source tree as a wheel, by the standard library alone."""
import base64, hashlib, os, tomllib, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    project = tomllib.load(open("pyproject.toml", "rb"))["project"]
    name = project["name"].replace("-", "_")
    info = f"{name}-{project['version']}.dist-info"
    points = "".join(
        f"[{group}]\\n" + "".join(f"{key} = {value}\\n" for key, value in entries.items())
        for group, entries in project.get("entry-points", {}).items()
    )
    requires = "".join(f"Requires-Dist: {line}\\n" for line in project.get("dependencies", []))
    head = f"Metadata-Version: 2.1\\nName: {project['name']}\\nVersion: {project['version']}\\n{requires}"
    files = {f"{info}/METADATA": head.encode(), f"{info}/entry_points.txt": points.encode()}
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    for file in sorted(os.listdir(".")):
        if file.endswith(".py"):
            files[file] = open(file, "rb").read()
    record = "".join(f"{path},{digest(data)},{len(data)}\\n" for path, data in files.items())
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\\n").encode()
    wheel = f"{name}-{project['version']}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return wheel

def digest(data):
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
'''


def tiny(
    name: str, code: str, more: str = "", folder: str = "", requires: str = "", version: str = "1.0"
) -> dict[str, str]:
    """A project of one module, in a folder: built by TINY_BACKEND, without an index but for what `requires` lists."""
    system = f'[build-system]\nrequires = [{requires}]\nbuild-backend = "tiny_backend"\nbackend-path = ["backend"]\n'
    files = {
        "pyproject.toml": f'{system}[project]\nname = "{name}"\nversion = "{version}"\n{more}',
        "backend/tiny_backend.py": TINY_BACKEND,
        f"{name.replace('-', '_')}.py": code,
    }
    return {os.path.join(folder, path): text for path, text in files.items()}


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """`bundle(code)` writes a bundle whose wire function is in `code`; see write_bundle."""
    count = iter(range(1000))

    def make(wire: str = "", **options: Any) -> Path:
        return write_bundle(tmp_path / f"bundle{next(count)}", wire, **options)

    return make
