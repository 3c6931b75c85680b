#!/usr/bin/env bash
# Every gate that needs no sandbox. Runs all of them, then fails if one failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh dev
runner=tools/ultra_cold_runner.py
failed=()

gate() {
  local name=$1
  shift
  printf -- '--- %s\n' "$name"
  "$@" || failed+=("$name")
}

no_policy() { ! grep -n "modelops" "$runner"; }

# The runner is one file: nothing but the standard library and psutil, and no function too long to review.
shape() {
  .venv/bin/python -I - "$runner" <<'PYTHON'
import ast
import sys

path = sys.argv[1]
with open(path, encoding="utf-8") as file:
    tree = ast.parse(file.read())
allowed = {*sys.stdlib_module_names, "psutil"}
problems = []
for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or "."] if not node.level else ["."]
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        length = node.end_lineno - node.lineno + 1
        if length > 60:
            problems.append(f"{path}:{node.lineno}: {node.name} has {length} lines, the limit is 60")
    # polars is the bundle's: the child imports it only where the target's inputs need it.
    optional = {"polars"}
    problems += [
        f"{path}:{node.lineno}: imports {name}"
        for name in names
        if name.partition(".")[0] not in allowed | optional
    ]
print("\n".join(problems) or "ok")
sys.exit(bool(problems))
PYTHON
}

types() {
  .venv/bin/python -m mypy --strict "$runner" &&
    .venv/bin/python -m mypy --strict -p modelops_contracts -p modelops
}

gate "the runner names no policy" no_policy
gate "imports and function length of the runner" shape
gate "locks of what set-up installs" tools/setup.sh locked
gate "ruff check" .venv/bin/python -m ruff check --output-format concise .
gate "ruff format" .venv/bin/python -m ruff format --check --output-format concise .
gate "mypy" types
if command -v shellcheck >/dev/null; then
  gate "shellcheck" shellcheck tools/*.sh tools/deploy/*.sh .ci/run
else
  echo "--- shellcheck is not installed: left out"
fi

if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "all gates passed"
