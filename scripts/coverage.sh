#!/usr/bin/env bash
# Every test with branch coverage, the processes that tests start included; fails below the bar
# that pyproject.toml sets. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

.venv/bin/coverage erase
.venv/bin/coverage run -m pytest "$@"
.venv/bin/coverage combine --quiet
.venv/bin/coverage report
