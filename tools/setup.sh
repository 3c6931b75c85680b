#!/usr/bin/env bash
# Make this checkout ready on a Debian or Ubuntu that has Python 3.11 and nothing else.
#   tools/setup.sh [runtime|service|dev|hosts]   asks nothing, and is done at once where there is nothing to do
#   tools/setup.sh lock                          after a change of dependency groups: pin what they ask for now
#   tools/setup.sh upgrade                       pin the newest versions of everything
# hosts is dev, and what tests in containers, of registries, reviews and pages need; with THOROUGH=1 Docker's engine,
# crun, rootless podman and QEMU besides.
# All output is on stderr.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec 1>&2 </dev/null
group=${1:-runtime}
tools=() # each the program and its package
if [[ $group == hosts ]]; then
  group=dev
  tools=(podman=podman runc=runc debootstrap=debootstrap docker-registry=docker-registry htpasswd=apache2-utils strace=strace
    chromium=chromium)
  if [[ -n ${THOROUGH:-} ]]; then
    tools+=(dockerd=docker.io crun=crun newuidmap=uidmap qemu-system-x86_64=qemu-system-x86)
  fi
fi
venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONHOME PYTHONPATH

say() { printf 'setup: %s\n' "$*"; }
fail() { say "$*"; exit 1; }

# Versions and hashes of all that a group comes to, for every Python and machine; no URLs, so that any index serves.
lock_of() { echo ".ci/locks/$1.txt"; }
locked_groups=(dev service probes runtime) # dev has all the others

find_python() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

missing_tools() {
  local tool
  for tool in "${tools[@]}"; do
    [[ -n $(PATH=$PATH:/usr/sbin:/sbin type -P "${tool%=*}") ]] || echo "${tool#*=}"
  done
}

# The apt packages that are missing. Certificates are for the downloads, a compiler is the bundle's own affair.
missing_packages() {
  command -v bwrap >/dev/null || echo bubblewrap
  "$python" -I -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null || echo libseccomp2
  "$python" -I -c 'import ensurepip, venv' 2>/dev/null || "$python" -I -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
  missing_tools
  [[ -e ${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} || -d /etc/pki/tls/certs || -e /etc/ssl/ca-bundle.pem ]] || echo ca-certificates
}

