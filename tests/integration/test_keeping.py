"""What is kept between runs, what is not, and that nothing kept is trusted once it was touched."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_BACKEND, Runner, new_store, parse_line, project, write_bundle
from servers import LocalServer, wheel

Bundle = Callable[..., Path]
WIRE = "def wire(entrypoint, params, seed):\n    return {'out': 'x'}\n"
TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'
REUSE = {"REUSE": "1"}


@pytest.fixture
def own(run: Runner) -> Iterator[Runner]:
    """A runner with a store of this test alone."""
    runner = Runner(new_store(run.store.parent / f"keeping-{uuid.uuid4().hex}", run))
    yield runner
    shutil.rmtree(runner.store, ignore_errors=True)


@pytest.fixture
def bundle(bundle: Bundle) -> Bundle:
    """Built, as a bundle that is used where it lies leaves nothing to keep."""
    return partial(bundle, backend=TINY_BACKEND)


def venvs(runner: Runner, folder: Path | None = None) -> list[Path]:
    place = folder or runner.store / "venvs"
    return sorted(place.iterdir()) if place.is_dir() else []


def runs(runner: Runner) -> list[str]:
    return [name for name in os.listdir(runner.store / "run") if name.startswith(".run-")]


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def built(result: Any) -> bool:
    return bool(result.body["metrics"]["build_seconds"] > 0)


def test_a_venv_goes_with_its_task_and_a_wheel_is_kept(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    first, second = own(path), own(path)
    assert first.outputs == second.outputs and built(first) and not built(second)
    assert venvs(own) == [] and runs(own) == []


SPELLING = pytest.mark.full("another spelling")


@pytest.mark.parametrize("value", ["1", *(pytest.param(value, marks=SPELLING) for value in ("true", "TRUE"))])
def test_reuse_keeps_the_venv(own: Runner, bundle: Bundle, value: str) -> None:
    path = bundle(WIRE)
    assert own(path, env={"REUSE": value}).outputs == {"out": b"x"}
    (kept,) = venvs(own)
    inode = kept.stat().st_ino
    assert own(path, env={"REUSE": value}).outputs == {"out": b"x"}
    assert [place.stat().st_ino for place in venvs(own)] == [inode] and runs(own) == []


@pytest.mark.parametrize("value", ["0", *(pytest.param(value, marks=SPELLING) for value in ("", "no", "false"))])
def test_other_values_do_not(own: Runner, bundle: Bundle, value: str) -> None:
    assert own(bundle(WIRE), env={"REUSE": value}).code == 0
    assert venvs(own) == []


def test_a_changed_bundle_is_another_environment(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    assert own(path, env=REUSE).outputs == {"out": b"x"}
    (path / "probe.py").write_text(WIRE.replace("'x'", "'y'"))
    assert own(path, env=REUSE).outputs == {"out": b"y"}


def alter(place: Path) -> None:
    file = next(place.rglob("site-packages/probe.py"))
    text = file.read_text().replace("'x'", "'evil'")
    file.chmod(0o644)
    file.write_text(text)


def add(place: Path) -> None:
    (next(place.rglob("site-packages")) / "evil.pth").write_text("import os; os._exit(1)\n")


def remove(place: Path) -> None:
    next(place.rglob("site-packages/probe.py")).unlink()


def link(place: Path) -> None:
    file = next(place.rglob("site-packages/probe.py"))
    file.unlink()
    file.symlink_to("/etc/passwd")


def configure(place: Path) -> None:
    next(place.rglob("pyvenv.cfg")).write_text("include-system-site-packages = true\n")


def interpreter(place: Path) -> None:
    python = next(place.rglob("bin/python"))
    python.unlink()
    python.symlink_to("/bin/true")


def record(place: Path) -> None:
    (place / "record.json").write_text("{")


def half(place: Path) -> None:
    (place / "record.json").unlink()


@pytest.fixture(scope="module")
def kept_venv(run: Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runner, Path]]:
    """A runner and a bundle whose environment is kept: each of these tests leaves it as it was."""
    runner = Runner(new_store(run.store.parent / f"keeping-{uuid.uuid4().hex}", run))
    path = write_bundle(tmp_path_factory.mktemp("bundle"), WIRE, backend=TINY_BACKEND)
    assert runner(path, env=REUSE).code == 0
    yield runner, path
    shutil.rmtree(runner.store)


@pytest.mark.parametrize("damage", [alter, add, remove, link, configure, interpreter, record, half])
def test_an_altered_venv_is_made_again(kept_venv: tuple[Runner, Path], damage: Callable[[Path], None]) -> None:
    own, path = kept_venv
    (kept,) = venvs(own)
    before = sorted(str(file.relative_to(kept)) for file in kept.rglob("*"))
    damage(kept)
    for _ in range(2):  # what was made from is in the store as well, and may have been damaged with it
        result = own(path, env=REUSE)
        if result.code == 0:
            break
        assert result.error["retryable"]
    assert result.outputs == {"out": b"x"}
    (again,) = venvs(own)
    assert sorted(str(file.relative_to(again)) for file in again.rglob("*")) == before


ALONE = pytest.mark.full("one kind of notes alone")
DAMAGED = ("", "{", '["../../x.whl", "0"]', "[]", "null", '{"a": 1}', "1", "[[]]")


@pytest.mark.parametrize(
    "kinds", [["built", "resolved"], *(pytest.param([kind], marks=ALONE) for kind in ("built", "resolved"))]
)
def test_damaged_notes_are_no_obstacle(own: Runner, bundle: Bundle, kinds: list[str], full: bool) -> None:
    with LocalServer() as server:
        server.add(*wheel("dep", "1.0", {"dep.py": ""}))
        path = bundle(WIRE, pyproject=project("dep", built=True))
        assert own(path, env=server.environment()).code == 0
        for text in DAMAGED if full else DAMAGED[:3]:
            notes = [note for kind in kinds for note in (own.store / kind).iterdir()]
            assert notes, text
            for note in notes:
                note.write_text(text)
            assert own(path, env=server.environment()).outputs == {"out": b"x"}, text


def test_a_tree_with_a_damaged_manifest_is_made_again(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    assert own(path).code == 0
    (manifest,) = own.store.glob("trees/*/manifest.json")
    manifest.write_text("{")
    assert own(path).outputs == {"out": b"x"}
    assert manifest.read_text() != "{"


def test_a_kept_wheel_that_was_altered_is_never_used(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    assert own(path).code == 0
    shutil.rmtree(own.store / "trees")
    (own.store / "trees").mkdir(mode=0o700)
    (kept,) = own.store.glob("wheels/*/*.whl")
    kept.write_bytes(kept.read_bytes() + b"more")
    first = own(path)
    assert first.code == 0 or first.error["retryable"]
    assert own(path).outputs == {"out": b"x"}


def test_a_kept_tree_that_was_altered_is_never_used(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    assert own(path).code == 0
    alter(own.store / "trees")
    first = own(path)
    assert first.code == 0 or first.error["retryable"]
    assert own(path).outputs == {"out": b"x"}


def test_venvs_dir_is_where_venvs_are_kept(own: Runner, bundle: Bundle, store: Path) -> None:
    place = store.parent / f"venvs-{uuid.uuid4().hex}"
    env = {**REUSE, "VENVS_DIR": str(place)}
    path = bundle(WIRE)
    assert own(path, env=env).outputs == own(path, env=env).outputs == {"out": b"x"}
    assert len(venvs(own, place)) == 1 and venvs(own) == []


def test_preserve_tmp_says_where_it_lies(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    result = own(path, env={"PRESERVE_TMP": "1"})
    (line,) = [line for line in result.stderr.splitlines() if "PRESERVE_TMP" in line]
    place = Path(line.split()[-1])
    assert result.outputs == {"out": b"x"}
    assert (place / "bundle" / "probe.py").read_text() == WIRE
    assert own(path).code == 0  # the next run sweeps what dead runs left, but not this
    assert (place / "bundle" / "probe.py").is_file()


def test_preserve_tmp_keeps_what_failed(own: Runner, bundle: Bundle) -> None:
    result = own(bundle("def wire(*a):\n    raise ValueError\n"), env={"PRESERVE_TMP": "1"})
    assert result.error["type"] == "task_exception"
    assert any("PRESERVE_TMP" in line for line in result.stderr.splitlines())


def test_no_cache_keeps_nothing(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    before = files_of(own.store)
    for _ in range(2):
        result = own(path, None, "--no-cache", env=REUSE)
        assert result.outputs == {"out": b"x"} and built(result)
    assert files_of(own.store) == before and runs(own) == []


def test_refresh_builds_again(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    assert built(own(path)) and not built(own(path)) and built(own(path, None, "--refresh"))


def test_the_cache_can_be_shown_and_pruned(own: Runner, bundle: Bundle) -> None:
    path = bundle(WIRE)
    assert own(path, env=REUSE).code == 0
    shown = own(None, None, "--cache", "show").body["cache"]
    assert shown.pop("path") == str(own.store)
    assert all(shown[kind]["entries"] >= 1 for kind in ("wheels", "trees", "built", "venvs")) and "resolved" in shown
    assert shown["trees"]["bytes"] > 0
    kept = own(None, None, "--cache", "prune", "--older-than", "1").body["cache"]
    assert kept["trees"] == shown["trees"] and kept["venvs"]["entries"] == 1
    pruned = own(None, None, "--cache", "prune").body["cache"]
    assert all(pruned[kind] == {"entries": 0, "bytes": 0} for kind in shown)
    assert own(path).outputs == {"out": b"x"}


@pytest.mark.parametrize("env", [{}, REUSE], ids=["fresh", "reuse"])
def test_runners_at_once_on_one_bundle(own: Runner, bundle: Bundle, env: dict[str, str]) -> None:
    path = bundle("import time\ndef wire(*a):\n    time.sleep(0.3)\n    return {'out': 'x'}\n")
    processes = [
        own.start(path, env=env)
        for _ in range(6)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin
        process.stdin.write(TASK)
        process.stdin.close()
        process.stdin = None
    bodies = [parse_line(process.communicate()[0]) for process in processes]
    assert [body.get("outputs", body) for body in bodies] == [bodies[0]["outputs"]] * 6
    assert runs(own) == [] and len(venvs(own)) == bool(env)


def test_a_store_that_others_may_write_is_refused(own: Runner, bundle: Bundle) -> None:
    own.store.chmod(0o777)
    error = own(bundle(WIRE)).error
    assert (error["phase"], error["type"]) == ("host", "store_unsafe")


def test_a_store_that_is_a_file_is_told(own: Runner, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = own(bundle(WIRE), None, "--store-dir", str(tmp_path / "file" / "store")).error
    assert (error["phase"], error["type"]) == ("host", "store_unavailable")


# --- large folders of wheels, which are mounted from the store

LARGE = """
import errno, importlib, os
def wire(entrypoint, params, seed):
    import big, half.first, half.second
    place = os.path.dirname(big.__file__)
    for folder in (place, os.path.dirname(half.first.__file__)):
        assert os.statvfs(folder).f_flag & os.ST_RDONLY
        try:
            open(os.path.join(folder, "new"), "a").close()
        except OSError as error:
            assert error.errno in (errno.EROFS, errno.EACCES), error  # as root, the files are another's
        else:
            raise AssertionError(folder)
    parts = [f"{name}.part{number}" for name in ("big", "half.first", "half.second") for number in range(60)]
    total = sum(importlib.import_module(part).x for part in parts)
    mounted = open("/proc/self/mountinfo").read()
    return {"out": f"{total} {'/site-packages/big ' in mounted} {'/site-packages/half' in mounted}"}
