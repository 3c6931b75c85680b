"""Beside the published contracts: what is needed of them is known, checked at import, and named where it is missing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import modelops_contracts
import pytest

from modelops.contracts import NEEDED

SOURCE = Path(__file__).resolve().parent.parent.parent / "src" / "modelops"


def names_used() -> set[str]:
    return {
        alias.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "modelops_contracts" and not node.level
        for alias in node.names
    }


def test_what_is_used_is_what_is_checked() -> None:
    assert sorted(names_used()) == sorted(NEEDED)


def import_modelops(*folders: Path) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(map(str, [*folders, SOURCE.parent]))
    command = [sys.executable, "-S", "-c", "import modelops"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("missing", ["SimReturn", "canonical_task_id"])
def test_a_missing_name_is_named(tmp_path: Path, missing: str) -> None:
    package = tmp_path / "modelops_contracts"
    package.mkdir()
    names = [name for name in NEEDED if name != missing]
    (package / "__init__.py").write_text("\n".join(f"{name} = None" for name in names))
    done = import_modelops(tmp_path)
    words = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and f"needs {missing} of modelops-contracts" in words, done.stderr
    assert str(package) in words and "install github.com/" in words


def test_no_contracts_at_all() -> None:
    done = import_modelops()
    assert done.returncode == 1 and "modelops-contracts, which is not installed" in done.stderr.splitlines()[-1]


def test_the_ones_of_this_tree_will_do() -> None:
    contracts = Path(modelops_contracts.__file__).parent.parent
    assert import_modelops(contracts).returncode == 0
