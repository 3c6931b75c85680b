"""Bundles of every layout, with and without dependencies, are installed and run, and never written to."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import GROUP, PROFILES, TINY_BACKEND, Result, Runner
from servers import LocalServer, local_profile, sdist, wheel
from suites import rows

Bundle = Callable[..., Path]
WIRE = "def wire(entrypoint, params, seed):\n    return {'out': NAME}\n\nNAME = __name__\n"
POINTS = f'[project.entry-points."{GROUP}"]\nexecute = '


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def state(folder: Path) -> dict[str, Any]:
    """Everything that a write would change, times included."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found[str(path)] = (
            status.st_mode,
            status.st_uid,
            status.st_ino,
            status.st_mtime_ns,
            status.st_size,
            content,
        )
    return found


def project(points: str, more: str = "", *, version: str = 'version = "1.0"', system: str = "") -> str:
    return f'{system}\n[project]\nname = "probe-project"\n{version}\n{POINTS}"{points}"\n{more}'


SETUPTOOLS = '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
DYNAMIC = 'dynamic = ["version", "dependencies"]'
DYNAMIC_TABLE = '[tool.setuptools.dynamic]\nversion = {attr = "pkg.VERSION"}\ndependencies = {file = ["deps.txt"]}\n'

LAYOUTS: dict[str, tuple[dict[str, str], str]] = {
    "src": (
        {
            "pyproject.toml": project("pkg.mod:wire", system=SETUPTOOLS),
            "src/pkg/__init__.py": "",
            "src/pkg/mod.py": WIRE,
        },
        "pkg.mod",
    ),
    "flat": (
        {
            "pyproject.toml": project("pkg.mod:wire", system=SETUPTOOLS),
            "pkg/__init__.py": "",
            "pkg/mod.py": WIRE,
        },
        "pkg.mod",
    ),
    "one module": (
        {
            "pyproject.toml": project(
                "single:wire", ('[tool.setuptools]\npy-modules = ["single"]\n'), system=SETUPTOOLS
            ),
            "single.py": WIRE,
        },
        "single",
    ),
    "namespace": (
        {
            "pyproject.toml": project("space.inner.mod:wire", system=SETUPTOOLS),
            "src/space/inner/mod.py": WIRE,
        },
        "space.inner.mod",
    ),
    "no build system": (
        {"pyproject.toml": project("pkg.mod:wire"), "src/pkg/__init__.py": "", "src/pkg/mod.py": WIRE},
        "pkg.mod",
    ),
    "setup.py": (
        {
            "setup.py": (
                f"from setuptools import setup\n"
                f"setup(name='old', py_modules=['old'], entry_points={{'{GROUP}': ['x = old:wire']}})\n"
            ),
            "pyproject.toml": "",
            "old.py": WIRE,
        },
        "old",
    ),
    "dynamic": (
        {
            "pyproject.toml": project("pkg.mod:wire", DYNAMIC_TABLE, version=DYNAMIC, system=SETUPTOOLS),
            "deps.txt": "# none\n",
            "src/pkg/__init__.py": 'VERSION = "3.2"\n',
            "src/pkg/mod.py": WIRE,
        },
        "pkg.mod",
    ),
    "hatchling": (
        {
            "pyproject.toml": project(
                "pkg.mod:wire",
                ('[tool.hatch.build.targets.wheel]\npackages = ["src/pkg"]\n'),
                system=('[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'),
            ),
            "src/pkg/__init__.py": "",
            "src/pkg/mod.py": WIRE,
        },
        "pkg.mod",
    ),
}


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(("files", "name"), rows(LAYOUTS, ("src", "setup.py", "hatchling"), "another layout"))
def test_a_layout_runs_and_its_directory_stays_as_it_was(
    run: Runner, tmp_path: Path, files: dict[str, str], name: str
) -> None:
    path = write(tmp_path / "bundle", files)
    before = state(path)
    assert run(path).outputs == {"out": name.encode()}
    assert state(path) == before


def test_a_backend_that_writes_into_its_source_writes_nowhere(run: Runner, bundle: Bundle) -> None:
    backend = TINY_BACKEND + "\nfor name in ('build', 'x.egg-info'):\n    os.mkdir(name)\n"
    path = bundle("def wire(*a):\n    return {'out': 'x'}\n", backend=backend)
    before = state(path)
    assert run(path).outputs
    assert state(path) == before