"""


@pytest.fixture
def large(own: Runner, bundle: Bundle) -> Iterator[tuple[Path, dict[str, str]]]:
    """A bundle on a package of 61 modules, and on two that have one namespace together; and the index's variables."""
    parts = {f"part{number}.py": f"x = {number}" for number in range(60)}
    with LocalServer() as server:
        server.add(*wheel("big", "1.0", {"big/__init__.py": "", **{f"big/{name}": x for name, x in parts.items()}}))
        for name in ("first", "second"):
            files = {f"half/{name}/{part}": x for part, x in parts.items()}
            server.add(*wheel(f"half_{name}", "1.0", {f"half/{name}/__init__.py": "", **files}))
        yield bundle(LARGE, pyproject=project("big", "half-first", "half-second", built=True)), server.environment()


def test_a_large_folder_of_one_wheel_is_mounted_and_read_only(own: Runner, large: tuple[Path, dict[str, str]]) -> None:
    path, env = large
    for _ in range(3):  # the third has the bytecode that the first wanted
        assert own(path, env=env).outputs == {"out": b"5310 True False"}
    (compiled,) = (own.store / "trees").glob("*/files/lib/*/site-packages/big/__pycache__")
    assert len([*compiled.iterdir()]) == 61


def test_what_cannot_be_compiled_is_tried_once(
    own: Runner, large: tuple[Path, dict[str, str]], profile_with: Callable[[str], tuple[str, ...]]
) -> None:
    path, env = large
    hasty = profile_with("[compile.limits]\nwall_seconds = 0.001\n")
    logs = []
    for _ in range(3):  # the second tries what the first wanted
        result = own(path, None, *hasty, env=env)
        assert result.outputs == {"out": b"5310 True False"}
        logs.append("phase: compile" in result.stderr)
    assert logs == [False, True, False] and "without bytecode" not in result.stderr


