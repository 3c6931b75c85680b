#!/usr/bin/env bash
# Smoke tests of the runner as a shell user meets it: what it prints, what it exits with, what it leaves.
#   [PROFILE=NAME] tools/test_ultra_cold.sh
# Prints a line for each check and a count; fails if a check fails.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh runtime
python=.venv/bin/python
profile=${PROFILE:-default}
unset REUSE PRESERVE_TMP VENVS_DIR SANDBOX_PROFILES_DIR

work=$(mktemp -d)
chmod 0711 "$work" # as root, the sandbox's uid passes through here
listener=
finish() {
  if [[ -n $listener ]]; then kill "$listener" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT

passed=0
failed=0
# check NAME COMMAND...: one line, from the command's exit status. The last answer explains a failure.
check() {
  local name=$1
  shift
  if "$@" >"$work/check" 2>&1; then
    passed=$((passed + 1))
    printf 'ok   %s\n' "$name"
  else
    failed=$((failed + 1))
    printf 'FAIL %s\n' "$name"
    tail -n 5 "$work/check" | cut -c1-500
    if [[ -s $work/out ]]; then printf '     exit status %s: %s\n' "$status" "$(head -c 1000 "$work/out")"; fi
  fi
}

status=0
# run ARGUMENTS...: the runner with standard input from here; leaves $status, $work/out and $work/err.
run() {
  status=0
  "$python" tools/ultra_cold_runner.py --store-dir "$work/store" "$@" >"$work/out" 2>"$work/err" || status=$?
}

# task NAME [PARAMS [FLAGS...]]: one of the probe's tasks.
task() {
  local name=$1 params=${2:-"{}"}
  shift $(($# < 2 ? $# : 2))
  run --profile "$profile" --bundle-path "$work/probe" "$@" \
    <<<"{\"entrypoint\": \"$name\", \"params\": $params, \"seed\": 18446744073709551615}"
}

# holds EXPRESSION [VALUES...]: true of the answer `r`; `out(name)` is an output, `error` the error, `v` the values.
holds() {
  "$python" -I - "$work/out" "$@" <<'PYTHON'
import base64
import json
import sys

path, expression, *v = sys.argv[1:]
with open(path, "rb") as file:
    data = file.read()
r = json.loads(data)
error = r.get("_fatal_error", {})

def out(name):
    return base64.b64decode(r["outputs"][name]["inline"]).decode()

try:
    problem = "" if eval(expression) else "not so"
except (KeyError, TypeError, ValueError) as failure:
    problem = f"{type(failure).__name__} {failure} in"
if problem:
    sys.exit(f"     {problem}: {expression}")
PYTHON
}

exits() { [[ $status == "$1" ]]; }
same() { cmp "$1" "$2"; }
fails_with() { exits "$1" && holds 'error["type"] == v[0] and error["code"] == int(v[1])' "$2" "$1"; }
outputs_to() { "$python" -I -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["task_id"], sorted(r["outputs"].items()))' "$work/out" >"$1" || rm "$1"; }
tree_of() { (cd "$1" && find . -exec stat -c '%n %s %Y %a' {} + | sort); }
one_line() { [[ $(wc -l <"$work/out") == 1 ]] && holds 'data.endswith(b"\n") and "NaN" not in str(r)'; }
no_secret() { ! grep -q -e "$secret" "$work/out" "$work/err"; }
empty_run() { [[ -z $(find "$work/store/run" -name '.run-*') ]]; }

# The profile with a wall time of one second; a profile that extends another can't be extended itself.
short_profile() {
  local limits='[execute.limits]' file=sandbox-profiles/$profile.toml
  if [[ $profile == default ]]; then
    printf 'extends = "default"\n%s\nwall_seconds = 1\n' "$limits"
  elif grep -q -F "$limits" "$file"; then
    sed '/^\[execute\.limits\]/,/^\[/ s/^wall_seconds = .*/wall_seconds = 1/' "$file"
  else
    printf '%s\n%s\nwall_seconds = 1\n' "$(<"$file")" "$limits"
  fi
}

mkdir -p "$work/probe/src/probe"
cat >"$work/probe/pyproject.toml" <<'TOML'
[build-system]
requires = ["hatchling>=1.21"]
build-backend = "hatchling.build"
[project]
name = "probe"
version = "1.0"
[project.entry-points."modelops.wire"]
execute = "probe:wire"
[tool.hatch.build.targets.wheel]
packages = ["src/probe"]
TOML
cat >"$work/probe/src/probe/__init__.py" <<'PYTHON'
"""Tasks for the smoke tests; the entry point names one of the functions."""
import json
import os
import pathlib
import socket
import subprocess
import sys
import time


def wire(entrypoint, params, seed):
    return globals()[entrypoint](params, seed)


def noise(params, seed):
    print("noise on stdout", flush=True)
    print("noise on stderr", file=sys.stderr, flush=True)
    os.write(1, b'{"forged": true}\n')
    subprocess.run([sys.executable, "-c", "print('noise of a child')"])
    return {"seed": str(seed)}


def state(params, seed):
    """Leave a mark wherever one can be left; say where one was found."""
    places = ["/tmp/mark", "/dev/shm/mark", os.path.expanduser("~/mark"), "/bundle/mark", sys.prefix + "/mark"]
    found = [place for place in places if os.path.exists(place)]
    written = []
    for place in places:
        try:
            pathlib.Path(place).write_text("mark")
            written.append(place)
        except OSError:
            pass
    return {"found": found, "written": written}


def read(params, seed):
    def attempt(path):
        try:
            return open(path).read()
        except OSError as error:
            return type(error).__name__

    return {path.replace("/", "|"): attempt(path) for path in params["paths"]}


def environment(params, seed):
    return {"environment": dict(os.environ)}


def connect(params, seed):
    answers = {}
    for host, port in params["addresses"]:
        try:
            socket.create_connection((host, port), timeout=3).close()
            answers[host] = "connected"
        except OSError as error:
            answers[host] = type(error).__name__
    return answers


def sleep(params, seed):
    time.sleep(600)


def fail(params, seed):
    raise ValueError("this task fails")


def leave(params, seed):
    os._exit(0)


def target(sim_returns, target_data):
    return {"loss": sum(len(sim["outputs"]) for sim in sim_returns) + target_data["add"]}
PYTHON
before=$(tree_of "$work/probe")

echo "# one line, whatever the bundle prints"
task noise
check "exit status 0" exits 0
check "one line of JSON, and nothing of the noise" one_line
check "the noise is in the log instead" grep -q "noise of a child" "$work/err"
check "a seed of 2**64-1 arrives" holds 'out("seed") == "18446744073709551615"'
check "metrics are finite numbers" holds 'r["metrics"] and all(0 <= value < 1e15 for value in r["metrics"].values())'

echo "# fresh means fresh"
task state
check "the first run finds no mark" holds 'json.loads(out("found")) == []'
check "the task writes its temporary folders only" holds \
  '{"/tmp/mark"} <= {*json.loads(out("written"))} <= {"/tmp/mark", "/tmp/home/mark", "/dev/shm/mark"}'
outputs_to "$work/fresh"
task state
check "the second run finds none either" holds 'json.loads(out("found")) == []'
outputs_to "$work/again"
check "both give the same bytes and checksums" same "$work/fresh" "$work/again"
export REUSE=1
task state
outputs_to "$work/reuse1"
task state
outputs_to "$work/reuse2"
unset REUSE
check "REUSE=1 gives the same, twice" same "$work/reuse1" "$work/reuse2"
check "REUSE=1 gives what a fresh run gives" same "$work/fresh" "$work/reuse1"
check "REUSE=1 fetches and builds nothing the second time" holds 'r["metrics"]["fetch_seconds"] == r["metrics"]["build_seconds"] == 0'

echo "# the host stays out of reach"
secret=secret-$RANDOM$RANDOM$RANDOM
printf '%s\n' "$secret" >"$work/secret"
chmod 0644 "$work/secret"
task read "{\"paths\": [\"$work/secret\", \"/etc/shadow\", \"/proc/1/environ\", \"$HOME/.bashrc\", \"/bundle/pyproject.toml\"]}"
check "a file of the host can't be read" holds 'out(v[0].replace("/", "|")) == "FileNotFoundError"' "$work/secret"
check "nor /etc/shadow" holds 'out("|etc|shadow") in ("FileNotFoundError", "PermissionError")'
check "the bundle's own files can" holds '"probe" in out("|bundle|pyproject.toml")'
check "the secret is nowhere in the answer" no_secret
SMOKE_SECRET=$secret task environment
check "nor is one from the environment" no_secret
"$python" -I -c 'import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True: server.accept()[0].close()' >"$work/port" &
listener=$!
until [[ -s $work/port ]]; do sleep 0.05; done
port=$(<"$work/port")
check "the loopback of the host answers the host" "$python" -I -c "import socket; socket.create_connection(('127.0.0.1', $port), 3)"
task connect "{\"addresses\": [[\"127.0.0.1\", $port], [\"1.1.1.1\", 443], [\"example.org\", 80]]}"
check "but not the task, nor does the internet" holds 'len(r["outputs"]) == 3 and not any(out(host) == "connected" for host in r["outputs"])'

echo "# errors are one line too"
short_profile >"$work/short.toml"
begun=$SECONDS
profile="$work/short.toml" task sleep "{}" --profiles-dir sandbox-profiles
check "a task over its wall time: timeout, exit status 8" fails_with 8 timeout
check "one line, which names the limit" holds 'error["limit"]["name"] == "wall_seconds" and error["limit"]["value"] == 1'
check "and it ended soon after" test $((SECONDS - begun)) -le 15
task fail
check "a task that raises: task_exception, exit status 8" fails_with 8 task_exception
check "with type, message and traceback" holds 'error["exception"] == {"type": "ValueError", "message": "this task fails"} and "in fail" in error["traceback"]'
task leave
check "a task that leaves without a result: no_result, exit status 8" fails_with 8 no_result
task nothing:here
check "an entry point without a module: entrypoint_not_found, exit status 8" fails_with 8 entrypoint_not_found
run --profile "$profile" --bundle-path "$work/nowhere" <<<'{"entrypoint": "main", "params": {}, "seed": 1}'
check "a bundle that is not there: bundle_not_found, exit status 2" fails_with 2 bundle_not_found
check "one line with the phase" holds 'error["phase"] == "input" and error["retryable"] is False'
run --profile "$profile" --bundle-path "$work/probe" <<<'{"entrypoint": "main"'
check "input that is not JSON: input_invalid, exit status 2" fails_with 2 input_invalid
run --profile nosuch --bundle-path "$work/probe" <<<'{}'
check "a profile that is not there: profile_not_found, exit status 3" fails_with 3 profile_not_found
run --nonsense <<<'{}'
check "an unknown flag: usage, exit status 2" fails_with 2 usage

echo "# signals"
# In the background with its standard input from a file; wait gives the runner's own exit status.
printf '{"entrypoint": "sleep", "params": {}, "seed": 1}' >"$work/sleep.json"
"$python" tools/ultra_cold_runner.py --store-dir "$work/store" --profile "$profile" --bundle-path "$work/probe" \
  <"$work/sleep.json" >"$work/out" 2>"$work/err" &
runner=$!
for ((tenths = 0; tenths < 600; tenths++)); do # until it has a folder to work in; a slow machine takes its time
  [[ -z $(find "$work/store/run" -name '.run-*' -print -quit) ]] || break
  sleep 0.1
done
kill -TERM "$runner" || true
status=0
wait "$runner" || status=$?
check "SIGTERM: killed, exit status 143" fails_with 143 killed
check "one line that names the signal" holds 'error["signal"] == "SIGTERM" and error["retryable"] is True'

echo "# aggregation"
run --profile "$profile" --bundle-path "$work/probe" --aggregation \
  <<<'{"target_entrypoint": "probe:target", "sim_returns": [{"task_id": "a", "outputs": {"x": {"inline": "YQ=="}}}], "target_data": {"add": 0.5}}'
check "a plain target" holds 'r["loss"] == 1.5 and r["metrics"]'
for target in fit prevalence; do
  sed "s/sir.targets:fit/sir.targets:$target/" tests/bundles/sir/aggregation.json >"$work/aggregation.json"
  run --profile "$profile" --bundle-path tests/bundles/sir --aggregation <"$work/aggregation.json"
  check "the example's target $target" holds '0 <= r["loss"] < 1e6'
done

echo "# other commands"
run --doctor --profile "$profile" </dev/null
check "--doctor finds that sandboxes run here" holds 'r["doctor"]["ok"] is True'
run --print-bwrap --profile "$profile" </dev/null
check "--print-bwrap shows every phase" holds '{*r["phases"]} >= {"fetch", "build", "execute"} and "--unshare-net" in str(r["phases"]["execute"])'

echo "# nothing is left"
check "the bundle is as it was" test "$before" = "$(tree_of "$work/probe")"
check "no scratch of a run remains" empty_run

printf '# %d passed, %d failed\n' "$passed" "$failed"
[[ $failed == 0 ]]
