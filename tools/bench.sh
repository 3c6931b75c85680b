#!/usr/bin/env bash
# Set up, then measure the runner against floors made on the spot.
#   tools/bench.sh [--rounds N] [--json]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh runtime
exec .venv/bin/python tests/bench/bench_runner.py "$@"
