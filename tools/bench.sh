#!/usr/bin/env bash
# Set up, then measure the runner against floors made on the spot, or the execution environments.
#   tools/bench.sh [--rounds N] [--json]
#   tools/bench.sh service [--tasks N] [--only environments|study]
#   tools/bench.sh models [--json] [MODEL..]
#   tools/bench.sh leaks [--json] [--tasks N] [CASE..]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ${1:-} == service ]]; then
  tools/setup.sh service
  exec .venv/bin/python tests/bench/bench_service.py "${@:2}"
fi
if [[ ${1:-} == leaks ]]; then
  tools/setup.sh service
  exec .venv/bin/python tests/bench/bench_leaks.py "${@:2}"
fi
if [[ ${1:-} == models ]]; then
  tools/setup.sh runtime
  exec .venv/bin/python tests/bench/bench_models.py "${@:2}"
fi
tools/setup.sh service
exec .venv/bin/python tests/bench/bench_runner.py "$@"
