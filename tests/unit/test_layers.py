"""Imports of the package go down only, and never in a circle: command line, services and worker, adapters."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent.parent / "src" / "modelops"


def imports(path: Path, name: str) -> set[str]:
    """The modules of the package that a module's own code imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


@cache
def graph() -> dict[str, set[str]]:
    names = {
        ".".join(["modelops", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    return {name: (imports(path, name) & names.keys()) - {name} for name, path in names.items()}


def test_there_is_no_circle() -> None:
    assert list(TopologicalSorter(graph()).static_order())


def test_nothing_but_the_command_line_imports_it() -> None:
    top = ("modelops.cli", "modelops.commands", "modelops.__main__")
    for name, imported in graph().items():
        if not name.startswith(top):
            assert not [other for other in imported if other.startswith(top)], name


def test_adapters_import_no_service() -> None:
    for name, imported in graph().items():
        if name.startswith("modelops.adapters"):
            assert not [other for other in imported if other.startswith(("modelops.services", "modelops.worker"))], name


HEAVY = ("dask", "distributed", "arro3")


@pytest.mark.parametrize("command", ["run", "doctor", "example"])
def test_a_command_does_not_wait_for_what_it_does_not_use(command: str) -> None:
    code = f"""
import sys
from modelops.cli import main
sys.argv = ["modelops", {command!r}, "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
print("imported", *({{*sys.modules}} & {{*{HEAVY}}}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"modelops {command}" in out and out.splitlines()[-1] == "imported"
