#!/usr/bin/env bash
# Start a Docker daemon of our own where none runs, with everything of it in one folder.
#
# start_docker.sh FOLDER: prints the socket's URL, for DOCKER_HOST, once it answers.
# start_docker.sh --stop FOLDER: ends that daemon, and removes the folder.
#
# It makes no network of its own (no bridge, no rule of the firewall), so that it runs in a
# container or a small virtual machine too: build and run with --network host. Needs root.
set -euo pipefail

fail() {
  printf 'start_docker: %s\n' "$*" >&2
  exit 1
}

stop() {
  local folder="$1" pid
  pid="$(cat "$folder/docker.pid" 2>/dev/null || true)"
  if [ -n "$pid" ] && [ -d "/proc/$pid" ]; then
    kill "$pid"
    for _ in $(seq 100); do
      [ -d "/proc/$pid" ] || break
      sleep 0.2
    done
    [ ! -d "/proc/$pid" ] || fail "the daemon $pid does not end"
  fi
  # What a container had mounted would be removed with the folder.
  while read -r mounted; do umount --lazy "$mounted"; done < <(awk -v at="$folder/" 'index($2, at) == 1 {print $2}' /proc/mounts | sort -r)
  rm -rf --one-file-system "${folder:?}"
}

start() {
  local folder="$1" log url
  [ "$(id -u)" = 0 ] || fail "only root can start a daemon; or set DOCKER_HOST to one that runs"
  command -v dockerd >/dev/null || fail "there is no dockerd; Debian has it as docker.io with docker-cli and docker-buildx"
  mkdir -p "$folder"
  log="$folder/docker.log"
  url="unix://$folder/docker.sock"
  for driver in ${DOCKER_STORAGE_DRIVER:-overlay2 fuse-overlayfs vfs}; do
    setsid dockerd --host "$url" --data-root "$folder/data" --exec-root "$folder/exec" \
      --pidfile "$folder/docker.pid" --storage-driver "$driver" --iptables=false --ip6tables=false \
      --bridge=none >"$log" 2>&1 </dev/null &
    local pid=$!
    for _ in $(seq 150); do
      if docker --host "$url" version >/dev/null 2>&1; then
        printf '%s\n' "$url"
        return
      fi
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  tail -n 5 "$log" >&2
  fail "the daemon does not start; its log is in $log"
}

case "${1:-}" in
--stop) stop "$(realpath -m "${2:?the folder}")" ;;
/*) start "$(realpath -m "$1")" ;;
*) fail "usage: start_docker.sh [--stop] /FOLDER" ;;
esac
