#!/usr/bin/env bash
# The tests of jobs on Ray and Spark, in .venv-engines, which sees .venv and what is installed on
# top: 800 MB. Arguments go to pytest. Spark also needs Java 17; without it its tests are skipped.
#
# Neither is locked: a job runs on the version that its cluster has. Needs make setup before it.
set -euo pipefail
cd "$(dirname "$0")/.."

dev=.venv/bin/python
env=.venv-engines
python=$env/bin/python
stamp=$env/.installed

say() { printf 'engines: %s\n' "$*"; }

mapfile -t wanted < <("$dev" -c "import tomllib
with open('pyproject.toml', 'rb') as file:
    extras = tomllib.load(file)['project']['optional-dependencies']
print('\n'.join(extras['ray'] + extras['spark']))")
told="$("$dev" -VV) $PWD ${wanted[*]}"

install() {
  local began=$SECONDS
  say "installing ${wanted[*]} into $env: 800 MB, minutes, once"
  "$dev" -m venv --clear "$env"
  local dev_packages env_packages
  dev_packages="$("$dev" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  env_packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  # A line of a .pth file that begins with import is run, so that .pth files found there count too.
  printf 'import site; site.addsitedir(%s)\n' "'$dev_packages'" >"$env_packages/dev.pth"
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  "$python" -m pip install --quiet "${wanted[@]}"
  "$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
  printf '%s\n' "$told" >"$stamp"
  say "installed in $((SECONDS - began)) s, $(du -sm "$env" | cut -f1) MB"
}

if [ "$(cat "$stamp" 2>/dev/null)" = "$told" ]; then
  say "$env has what pyproject.toml asks for (rm -r $env for newer versions)"
else
  install
fi
"$python" -m pytest -m engines tests/e2e/jobs/test_ray.py tests/e2e/jobs/test_spark.py "$@"
