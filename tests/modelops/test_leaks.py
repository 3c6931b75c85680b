"""`modelops leaks`: every kind of leak is found and named, nothing else is, and the report says both."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import write_bundle
from leaky import LEAKY, Leaky, native_bundle
from suites import rows
from typer.testing import CliRunner

from modelops.cli import app

NEEDS_A_COMPILER = pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("g++")), reason="no C and C++ compiler")
ALWAYS = ("a module global",)


class Search(NamedTuple):
    """One run of the command: exit status, what it printed, and its JSON."""

    status: int
    text: str
    report: dict[str, Any]

    @property
    def causes(self) -> list[dict[str, Any]]:
        return [cause for leak in self.report["leaks"] for cause in leak["causes"]]


@pytest.fixture
def leaks(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Search]:
    """`leaks(bundle, "1-3", *options)` searches the tasks with those seeds."""
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))
    monkeypatch.setenv("VENVS_DIR", str(tmp_path / "venvs"))

    def call(bundle: Path, seeds: str, *options: str, entrypoint: str = "main") -> Search:
        file = tmp_path / "leaks.json"
        arguments = ["leaks", str(bundle), "--json", str(file), *options]
        if not {"--tasks", "--study"} & set(options):
            arguments += ["--entrypoint", entrypoint, "--seeds", seeds]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        return Search(done.exit_code, done.stdout, json.loads(file.read_text()) if file.exists() else {})

    return call


@pytest.mark.parametrize(
    "leaky",
    [
        pytest.param(leaky, id=name, marks=() if name in ALWAYS else pytest.mark.full("another kind of leak"))
        for name, leaky in LEAKY.items()
    ],
)
def test_a_leak_is_found_with_its_cause_and_its_line(
    leaky: Leaky, leaks: Callable[..., Search], tmp_path: Path
) -> None:
    found = leaks(leaky.write(tmp_path / "bundle"), "1-3")
    assert found.status == 1 and found.report["verdict"] == "leak", found.text
    first = found.report["leaks"][0]
    assert (first["polluters"], first["victims"]) == ([1], [2, 3])
    assert first["differences"][0]["output"] == "out"
    told = found.causes if leaky.proven else [what for leak in found.report["leaks"] for what in leak["suspects"]]
    assert {(what["kind"], what["name"]) for what in told} == {(leaky.kind, leaky.name)}, found.text
    assert bool(found.causes) is leaky.proven
    for cause in found.causes:
        assert leaky.line in cause["line"]["text"] and cause["line"]["file"].endswith(leaky.file), cause
        led = cause["line"]["called_from"]  # of a dependency's line, the bundle's that led there
        assert (led is None) is (leaky.file == "probe.py") and (led is None or led["file"] == "probe.py"), cause
    said = leaky.name if leaky.kind in leaky.name else f"{leaky.kind} {leaky.name}"  # nothing is named twice
    assert "task 1 changes tasks 2, 3" in found.text and said in found.text
    assert leaky.line in found.text or not leaky.proven
    assert found.report["orders"]["fork"]["differ"] == []


@NEEDS_A_COMPILER
@pytest.mark.parametrize(
    ("language", "stripped", "symbols"),
    [
        ("C", False, "held_total"),
        pytest.param(
            *("C++", False, "accumulate(double)::seen, accumulate(double)::calls"),
            marks=pytest.mark.full("a language whose symbols must be taken apart, and which takes longer to compile"),
        ),
        pytest.param("C++", True, "", marks=pytest.mark.full("the same without symbols")),
    ],
)
def test_static_data_of_an_extension_is_named(
    language: str, stripped: bool, symbols: str, leaks: Callable[..., Search], tmp_path: Path
) -> None:
    found = leaks(native_bundle(tmp_path / "bundle", language, stripped), "1-2")
    assert found.status == 1, found.text
    assert found.report["leaks"][0]["polluters"] == [1]
    assert {cause["kind"] for cause in found.causes} == {"native data"}, found.text
    assert {cause["symbol"] for cause in found.causes} == {symbols}
    for cause in found.causes:
        assert re.fullmatch(r"native\.cpython-\S+\.so \.bss\+0x[0-9a-f]+", cause["section"]), cause
        assert "native.add(seed)" in cause["line"]["text"]
    assert (symbols or ".bss+0x") in found.text


@NEEDS_A_COMPILER
@pytest.mark.full("the same as an extension in C")
def test_the_session_in_the_readme_is_what_is_printed(
    leaks: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (Path(__file__).parents[2] / "README.md").read_text().partition("$ modelops leaks ./bundle")[2]
    command, _, session = said.partition("```")[0].partition("\n")
    bundle = native_bundle(tmp_path / "bundle", "C")
    (bundle / "probe.py").unlink()
    (bundle / "model.py").write_text(
        "import native\ndef wire(entrypoint, params, seed):\n"
        '    total = native.add(seed)\n    return {"out": {"total": total}}\n'
    )
    project = bundle / "pyproject.toml"
    project.write_text(project.read_text().replace("probe:wire", "model:wire").replace('["probe"]', '["model"]'))
    monkeypatch.setenv("COLUMNS", "120")
    assert command.split() == ["--entrypoint", "model/base", "--seeds", "1-4"]
    found = leaks(bundle, "1-4", entrypoint="model/base")
    of_this_machine = r"cpython-\S+\.so \.bss\+0x[0-9a-f]+|runs, [^;]+;"
    told, wanted = (re.sub(of_this_machine, "..", text).strip() for text in (found.text, session))
    assert told == wanted


@pytest.mark.full("another kind of suspect")
def test_a_thread_that_goes_on_is_a_suspect(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
import threading, time
def heartbeat():
    while True:
        time.sleep(0.01)
def wire(entrypoint, params, seed):
    running = threading.active_count()
    threading.Thread(target=heartbeat, name="heart", daemon=True).start()
    return {"out": {"threads": running}}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-3")
    assert found.status == 1 and found.causes == []
    suspect = found.report["leaks"][0]["suspects"][0]
    assert (suspect["kind"], suspect["name"]) == ("thread", "the thread 'heart'")
    assert "probe.py:5 in heartbeat" in suspect["new"] and "suspects" in found.text and "'heart'" in found.text


@pytest.mark.full("a dozen tasks, again and again")
def test_a_leak_from_one_task_of_many_to_one(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
STATE = {}
def wire(entrypoint, params, seed):
    if seed == 3:
        STATE["factor"] = 10
    return {"out": {"value": seed * (STATE.get("factor", 1) if seed == 7 else 1)}, "same": str(seed)}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-12")
    assert found.status == 1
    (leak,) = found.report["leaks"]
    assert (leak["polluters"], leak["victims"]) == ([3], [7])
    (gap,) = leak["differences"]
    assert (gap["output"], gap["path"], gap["values"], gap["largest"]) == ("out", "$.value", ["7", "70"], 63)
    (cause,) = leak["causes"]
    assert cause["name"] == "probe.STATE" and ["['factor']", "nothing", "10"] in cause["parts"]
    assert "task 3 changes task 7" in found.text


@pytest.mark.full("sets of more than one take longer")
def test_two_tasks_that_only_together_change_a_third(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
SEEN = set()
def wire(entrypoint, params, seed):
    both = {2, 4} <= SEEN
    SEEN.add(seed)
    return {"out": str(seed + both * (seed == 6))}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-6")
    (leak,) = found.report["leaks"]
    assert (leak["polluters"], leak["victims"]) == ([2, 4], [6]) and "tasks 2, 4 together change task 6" in found.text
    assert [cause["name"] for cause in leak["causes"]] == ["probe.SEEN"]


@pytest.mark.full("sets of more than one take longer")
def test_outputs_that_differ_for_different_reasons_have_causes_of_their_own(
    leaks: Callable[..., Search], tmp_path: Path
) -> None:
    """One of them can't be put back: that takes nothing from what is known of the others."""
    code = """
import atexit
import dateutil.tz
SEEN = []
def wire(entrypoint, params, seed):
    marker = getattr(dateutil.tz.tzutc, "marker", "none")
    outputs = {"seen": str(len(SEEN)), "exits": str(atexit._ncallbacks()), "tz": str(marker)}
    SEEN.append(seed)
    dateutil.tz.tzutc.marker = seed
    atexit.register(print)
    return outputs
"""
    found = leaks(write_bundle(tmp_path / "bundle", code, needs=["python-dateutil"]), "1-2")
    leak = found.report["leaks"][0]
    assert [cause["name"] for cause in leak["causes"]] == ["probe.SEEN", "dateutil.tz.tz.tzutc.marker"], found.text
    assert [what["name"] for what in leak["suspects"]] == ["atexit._ncallbacks()"]
    assert leak["note"] == "no cause was found for exits" and leak["note"] in found.text