@pytest.mark.usefixtures("index")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    "folder", [pytest.param("", id="flat"), pytest.param("src/", id="src", marks=pytest.mark.full("a folder between"))]
)
def test_a_c_extension_is_built(run: Runner, tmp_path: Path, folder: str) -> None:
    include = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('include'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not Path(include, "Python.h").is_file():
        pytest.skip(f"this interpreter has no headers in {include}")
    code = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native", "", -1, methods};
PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&module); }
"""
    setup = "from setuptools import Extension, setup\nsetup(ext_modules=[Extension('pkg.native', ['native.c'])])\n"
    wire = "from pkg import native\ndef wire(*a):\n    return {'out': native.answer()}\n"
    files = {
        "pyproject.toml": project("pkg.mod:wire", system=SETUPTOOLS),
        "setup.py": setup,
        "native.c": code,
    }
    path = write(tmp_path / "bundle", {**files, f"{folder}pkg/__init__.py": "", f"{folder}pkg/mod.py": wire})
    before = state(path)
    assert run(path).outputs == {"out": b"42"}
    assert state(path) == before


def test_data_files_are_read_by_relative_path(run: Runner, bundle: Bundle) -> None:
    files = {"data/table.csv": "1,2\n", "link.csv": ""}
    path = bundle(
        "def wire(*a):\n    return {'out': open('data/table.csv').read() + open('link').read()}\n",
        files=files,
    )
    (path / "link").symlink_to("data/table.csv")
    assert run(path).outputs == {"out": b"1,2\n1,2\n"}


def test_the_bundle_can_not_be_written(run: Runner, bundle: Bundle) -> None:
    code = """
import os
def wire(*a):
    refused = []
    places = ['/bundle/x', 'probe.py', '/venv/x', os.__file__, '/x', '/etc/passwd', '/runner/x', '/usr/x']
    for place in places:
        try:
            open(place, 'a').close()
        except OSError:
            refused.append(place)
    return {'out': len(refused)}
"""
    assert run(bundle(code)).outputs == {"out": b"8"}


def test_the_bundles_directory_comes_before_what_is_installed(run: Runner, tmp_path: Path, server: LocalServer) -> None:
    server.add(
        *wheel(
            "shadowed",
            "1.0",
            {"shadowed.py": "WHERE = 'installed'\n", "other.py": WIRE},
            entry_points={GROUP: {"x": "other:wire"}},
        )
    )
    files = {"requirements.txt": "shadowed", "shadowed.py": "WHERE = 'bundle'\n"}
    code = "def target(sim_returns):\n    import shadowed\n    return {'loss': 1, 'where': shadowed.WHERE}\n"
    path = write(tmp_path / "bundle", {**files, "mine.py": code})
    result = run(
        path,
        {"target_entrypoint": "mine:target", "sim_returns": []},
        "--aggregation",
        env=server.environment(),
    )
    assert result.body["where"] == "bundle"


def test_a_wire_function_may_come_from_a_dependency(run: Runner, tmp_path: Path, server: LocalServer) -> None:
    code = "import helper_of_bundle\ndef wire(entrypoint, params, seed):\n    return {'out': helper_of_bundle.TEXT}\n"
    server.add(*wheel("wire_dep", "1.0", {"wire_dep.py": code}, entry_points={GROUP: {"execute": "wire_dep:wire"}}))
    path = write(
        tmp_path / "bundle",
        {"requirements.txt": "wire_dep>=1\n", "helper_of_bundle.py": "TEXT = 'of the bundle'\n"},
    )
    before = state(path)
    assert run(path, env=server.environment()).outputs == {"out": b"of the bundle"}
    assert state(path) == before


def test_the_dependencies_of_dependencies_with_extras_and_markers(
    run: Runner, bundle: Bundle, server: LocalServer
) -> None:
    server.add(
        *wheel(
            "outer",
            "1.0",
            {"outer.py": "import inner\n"},
            requires=["inner>=2", "never; extra == 'nope'", "more; extra == 'more'"],
        )
    )
    server.add(*wheel("inner", "1.0", {"inner.py": "V = 1\n"}))
    server.add(*wheel("inner", "2.1", {"inner.py": "V = 2.1\n"}))
    server.add(*wheel("more", "1.0", {"more.py": "V = 'extra'\n"}))
    head = '[build-system]\nrequires = []\nbuild-backend = "tiny_backend"\nbackend-path = ["backend"]\n'
    text = f"""{head}[project]
