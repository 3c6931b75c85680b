"""Rules about the runner's own text."""

import ast
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from conftest import GROUP, PROFILES, RUNNER


@cache
def tree() -> ast.Module:
    return ast.parse(RUNNER.read_text())


def imported(module: ast.AST) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            yield node.module.partition(".")[0]


OF_THE_BUNDLE = {"polars"}  # imported in a sandbox, from the bundle's environment, where a target needs it


def test_only_the_standard_library_and_psutil_are_imported() -> None:
    assert {*imported(tree())} - sys.stdlib_module_names - OF_THE_BUNDLE == {"psutil"}


def test_the_child_imports_the_standard_library_alone(runner_module: Any) -> None:
    child = ast.parse(runner_module.child_program())
    assert {*imported(child)} <= sys.stdlib_module_names | OF_THE_BUNDLE


def test_the_child_is_the_first_part_of_the_file(runner_module: Any) -> None:
    child = runner_module.child_program()
    assert RUNNER.read_text().startswith(child[:-1])
    names = {node.name for node in ast.parse(child).body if isinstance(node, ast.FunctionDef)}
    assert {"child_main", "execute", "build", "fetch", "compile_tree"} <= names
    assert not {"main", "snapshot", "Supervisor"} & names


def test_the_group_of_the_wire_function_is_policy() -> None:
    assert GROUP.partition(".")[0] not in RUNNER.read_text()
    assert GROUP in (PROFILES / "default.toml").read_text()


def test_the_file_is_executable_and_says_what_it_needs() -> None:
    text = RUNNER.read_text()
    assert os.access(RUNNER, os.X_OK) and text.startswith("#!/usr/bin/env python3\n# /// script\n")
    assert 'dependencies = ["psutil"]' in text.partition('"""')[0]


def test_the_child_parses_on_every_python_that_may_start_it(runner_module: Any, tmp_path: Path) -> None:
    """--python may name an older interpreter than the runner's own."""
    child = runner_module.child_program()
    for minor in range(8, sys.version_info[1] + 1):
        ast.parse(child, feature_version=(3, minor))


def test_no_shortcut_runs_text() -> None:
    calls = [node for node in ast.walk(tree()) if isinstance(node, ast.Call)]
    keywords = {f"{k.arg}={ast.unparse(k.value)}" for node in calls for k in node.keywords}
    found = {ast.unparse(node.func) for node in calls} | keywords | {*imported(tree())}
    assert not found & {"exec", "eval", "pickle", "shelve", "yaml", "os.system", "shell=True"}


def test_importing_the_runner_starts_nothing(tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.argv = ['x', '--doctor']; runpy.run_path({str(RUNNER)!r}, run_name='imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")


def test_the_stdlib_is_where_the_child_is_told(runner_module: Any) -> None:
    assert runner_module.describe_interpreter()["stdlib"] == os.path.realpath(sysconfig.get_path("stdlib"))
