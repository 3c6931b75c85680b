"""The task's interpreter is the environment's own, and the interpreters that a task starts see what it sees."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Runner
from servers import LocalServer, wheel

Bundle = Callable[..., Path]
# `shown` is what an interpreter sees; `inner` is a module of the bundle alone, `dep` one of the environment.
INNER = """
import json, os, site, sys
import dep

def shown():
    flags = {name: getattr(sys.flags, name) for name in ("isolated", "no_site", "safe_path", "no_user_site")}
    python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    found = {"prefix": sys.prefix, "executable": sys.executable, "dep": dep.__file__, "inner": __file__}
    found |= {"flags": flags, "python": python, "user_site": site.ENABLE_USER_SITE, "order": list({"a", "b", "c"})}
    return found

if __name__ == "__main__":
    print(json.dumps(shown()))
"""
WIRE = """
import json, multiprocessing, subprocess, sys
import inner

def run(*arguments):
    command = [sys.executable, *subprocess._args_from_interpreter_flags(), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

def pool(method):
    with multiprocessing.get_context(method).Pool(1) as workers:
        return workers.apply(inner.shown)

def wire(entrypoint, params, seed):
    ways = {
        "itself": inner.shown,
        "flags, -m": lambda: run("-m", "inner"),
        "flags, -c": lambda: run("-c", "import inner, json; print(json.dumps(inner.shown()))"),
        "spawn": lambda: pool("spawn"),
        "forkserver": lambda: pool("forkserver"),
    }
    return {name: json.dumps(way()) for name, way in ways.items()}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        running.add(*wheel("dep", "1.0", {"dep.py": ""}))
        yield running


@pytest.fixture
def seen(run: Runner, bundle: Bundle, server: LocalServer) -> Callable[..., dict[str, Any]]:
    def look(**env: str) -> dict[str, Any]:
        path = bundle(WIRE, needs=["dep"], files={"data/inner.py": ""})
        (path / "inner.py").write_text(INNER)
        result = run(path, None, env={**server.environment(), **env})
        return {name: json.loads(value) for name, value in result.outputs.items()}

    return look


INNER_PATHS = ("/bundle/inner.py", "/tmp/bundle/inner.py")  # the bundle, and its view in the working directory


def test_every_interpreter_sees_the_environment_and_the_bundle(seen: Callable[..., dict[str, Any]]) -> None:
    found = seen()
    assert set(found) == {"itself", "flags, -m", "flags, -c", "spawn", "forkserver"}
    for name, view in found.items():
        assert view["prefix"] == "/venv" and view["executable"] == "/venv/bin/python", name
        assert view["dep"].startswith("/venv/lib/") and view["inner"] in INNER_PATHS, name


def test_what_isolated_mode_promises_holds_without_it(seen: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """No user site and no PYTHON* of the caller; and sets have the same order in each run."""
    (tmp_path / "sitecustomize.py").write_text("")
    mine = {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7", "PYTHONWARNINGS": "error::ImportWarning"}
    mine |= {"PYTHONUSERBASE": str(tmp_path), "PYTHONSAFEPATH": "1", "PYTHONOPTIMIZE": "1"}
    found, again = seen(**mine), seen()
    assert found == again
    for view in found.values():
        assert view["python"] == {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        assert view["user_site"] is False
        assert view["flags"]["no_site"] == view["flags"]["isolated"] == 0


LOKY = """
import os
from joblib import Parallel, delayed

def square(number):
    return number * number, os.getpid()

def wire(entrypoint, params, seed):
    found = Parallel(n_jobs=2, backend="loky")(delayed(square)(number) for number in range(8))
    assert os.getpid() not in {pid for _, pid in found}
    return {"out": repr([value for value, _ in found])}
"""


def test_joblib_finds_its_workers(run: Runner, bundle: Bundle, index: None) -> None:
    """Its resource tracker and its workers are interpreters with their parent's flags."""
    result = run(bundle(LOKY, needs=["joblib>=1.3"]))
    assert result.outputs["out"] == repr([n * n for n in range(8)]).encode()
    assert "resource_tracker" not in result.stderr and "No module" not in result.stderr, result.stderr