@pytest.mark.full("waits for forks that never end")
def test_where_forks_do_not_tell_each_trial_is_a_process(leaks: Callable[..., Search], tmp_path: Path) -> None:
    """No fork has the pool's thread: what waits for it waits until its time is over."""
    code = """
from concurrent.futures import ThreadPoolExecutor
POOL = ThreadPoolExecutor(1)
SEEN = []
def wire(entrypoint, params, seed):
    SEEN.append(seed)
    return {"out": str(POOL.submit(len, SEEN).result())}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-2")
    assert {cause["name"] for cause in found.causes} == {"probe.SEEN"}, found.text


@pytest.mark.full("another kind of leak")
def test_a_setting_in_a_dependencys_native_data(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
import polars
def wire(entrypoint, params, seed):
    out = str(polars.DataFrame({"a": [1e9 / 3]}))
    polars.Config.set_thousands_separator(",")
    return {"out": out}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code, needs=["polars"]), "1-2")
    (cause,) = found.report["leaks"][0]["causes"]
    assert cause["kind"] == "native data" and "polars" in cause["library"] and not cause["points"], found.text
    assert "set_thousands_separator" in cause["line"]["text"]


@NEEDS_A_COMPILER
@pytest.mark.full("another kind of leak")
def test_the_generator_of_the_c_library(leaks: Callable[..., Search], tmp_path: Path) -> None:
    bundle = native_bundle(tmp_path / "bundle", "C")
    source = bundle / "native.c"
    source.write_text(source.read_text().replace("held_total += x;", "held_total = x + rand() % 1000;"))
    found = leaks(bundle, "1-2")
    assert found.status == 1 and {cause["name"] for cause in found.causes} == {"the C library's rand()"}, found.text
    assert "random state the C library's rand() was drawn from" in found.text


@pytest.mark.full("another kind of leak")
def test_an_import_that_changes_something_is_named(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
import sys
def wire(entrypoint, params, seed):
    if seed == 1:
        import patches
    return {"out": str("patches" in sys.modules or seed)}
"""
    bundle = write_bundle(tmp_path / "bundle", code, files={"patches.py": "X = 1\n"})
    found = leaks(bundle, "1-2")
    (leak,) = found.report["leaks"]
    assert leak["imports"] == ["patches"] and leak["polluters"] == [1] and "importing patches" in found.text


