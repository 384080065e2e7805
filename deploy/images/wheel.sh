#!/usr/bin/env bash
# wheel.sh FOLDER: the package's wheel, compiled where there is a C compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."

if command -v "${CC:-cc}" >/dev/null; then
  export HATCH_BUILD_HOOK_ENABLE_CUSTOM=1
else
  printf 'wheel: COMPILE_BASE has no C compiler, so the package stays interpreted\n' >&2
fi
/opt/build/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --no-index --wheel-dir "$1" .
