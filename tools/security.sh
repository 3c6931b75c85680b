#!/usr/bin/env bash
# Measure again what tests/security/MEASURED.md says, and print its tables as Markdown on stdout.
#   tools/security.sh             every escape probe, host and fault, as in the full test suite
#   THOROUGH=1 tools/security.sh  all of them by all accounts and profiles, and the long counts (hours)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh hosts || tools/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH"
tables=$(mktemp)
trap 'rm -f "$tables"' EXIT
status=0
.venv/bin/python -m pytest --full -ra -n "$(($(nproc) + 1))" --dist loadgroup --evidence "$tables" tests/security tests/hosts tests/faults tests/fuzz "$@" >&2 || status=$?
printf 'Commit %s, %s, kernel %s, Python %s, %s, %s.\n\n' \
  "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release)" "$(uname -r)" \
  "$(.venv/bin/python -c 'import platform; print(platform.python_version())')" "$(bwrap --version)" \
  "$([[ $(id -u) == 0 ]] && echo 'as root' || echo 'as an ordinary user')"
cat "$tables"
exit "$status"
