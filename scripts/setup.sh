#!/usr/bin/env bash
# Fill .venv with the locked requirements in requirements/$1.txt and with this package, editable.
#
# Needs python3 (3.11 or newer, with venv) and nothing else. Called by make when a lock changed.
set -euo pipefail
cd "$(dirname "$0")/.."

lock="requirements/${1:-dev}.txt"
python="${PYTHON:-python3}"
bin=.venv/bin

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

if ! "$bin/python" -c "$is_new_enough" 2>/dev/null; then
  command -v "$python" >/dev/null || fail "'$python' is not on PATH; name one: make PYTHON=..."
  "$python" -c "$is_new_enough" ||
    fail "Python 3.11 or newer is needed, '$python' is $("$python" -V 2>&1); make PYTHON=python3.12"
  say "creating .venv with $("$python" -V)"
  "$python" -m venv --clear .venv ||
    fail "'$python -m venv' failed; Debian and Ubuntu ship it as the package python3-venv"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1
if ! "$bin/uv" --version 2>/dev/null | grep -qF "$(sed -n 's/^uv==\([^ ]*\).*/uv \1/p' requirements/uv.txt)"; then
  say "installing uv"
  "$bin/python" -m pip install --quiet --require-hashes -r requirements/uv.txt
fi

# uv does not read pip's settings; whoever set a mirror for pip means it for this too.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  index="$("$bin/python" -m pip config get global.index-url 2>/dev/null || true)"
  index="${PIP_INDEX_URL:-$index}"
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
fi
# The first run fills a cache that may lie on another disk, where hard links cannot go.
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"
export VIRTUAL_ENV="$PWD/.venv"

say "installing $lock"
"$bin/uv" pip install --require-hashes --compile-bytecode -r "$lock"
# hatchling is locked too, so the build needs no network of its own.
"$bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .
