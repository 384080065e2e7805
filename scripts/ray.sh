#!/usr/bin/env bash
# The tests of jobs on Ray, in an environment that sees .venv and has on top what the extra asks
# for: .venv-ray, 270 MB. Arguments go to pytest. INSTALL_LIMIT_S: no failure if installing takes
# longer.
#
# Ray is not locked: a job runs on the version that its cluster has. Needs make setup before it.
set -euo pipefail
cd "$(dirname "$0")/.."

dev=.venv/bin/python
env=.venv-ray
python=$env/bin/python
stamp=$env/.installed

say() { printf 'ray: %s\n' "$*"; }
fail() {
  printf 'ray: %s\n' "$*" >&2
  exit 1
}

[ -x "$dev" ] || fail "there is no $dev: make setup first"

# INSTALL_LIMIT_S, for a run that has to end: what is not installed by then is left to whoever has the time.
within() { if [ -n "${INSTALL_LIMIT_S:-}" ]; then timeout "$INSTALL_LIMIT_S" "$@"; else "$@"; fi; }
give_up() { # give_up STATUS: of pip, or 124 of timeout
  local why="pip could not install them; a proxy or a mirror is named in pip's own settings"
  [ -n "${INSTALL_LIMIT_S:-}" ] || fail "$why"
  [ "$1" -ne 124 ] || why="not installed within $INSTALL_LIMIT_S s"
  say "no tests of Ray, which are left to make ray: $why"
  exit 0
}

mapfile -t wanted < <("$dev" -c "import tomllib
with open('pyproject.toml', 'rb') as file:
    extras = tomllib.load(file)['project']['optional-dependencies']
print('\n'.join(extras['ray']))")
told="$("$dev" -VV) $PWD ${wanted[*]}"

install() {
  local began=$SECONDS
  say "installing ${wanted[*]} into $env: 270 MB, in half a minute, once"
  "$dev" -m venv --clear "$env" || fail "$dev -m venv failed; Debian and Ubuntu ship it as the package python3-venv"
  local dev_packages env_packages
  dev_packages="$("$dev" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  env_packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  # A line of a .pth file that begins with import is run, so that .pth files found there count too.
  printf 'import site; site.addsitedir(%s)\n' "'$dev_packages'" >"$env_packages/dev.pth"
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  # Compiled now, whatever pip's settings say: every worker would parse it all anew.
  within "$python" -m pip install --quiet --compile "${wanted[@]}" ||
    give_up $?
  "$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
  printf '%s\n' "$told" >"$stamp"
  say "installed in $((SECONDS - began)) s, $(du -sm "$env" | cut -f1) MB"
}

if [ "$(cat "$stamp" 2>/dev/null)" = "$told" ]; then
  say "$env has what pyproject.toml asks for (rm -r $env for newer versions)"
else
  install
fi
say "running the tests of Ray"
"$python" -m scripts.run_tests -m engines tests/e2e/jobs/test_ray*.py "$@"
