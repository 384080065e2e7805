#!/usr/bin/env bash
# The tests of jobs on Ray and Spark, in an environment that sees .venv and has on top what the
# extras ask for: .venv-engines, 800 MB. ONLY=ray or ONLY=spark takes one of them, in .venv-ray or
# .venv-spark. Arguments go to pytest. INSTALL_LIMIT_S: no failure if installing takes longer.
#
# Neither is locked: a job runs on the version that its cluster has. Needs make setup before it, and
# for Spark Java 17 or newer, which scripts/install_java.sh brings; without it its tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

dev=.venv/bin/python

say() { printf 'engines: %s\n' "$*"; }
fail() {
  printf 'engines: %s\n' "$*" >&2
  exit 1
}

case "${ONLY:-}" in
'') names=(ray spark) env=.venv-engines size='800 MB, most of it Spark, in three minutes' ;;
ray) names=(ray) env=.venv-ray size='270 MB, in half a minute' ;;
spark) names=(spark) env=.venv-spark size='500 MB, in two minutes' ;;
*) fail "ONLY=$ONLY is neither ray nor spark" ;;
esac
[ -x "$dev" ] || fail "there is no $dev: make setup first"
python=$env/bin/python
stamp=$env/.installed

has_java() { if [ -n "${JAVA_HOME:-}" ]; then [ -x "$JAVA_HOME/bin/java" ]; else command -v java >/dev/null; fi; }
without_java='there is no Java, which Spark needs: scripts/install_java.sh installs it, as root on Debian and Ubuntu'
[ -z "${JAVA_HOME:-}" ] || without_java="there is no Java in $JAVA_HOME, which JAVA_HOME names, and Spark needs it"
if [[ " ${names[*]} " == *' spark '* ]] && ! has_java; then
  [ -z "${ONLY:-}" ] || fail "$without_java"
  say "$without_java; its tests are skipped"
fi

# INSTALL_LIMIT_S, for a run that has to end: what is not installed by then is left to whoever has the time.
within() { if [ -n "${INSTALL_LIMIT_S:-}" ]; then timeout "$INSTALL_LIMIT_S" "$@"; else "$@"; fi; }
give_up() { # give_up STATUS: of pip, or 124 of timeout
  local why="pip could not install them; a proxy or a mirror is named in pip's own settings"
  [ -n "${INSTALL_LIMIT_S:-}" ] || fail "$why"
  [ "$1" -ne 124 ] || why="not installed within $INSTALL_LIMIT_S s"
  say "no tests of ${names[*]}, which are left to make engines: $why"
  exit 0
}

mapfile -t wanted < <("$dev" -c "import sys, tomllib
with open('pyproject.toml', 'rb') as file:
    extras = tomllib.load(file)['project']['optional-dependencies']
print('\n'.join(one for name in sys.argv[1:] for one in extras[name]))" "${names[@]}")
told="$("$dev" -VV) $PWD ${wanted[*]}"

install() {
  local began=$SECONDS
  say "installing ${wanted[*]} into $env: $size, once"
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
say "running the tests of ${names[*]}"
tests=()
for name in "${names[@]}"; do tests+=(tests/e2e/jobs/test_"$name"*.py); done
"$python" -m scripts.run_tests -m engines "${tests[@]}" "$@"
