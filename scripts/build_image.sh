#!/usr/bin/env bash
# Build the container image and try it: with docker where an engine answers, else with buildah, as root.
#
#   scripts/build_image.sh [--target cpu|openvino|gpu] [--tag NAME] [--no-try] [--clean]
#
# Without an engine the base is a Debian of debootstrap's, which stands in for python:3.11-slim-bookworm and needs no
# container registry; base and layers are kept in ${XDG_CACHE_HOME:-~/.cache}/ouzel-build (--clean removes them).
# The trial runs the image's own entry point as its own user, on a read-only root, without capabilities: the demo
# (broker, service, photographs, labels), then `ouzel run` with the image's health check and a SIGTERM.
set -euo pipefail
cd "$(dirname "$0")/.."

target=cpu tag=localhost/ouzel:local try=yes
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ouzel-build
while (($#)); do
  case $1 in
    --target) target=$2; shift ;;
    --tag) tag=$2; shift ;;
    --no-try) try=no ;;
    --clean) rm -rf "$cache"; echo "removed $cache"; exit ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done

started=$SECONDS
say() { printf '[%4d s] %s\n' $((SECONDS - started)) "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' consumer/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
build_args=(--target "$target" --tag "$tag" --build-arg "VERSION=$version" --build-arg "REVISION=$revision")
uid=10001

# --- build ----------------------------------------------------------------------------------------------------------

build_with_docker() {
  say "building $tag ($target) with docker"
  docker build "${build_args[@]}" .
  say "built: $(docker image inspect --format '{{.Size}}' "$tag" | numfmt --to=si) bytes"
}

buildah() {
  BUILDAH_ISOLATION=chroot command buildah --root "$cache/store" --runroot "$cache/run" "$@"
}

build_base() {
  [[ -n $(buildah images --quiet localhost/ouzel-base 2>/dev/null) ]] && { say "base: from the cache"; return; }
  command -v debootstrap >/dev/null || fail "no docker engine, and no debootstrap: apt-get install debootstrap buildah"
  say "base: debootstrap of bookworm"
  rm -rf "$cache/rootfs"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$cache/rootfs" \
    ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$cache/debootstrap.log" || fail "debootstrap: see $cache/debootstrap.log"
  rm -rf "$cache"/rootfs/var/cache/apt/archives/*.deb "$cache"/rootfs/var/lib/apt/lists/*
  local container
  container=$(buildah from scratch)
  buildah copy --quiet "$container" "$cache/rootfs" / >/dev/null
  buildah commit --quiet --rm "$container" localhost/ouzel-base >/dev/null
  rm -rf "$cache/rootfs"
}

build_with_buildah() {
  mkdir -p "$cache"
  build_base
  say "building $tag ($target) with buildah; layers in $cache"
  # The index is reached the way this machine reaches it.
  local mounts=()
  for path in /etc/ssl/certs /etc/hosts /etc/pip.conf; do
    [[ -e $path ]] && mounts+=(--volume "$path:$path:ro")
  done
  buildah bud --format docker --layers --network host "${mounts[@]}" "${build_args[@]}" \
    --build-arg BASE_IMAGE=localhost/ouzel-base .
  # Only layers that the image is made of stay: building after a change installs anew, and the disk does not fill up.
  buildah rm --all >/dev/null
  buildah rmi --prune >/dev/null
  say "built: $(buildah images --format '{{.Size}}' "$tag" | head -1)"
}

# --- try ------------------------------------------------------------------------------------------------------------

# in_image COMMAND...: run it as the image would be run. Environment for it: the array `given`.
given=()
in_image_docker() {
  local options=(--rm --network host --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)
  for pair in "${given[@]}"; do options+=(--env "$pair"); done
  exec docker run -i "${options[@]}" --entrypoint "$1" "$tag" "${@:2}"
}

in_image_buildah() {
  local environment
  mapfile -t environment < <(buildah inspect --type image --format '{{range .Docker.Config.Env}}{{println .}}{{end}}' "$tag" | sed '/^$/d')
  # A private mount namespace: the root read-only, /tmp and /dev/shm the only places to write, no capability left.
  # shellcheck disable=SC2016
  exec unshare --mount --propagation private bash -c '
    set -e; root=$1 uid=$2; shift 2
    mount --bind "$root" "$root"; mount -o remount,bind,ro "$root"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"; mount -t proc proc "$root/proc"; mount --bind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"; mount --bind /sys "$root/sys"
    exec chroot "$root" /usr/bin/setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs \
      --inh-caps=-all --bounding-set=-all /usr/bin/env -i -C /app "$@"
  ' - "$root" "$uid" "${environment[@]}" "${given[@]}" "$@"
}

wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || fail "$what"
    sleep 0.5
  done
}

service="" broker="" container="" work=""
clean_up() {
  local pid
  for pid in $service $broker; do kill "$pid" 2>/dev/null || true; done
  [[ -z $container ]] || { buildah umount "$container" && buildah rm "$container"; } >/dev/null
  rm -rf "$work"
}
trap clean_up EXIT

try_image() {
  work=$(mktemp -d)

  say "try: ouzel --help"
  ("$engine" ouzel --help) >/dev/null || fail "ouzel --help"
  say "try: who and where"
  ("$engine" python3 -c "
import os, pathlib
assert os.getuid() == $uid, os.getuid()
for path in ('/app/x', '/opt/ouzel/x', '/etc/x'):
    try: pathlib.Path(path).touch()
    except OSError: pass
    else: raise SystemExit(path + ' can be written')
pathlib.Path('/tmp/x').touch()
") || fail "not as locked down as it should be"

  say "try: ouzel demo"
  ("$engine" ouzel demo --json --output /tmp/page.html) >"$work/demo.jsonl" || fail "ouzel demo"
  python3 - "$work/demo.jsonl" <<'PYTHON'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
for row in rows:
    best = row["event"]["labels"][0]
    print(f"          {row['image']:16} {best['label']:32.32} {best['score']:.1%}", file=sys.stderr)
assert rows
PYTHON

  say "try: ouzel run, its health check and SIGTERM"
  mkfifo "$work/hold"
  ("$engine" python3 -m consumer.demo.broker images predictions images.dlq) <"$work/hold" >"$work/broker.json" &
  broker=$!
  exec {hold}>"$work/hold"
  wait_for 30 "the broker did not start" test -s "$work/broker.json"
  local port=$((20000 + RANDOM % 10000)) bootstrap check
  bootstrap=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["bootstrap_servers"])' "$work/broker.json")
  given=("OUZEL_KAFKA__BOOTSTRAP_SERVERS=$bootstrap" "OUZEL_HEALTH__PORT=$port")
  ("$engine" ouzel run) 2>"$work/service.log" &
  service=$!
  # The very words of HEALTHCHECK in the Dockerfile.
  check=$(sed -n 's/.*CMD \["python3", "-c", "\(.*\)"\]$/\1/p' Dockerfile)
  healthy() { kill -0 "$service" && ("$engine" python3 -c "$check"); }
  wait_for 120 "not healthy: $(tail -5 "$work/service.log")" healthy
  say "healthy"
  ready() { kill -0 "$service" && ("$engine" python3 -c "${check/livez/readyz}"); }
  wait_for 120 "not ready: $(tail -5 "$work/service.log")" ready
  say "ready; SIGTERM"
  kill -TERM "$service"
  local code=0; wait "$service" || code=$?
  ((code == 0)) || fail "ouzel run ended with $code: $(tail -5 "$work/service.log")"
  service=""
  exec {hold}>&-
  wait "$broker" || fail "the broker did not end well"
  broker=""
  say "tried: all well"
}

if docker info >/dev/null 2>&1; then
  build_with_docker
  engine=in_image_docker
  [[ $try == no ]] || try_image
else
  build_with_buildah
  engine=in_image_buildah
  if [[ $try == yes ]]; then
    container=$(buildah from "$tag")
    root=$(buildah mount "$container")
    try_image
  fi
fi