name = "probe"
version = "1"
dependencies = ["outer [more] (>=1.0, <2)", "absent; python_version < '3'"]
{POINTS}"probe:wire"
"""
    path = bundle("import inner, more, outer\ndef wire(*a):\n    return {'out': [inner.V, more.V]}\n", pyproject=text)
    assert run(path, env=server.environment()).outputs == {"out": b'[2.1, "extra"]'}


DEPENDENT = "import dep\ndef target(sim_returns):\n    return {'loss': 1, 'where': dep.WHERE}\n"
AGGREGATION = {"target_entrypoint": "mine:target", "sim_returns": []}
TINY = """
[build-system]
requires = []
build-backend = "tiny_backend"
backend-path = ["backend"]
[project]
name = "dep"
version = "1.0"
"""


def source(where: str) -> dict[str, str]:
    """A source tree of a package `dep` that needs no index to be built."""
    return {"pyproject.toml": TINY, "backend/tiny_backend.py": TINY_BACKEND, "dep.py": f"WHERE = {where!r}\n"}


def dependent(run: Runner, folder: Path, server: LocalServer, line: str, *arguments: str) -> Result:
    path = write(folder / "bundle", {"requirements.txt": line, "mine.py": DEPENDENT})
    before = state(path)
    result = run(path, AGGREGATION, "--aggregation", *arguments, env=server.environment())
    assert state(path) == before
    return result


def test_dependencies_of_dependencies_are_found(run: Runner, tmp_path: Path) -> None:
    with LocalServer() as server:
        server.add(*wheel("dep", "0.9", {"dep.py": "WHERE = 'old'\n"}))
        server.add(*wheel("dep", "1.0", {"dep.py": "WHERE = 'index'\n"}, requires=["below-dep"]))
        server.add(*wheel("below_dep", "1.0", {"below_dep.py": ""}))
        line = "dep >= 0.5 ; python_version > '3'"
        result = dependent(run, tmp_path, server, line)
    assert result.code == 0 and result.body["where"] == "index", result.body


def test_a_source_distribution_is_built_offline(run: Runner, tmp_path: Path) -> None:
    with LocalServer() as server:
        server.add(*sdist("dep", "1.0", source("sdist")))
        result = dependent(run, tmp_path, server, "dep\n")
    assert result.code == 0 and result.body["where"] == "sdist", result.body
    assert result.body["metrics"]["build_seconds"] > 0


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_git_dependency_is_built_offline(run: Runner, tmp_path: Path, server: LocalServer) -> None:
    url = server.git("dep", source("git"))
    arguments = ("--profile", str(local_profile(tmp_path)), "--profiles-dir", str(PROFILES))
    result = dependent(run, tmp_path, server, f"dep @ git+{url}@main\n", *arguments)
    assert result.code == 0 and result.body["where"] == "git", result.body


def test_a_wheel_of_a_direct_url(run: Runner, tmp_path: Path, server: LocalServer) -> None:
    name, data = wheel("dep", "3.0", {"dep.py": "WHERE = 'url'\n"})
    url = server.add(name, data)
    arguments = ("--profile", str(local_profile(tmp_path)), "--profiles-dir", str(PROFILES))
    result = dependent(run, tmp_path, server, f"dep @ {url}\n", *arguments)
    assert result.code == 0 and result.body["where"] == "url", result.body


def test_strict_takes_wheels_of_the_index_alone(run: Runner, tmp_path: Path) -> None:
    with LocalServer() as server:
        server.add(*sdist("dep", "1.0", source("sdist")))
        error = dependent(run, tmp_path, server, "dep\n", "--profile", "strict").error
    assert (error["phase"], error["type"]) == ("fetch", "dependency_unavailable")
    for line in ("dep @ https://h.example/dep-1.0-py3-none-any.whl", "dep @ git+https://h.example/dep"):
        error = dependent(run, tmp_path / line[:9], server, line, "--profile", "strict").error
        assert (error["phase"], error["type"]) == ("bundle", "dependency_refused")


def test_hashes_of_requirements_hold(run: Runner, tmp_path: Path, server: LocalServer) -> None:
    name, data = wheel("hashed", "1.0", {"hashed.py": WIRE}, entry_points={GROUP: {"x": "hashed:wire"}})
    server.add(name, data)
    good, bad = hashlib.sha256(data).hexdigest(), "0" * 64
    path = write(
        tmp_path / "good",
        {"requirements.txt": f"hashed==1.0 \\\n  --hash=sha256:{bad} \\\n  --hash=sha256:{good}\n"},
    )
    assert run(path, env=server.environment()).outputs == {"out": b"hashed"}
    path = write(tmp_path / "bad", {"requirements.txt": f"hashed==1.0 --hash=sha256:{bad}\n"})
    error = run(path, env=server.environment()).error
    assert error["phase"] == "fetch" and error["type"] in ("hash_mismatch", "dependency_unavailable")


def test_a_dependency_that_is_nowhere_is_named(run: Runner, tmp_path: Path, server: LocalServer) -> None:
    path = write(tmp_path / "bundle", {"requirements.txt": "no-such-package-here\n"})
    error = run(path, env=server.environment()).error
    assert (error["phase"], error["type"], error["retryable"]) == ("fetch", "dependency_unavailable", False)
    assert "no-such-package-here" in error["error"]


def test_an_index_that_is_down_is_worth_another_try(
    run: Runner, tmp_path: Path, profile_with: Callable[[str], tuple[str, ...]]
) -> None:
    path = write(tmp_path / "bundle", {"requirements.txt": "no-such-package-here\n"})
    profile = profile_with('[fetch.environment]\nUV_HTTP_RETRIES = "0"\n')
    error = run(path, None, *profile, env={"UV_DEFAULT_INDEX": "https://127.0.0.1:9/simple"}).error
    assert (error["phase"], error["type"], error["retryable"]) == ("fetch", "dependency_unavailable", True)


def test_no_wire_entry_point(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = run(tmp_path / "empty").error
    assert (error["phase"], error["type"]) == ("bundle", "no_wire_entry_point")
    assert GROUP in error["error"]


def test_many_wire_entry_points_are_listed(run: Runner, bundle: Bundle) -> None:
    text = '[build-system]\nrequires = []\nbuild-backend = "tiny_backend"\nbackend-path = ["backend"]\n'
    text += f'[project]\nname = "probe"\nversion = "1"\n{POINTS}"probe:wire"\nsecond = "probe:other"\n'
    error = run(bundle("def wire(*a): pass\n", pyproject=text)).error
    assert error["type"] == "many_wire_entry_points"
    assert "execute = probe:wire" in error["error"] and "second = probe:other" in error["error"]


def test_a_bundle_with_nothing_to_install_has_its_directory_on_the_path(run: Runner, tmp_path: Path) -> None:
    path = write(
        tmp_path / "bundle",
        {"mine.py": "def target(sim_returns):\n    return {'loss': 1, 'name': __name__}\n"},
    )
    result = run(path, {"target_entrypoint": "mine:target", "sim_returns": []}, "--aggregation")
    assert result.code == 0 and result.body["name"] == "mine"


@pytest.mark.parametrize("mode", [0o700, 0o500])
def test_a_private_bundle_runs(run: Runner, bundle: Bundle, mode: int) -> None:
    path = bundle("def wire(*a):\n    return {'out': open('secret').read()}\n", files={"secret": "s"})
    (path / "secret").chmod(0o600)
    path.chmod(mode)
    try:
        assert run(path).outputs == {"out": b"s"}
    finally:
        path.chmod(0o700)


def with_python(requires: str) -> str:
    head = '[build-system]\nrequires = []\nbuild-backend = "tiny_backend"\nbackend-path = ["backend"]\n'
    return f'{head}[project]\nname = "probe"\nversion = "1"\nrequires-python = "{requires}"\n{POINTS}"probe:wire"\n'


VERSION = "import sys\ndef wire(*a):\n    return {'out': list(sys.version_info[:2])}\n"


def test_a_python_that_fits_is_used(run: Runner, bundle: Bundle) -> None:
    out = run(bundle(VERSION, pyproject=with_python(">=3.8,<4"))).outputs["out"]
    assert out == f"[{sys.version_info[0]}, {sys.version_info[1]}]".encode()


def test_no_python_fits(run: Runner, bundle: Bundle) -> None:
    error = run(bundle(VERSION, pyproject=with_python(">=3.99"))).error
    assert (error["phase"], error["type"]) == ("host", "no_interpreter")
    assert ">=3.99" in error["error"] and "--python" in error["error"]


def test_a_python_that_was_asked_for_and_does_not_fit(run: Runner, bundle: Bundle) -> None:
    error = run(bundle(VERSION, pyproject=with_python(">=3.99")), None, "--python", sys.executable).error
    assert error["type"] == "no_interpreter" and "--python" in error["error"]


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/true", "/etc/passwd"])
def test_a_python_that_is_none(run: Runner, bundle: Bundle, python: str) -> None:
    error = run(bundle(VERSION), None, "--python", python).error
    assert error["type"] == "no_interpreter" and python in error["error"]


def other_pythons() -> list[str]:
    """Other minor versions that this host has: those of pyenv, and the system's."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {int(path.parts[-3].split(".")[1]): str(path) for path in root.glob("3.*/bin/python3")}
    return [path for minor, path in sorted(found.items()) if minor >= 8 and minor != sys.version_info[1]]


