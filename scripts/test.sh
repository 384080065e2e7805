#!/usr/bin/env bash
# Run a test suite: test.sh SUITE [PYTEST-ARGUMENT...]. CONTRIBUTING.md lists the suites.
#
# JOBS: test files at once; 0 runs all in one process. COV=1: branch coverage, only for `full`.
# INSTALL_LIMIT_S: frameworks, ray, Kafka and Pulsar are skipped if they cannot be installed in that
# time.
set -euo pipefail
cd "$(dirname "$0")/.."

suite="$1"
shift
# In the order of testpaths: long files start early, and short ones fill the end.
jobs=(-n "${JOBS:-3}" --dist loadfile --no-loadscope-reorder)
# Each worker would rewrite the assertions of all tests again.
export PYTHONDONTWRITEBYTECODE=
# The request path and its clients, which wheels compile.
compiled=(tests/e2e/serving tests/e2e/attacks tests/unit/core/test_requests.py
  tests/unit/{engine,protocol,serving,observe,runtimes})
nothing_collected=5
ran=0

say() { printf 'test: %s\n' "$*"; }
run() { .venv/bin/python -m scripts.run_tests "$@"; }
run_if_any() { # run_if_any PYTHON PYTEST-ARGUMENT...: a suite of which no test may be selected
  local status=0 python="$1"
  shift
  "$python" -m scripts.run_tests "$@" || status=$?
  if [ "$status" -eq "$nothing_collected" ]; then return 0; fi
  ran=1
  return "$status"
}

installed() { # installed ENVIRONMENT: false if INSTALL_LIMIT_S did not suffice
  local status=0
  scripts/setup.sh "$1" || status=$?
  [ "$status" -ne 75 ] || say "the tests of $1 are skipped: make test SUITE=$1 runs them"
  [ "$status" -eq 0 ] || [ "$status" -eq 75 ] || exit "$status"
  return "$status"
}

brokers() { # what tests marked `jvm` need; they skip without it
  if type -P java >/dev/null && type -P mvn >/dev/null; then
    timeout "${INSTALL_LIMIT_S:-600}" .venv/bin/python -m scripts.brokers --build ||
      say "the tests on Apache Kafka and Pulsar are skipped"
  fi
}

with_coverage() { # processes that tests start are measured too
  local status=0 omit=() data
  # Sandboxed replicas run as other users, who can write here.
  data=$(mktemp -d)
  chmod 1777 "$data"
  export COVERAGE_FILE="$data/coverage"
  # The PyTorch runtimes are tested only where PyTorch is installed, without coverage.
  if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    omit=('--omit=*/runtimes/torch/*')
  fi
  .venv/bin/coverage run -m pytest "$@" || status=$?
  .venv/bin/coverage combine --quiet
  .venv/bin/coverage report "${omit[@]}" || status=$?
  rm -rf "$data"
  return "$status"
}

marked() { # marked FRAMEWORK PATH...: the test files of one framework
  local mark="pytest\.mark\.$1\b" path
  shift
  for path in "$@"; do
    if [ -d "$path" ]; then
      grep -rl --include='test_*.py' "$mark" "$path" || true
    elif grep -q "$mark" "${path%%::*}"; then
      printf '%s\n' "$path"
    fi
  done
}

frameworks() { # one process per framework: PyTorch and TensorFlow abort a process that loads both
  installed frameworks || { ran=1 && return 0; }
  local paths=() options=() files framework argument failed=0
  for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then paths+=("$argument"); else options+=("$argument"); fi
  done
  for framework in torch tensorflow; do
    # Collecting a file imports its framework, so other files are not collected.
    mapfile -t files < <(marked "$framework" "${paths[@]:-tests}")
    [ "${#files[@]}" -gt 0 ] || continue
    say "tests that need $framework, in .venv-all"
    run_if_any .venv-all/bin/python "${jobs[@]}" -m "$framework" "${options[@]}" "${files[@]}" || failed=1
  done
  return "$failed"
}

case "$suite" in
fast) brokers && run -m "not long and not kube_server" "${jobs[@]}" "$@" ;;
unit) run -m "not e2e and not long" "${jobs[@]}" "$@" ;;
e2e) brokers && run -m "e2e and not long and not kube_server" "${jobs[@]}" "$@" ;;
long) brokers && run -m long "${jobs[@]}" "$@" ;;
full)
  brokers
  if [ "${COV:-}" = 1 ]; then with_coverage "${jobs[@]}" "$@"; else run "${jobs[@]}" "$@"; fi
  ;;
frameworks | all)
  failed=0
  frameworks "$@" || failed=1
  if [ "$suite" = all ]; then
    run_if_any .venv/bin/python -m "not torch and not tensorflow" "${jobs[@]}" "$@" || failed=1
  fi
  [ "$ran" -eq 1 ] || { say "no test was selected" && failed=1; }
  exit "$failed"
  ;;
mlflow) # its own processes: each test starts those that need a framework
  installed frameworks || exit 0
  .venv-all/bin/python -m scripts.run_tests -m mlflow "${@:-tests/mlflow}"
  ;;
ray)
  installed ray || exit 0
  .venv-ray/bin/python -m scripts.run_tests -m engines tests/e2e/jobs/test_ray*.py "$@"
  ;;
kube) scripts/setup.sh kube && run -m kube "${jobs[@]}" "$@" ;;
kube_server) # not beside other tests: each worker has a cluster
  .venv/bin/python -m scripts.kube_server --build
  run -m "kube_server and not long" -n "${JOBS:-2}" --dist loadfile "$@"
  ;;
feast) scripts/setup.sh feast && run tests/contract/test_feast.py tests/unit/features/feast "$@" ;;
clients) # one process: one system serves all clients
  scripts/setup.sh clients && run tests/clients "$@"
  ;;
docs) run "${jobs[@]//loadfile/load}" tests/docs "$@" ;;
compiled)
  .venv/bin/python -m scripts.compiled
  [ $# -gt 0 ] || set -- "${compiled[@]}"
  PYTHONPATH="$PWD/build/site" run -m "not long" "${jobs[@]}" "$@"
  ;;
images) run -s tests/images -m "not long" "$@" ;;
images-all) run -s tests/images "$@" ;;
kube-events) # what callers lose at each event in the life of a cluster: a table in dist/
  scripts/setup.sh kube && run -s tests/chaos/kubernetes "$@"
  ;;
chaos)
  brokers
  export CHAOS_JOB_KILLS=20 CHAOS_CALL_S=31
  run -s tests/chaos tests/e2e/jobs/test_kills.py tests/e2e/streaming/test_failures.py -k "at_random or longer_than or a_stream_over" "$@"
  ;;
mutants)
  scripts/setup.sh mutants
  HYPOTHESIS_PROFILE=dev .venv/bin/python scripts/mutants.py "$@"
  ;;
nightly)
  export HYPOTHESIS_PROFILE=nightly
  for part in unit compiled long frameworks ray; do scripts/test.sh "$part" "$@"; done
  ;;
*)
  say "there is no suite '$suite'; CONTRIBUTING.md lists them" >&2
  exit 2
  ;;
esac
