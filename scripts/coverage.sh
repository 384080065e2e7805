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

status=0
.venv/bin/coverage run -m pytest "$@" || status=$?
.venv/bin/coverage combine --quiet
.venv/bin/coverage report || status=$?
exit "$status"