OTHERS = other_pythons()
ANOTHER = pytest.mark.full("neither the oldest nor the newest")


OLDEST_AND_NEWEST = pytest.mark.parametrize(
    "python", [*(OTHERS[:1] or [None]), *OTHERS[1:][-1:], *(pytest.param(path, marks=ANOTHER) for path in OTHERS[1:-1])]
)


@OLDEST_AND_NEWEST
def test_another_python_that_was_asked_for_is_used(run: Runner, bundle: Bundle, python: str | None) -> None:
    if python is None:
        pytest.skip("this host has no other Python")
    path = bundle(VERSION, backend=TINY_BACKEND)
    minor = int(Path(python).parts[-3].split(".")[1])
    if minor < 11:  # the in-tree backend needs tomllib
        (path / "backend" / "tomllib.py").write_text(
            "import json\ndef load(file):\n    return json.load(open('p.json'))\n"
        )
        points = {GROUP: {"execute": "probe:wire"}}
        (path / "p.json").write_text(json.dumps({"project": {"name": "probe", "version": "1", "entry-points": points}}))
    assert run(path, None, "--python", python).outputs == {"out": f"[3, {minor}]".encode()}


@OLDEST_AND_NEWEST
def test_another_python_tells_a_failure_as_well(run: Runner, bundle: Bundle, python: str | None) -> None:
    if python is None:
        pytest.skip("this host has no other Python")
    files = bundle("def wire(*task):\n    open('/data/x.csv')\n")
    error = run(files, None, "--python", python).error
    assert "would lie on the host" in error["error"] and "open('/data/x.csv')" in error["traceback"]