CLEAN = {
    "a model with a generator of its own": """
import random
CALLS = []
def wire(entrypoint, params, seed):
    CALLS.append(seed)
    return {"out": {"draw": random.Random(seed).random()}}
""",
    "a task that raises": """
CALLS = []
def wire(entrypoint, params, seed):
    CALLS.append(seed)
    if seed == 2:
        raise ValueError("two is not for me")
    return {"out": str(seed)}
""",
    "a task that kills its process": """
import os
def wire(entrypoint, params, seed):
    if seed == 2:
        os.kill(os.getpid(), 11)
    return {"out": str(seed)}
""",
}


@pytest.mark.parametrize(
    "code", rows(CLEAN, ("a model with a generator of its own",), "another task that changes nothing")
)
def test_a_clean_bundle_has_no_leak(code: str, leaks: Callable[..., Search], tmp_path: Path) -> None:
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-4")
    assert (found.status, found.report["verdict"], found.report["leaks"]) == (0, "no leak", []), found.text
    assert "No task changes" in found.text
    assert ("task 2: no result cold" in found.text) == ("seed == 2" in code)
    words = re.findall(r"two is not for me|SIGSEGV", found.text)  # the bundle's own, or the signal
    assert bool(words) == ("seed == 2" in code), found.text


UNSTABLE = {
    "an unseeded generator": ("import random", "random.random()", "nondeterministic", ["random"]),
}
ANOTHER = {  # test_each_output_is_told_apart has the hash seed as well
    "the hash seed": ("", "sorted([hash('a'), hash('b')])", "hash seed", []),
    "an address": ("", "id(object())", "nondeterministic", []),
    "the clock": ("import time", "time.time_ns()", "nondeterministic", []),
}


