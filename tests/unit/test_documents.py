"""What the documents list is what the code has: flags, types of errors, metrics, keys of profiles, variables."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from conftest import PROFILES, ROOT, RUNNER

README = (ROOT / "README.md").read_text()
OF_WORKERS = (ROOT / "src" / "modelops" / "README.md").read_text()


def table(text: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with `head`."""
    lines = text.partition(f"\n{head}")[2].partition("\n\n")[0].splitlines()
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]


def marked(text: str) -> list[str]:
    """What stands between backquotes."""
    return re.findall(r"`([^`]+)`", text)


def test_the_flags_of_the_runner(runner_module: Any) -> None:
    told = [flag.split()[0] for row in table(README, "| flag |") for flag in marked(row[0])]
    assert sorted(told) == sorted(option.name for option in runner_module.OPTIONS)


def named_errors(runner_module: Any) -> Iterator[str]:
    """Each literal that stands where the code names the type of an error."""
    place = {"Failure": 1, "ChildError": 0, "partial": 2}
    for node in ast.walk(ast.parse(RUNNER.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in place:
            named = node.args[place[node.func.id] :][:1]
            yield from (arg.value for arg in named if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    yield from (kind for _, kind, _ in runner_module.START_FAILURES)
    yield from [*runner_module.CHILD_ERRORS, *runner_module.LIMIT_WORDS]


def test_every_type_of_error(runner_module: Any) -> None:
    told = {name for row in table(README, "| type | phase |") for name in marked(row[0]) if not name.startswith("--")}
    assert set(named_errors(runner_module)) <= told
    words = set(re.findall(r"[a-z]+(?:_[a-z]+)*", RUNNER.read_text()))
    assert told - words == {"install_failed"}  # made of the phase's name


def test_every_metric(runner_module: Any) -> None:
    told = marked(README.partition("### Metrics\n")[2].partition("\n#")[0])
    assert sorted(told) == sorted(runner_module.metrics({}, runner_module.Usage(), 0.0))


def test_every_key_of_a_profile(runner_module: Any, default_profile: Any) -> None:
    rows = table((PROFILES / "README.md").read_text(), "| key |")
    names = [name for row in rows for name in marked("".join(row) if ".limits" in row[0] else row[0])]
    phases = ("fetch", "build", "compile", "execute")
    parts = [part for name, part in default_profile._asdict().items() if name not in (*phases, "description")]
    known = {*phases, "description", "extends", *(key for part in parts for key in part._fields)}
    known |= {*runner_module.PhasePolicy._fields, *runner_module.Limits._fields}
    assert {name.rpartition(".")[2] for name in names} == known


def test_every_variable_of_a_worker() -> None:
    told = {name for row in table(OF_WORKERS, "| variable |") for name in marked(row[0])}
    code = "".join(path.read_text() for path in (ROOT / "src" / "modelops").rglob("*.py"))
    assert set(re.findall(r"\"((?:MODELOPS|REGISTRY)_[A-Z_]+)\"", code)) == told - {"VENVS_DIR"}