THREADED = """
import ctypes, sys, threading, time

named = threading.Event()

def rest():
    ctypes.CDLL(None).prctl(15, b"jemalloc_bg_thd", 0, 0, 0)  # PR_SET_NAME, one of serve.harmless_threads
    named.set()
    time.sleep(600)

threading.Thread(target=rest, daemon=True).start()
named.wait()  # else the runner may look before

def wire(*task):
    print("told")
    return {"out": str(sys.version_info[1])}
"""


@pytest.mark.parametrize(
    "python", [*OTHERS[-1:], *(pytest.param(old, marks=pytest.mark.full("an older one")) for old in OTHERS[:-1])]
)
def test_another_python_serves(run: Runner, bundle: Bundle, python: str) -> None:
    """Python 3.12 warns of a fork beside threads, of which those that may be there are known."""
    minor = int(Path(python).parts[-3].split(".")[1])
    path = bundle(THREADED)
    for answer in run.served(path, [{"entrypoint": "main", "params": {}, "seed": 1}] * 4, "--python", python):
        assert answer.outputs == {"out": str(minor).encode()}
        assert "told" in answer.stderr and "Warning" not in answer.stderr
    assert answer.stderr.count("phase: execute") <= 2  # the first sandbox, and one that has learned


@pytest.mark.parametrize("place", ["versions", "installs/python"])
def test_a_python_that_a_version_manager_has_not_chosen(
    run: Runner, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """pyenv, asdf and mise put shims on PATH; one of a version that is not the chosen one fails."""
    if not other_pythons():
        pytest.skip("this host has no other Python")
    python = max(map(Path, other_pythons()), key=lambda path: int(path.parts[-3].split(".")[1]))
    minor = python.parts[-3].rpartition(".")[0]
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "other").symlink_to(python.parent.parent)
    (tmp_path / "shims").mkdir()
    for name in ("python", "python3", f"python{minor}"):
        (tmp_path / "shims" / name).write_text("#!/bin/sh\necho 'not the chosen one' >&2; exit 127\n")
        (tmp_path / "shims" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:/usr/bin:/bin")
    out = run(bundle(VERSION, pyproject=with_python(f"=={minor}.*"))).outputs["out"]
    assert out == f"[{minor.replace('.', ', ')}]".encode()


@pytest.mark.usefixtures("index")
def test_a_bundle_of_the_index_runs(run: Runner, tmp_path: Path) -> None:
    code = "import six\ndef target(sim_returns):\n    return {'loss': 1, 'version': six.__version__}\n"
    path = write(tmp_path / "bundle", {"requirements.txt": "six==1.17.0\n", "mine.py": code})
    result = run(path, {"target_entrypoint": "mine:target", "sim_returns": []}, "--aggregation")
    assert result.code == 0 and result.body["version"] == "1.17.0"
