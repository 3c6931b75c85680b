"""Where a task stands: what it finds there by relative path, what it may write, and what becomes of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Runner

Bundle = Callable[..., Path]

WRITES = """
import logging, os, shelve, sqlite3, tempfile
from pathlib import Path

def wire(entrypoint, params, seed):
    os.makedirs("results/runs")
    open("results/runs/out.csv", "w").write("a,b")
    Path("data/new.csv").write_text("new")
    logging.basicConfig(filename="run.log", force=True)
    logging.error("to a file")
    logging.shutdown()
    with sqlite3.connect("results/out.db") as db:
        db.execute("create table t (x)")
    with shelve.open("results/shelf") as shelf:
        shelf["a"] = 1
    tempfile.NamedTemporaryFile(dir=".").close()
    walked = sorted(str(path) for path in Path(".").rglob("*") if path.is_file() and path.suffix == ".csv")
    Path("data/x.csv").replace("data/old.csv")
    os.rename("data/new.csv", "data/x.csv")
    os.remove("data/old.csv")
    return {
        "log": Path("run.log").read_bytes(), "walked": walked, "replaced": Path("data/x.csv").read_text(),
        "bundle": Path("/bundle/data/x.csv").read_text(),
    }
"""
DATA = {"data/x.csv": "from the bundle", "data/link.csv": "", "notebooks/a.ipynb": "{}"}


@pytest.mark.parametrize("profile", ["default", "debug", "container"])
def test_relative_paths_can_be_written(run: Runner, bundle: Bundle, profile: str) -> None:
    outputs = run(bundle(WRITES, files=DATA), None, "--profile", profile).outputs
    assert outputs["log"] == b"ERROR:root:to a file\n"
    assert json.loads(outputs["walked"]) == ["data/link.csv", "data/new.csv", "data/x.csv", "results/runs/out.csv"]
    assert outputs["replaced"] == b"new" and outputs["bundle"] == b"from the bundle"


@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_a_file_of_the_bundle_is_read_only(run: Runner, bundle: Bundle, mode: str) -> None:
    body = f"def wire(e, p, s):\n    open('data/x.csv', '{mode}').write('more')\n    return {{}}"
    error = run(bundle(body, files=DATA)).error
    # The caller is root: the file's owner is asked before the mount, unless it is truncated.
    assert error["exception"]["type"] in ("OSError", "PermissionError") and "data/x.csv" in error["error"]


def test_a_link_of_the_bundle_leads_to_the_shadow(run: Runner, bundle: Bundle) -> None:
    path = bundle(
        "import os\n"
        "def wire(e, p, s):\n"
        "    open('latest/out', 'w').write('x')\n"
        "    return {'out': json([os.path.realpath('latest'), open('current').read()])}\n"
        "from json import dumps as json",
        files=DATA,
    )
    (path / "latest").symlink_to("data")
    (path / "current").symlink_to("data/x.csv")
    assert json.loads(run(path).outputs["out"]) == ["/tmp/bundle/data", "from the bundle"]


def test_a_large_bundle_has_a_shadow_of_its_top_level(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]]
) -> None:
    body = (
        "import os\n"
        "def wire(e, p, s):\n"
        "    os.mkdir('new')\n"
        "    try:\n"
        "        open('many/new', 'w')\n"
        "    except OSError as error:\n"
        "        return {'out': [error.errno, open('many/7').read(), os.readlink('many'), os.readlink('probe.py')]}\n"
    )
    path = bundle(body, files={f"many/{number}": str(number) for number in range(20)})
    outputs = run(path, None, *profile_with("[execute]\nshadow_max_entries = 20")).outputs
    assert json.loads(outputs["out"]) == [30, "7", "/bundle/many", "/bundle/probe.py"]


ODD = [
    b".hidden/.env",
    b"data/with space",
    b"data/new\nline",
    b"data/latin\xe9\xff",
    "data/\u65e5\u672c".encode(),
    b"-rf",
    b"folder\xff\n/in",
    b"a" * 250,
    b"/".join([b"d" * 50] * 20) + b"/deep",
]
WALKS = """
import os

