#!/usr/bin/env bash
# Set up, then run the tests; each skipped one is printed with its reason.
#   tools/test.sh [arguments of pytest]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH" # uv, for the tests that call it themselves
exec .venv/bin/python -m pytest -ra "$@"