@pytest.mark.parametrize(
    ("start", "value", "verdict", "unseeded"),
    [pytest.param(*row, id=name) for name, row in UNSTABLE.items()]
    + [
        pytest.param(*row, id=name, marks=pytest.mark.full("another source of chance")) for name, row in ANOTHER.items()
    ],
)
def test_what_a_task_does_by_itself_is_no_leak(
    start: str, value: str, verdict: str, unseeded: list[str], leaks: Callable[..., Search], tmp_path: Path
) -> None:
    code = f'{start}\ndef wire(entrypoint, params, seed):\n    return {{"loose": str({value}), "firm": str(seed)}}\n'
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-2")
    assert (found.status, found.report["leaks"]) == (3, []), found.text
    for task in found.report["tasks"]:
        assert (task["verdict"], task["unstable"]) == (verdict, ["loose"])
    assert found.report["tasks"][0]["unseeded"] == unseeded
    assert "tasks 1, 2" in found.text and ("nothing seeds Python's random module" in found.text) == bool(unseeded)


@pytest.mark.full("two outputs, where one is told already")
def test_each_output_is_told_apart(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
import time
def wire(entrypoint, params, seed):
    return {"clock": str(time.time_ns()), "order": str(hash("a")), "firm": "1"}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-2")
    assert (found.status, found.report["leaks"]) == (3, []), found.text
    for task in found.report["tasks"]:
        assert (task["verdict"], task["unstable"]) == ("nondeterministic", ["clock", "order"])
        assert {(gap["output"], gap["by"]) for gap in task["differences"]} >= {
            ("clock", "nondeterministic"),
            ("order", "hash seed"),
        }
    assert "(by the hash seed alone)" in found.text


@pytest.mark.full("another leak")
def test_a_leak_in_what_the_hash_seed_changes_is_found(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
COUNT = 0
def wire(entrypoint, params, seed):
    global COUNT
    COUNT += 1
    return {"out": f"{hash('a')} {COUNT}"}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-2")
    assert found.status == 1 and {cause["name"] for cause in found.causes} == {"probe.COUNT"}
    assert found.report["tasks"][0]["verdict"] == "hash seed"


@pytest.mark.full("another leak")
def test_a_leak_beside_what_is_nondeterministic_is_found(leaks: Callable[..., Search], tmp_path: Path) -> None:
    code = """
import time
COUNT = 0
def wire(entrypoint, params, seed):
    global COUNT
    COUNT += 1
    return {"loose": str(time.time_ns()), "firm": str(COUNT)}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-2")
    assert found.status == 1 and {cause["name"] for cause in found.causes} == {"probe.COUNT"}


def test_a_bundle_that_can_not_be_run(leaks: Callable[..., Search], tmp_path: Path) -> None:
    found = leaks(write_bundle(tmp_path / "bundle", needs=["no-such-package-f00d"]), "1-2")
    assert (found.status, found.report["verdict"]) == (2, "could not tell") and "no-such-package-f00d" in found.text


def test_tasks_that_all_fail_tell_nothing(leaks: Callable[..., Search], tmp_path: Path) -> None:
    found = leaks(write_bundle(tmp_path / "bundle", "def wire(e, p, s):\n    raise ValueError('bad')\n"), "1-2")
    assert (found.status, found.report["verdict"]) == (2, "could not tell") and "ValueError: bad" in found.text


@pytest.mark.full("many searches until the limit is met")
def test_a_process_of_many_tasks_has_the_memory_of_one(leaks: Callable[..., Search], tmp_path: Path) -> None:
    """What is kept from task to task meets the profile's limit, which sharing a process does not widen."""
    code = """
KEPT = []
def wire(entrypoint, params, seed):
    KEPT.append(b"x" * (180 << 20))
    return {"out": str(seed)}
"""
    found = leaks(write_bundle(tmp_path / "bundle", code), "1-4", "--limit", "memory=512MiB")
    assert found.status == 1, found.text
    gaps = [gap for leak in found.report["leaks"] for gap in leak["differences"]]
    assert gaps and all("memory" in json.dumps(gap).lower() for gap in gaps), gaps
    assert "memory" in found.text.lower()


@pytest.mark.full("the same search of tasks from another kind of file")
def test_the_tasks_of_a_study_file(leaks: Callable[..., Search], tmp_path: Path) -> None:
    study = tmp_path / "study.json"
    sets = [{"x": 1}, {"x": 2}]
    study.write_text(json.dumps({"model": "probe.Model", "scenario": "base", "parameter_sets": sets}))
    code = "SEEN = []\ndef wire(entrypoint, params, seed):\n    SEEN.append(1)\n    return {'out': str(len(SEEN))}\n"
    found = leaks(write_bundle(tmp_path / "bundle", code), "", "--study", str(study))
    assert found.status == 1 and [cause["name"] for cause in found.causes][:1] == ["probe.SEEN"]
    assert [task["task"]["params"] for task in found.report["tasks"]] == sets


def test_tasks_of_a_file_and_the_page(leaks: Callable[..., Search], tmp_path: Path) -> None:
    """What the bundle says is escaped on the page, and no control character of it reaches the terminal."""
    code = """
STATE = {}
def wire(entrypoint, params, seed):
    before = STATE.get("<script>alert(1)</script>\\x1b[2J", "none")
    STATE["<script>alert(1)</script>\\x1b[2J"] = params["x"]
    return {"out": before}
"""
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"entrypoint": "main", "params": {"x": x}, "seed": 1}) + "\n" for x in "ab"))
    page = tmp_path / "leaks.html"
    found = leaks(write_bundle(tmp_path / "bundle", code), "", "--tasks", str(tasks), "--html", str(page))
    assert found.status == 1 and "\x1b" not in found.text
    text = page.read_text()
    assert "probe.STATE" in text and "&lt;script&gt;" in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "") and "\x1b" not in text


