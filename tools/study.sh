#!/usr/bin/env bash
# Set up, then run a small parameter study of the example bundle on an embedded Dask cluster.
#   tools/study.sh [flags of `modelops study`]
# MODELOPS_COLD_DEBUG=1 runs it in the cold environment; the results are the same.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh service
out=$(mktemp -d "${TMPDIR:-/tmp}/study.XXXXXX")
exec .venv/bin/python -m modelops study \
  --bundle tests/bundles/sir --entrypoint sir.model/baseline --out "$out" \
  --params '{"population": 10000, "gamma": 0.1, "days": 120}' --grid beta=0.2,0.3,0.4 --seeds 1-4 \
  --target sir.targets:prevalence --repository "$out/bundles" "$@"