@pytest.mark.parametrize("switch", ["REUSE", "PRESERVE_TMP"])
def test_an_environment_that_outlives_its_run_is_whole(
    own: Runner, large: tuple[Path, dict[str, str]], switch: str
) -> None:
    path, env = large
    result = own(path, env={**env, switch: "1"})
    assert result.outputs == {"out": b"5310 False False"}
    place = own.store / ("venvs" if switch == "REUSE" else "run")
    (kept,) = place.rglob("site-packages/big")
    assert len([*kept.glob("*.py")]) == 61


@pytest.mark.parametrize(
    "damage", ["altered", pytest.param("removed", marks=pytest.mark.full("not what was noted, as what is altered"))]
)
def test_a_mounted_folder_that_was_altered_is_never_used(
    own: Runner, large: tuple[Path, dict[str, str]], damage: str
) -> None:
    path, env = large
    assert own(path, env=env).code == 0
    (module,) = (own.store / "trees").glob("*/files/lib/*/site-packages/big/part7.py")
    module.unlink()
    if damage == "altered":
        module.write_text("x = 700")
    error = own(path, env=env).error
    assert (error["type"], error["retryable"]) == ("store_damaged", True)
    assert own(path, env=env).outputs == {"out": b"5310 True False"}


def test_what_a_run_mounts_is_not_pruned(own: Runner, large: tuple[Path, dict[str, str]]) -> None:
    path, env = large
    process = own.start(path, "--serve", env=env)
    assert process.stdin and process.stdout
    process.stdout.readline()
    pruned = own(None, None, "--cache", "prune")
    assert pruned.body["cache"]["trees"]["entries"] == 1 and "in use" in pruned.stderr
    process.stdin.write(TASK + b"\n")
    process.stdin.close()
    process.stdin = None
    assert parse_line(process.communicate()[0])["outputs"]["out"]
    assert own(None, None, "--cache", "prune").body["cache"]["trees"]["entries"] == 0