def test_on_a_terminal_it_says_how_far_it_is(store: Path, tmp_path: Path) -> None:
    code = "SEEN = []\ndef wire(e, p, s):\n    SEEN.append(s)\n    return {'out': str(len(SEEN))}\n"
    bundle = write_bundle(tmp_path / "bundle", code)
    command = [sys.executable, "-m", "modelops", "leaks", str(bundle), "--entrypoint", "main", "--seeds", "1-2"]
    env = {**os.environ, "MODELOPS_RUNNER_STORE_DIR": str(store), "VENVS_DIR": str(tmp_path / "venvs"), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: it has ended
            while part := os.read(ours, 1 << 16):
                shown += part
        assert process.stdout is not None and b"task 1 changes task 2" in process.stdout.read()
    os.close(ours)
    assert process.returncode == 1
    for stage in ("cold runs", "shared processes", "earlier tasks", "causes"):
        assert stage in shown.decode(), shown
    assert "2/2" in shown.decode()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seeds", "1"), "needs two"),
        (("--tasks", "t.jsonl"), "name the tasks"),
        (("--seeds", "x"), "seeds"),
        (("--limit", "memry=1GiB"), "no limit 'memry'"),
        (("--profile", "none"), "no profile 'none'"),
        (("--json", "/proc/absent/x.json"), "/proc/absent/x.json: No such file or directory"),
        (("--html", "/"), "/: Is a directory"),
        (("--json", "/proc/x", "--html", "/proc/../proc/x"), "/proc/x can't hold two results"),
    ],
)
def test_what_can_not_be_searched_is_refused(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "def wire(e, p, s): return {}")
    done = CliRunner().invoke(app, ["leaks", str(bundle), "--entrypoint", "main", *options])
    assert done.exit_code == 2 and words in done.stderr, done.stderr
