#!/usr/bin/env bash
# Fill .venv-feast with Feast, whose 78 packages and pins fit no environment but their own.
#
# The version is that of the committed files in tests/contract/feast. Called by make.
set -euo pipefail
cd "$(dirname "$0")/.."

version="${FEAST_VERSION:-0.67.0}"

# uv does not read pip's settings; whoever set a mirror for pip means it for this too.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  index="$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)"
  index="${PIP_INDEX_URL:-$index}"
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
fi
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"

[ -x .venv-feast/bin/python ] || .venv/bin/uv venv --quiet --python .venv/bin/python .venv-feast
.venv/bin/uv pip install --python .venv-feast/bin/python --compile-bytecode \
  "feast[duckdb,redis]==$version"
