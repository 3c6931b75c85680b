#!/usr/bin/env bash
# Set up, then run the tests, on as many workers as there are processors; each skipped test is printed with its reason.
#   tools/test.sh [arguments of pytest]         everything once, by one account and under one profile: 4 to 6 minutes
#   tools/test.sh --full [arguments of pytest]  by every account and profile, in containers, with fuzzing and long sweeps
# THOROUGH=1 makes the full suite thorough (hours). -n 0 runs the tests in one process, for --pdb.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH" # uv, for the tests that call it themselves
unset PYTHONDONTWRITEBYTECODE      # else each worker, and each process of a test, compiles all that it imports
# More than processors, as many tests wait: of two, with four workers, a fourth was idle in the default suite.
more=4
[[ " $* " == *" --full "* ]] && more=2
exec .venv/bin/python -m pytest -ra -n "$(($(nproc) + more))" --dist loadgroup "$@"
