#!/usr/bin/env bash
# Every test with branch coverage, the processes that tests start included. Fails if a test does, or
# if coverage is below the bar in pyproject.toml. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

# Confined replicas run as other users and see nothing of the project but what they import.
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
chmod 1777 "$data"
export COVERAGE_FILE="$data/coverage"

# What runs PyTorch is tried where that is installed: by `make test-all`, without coverage.
omit=()
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  omit=("--omit=$(printf '*/runtimes/%s.py,' torchscript torch_{export,model,proof,values})")
fi

status=0
.venv/bin/coverage run -m pytest "$@" || status=$?
.venv/bin/coverage combine --quiet
.venv/bin/coverage report "${omit[@]}" || status=$?
exit "$status"
