#!/usr/bin/env bash
# A Dask cluster of one's own: a scheduler and workers, each a container of the image, on one network.
#   tools/deploy/cluster.sh up [WORKERS]                 two by default
#   tools/deploy/cluster.sh study BUNDLE OUT [FLAGS...]  a study through it, with the flags of `modelops study`
#   tools/deploy/cluster.sh down                         everything of it is gone, results in OUT stay
# ENGINE (docker) starts them, IMAGE (modelops) is what they are of, NAME (modelops) begins their names.
set -euo pipefail

engine=${ENGINE:-docker}
image=${IMAGE:-modelops}
name=${NAME:-modelops}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# start ROLE OPTIONS...: all of them share one volume for bundles and outputs; the runner's store is each one's own.
start() {
  local role=$1
  shift
  "$engine" run --name "$name-$role" --network "$name" --volume "$name:/shared" --env MODELOPS_STORAGE_DIR=/shared \
    --security-opt "seccomp=$here/seccomp.json" "$@"
}

# dask ROLE ARGUMENTS...: a part of the cluster, in the background.
dask() {
  local role=$1
  shift
  start "$role" --detach --entrypoint tini "$image" -- dask "$@" >/dev/null
}

scheduler() {
  local address
  address=$("$engine" inspect --format "{{(index .NetworkSettings.Networks \"$name\").IPAddress}}" "$name-scheduler")
  echo "tcp://$address:8786"
}

containers() { "$engine" ps --all --quiet --filter "name=^$name-(scheduler|worker-[0-9]+|study)\$"; }

up() {
  "$engine" network create "$name" >/dev/null
  "$engine" volume create "$name" >/dev/null
  dask scheduler scheduler
  for ((worker = 1; worker <= ${1:-2}; worker++)); do
    dask "worker-$worker" worker "$(scheduler)" --name "$name-worker-$worker"
  done
  echo "scheduler at $(scheduler)"
}

# What the volume has under OUT's name goes on; what came of it is copied to OUT, also of a study that failed.
study() {
  local bundle out kept status=0
  bundle=$(realpath "$1")
  out=$2
  kept=/shared/out/$(basename "$out")
  shift 2
  start study --volume "$bundle:/bundle:ro" "$image" study --scheduler "$(scheduler)" \
    --bundle /bundle --repository /shared/bundles --out "$kept" "$@" || status=$?
  mkdir -p "$out"
  "$engine" cp "$name-study:$kept/." "$out" || status=$((status ? status : 1))
  "$engine" rm "$name-study" >/dev/null
  return "$status"
}

down() {
  containers | xargs -r "$engine" rm --force >/dev/null
  "$engine" volume rm --force "$name" >/dev/null
  "$engine" network rm "$name" >/dev/null
}

case ${1:-} in
  up | study | down) "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