may_install() { command -v apt-get >/dev/null && { [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null; }; }

as_root() {
  local environment=(env DEBIAN_FRONTEND=noninteractive LC_ALL=C)
  if [[ $(id -u) == 0 ]]; then "${environment[@]}" "$@"; else sudo -n "${environment[@]}" "$@"; fi
}

install_packages() {
  local install=(apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y -qq --no-install-recommends "$@")
  if ! command -v apt-get >/dev/null; then
    fail "install with this system's package manager what Debian calls: $*"
  fi
  if ! may_install; then
    fail "missing packages, and no right to install them; run: sudo apt-get install $*"
  fi
  say "installing $*"
  # The first try speaks only if it works: most often it fails for want of package lists.
  if ! as_root "${install[@]}" 2>/dev/null; then
    say "fetching the package lists"
    as_root apt-get -o DPkg::Lock::Timeout=300 update -qq || fail "apt-get update failed; then install: $*"
    as_root "${install[@]}" || fail "apt-get could not install: $*"
  fi
}

# The requirements of a dependency group (PEP 735), a line each: older pips can't read groups.
requirements_of() {
  "$python" -I - "$1" <<'PYTHON'
import sys, tomllib

def lines(name):
    for entry in groups[name]:
        yield from lines(entry["include-group"]) if isinstance(entry, dict) else [entry]

with open("pyproject.toml", "rb") as file:
    groups = tomllib.load(file)["dependency-groups"]
if sys.argv[1] not in groups:
    sys.exit(f"setup: there is no group {sys.argv[1]!r}; there are {', '.join(groups)}")
print("\n".join(lines(sys.argv[1])))
PYTHON
}

# What a lock was made for, as its first lines say it.
asked_of() { requirements_of "$1" | LC_ALL=C sort -u | sed 's/^/# /'; }

check_lock() {
  local group=$1 lock
  lock=$(lock_of "$group")
  if ! cmp -s <(sed -n '/^# /p' "$lock" 2>/dev/null) <(asked_of "$group"); then
    fail "$lock was made for other dependencies than pyproject.toml now has; renew it: tools/setup.sh lock"
  fi
}

make_locks() {
  local group version uv
  uv=$(PATH=$PWD/$venv/bin:$PATH type -P uv) || fail "the locks are made by uv; get it: $python -m pip install uv"
  mkdir -p "$(dirname "$(lock_of dev)")"
  made=$(mktemp -d)
  trap 'rm -rf "$made"' EXIT
  for group in "${locked_groups[@]}"; do
    local options=(--universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$@")
    cp "$(lock_of "$group")" "$made/$group" 2>/dev/null || true # its versions stay where they still fit
    [[ $group == dev ]] || options+=(-c "$made/dev")
    requirements_of "$group" | "$uv" pip compile --quiet "${options[@]}" -o "$made/$group" - >/dev/null
  done
  for version in 3.11 3.12 3.13 3.14; do
    "$uv" pip install --quiet --dry-run --target "$made/target" --python-version "$version" --only-binary :all: \
      --no-deps --require-hashes -r "$made/dev" || fail "Python $version would have no wheel of this"
  done
  # The same markers by python_version: for an old pip Ubuntu 22.04's 3.11.0rc1, a full version, is not below 3.12.
  for group in "${locked_groups[@]}"; do
    sed -i "s/python_full_version \(<\|>=\) \('3\.[0-9]*'\)/python_version \1 \2/g" "$made/$group"
    { asked_of "$group"; cat "$made/$group"; } >"$(lock_of "$group")"
  done
  say "made $(dirname "$(lock_of dev)")/*.txt"
}

python=$(find_python) || fail "no Python 3.11 or newer; install python3 (Debian 12, Ubuntu 24.04), or python3.11 (Ubuntu 22.04)"

# One set-up at a time for a checkout; the lock is the checkout itself and ends with this process.
exec 9<.
flock 9

case $group in
  lock) make_locks; exit ;;
  upgrade) make_locks --upgrade; exit ;;
  locked) for name in "${locked_groups[@]}"; do check_lock "$name"; done; exit ;; # for tools/lint.sh
esac

wanted="$(cat pyproject.toml "$(lock_of "$group")" 2>/dev/null | sha256sum) $("$python" -I -c 'import os, sys; print(os.path.realpath(sys.executable), sys.version)')"
if [[ -x $venv/bin/python && -f $venv/.ready-$group && $(<"$venv/.ready-$group") == "$wanted" ]] && command -v bwrap >/dev/null &&
  [[ -z $(missing_tools) ]]; then
  exit 0
fi

requirements_of "$group" >/dev/null
check_lock "$group"
mapfile -t packages < <(missing_packages)
if [[ ${#packages[@]} -gt 0 ]]; then
  install_packages "${packages[@]}"
fi
if [[ $group == dev ]] && ! command -v git >/dev/null && may_install; then
  # Tests of git dependencies use it; without it they are skipped.
  (install_packages git) || say "going on without git"
fi
if ! "$venv/bin/python" -I -m pip --version >/dev/null 2>&1; then
  say "making $venv with $python"
  "$python" -I -m venv --clear "$venv"
fi
say "installing the group $group"
"$venv/bin/python" -I -m pip install --quiet --require-hashes -r "$(lock_of "$group")"
if [[ $group == service || $group == dev ]]; then
  # The contracts of this tree only where none are: a published one that is there stays.
  if ! "$venv/bin/python" -I -c 'import modelops_contracts' 2>/dev/null; then
    "$venv/bin/python" -I -m pip install --quiet --no-build-isolation ./src/modelops-contracts
  fi
  "$venv/bin/python" -I -m pip install --quiet --no-build-isolation --no-deps --editable .
fi
printf '%s' "$wanted" >"$venv/.ready-$group"
say "ready"
