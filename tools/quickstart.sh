#!/usr/bin/env bash
# Set up, then run the example bundle in a sandbox. Prints one line of JSON; all else goes to stderr.
#   tools/quickstart.sh [flags of the runner]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh runtime
exec .venv/bin/python tools/ultra_cold_runner.py --bundle-path tests/bundles/sir "$@" <tests/bundles/sir/task.json