def wire(entrypoint, params, seed):
    found = {}
    for folder, folders, names in os.walk(b"."):
        for name in names:
            path = os.path.join(folder, name)
            found[path.hex()] = open(path, "rb").read().hex()
        for name in folders:
            open(os.path.join(folder, name, b"new\\xff"), "w").close()
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(folder, name))]
    return {"out": found}
"""


def test_names_of_any_kind(run: Runner, bundle: Bundle) -> None:
    path = bundle(WALKS)
    for name in ODD:
        file = os.path.join(os.fsencode(path), name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        Path(os.fsdecode(file)).write_bytes(name)
    (path / "all").symlink_to(".")
    for result in [run(path), *run.served(path, [{"entrypoint": "main", "params": {}, "seed": 1}] * 2)]:
        found = {bytes.fromhex(n): bytes.fromhex(c) for n, c in json.loads(result.outputs["out"]).items()}
        assert {name: found[b"./" + name] for name in ODD} == {name: name for name in ODD}


def test_strict_stands_in_the_bundle(run: Runner, bundle: Bundle) -> None:
    body = "import os\ndef wire(e, p, s):\n    os.mkdir('results')\n    return {}"
    error = run(bundle(body), None, "--profile", "strict").error
    assert error["exception"]["message"] == "[Errno 30] Read-only file system: 'results'"


def test_results_are_the_same_from_either(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]]
) -> None:
    path = bundle("def wire(e, p, s):\n    return {'out': open('data/x.csv').read() * s}", files=DATA)
    plain = run(path, None, *profile_with('[execute]\nworking_directory = "bundle"')).body
    shadow = run(path).body
    assert plain["outputs"] == shadow["outputs"] and plain["task_id"] == shadow["task_id"]


@pytest.mark.parametrize(
    "toml, key",
    [
        ('[execute]\nworking_directory = "copy"', "execute.working_directory"),
        ('[build]\nworking_directory = "shadow"', "build.working_directory"),
        ("[execute]\nshadow_max_entries = 0", "execute.shadow_max_entries"),
        ('[execute]\nprograms = ["../bin/su"]', "execute.programs"),
    ],
)
def test_a_wrong_key_is_named(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]], toml: str, key: str
) -> None:
    error = run(bundle("def wire(e, p, s): return {}"), None, *profile_with(toml)).error
    assert error["type"] == "profile_invalid" and key in error["error"]


IMPORT = """
import os
HERE = os.environ["PWD"]
assert os.getcwd() == HERE
OUT = os.path.abspath("results")
{at_import}

def wire(entrypoint, params, seed):
    before = sorted(os.listdir("."))
    os.makedirs(OUT, exist_ok=True)
    open(f"{{OUT}}/{{seed}}", "w").close()
    return {{"out": [HERE, before, os.listdir(OUT)]}}
"""


@pytest.mark.parametrize("at_import, made", [("", []), ('open("import.log", "w").close()', ["import.log"])])
def test_each_task_of_a_server_has_a_new_one(run: Runner, bundle: Bundle, at_import: str, made: list[str]) -> None:
    """What a module finds of its place while it is imported holds in each task; what it writes is each task's own."""
    path = bundle(IMPORT.format(at_import=at_import))
    tasks = [{"entrypoint": "main", "params": {}, "seed": seed} for seed in (1, 2)]
    found = [json.loads(answer.outputs["out"]) for answer in run.served(path, tasks)]
    names = sorted(["probe.py", "pyproject.toml", *made])
    assert found == [["/tmp/bundle", names, ["1"]], ["/tmp/bundle", names, ["2"]]]
    assert json.loads(run(path).outputs["out"]) == found[0]