def test_a_kept_venv_and_the_programs_of_a_run_are_not_pruned(own: Runner, bundle: Bundle) -> None:
    process = own.start(bundle(WIRE), "--serve", env=REUSE)
    assert process.stdin and process.stdout
    process.stdout.readline()
    pruned = own(None, None, "--cache", "prune").body["cache"]
    assert pruned["venvs"]["entries"] == 1 and pruned["system"]["entries"] >= 1
    assert parse_line(process.communicate(TASK + b"\n")[0])["outputs"]["out"]
    assert own(None, None, "--cache", "prune").body["cache"]["venvs"]["entries"] == 0


def test_a_wheel_that_is_pruned_while_it_is_resolved_can_be_had_by_another_run(own: Runner, bundle: Bundle) -> None:
    with LocalServer() as server:
        for name in ("first", "second"):
            server.add(*wheel(name, "1.0", {f"{name}.py": ""}))
        environment = server.environment()
        assert own(bundle(WIRE, needs=["first"]), env=environment).code == 0

        def prune(handler: Any) -> None:
            shutil.rmtree(own.store / "wheels")
            handler.server.owner.behaviours.clear()
            handler.do_GET()

        server.behave("/simple/second/", prune)
        both = bundle(WIRE, needs=["first", "second"])
        error = own(both, env=environment).error
        assert (error["type"], error["retryable"]) == ("store_unavailable", True), error
        assert "run again" in error["error"]
        assert own(both, env=environment).code == 0


def test_what_can_not_be_opened_is_pruned(own: Runner, bundle: Bundle) -> None:
    """A link to nowhere, a pipe, what only root may read: nobody mounts it."""
    assert own(bundle(WIRE)).code == 0
    folder = own.store / "wheels"
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "closed").mkdir(mode=0)
    assert own(None, None, "--cache", "prune").body["cache"]["wheels"]["entries"] == 0
    assert [*folder.iterdir()] == []
