#!/usr/bin/env bash
# Every test with branch coverage, the processes that tests start included. Fails if a test does, or
# if coverage is below the bar in pyproject.toml. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
.venv/bin/coverage erase
.venv/bin/coverage run -m pytest "$@" || status=$?
.venv/bin/coverage combine --quiet
.venv/bin/coverage report || status=$?
exit "$status"
